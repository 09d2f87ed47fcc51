import math

import pytest

from biofound.core.schedule import learning_rate


def curve(warmup, total, base=5e-4):
    return [learning_rate(s, base=base, warmup_steps=warmup, total_steps=total) for s in range(total)]


def test_warm_up_is_a_straight_line_that_ends_at_the_peak_and_never_is_zero():
    lrs = curve(10, 100)
    assert lrs[:10] == pytest.approx([5e-4 * (k + 1) / 10 for k in range(10)])
    assert max(lrs) == pytest.approx(5e-4)


def test_cosine_passes_half_the_peak_half_way_and_ends_almost_at_zero():
    lrs = curve(10, 110)
    assert lrs[60] == pytest.approx(2.5e-4)
    assert lrs[35] == pytest.approx(2.5e-4 * (1 + math.cos(math.pi / 4)))
    assert 0 < lrs[-1] < 1e-6


def test_no_warm_up_begins_at_the_peak():
    assert curve(0, 50)[0] == 5e-4
