"""Pretraining losses: masked signal modelling (MSM) and a multi-resolution STFT distance.

Every term is a tensor of sums and counts, which are added up over batches and processes before the one
division: a mean of means weighs unequal shares wrongly.

STFT loss: Yamamoto, Song & Kim 2020, "Parallel WaveGAN", https://arxiv.org/abs/1910.11480.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from biofound.core.global_term import RhythmTargets, global_terms, rate_term
from biofound.core.history import Losses
from biofound.core.models import Reconstruction
from biofound.core.qrs import qrs_term
from biofound.errors import SettingsError

FURTHER_TERMS = ("global", "rhythm", "rate", "qrs")
"""The loss terms beside MSM and STFT, in the order in which `LossSums` holds them."""


@dataclass(frozen=True)
class LossSums:
    """Loss sums of some windows, for C channels and R resolutions, in one small tensor.

    `values` (2, 1 + R + K, C): the sums, then the counts; of MSM, of the STFT at each resolution, and of
    the K `FURTHER_TERMS`.
    """

    values: Tensor

    @classmethod
    def zero(cls, *, channels: int, resolutions: int, device: torch.device) -> Self:
        """The sums of no windows, in float64."""
        rows = 1 + resolutions + len(FURTHER_TERMS)
        return cls(torch.zeros(2, rows, channels, dtype=torch.float64, device=device))

    @property
    def msm(self) -> Tensor:
        """Sums and counts (2, C) of the squared error."""
        return self.values[:, 0]

    @property
    def stft(self) -> Tensor:
        """Sums and counts (2, R, C) of the STFT distance."""
        return self.values[:, 1 : -len(FURTHER_TERMS)]

    def further_sums(self, name: str) -> Tensor:
        """Sums and counts (2, C) of one of the `FURTHER_TERMS`."""
        return self.values[:, FURTHER_TERMS.index(name) - len(FURTHER_TERMS)]

    def further(self, name: str) -> Tensor:
        """The mean of one of the `FURTHER_TERMS`: one ratio over all channels, 0 where nothing counted."""
        return mean_of(self.further_sums(name).sum(1))

    def __add__(self, other: "LossSums") -> "LossSums":
        """The sums of both sets of windows, without their graph."""
        return LossSums(self.values.detach() + other.values.detach())

    def with_counts_of(self, whole: "LossSums") -> "LossSums":
        """These sums over the counts of a whole batch: micro-batches' losses then add up to the batch's."""
        return LossSums(torch.stack([self.values[0], whole.values[1].to(self.values.dtype)]))

    def loss(self, weights: Mapping[str, float]) -> Tensor:
        """The training loss: MSM, and the terms named in `weights` (stft, global, ...) by their weight."""
        loss = msm_loss(self.msm)
        for name, weight in weights.items():
            if weight:
                loss = loss + weight * (stft_loss(self.stft) if name == "stft" else self.further(name))
        return loss

    def losses(self, weights: Mapping[str, float], *, channels: Sequence[str]) -> Losses:
        """The losses as plain numbers."""
        return Losses(
            loss=self.loss(weights).item(),
            msm=msm_loss(self.msm).item(),
            stft=stft_loss(self.stft).item(),
            msm_by_channel=dict(zip(channels, mean_of(self.msm).tolist(), strict=True)),
            further={name: self.further(name).item() for name in FURTHER_TERMS if weights.get(name)},
        )


def mean_of(sums: Tensor) -> Tensor:
    """Sum / count of sums and counts (2, ...); the mean of nothing is defined as 0."""
    return sums[0] / sums[1].clamp(min=1)


def masked_squared_error(reconstruction: Tensor, target: Tensor, loss_mask: Tensor) -> Tensor:
    """Masked signal modelling (MSM): the squared error over the samples of the loss mask, by channel.

    Args:
        reconstruction: (B, C, T), in normalised units.
        target: (B, C, T), in normalised units.
        loss_mask: (B, C, T) bool, True where a sample was hidden and is real.

    Returns:
        Sums and counts (2, C), float32.
    """
    error = torch.where(loss_mask, reconstruction.float() - target, 0.0)
    return torch.stack([error.square().sum((0, 2)), loss_mask.sum((0, 2)).float()])


def msm_loss(sums: Tensor) -> Tensor:
    """MSM of sums and counts (2, C): one ratio over all channels, so every hidden sample weighs the same."""
    return mean_of(sums.sum(1))


def stft_loss(sums: Tensor) -> Tensor:
    """The STFT distance of sums and counts (2, R, C): the mean over resolutions and channels of their means.

    A resolution of a channel in which nothing was hidden is left out; it does not count as zero.
    """
    present = (sums[1] > 0).float()
    return (mean_of(sums) * present).sum() / present.sum().clamp(min=1)


class MultiResolutionSTFT(nn.Module):
    """L1 between log-power spectrograms of a reconstruction and its target, at several resolutions.

    For each window length n (hop n/4, periodic Hann window w scaled to unit energy, sum w^2 = 1,
    frames centred with reflected ends as in `torch.stft`)::

        | log(|STFT_n(composite)|^2 + floor) - log(|STFT_n(target)|^2 + floor) |

    is summed over the frames that hold at least one sample of the loss mask, and over the bins in the
    channel's pass band. `composite` is the target with the samples of the loss mask taken from the
    reconstruction, so gradient comes from hidden samples only. Signals are normalised to unit
    variance, so with a unit-energy window the floor is relative to the signal's own power:
    without it the loss is about noise in bins where there is no signal.

    Computed in float32 whatever autocast says: in bfloat16 its gradient is 10-30 % off.
    """

    def __init__(
        self,
        *,
        sfreq: float,
        bands: Sequence[tuple[float, float]],
        window_lengths: Sequence[int],
        floor: float,
    ) -> None:
        """Prepare one Fourier basis a resolution and channel.

        Args:
            sfreq: sampling frequency in Hz.
            bands: the pass band (low, high) in Hz of each channel, in the channels' order.
            window_lengths: window lengths in samples, each a multiple of 4.
            floor: what is added to the power, relative to a signal of unit variance.

        Raises:
            SettingsError: when a window is so short that no bin lies in a channel's band.
        """
        super().__init__()
        self.window_lengths = tuple(window_lengths)
        self.channels = len(bands)
        self.floor = floor
        for n in self.window_lengths:
            window = torch.hann_window(n, dtype=torch.float64)
            window = window / window.square().sum().sqrt()
            for c, (low, high) in enumerate(bands):
                bins = [k for k in range(n // 2 + 1) if low <= k * sfreq / n <= high]
                if not bins:
                    raise SettingsError(
                        f"an STFT window of {n} samples at {sfreq:g} Hz has no frequency bin between "
                        f"{low:g} and {high:g} Hz; use windows of at least {int(sfreq / high) + 1} samples"
                    )
                phase = torch.outer(torch.arange(n), torch.tensor(bins)).double() * (2 * torch.pi / n)
                basis = window[:, None] * torch.cat([phase.cos(), phase.sin()], dim=1)  # (n, 2K)
                basis = basis.T.reshape(-1, 4, n // 4).transpose(1, 2).contiguous()  # (2K, n/4, 4)
                self.register_buffer(f"basis_{n}_{c}", basis.float(), persistent=False)

    def forward(self, reconstruction: Tensor, target: Tensor, loss_mask: Tensor) -> Tensor:
        """The distance as sums and counts (2, R, C), for R resolutions.

        Args:
            reconstruction: (B, C, T), in normalised units.
            target: (B, C, T), in normalised units, 0 in gaps.
            loss_mask: (B, C, T) bool, True where a sample was hidden and is real.

        Raises:
            ValueError: when a window does not fit the signal.
        """
        samples = target.shape[-1]
        if max(self.window_lengths) > samples:
            raise ValueError(
                f"an STFT window of {max(self.window_lengths)} samples does not fit windows of "
                f"{samples} samples; use shorter STFT windows"
            )
        with torch.autocast(target.device.type, enabled=False):
            composite = torch.where(loss_mask, reconstruction.float(), target)
            # Padded once, for the longest window: a shorter one's frames lie further inside.
            padding = max(self.window_lengths) // 2
            ours, theirs = _reflect(composite, padding), _reflect(target, padding)
            hidden = _reflect(loss_mask.float(), padding)
            by_resolution = [self._resolution(ours, theirs, hidden, n) for n in self.window_lengths]
        return torch.stack(by_resolution, dim=1)

    def _resolution(self, composite: Tensor, target: Tensor, loss_mask: Tensor, n: int) -> Tensor:
        """Sums and counts (2, C)."""
        skip = (max(self.window_lengths) - n) // 2
        ours, theirs, hidden = (_quarters(x, n, skip) for x in (composite, target, loss_mask))
        touched = F.max_pool1d(hidden.amax(2), 4, 1)  # (B, C, frames)
        totals, counts = [], []
        for c in range(self.channels):
            basis: Tensor = self.get_buffer(f"basis_{n}_{c}")
            with torch.no_grad():
                wanted = self._log_power(theirs[:, c], basis)
            distance = (self._log_power(ours[:, c], basis) - wanted).abs().sum(1)  # (B, frames)
            totals.append((distance * touched[:, c]).sum())
            counts.append(touched[:, c].sum() * (len(basis) // 2))
        return torch.stack([torch.stack(totals), torch.stack(counts)])

    def _log_power(self, quarters: Tensor, basis: Tensor) -> Tensor:
        # (B, n/4, frames + 3) -> (B, 2K, frames). On CUDA convolutions, not products, are rounded to TF32.
        on_cuda = quarters.is_cuda
        spectrum = _by_products(quarters, basis) if on_cuda else F.conv1d(quarters.contiguous(), basis)
        real, imaginary = spectrum.chunk(2, dim=1)
        return (real.square() + imaginary.square() + self.floor).log()


def _by_products(quarters: Tensor, basis: Tensor) -> Tensor:
    """The convolution of `F.conv1d`, as matrix products."""
    return torch.einsum("bhfj,khj->bkf", quarters.unfold(-1, 4, 1), basis)


def _reflect(x: Tensor, padding: int) -> Tensor:
    return F.pad(x, (padding, padding), mode="reflect")


def _quarters(x: Tensor, n: int, skip: int) -> Tensor:
    """(B, C, padded T) -> (B, C, n/4, frames + 3): quarters of windows, of which 4 in a row are a frame.

    Frames overlap by three quarters. In quarters no sample is copied more than once, and the
    transform is a convolution over quarters, several times as fast on a CPU as products of frames.
    """
    hop = n // 4
    count = (x.shape[-1] - 2 * skip) // hop
    return x[..., skip : skip + count * hop].reshape(*x.shape[:2], count, hop).transpose(-1, -2)


class PretrainingLoss(nn.Module):
    """All loss terms of a reconstruction, as `LossSums`."""

    def __init__(
        self,
        *,
        sfreq: float,
        bands: Sequence[tuple[float, float]],
        samples: int,
        stft_windows: Sequence[int],
        stft_floor: float,
        qrs_rows: Sequence[int] = (),
    ) -> None:
        """Prepare for windows of `samples`; see `MultiResolutionSTFT` and `RhythmTargets`.

        `qrs_rows` are the channels that the QRS term is computed for.
        """
        super().__init__()
        self.sfreq, self.qrs_rows = sfreq, tuple(qrs_rows)
        self.stft = MultiResolutionSTFT(
            sfreq=sfreq, bands=bands, window_lengths=stft_windows, floor=stft_floor
        )
        self.rhythm = RhythmTargets(sfreq=sfreq, bands=bands, samples=samples)

    def forward(self, out: Reconstruction, heart_rate: Tensor | None = None) -> LossSums:
        """The sums of the windows of `out`; terms whose head or channel the model lacks count nothing.

        `heart_rate` (B,) in beats a minute is what the rate term learns from; NaN where unknown.
        """
        msm = masked_squared_error(out.values, out.target, out.loss_mask)  # (2, C)
        stft = self.stft(out.values, out.target, out.loss_mask)  # (2, R, C)
        further = msm.new_zeros(2, len(FURTHER_TERMS), msm.shape[1])
        if out.rhythm is not None:
            summaries, intervals = self.rhythm(out.target)
            further[:, :2] = global_terms(out.rhythm, summaries, intervals, out.whole)
        if out.rate is not None and heart_rate is not None:
            further[:, 2] = rate_term(out.rate, heart_rate, out.whole)
        if self.qrs_rows:
            further[:, 3] = qrs_term(
                out.values, out.target, out.loss_mask, ecg=self.qrs_rows, sfreq=self.sfreq
            )
        return LossSums(torch.cat([msm[:, None], stft, further], dim=1))
