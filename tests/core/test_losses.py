import math

import pytest
import torch

from biofound.core import losses
from biofound.core.losses import (
    FURTHER_TERMS,
    LossSums,
    MultiResolutionSTFT,
    masked_squared_error,
    mean_of,
    msm_loss,
    stft_loss,
)
from biofound.errors import SettingsError

BANDS = [(0.5, 8.0), (0.5, 40.0)]


def make_stft(bands=BANDS, lengths=(64, 128, 256), floor=1e-3):
    return MultiResolutionSTFT(sfreq=125.0, bands=bands, window_lengths=lengths, floor=floor)


def signals(seed=0, windows=3, channels=2, samples=1250):
    return torch.randn(windows, channels, samples, generator=torch.Generator().manual_seed(seed))


def patches_hidden(x, *hidden, length=125):
    loss_mask = torch.zeros_like(x, dtype=torch.bool)
    for p in hidden:
        loss_mask[..., p * length : (p + 1) * length] = True
    return loss_mask


def test_msm_of_a_constant_error_is_its_square_and_visible_samples_count_nothing():
    target = signals()
    loss_mask = patches_hidden(target, 2, 7)
    wrong = torch.where(loss_mask, target + 0.5, target - 9.0)
    assert msm_loss(masked_squared_error(wrong, target, loss_mask)).item() == pytest.approx(0.25, rel=1e-6)


def test_msm_by_channel_and_in_all_weighs_every_hidden_sample_alike():
    target = torch.zeros(1, 2, 100)
    loss_mask = torch.zeros_like(target, dtype=torch.bool)
    loss_mask[0, 0, :10] = True  # 10 samples with error 1
    loss_mask[0, 1, :90] = True  # 90 samples with error 2
    sums = masked_squared_error(torch.tensor([1.0, 2.0])[None, :, None].expand(1, 2, 100), target, loss_mask)
    assert mean_of(sums).tolist() == [1.0, 4.0]
    assert msm_loss(sums).item() == pytest.approx((10 * 1 + 90 * 4) / 100)


def test_the_loss_of_an_empty_mask_is_zero_with_a_zero_gradient():
    target = signals()
    nothing = torch.zeros_like(target, dtype=torch.bool)
    ours = (target + 1).requires_grad_()
    loss = msm_loss(masked_squared_error(ours, target, nothing)) + stft_loss(
        make_stft()(ours, target, nothing)
    )
    loss.backward()
    assert loss.item() == 0
    assert not ours.grad.any()


def sums_of(ours, target, loss_mask):
    msm, stft = masked_squared_error(ours, target, loss_mask), make_stft()(ours, target, loss_mask)
    further = torch.stack([msm * k for k in range(2, 2 + len(FURTHER_TERMS))], dim=1)  # whatever they are
    return LossSums(torch.cat([msm[:, None], stft, further], dim=1))


@pytest.mark.parametrize("first", [1, 2])
def test_sums_of_micro_batches_are_the_loss_of_the_whole(first):
    ours, target = signals(1), signals(2)
    loss_mask = patches_hidden(target, 1, 2, 6)
    loss_mask[0, :, :400] = False  # unequal shares, so that a mean of means would differ
    whole = sums_of(ours, target, loss_mask)
    one, other = (sums_of(ours[p], target[p], loss_mask[p]) for p in (slice(0, first), slice(first, None)))
    added = LossSums.zero(channels=2, resolutions=3, device=torch.device("cpu")) + one + other
    assert msm_loss(added.msm).item() == pytest.approx(msm_loss(whole.msm).item(), rel=1e-6)
    assert stft_loss(added.stft).item() == pytest.approx(stft_loss(whole.stft).item(), rel=1e-6)
    weights = {"stft": 0.3, "global": 0.2, "rhythm": 0.1}
    shares = [own.with_counts_of(added).loss(weights).item() for own in (one, other)]
    assert sum(shares) == pytest.approx(whole.loss(weights).item(), rel=1e-6)
    mean_of_means = (msm_loss(one.msm) + msm_loss(other.msm)) / 2
    assert mean_of_means.item() != pytest.approx(msm_loss(whole.msm).item(), rel=1e-4)


def test_losses_are_plain_numbers_that_add_up():
    sums = sums_of(signals(1), signals(2), patches_hidden(signals(), 1, 2))
    found = sums.losses({"stft": 0.3, "global": 0.0, "rhythm": 0.1}, channels=("PPG", "ECG"))
    assert found.loss == pytest.approx(found.msm + 0.3 * found.stft + 0.1 * found.further["rhythm"], rel=1e-6)
    assert list(found.further) == ["rhythm"]
    assert list(found.msm_by_channel.values()) == mean_of(sums.msm).tolist()
    nothing = LossSums.zero(channels=2, resolutions=3, device=torch.device("cpu"))
    assert nothing.losses({"stft": 0.3}, channels=("PPG", "ECG")).loss == 0


def test_stft_loss_equals_an_independent_reference_in_float64():
    ours, target = signals(1), signals(2)
    loss_mask = patches_hidden(target, 0, 4, 5)
    composite = torch.where(loss_mask, ours, target).double()
    resolutions = []
    for n in (64, 128, 256):
        window = torch.hann_window(n, dtype=torch.float64)
        window /= window.square().sum().sqrt()

        def spectrum(x, n=n, window=window):
            flat = torch.stft(x.reshape(-1, 1250), n, n // 4, window=window, return_complex=True)
            return (flat.abs().square() + 1e-3).log().reshape(3, 2, n // 2 + 1, -1)  # (B, C, bins, frames)

        # A frame counts when its span, reflected at the ends, holds a hidden sample.
        padded = torch.nn.functional.pad(loss_mask.double(), (n // 2, n // 2), mode="reflect")
        touched = padded.unfold(-1, n, n // 4).any(-1)[:, :, None, :]
        distance = (spectrum(composite) - spectrum(target.double())).abs()
        frequencies = torch.arange(n // 2 + 1) * 125.0 / n
        for c, (low, high) in enumerate(BANDS):
            bins = (frequencies >= low) & (frequencies <= high)
            inside = distance[:, c, bins][touched[:, c].expand(-1, int(bins.sum()), -1)]
            resolutions.append(inside.mean())
    reference = torch.stack(resolutions).mean().item()
    assert stft_loss(make_stft()(ours, target, loss_mask)).item() == pytest.approx(reference, rel=1e-4)


def test_doubling_a_signal_far_above_the_floor_costs_log_4():
    x = 1e3 * signals()
    everything = torch.ones_like(x, dtype=torch.bool)
    assert stft_loss(make_stft()(2 * x, x, everything)).item() == pytest.approx(math.log(4), rel=1e-3)


def test_a_tone_of_unit_variance_is_far_above_the_floor_and_silence_lies_on_it():
    t = torch.arange(1250) / 125.0
    tone = (math.sqrt(2) * torch.sin(2 * math.pi * 125 / 64 * 1 * t)).expand(1, 1, -1)  # bin 1 of n = 64
    silence = torch.zeros_like(tone)
    everything = torch.ones_like(tone, dtype=torch.bool)
    stft = make_stft(bands=[(1.9, 2.0)], lengths=(64,))
    # Interior frames: power of a unit-variance tone through a unit-energy Hann window is n/3 at its bin.
    expected = math.log((64 / 3 + 1e-3) / 1e-3)
    assert stft_loss(stft(silence, tone, everything)).item() == pytest.approx(expected, rel=0.03)


def test_a_small_error_scores_small_where_an_absolute_floor_would_not():
    t = torch.arange(1250) / 125.0
    target = torch.stack([torch.sin(2 * math.pi * f * t) * math.sqrt(2) for f in (1.2, 5.0)])[None]
    noise = 0.01 * signals(3, windows=1)  # MSE 1e-4
    everything = torch.ones_like(target, dtype=torch.bool)
    ours = stft_loss(make_stft()(target + noise, target, everything)).item()
    naive = stft_loss(
        make_stft(bands=[(0.5, 62.5)] * 2, floor=1e-8)(target + noise, target, everything)
    ).item()
    assert ours < 0.15
    assert naive > 1.0  # the trap: noise in empty bins is most of the loss


def test_gradient_comes_from_hidden_samples_only():
    ours, target = signals(1).requires_grad_(), signals(2)
    loss_mask = patches_hidden(target, 3)
    stft_loss(make_stft()(ours, target, loss_mask)).backward()
    assert not ours.grad[~loss_mask].any()
    assert ours.grad[loss_mask].abs().min() > 0


def test_the_weighted_stft_gradient_is_of_the_size_of_the_msm_gradient():
    ours, target = (0.5 * signals(1)).requires_grad_(), signals(2)
    loss_mask = patches_hidden(target, 1, 4, 6, 8)
    norms = []
    for loss in (
        msm_loss(masked_squared_error(ours, target, loss_mask)),
        0.3 * stft_loss(make_stft()(ours, target, loss_mask)),
    ):
        (gradient,) = torch.autograd.grad(loss, ours)
        norms.append(gradient.norm().item())
    assert 0.1 < norms[1] / norms[0] < 2


def test_stft_is_computed_in_float32_under_autocast():
    ours, target = signals(1), signals(2)
    loss_mask = patches_hidden(target, 3)
    plain = stft_loss(make_stft()(ours, target, loss_mask))
    with torch.autocast("cpu", torch.bfloat16):
        cast = stft_loss(make_stft()(ours, target, loss_mask))
    assert cast.dtype == torch.float32
    assert torch.equal(plain, cast)


def test_a_window_that_does_not_fit_and_a_band_without_bins_are_refused():
    x = signals(samples=200)
    with pytest.raises(ValueError, match="256 samples does not fit windows of 200"):
        make_stft()(x, x, torch.ones_like(x, dtype=torch.bool))
    with pytest.raises(SettingsError, match=r"no frequency bin between 0\.5 and 1 Hz"):
        make_stft(bands=[(0.5, 1.0)], lengths=(64,))


def test_the_transform_that_cuda_takes_equals_the_one_of_the_cpu():
    random = torch.Generator().manual_seed(0)
    quarters = torch.randn(3, 16, 40, generator=random)
    basis = torch.randn(8, 16, 4, generator=random)
    expected = torch.nn.functional.conv1d(quarters, basis)
    assert torch.allclose(losses._by_products(quarters, basis), expected, atol=1e-4)
