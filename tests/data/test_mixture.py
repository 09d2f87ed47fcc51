"""Mixed windows: each part's own windows at its place, and new synthetic ones in every epoch."""

import numpy as np
import pytest

from biofound.data.mixture import MixedWindows, Part, changes_by_epoch
from biofound.data.stream import SyntheticStream
from biofound.data.windows import ArrayWindows
from biofound.errors import DataError
from biofound.settings import resolve_channels

CHANNELS = resolve_channels(None, "pretrain").channels


def stream(**changes):
    return SyntheticStream(**{"population": "icu", "channels": CHANNELS, "hours": 0.05, "seed": 3, **changes})


def recorded(count=7, *, seed=0, samples=1250, subject="s"):
    x = np.random.default_rng(seed).normal(size=(count, 2, samples)).astype(np.float32)
    subjects = [f"{subject}{row // 3}" for row in range(count)]
    starts = 10.0 * np.arange(count)
    return ArrayWindows(x, channels=("PPG", "ECG"), sfreq=125.0, subjects=subjects, start_s=starts)


@pytest.fixture
def mixed():
    parts = (recorded(), stream(), recorded(4, seed=1, subject="t"))
    return MixedWindows(
        [Part(name=name, windows=windows) for name, windows in zip("abc", parts, strict=True)]
    )


def test_every_window_is_that_of_its_part_in_any_order(mixed):
    first, hearts, last = (part.windows for part in mixed.parts)
    whole = np.concatenate([part.windows.read(np.arange(len(part.windows))) for part in mixed.parts])
    index = np.random.default_rng(0).permutation(len(mixed))
    np.testing.assert_array_equal(mixed.read(index), whole[index])
    assert len(mixed) == len(first) + len(hearts) + len(last)
    assert mixed.subjects == tuple(sorted({*first.subjects, *hearts.subjects, *last.subjects}))
    assert not mixed.synthetic and changes_by_epoch(mixed) and not changes_by_epoch(first)


def test_crops_and_segments_are_those_of_the_parts(mixed):
    index, crop = np.array([8, 0, len(mixed) - 1]), np.array([0.7, 0.2, 0.4])
    got = mixed.read(index, crop)
    first, hearts, last = (part.windows for part in mixed.parts)
    np.testing.assert_array_equal(got[0], hearts.read(np.array([1]), crop[:1])[0])
    np.testing.assert_array_equal(got[1], first.read(np.array([0]), crop[1:2])[0])
    np.testing.assert_array_equal(got[2], last.read(np.array([3]), crop[2:])[0])
    segments = mixed.segments()
    assert segments.first[[0, 2, 3, 8, len(mixed) - 1]].tolist() == [0, 0, 3, 7, len(mixed) - 1]
    assert segments.length[8] == 6


def test_an_epoch_renews_the_synthetic_windows_only_and_repeats_them_exactly(mixed):
    everything = np.arange(len(mixed))
    hearts = mixed.parts[1].windows
    epochs = [mixed.read(everything, epoch=epoch) for epoch in range(3)]
    ours = slice(7, 7 + len(hearts))
    np.testing.assert_array_equal(epochs[2][ours], hearts.read(np.arange(len(hearts)) + 2 * len(hearts)))
    np.testing.assert_array_equal(epochs[0][:7], epochs[2][:7])
    flat = np.concatenate([epoch[ours].reshape(len(hearts), -1) for epoch in epochs])
    assert len(np.unique(flat, axis=0)) == len(flat)
    # one window at a time, in another object, as another process would read it
    again = MixedWindows([Part(name="z", windows=recorded()), Part(name="b", windows=stream())])
    for index in (7, 12):
        np.testing.assert_array_equal(again.read(np.array([index]), epoch=1)[0], epochs[1][index])


def test_heart_rate_is_the_truth_of_what_is_read_and_nan_for_recordings(mixed):
    index, crop = np.array([0, 7, len(mixed) - 1, 9]), np.full(4, 0.3)
    rates = mixed.heart_rate(index, crop, 2)
    assert rates.dtype == np.float32 and np.isnan(rates[[0, 2]]).all()
    hearts = mixed.parts[1].windows
    own = np.array([0, 2]) + 2 * len(hearts)
    np.testing.assert_allclose(rates[[1, 3]], hearts.truth(own, crop[:2]).heart_rate, rtol=1e-6)


def test_info_keeps_the_order_asked_for_and_knows_the_epoch(mixed):
    info = mixed.info(np.array([7, 0, len(mixed) - 1]), 1)
    hearts = mixed.parts[1].windows
    assert info.subject_id.tolist() == [*hearts.info(np.array([len(hearts)])).subject_id, "s0", "t1"]
    assert info.quality.shape == (3, 2) and len(mixed.info(np.array([], np.int64)).case_id) == 0


def test_fingerprint_follows_every_part_and_their_order():
    a, b = Part(name="a", windows=recorded()), Part(name="b", windows=stream())
    other = Part(name="b", windows=stream(seed=4))
    prints = {MixedWindows(parts).fingerprint for parts in ([a, b], [b, a], [a, other], [a])}
    assert len(prints) == 4
    assert MixedWindows([a, b]).fingerprint == MixedWindows([a, b]).fingerprint


def test_synthetic_only_when_all_parts_are():
    assert MixedWindows([Part(name="b", windows=stream())]).synthetic


def test_parts_that_differ_are_refused():
    with pytest.raises(DataError, match="a and b differ in window_samples: 1250 against 625"):
        MixedWindows([Part(name="a", windows=recorded()), Part(name="b", windows=recorded(samples=625))])


def test_an_index_outside_is_refused(mixed):
    with pytest.raises(IndexError):
        mixed.read(np.array([len(mixed)]))
