import numpy as np
import pytest

from biofound.core.masking import Stream, draw_masks, hidden_patches, keyed_uniform


def masks(index, *, kind="random", ratio=0.4, patches=10, seed=0, epoch=0, stream=Stream.TRAIN_MASK):
    return draw_masks(
        kind=kind,
        ratio=ratio,
        patches=patches,
        seed=seed,
        stream=stream,
        epoch=epoch,
        index=np.asarray(index),
    )


def test_uniform_numbers_are_those_of_numpys_philox_at_the_samples_counter():
    drawn = keyed_uniform(seed=7, stream=Stream.CROP, epoch=3, index=np.array([5, 0, 123456789]), count=6)
    for row, sample in zip(drawn, (5, 0, 123456789), strict=True):
        philox = np.random.Philox(key=[7, 3 << 32 | 3], counter=[0, 0, 0, sample])
        assert row.tolist() == np.random.Generator(philox).random(6).tolist()


def test_uniform_numbers_are_uniform_and_uncorrelated_between_neighbouring_keys():
    u = keyed_uniform(seed=0, stream=Stream.CROP, epoch=0, index=np.arange(100_000), count=2)
    assert u.min() >= 0 and u.max() < 1
    counts, _ = np.histogram(u, bins=100, range=(0, 1))
    chi2 = ((counts - 2000) ** 2 / 2000).sum()
    assert 50 < chi2 < 160  # 99 degrees of freedom
    assert abs(np.corrcoef(u[:-1, 0], u[1:, 0])[0, 1]) < 0.01
    assert abs(np.corrcoef(u[:, 0], u[:, 1])[0, 1]) < 0.01
    later = keyed_uniform(seed=0, stream=Stream.CROP, epoch=1, index=np.arange(100_000), count=2)
    assert abs(np.corrcoef(u[:, 0], later[:, 0])[0, 1]) < 0.01


@pytest.mark.parametrize("kind", ["random", "block"])
@pytest.mark.parametrize(
    ("ratio", "patches", "hidden"), [(0.4, 10, 4), (0.15, 10, 2), (0.5, 5, 2), (0.75, 7, 5)]
)
def test_every_mask_hides_exactly_the_promised_number(kind, ratio, patches, hidden):
    assert (masks(np.arange(2000), kind=kind, ratio=ratio, patches=patches).sum(1) == hidden).all()


def test_every_random_mask_is_equally_likely():
    drawn = masks(np.arange(60_000), patches=5, ratio=0.4)  # 10 subsets
    _, counts = np.unique(drawn @ (1 << np.arange(5)), return_counts=True)
    assert len(counts) == 10
    assert ((counts - 6000) ** 2 / 6000).sum() < 30  # 9 degrees of freedom


def test_block_masks_are_one_run_and_each_start_is_equally_likely():
    drawn = masks(np.arange(70_000), kind="block")
    starts = drawn.argmax(1)
    assert all(row[s : s + 4].all() for row, s in zip(drawn[:500], starts[:500], strict=True))
    _, counts = np.unique(starts, return_counts=True)
    assert len(counts) == 7
    assert ((counts - 10_000) ** 2 / 10_000).sum() < 30


def test_a_mask_depends_on_its_key_alone():
    together = masks(np.arange(50))
    assert (masks([31]) == together[31]).all()
    assert (masks(np.arange(50)[::-1]) == together[::-1]).all()
    for changed in ({"seed": 1}, {"epoch": 1}, {"stream": Stream.VALIDATION_MASK}):
        assert (masks(np.arange(50), **changed) != together).any()


@pytest.mark.parametrize("ratio", [0.01, 0.04, 0.96, 0.99])
def test_a_mask_that_hides_all_or_nothing_is_refused_with_the_ratios_that_work(ratio):
    with pytest.raises(ValueError, match=r"use a ratio from 0\.1 to 0\.9"):
        hidden_patches(ratio=ratio, patches=10)
