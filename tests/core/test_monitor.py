import math

import pytest
import torch

from biofound.core.monitor import MonitorSums, copy_nearest_patch, monitor_sums, r_peaks

SFREQ, SAMPLES, PATCHES = 125.0, 1250, 10


def ecg_of(peaks, *, windows=1):
    """Narrow Gaussian R peaks at these samples."""
    t = torch.arange(SAMPLES, dtype=torch.float64)
    wave = sum(torch.exp(-0.5 * ((t - p) / 2.0) ** 2) for p in peaks)
    return wave.expand(windows, -1)


def sums(values, target, mask, latents=None):
    hidden = mask.repeat_interleave(SAMPLES // PATCHES, 1)[:, None].expand_as(target)
    if latents is None:
        latents = torch.zeros(len(target), PATCHES, 3)
    return monitor_sums(
        values, target, hidden, mask=mask, latents=latents, channels=("PPG", "ECG"), sfreq=SFREQ
    )


def mask_of(*hidden, windows=1):
    mask = torch.zeros(windows, PATCHES, dtype=torch.bool)
    mask[:, list(hidden)] = True
    return mask


def two_channels(ecg):
    return torch.stack([torch.sin(torch.arange(SAMPLES) / 9.0).expand(len(ecg), -1).double(), ecg], 1)


def test_copy_takes_the_nearest_visible_patch_and_of_two_the_earlier():
    target = torch.arange(PATCHES, dtype=torch.float64).repeat_interleave(5).expand(1, 2, -1)
    copied = copy_nearest_patch(target, mask_of(0, 3, 5, 6, 9))
    assert copied[0, 1, ::5].tolist() == [1, 1, 2, 2, 4, 4, 7, 7, 8, 8]


def test_a_perfect_reconstruction_has_the_targets_variance_and_finds_every_peak():
    target = two_channels(ecg_of(range(60, SAMPLES, 100)))
    found = sums(target, target, mask_of(1, 4, 7)).summary()
    assert found["variance_ratio"] == pytest.approx({"PPG": 1.0, "ECG": 1.0})
    assert (found["r_peak_recall"], found["r_peak_precision"]) == (1.0, 1.0)


def test_variance_ratio_is_the_square_of_the_gain():
    target = two_channels(ecg_of(range(60, SAMPLES, 100)))
    found = sums(0.5 * target, target, mask_of(1, 4, 7)).summary()
    assert found["variance_ratio"] == pytest.approx({"PPG": 0.25, "ECG": 0.25})


def test_a_flat_reconstruction_finds_no_peak_and_a_faint_ripple_neither():
    target = two_channels(ecg_of(range(60, SAMPLES, 100)))
    ripple = 0.02 * torch.sin(2 * math.pi * 8 * torch.arange(SAMPLES) / SFREQ).expand_as(target).double()
    for values in (torch.zeros_like(target), ripple):
        found = sums(values, target, mask_of(1, 4, 7)).summary()
        assert found["r_peak_recall"] == 0.0


@pytest.mark.parametrize(("shift", "recall"), [(0, 1.0), (5, 1.0), (9, 0.0)])
def test_peaks_count_within_50_ms(shift, recall):
    beats = [190, 440, 690, 940]  # in the middle of patches 1, 3, 5, 7
    target = two_channels(ecg_of(beats))
    moved = two_channels(ecg_of([beat + shift for beat in beats]))
    assert sums(moved, target, mask_of(1, 3, 5, 7)).summary()["r_peak_recall"] == recall


def test_peaks_stand_where_they_were_put_whatever_the_polarity_and_scale():
    beats = list(range(60, SAMPLES, 90))
    for gain in (1.0, -300.0):
        found, _ = r_peaks(gain * ecg_of(beats), sfreq=SFREQ)
        places = found[0].nonzero()[:, 0]
        assert len(places) == len(beats)
        assert (places - torch.tensor(beats)).abs().max() <= 1


def test_effective_rank_counts_equal_directions():
    latents = torch.zeros(400, PATCHES, 6)
    latents[..., :3] = torch.randn(400, PATCHES, 3, generator=torch.Generator().manual_seed(0))
    target = two_channels(ecg_of([200], windows=400))
    found = sums(target, target, mask_of(1, windows=400), latents).summary()
    assert found["latent_rank"] == pytest.approx(3.0, rel=0.01)


def test_sums_of_parts_are_those_of_the_whole():
    random = torch.Generator().manual_seed(1)
    target = two_channels(ecg_of(range(60, SAMPLES, 100), windows=6)).clone()
    values = target + 0.3 * torch.randn(target.shape, generator=random, dtype=torch.float64)
    latents = torch.randn(6, PATCHES, 3, generator=random)
    mask = mask_of(1, 4, 7, windows=6)
    whole = sums(values, target, mask, latents)
    parts = [sums(values[s], target[s], mask[s], latents[s]) for s in (slice(0, 2), slice(2, 6))]
    start = MonitorSums.zero(channels=("PPG", "ECG"), width=3, device=torch.device("cpu"))
    torch.testing.assert_close(sum(parts, start=start).vector, whole.vector)


def test_nothing_hidden_is_nothing_to_measure():
    target = two_channels(ecg_of([200]))
    found = sums(target, target, mask_of()).summary()
    assert found["variance_ratio"] == {"PPG": None, "ECG": None}
    assert found["r_peak_recall"] is None


def test_precision_is_the_share_of_predicted_peaks_that_are_right():
    target = two_channels(ecg_of([190, 440, 690, 940]))
    values = two_channels(ecg_of([190, 440, 560, 700]))  # in hidden patches 1, 3, 4 and 5; one of 4 is wrong
    found = sums(values, target, mask_of(1, 3, 4, 5, 7)).summary()
    assert (found["r_peak_recall"], found["r_peak_precision"]) == (2 / 4, 2 / 4)
