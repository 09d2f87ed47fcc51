"""What the encoder is trained for: masked signal modelling and a multi-resolution STFT distance.

Every term is returned as sums and counts, so that batches and processes are added up before the
one division: a mean of means weighs unequal shares wrongly.

STFT loss: Yamamoto, Song & Kim 2020, "Parallel WaveGAN", https://arxiv.org/abs/1910.11480.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class SumCount:
    """A sum and the number of elements in it, of equal shapes; their ratio is the mean."""

    total: Tensor
    count: Tensor

    def __add__(self, other: "SumCount") -> "SumCount":
        """Both sets together."""
        return SumCount(self.total + other.total, self.count + other.count)


def mean_of(terms: SumCount) -> Tensor:
    """`total / count` where something was counted, else 0: the mean of an empty set is defined as 0."""
    return terms.total / terms.count.clamp(min=1)


def masked_squared_error(reconstruction: Tensor, target: Tensor, loss_mask: Tensor) -> SumCount:
    """Masked signal modelling (MSM): the squared error over the counted samples, by channel.

    Args:
        reconstruction: (B, C, T), in normalised units.
        target: (B, C, T), in normalised units.
        loss_mask: (B, C, T) bool, True where a sample was hidden and is real.

    Returns:
        Sums and counts (C,), float32. MSM is `sum of totals / sum of counts`.
    """
    error = torch.where(loss_mask, reconstruction.float() - target, 0.0)
    return SumCount(error.square().sum((0, 2)), loss_mask.sum((0, 2)).float())


def msm_loss(terms: SumCount) -> Tensor:
    """MSM over all channels: one ratio of sums, so every hidden sample weighs the same."""
    return mean_of(SumCount(terms.total.sum(), terms.count.sum()))


def stft_loss(terms: SumCount) -> Tensor:
    """The STFT distance: the mean over resolutions and channels of their own means.

    A resolution of a channel in which nothing was hidden counts as nothing, not as zero.
    """
    means = mean_of(terms)
    present = (terms.count > 0).float()
    return (means * present).sum() / present.sum().clamp(min=1)


class MultiResolutionSTFT(nn.Module):
    """L1 between log-power spectrograms of a reconstruction and its target, at several resolutions.

    For each window length n (hop n/4, periodic Hann window w scaled to unit energy, sum w^2 = 1,
    frames centred with reflected ends as in `torch.stft`)::

        | log(|STFT_n(composite)|^2 + floor) - log(|STFT_n(target)|^2 + floor) |

    is summed over the frames that hold at least one counted sample, and over the bins in the
    channel's pass band. `composite` is the target with the counted samples taken from the
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
            ValueError: when a window is so short that no bin lies in a channel's band.
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
                    raise ValueError(
                        f"an STFT window of {n} samples at {sfreq:g} Hz has no frequency bin between "
                        f"{low:g} and {high:g} Hz; use windows of at least {int(sfreq / high) + 1} samples"
                    )
                phase = torch.outer(torch.arange(n), torch.tensor(bins)).double() * (2 * torch.pi / n)
                basis = window[:, None] * torch.cat([phase.cos(), phase.sin()], dim=1)  # (n, 2K)
                basis = basis.T.reshape(-1, 4, n // 4).transpose(1, 2).contiguous()  # (2K, n/4, 4)
                self.register_buffer(f"basis_{n}_{c}", basis.float(), persistent=False)

    def forward(self, reconstruction: Tensor, target: Tensor, loss_mask: Tensor) -> SumCount:
        """The distance as sums and counts.

        Args:
            reconstruction: (B, C, T), in normalised units.
            target: (B, C, T), in normalised units, 0 in gaps.
            loss_mask: (B, C, T) bool, True where a sample was hidden and is real.

        Returns:
            Sums and counts (R, C), for R resolutions.

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
            pairs = [self._resolution(ours, theirs, hidden, n) for n in self.window_lengths]
        return SumCount(torch.stack([p.total for p in pairs]), torch.stack([p.count for p in pairs]))

    def _resolution(self, composite: Tensor, target: Tensor, loss_mask: Tensor, n: int) -> SumCount:
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
        return SumCount(torch.stack(totals), torch.stack(counts))

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

    Frames overlap by three quarters. Cut like this no sample is copied more than once, and the
    transform is a convolution over quarters, several times as fast on a CPU as products of frames.
    """
    hop = n // 4
    count = (x.shape[-1] - 2 * skip) // hop
    return x[..., skip : skip + count * hop].reshape(*x.shape[:2], count, hop).transpose(-1, -2)
