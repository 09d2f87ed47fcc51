"""Validation monitor: variance, simple baselines, R-peak recall and latent rank of a reconstruction.

Losses alone do not show that a channel is reconstructed: a flat line scores the constant guess, and so does
a ripple. Everything here is a sum over windows, so that batches and processes add up before the division.
"""

from dataclasses import dataclass
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from biofound.core.qrs import is_ecg, qrs_energy

R_PEAK_TOLERANCE_SECONDS = 0.05
REFRACTORY_SECONDS = 0.25
MIN_QRS_ENERGY = 0.25
"""An R peak has at least this part of the QRS energy that the window's beats have in the median."""


@dataclass(frozen=True)
class MonitorSums:
    """Sums over windows, in one float64 vector: what batches and processes add up.

    For C channels and latents of width D the vector holds, by channel, the number of hidden samples and the
    sums of target, target squared, reconstruction, reconstruction squared and of the squared error of
    copying the nearest visible patch (6 x C); hidden R peaks: true, found, predicted, right (4); the number,
    sum (D) and outer product (D x D) of the latents.
    """

    vector: Tensor
    channels: tuple[str, ...]
    width: int

    @classmethod
    def zero(cls, *, channels: tuple[str, ...], width: int, device: torch.device) -> Self:
        """The sums of no windows."""
        size = 6 * len(channels) + 4 + 1 + width + width * width
        return cls(torch.zeros(size, dtype=torch.float64, device=device), channels, width)

    def __add__(self, other: "MonitorSums") -> "MonitorSums":
        return MonitorSums(self.vector + other.vector, self.channels, self.width)

    def summary(self) -> dict[str, Any]:
        """The quantities that a user watches, as plain numbers; None where there is nothing to measure.

        Returns:
            `variance_ratio` (reconstruction's variance over the target's, hidden samples),
            `constant_guess_msm` (MSM of the visible samples' mean) and `copy_patch_msm` (MSM of copying the
            nearest visible patch), by channel; `r_peak_recall` and
            `r_peak_precision` of ECG R peaks in hidden seconds, within 50 ms; `latent_rank` (effective rank,
            Roy & Vetterli 2007: the exponential of the entropy of the covariance's eigenvalues, 1 to D).
        """
        c, d = len(self.channels), self.width
        moments, peaks, rest = torch.split(self.vector.cpu(), [6 * c, 4, 1 + d + d * d])
        count, target, target2, made, made2, copied = moments.view(6, c).unbind()
        variance = made2 / count - (made / count).square()
        wanted = target2 / count - (target / count).square()
        true, found, predicted, right = peaks.tolist()
        return {
            "variance_ratio": _by_channel(self.channels, variance / wanted),
            "constant_guess_msm": _by_channel(self.channels, target2 / count),
            "copy_patch_msm": _by_channel(self.channels, copied / count),
            "r_peak_recall": found / true if true else None,
            "r_peak_precision": right / predicted if predicted else None,
            "latent_rank": _effective_rank(rest, d),
        }


def monitor_sums(
    values: Tensor,
    target: Tensor,
    loss_mask: Tensor,
    *,
    mask: Tensor,
    latents: Tensor,
    channels: tuple[str, ...],
    sfreq: float,
) -> MonitorSums:
    """The monitor's sums of one batch.

    Args:
        values: (B, C, T), the reconstruction in normalised units.
        target: (B, C, T), in normalised units, 0 in gaps.
        loss_mask: (B, C, T) bool, True where a sample was hidden and is real.
        mask: (B, P) bool, True = hidden.
        latents: (B, P, D).
        channels: the C channel names; R peaks are those of the first that begins with ECG.
        sfreq: sampling frequency in Hz.
    """
    values, target = values.double(), target.double()
    copied = copy_nearest_patch(target, mask)
    kept = loss_mask.double()
    moments = [kept, target * kept, target.square() * kept, values * kept, values.square() * kept]
    by_channel = torch.stack([*moments, (copied - target).square() * kept]).sum((1, 3))  # (6, C)
    peaks = torch.zeros(4, dtype=torch.float64, device=values.device)
    ecg = next((row for row, name in enumerate(channels) if is_ecg(name)), None)
    if ecg is not None:
        composite = torch.where(loss_mask, values, target)[:, ecg]
        peaks = _r_peak_counts(composite, target[:, ecg], loss_mask[:, ecg], sfreq=sfreq)
    flat = latents.double().flatten(0, 1)  # (B*P, D)
    rank = [flat.new_tensor([len(flat)]), flat.sum(0), (flat.T @ flat).flatten()]
    return MonitorSums(torch.cat([by_channel.flatten(), peaks, *rank]), channels, flat.shape[1])


def copy_nearest_patch(target: Tensor, mask: Tensor) -> Tensor:
    """Predict each hidden patch by a copy of the nearest visible one; of two equally near, the earlier.

    Args:
        target: (B, C, T).
        mask: (B, P) bool, True = hidden; at least one patch of a window is visible.

    Returns:
        (B, C, T): visible patches as they are.
    """
    patches = mask.shape[1]
    place = torch.arange(patches, device=mask.device)
    distance = (place[:, None] - place[None, :]).abs().double() + (place[None, :] > place[:, None]) * 0.5
    distance = distance[None] + mask[:, None, :] * 1e9  # (B, P, P)
    nearest = distance.argmin(-1)  # (B, P)
    by_patch = target.reshape(*target.shape[:2], patches, -1)  # (B, C, P, L)
    index = nearest[:, None, :, None].expand_as(by_patch)
    return by_patch.gather(2, index).flatten(2)


def r_peaks(ecg: Tensor, *, sfreq: float, least: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """R peaks of ECG windows: maxima of the 5 to 20 Hz energy, smoothed over 0.1 s, 0.25 s apart or more.

    Args:
        ecg: (B, T); any unit and polarity.
        sfreq: sampling frequency in Hz.
        least: (B,) the least energy of a peak; by default a quarter of the median energy of the window's
            peaks above a tenth of its maximum.

    Returns:
        (B, T) bool, True at a peak; and (B,) the least energy that was used.
    """
    energy = qrs_energy(ecg, sfreq=sfreq)
    reach = round(REFRACTORY_SECONDS * sfreq)
    highest = F.max_pool1d(energy[:, None], 2 * reach + 1, 1, reach)[:, 0]
    maximum = energy == highest
    if least is None:
        candidate = maximum & (energy > 0.1 * energy.amax(-1, keepdim=True))
        least = MIN_QRS_ENERGY * torch.where(candidate, energy, torch.nan).nanmedian(-1).values.nan_to_num()
    return maximum & (energy > least[:, None].clamp(min=1e-12)), least


def _r_peak_counts(composite: Tensor, target: Tensor, hidden: Tensor, *, sfreq: float) -> Tensor:
    """Hidden R peaks: how many are true, of these found, how many are predicted, of these right."""
    true, least = r_peaks(target, sfreq=sfreq)
    predicted, _ = r_peaks(composite, sfreq=sfreq, least=least)
    reach = round(R_PEAK_TOLERANCE_SECONDS * sfreq)

    def near(peaks: Tensor) -> Tensor:
        return F.max_pool1d(peaks.double()[:, None], 2 * reach + 1, 1, reach)[:, 0] > 0

    hidden_true, hidden_predicted = true & hidden, predicted & hidden
    found, right = hidden_true & near(hidden_predicted), hidden_predicted & near(true)
    return torch.stack([each.sum() for each in (hidden_true, found, hidden_predicted, right)]).double()


def _effective_rank(sums: Tensor, width: int) -> float | None:
    count, first, second = torch.split(sums, [1, width, width * width])
    if count.item() < 2:
        return None
    mean = first / count
    covariance = second.view(width, width) / count - torch.outer(mean, mean)
    share = torch.linalg.eigvalsh(covariance).clamp(min=0)
    if share.sum() == 0:
        return 0.0
    share = share / share.sum()
    return float(torch.special.entr(share).sum().exp())


def _by_channel(channels: tuple[str, ...], values: Tensor) -> dict[str, float | None]:
    numbers = values.tolist()
    return {
        name: value if value == value else None  # NaN: nothing of the channel was hidden
        for name, value in zip(channels, numbers, strict=True)
    }
