import numpy as np
import pytest

from biofound.core.sampler import BLOCK, epoch_order


def order(windows, *, shuffle, seed=0, epoch=0):
    return epoch_order(windows=windows, seed=seed, epoch=epoch, shuffle=shuffle)


@pytest.mark.parametrize("shuffle", ["full", "block"])
@pytest.mark.parametrize("windows", [1, 63, 64, 65, 1000, 40_000])
def test_every_window_comes_once_in_an_order_keyed_by_seed_and_epoch(shuffle, windows):
    first = order(windows, shuffle=shuffle)
    assert np.array_equal(np.sort(first), np.arange(windows))
    assert np.array_equal(first, order(windows, shuffle=shuffle))
    if windows > 60:
        assert not np.array_equal(first, order(windows, shuffle=shuffle, epoch=1))
        assert not np.array_equal(first, order(windows, shuffle=shuffle, seed=1))


def test_block_order_reads_few_places_of_the_disk_at_a_time_and_still_mixes_subjects():
    windows, batch = 200_000, 128
    subject = np.arange(windows) // 500  # 400 subjects of 500 windows
    blocks = {}
    for shuffle in ("full", "block"):
        drawn = order(windows, shuffle=shuffle)
        first = drawn[: 64 * batch]
        blocks[shuffle] = len(np.unique(first // BLOCK))
        mixed = [len(np.unique(subject[drawn[k : k + batch]])) for k in range(0, 50 * batch, batch)]
        assert min(mixed) > 70
    assert blocks["block"] < 0.15 * blocks["full"]
