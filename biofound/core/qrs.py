"""QRS energy of an ECG: where its beats are, whatever their shape and sign; and the term that asks for it.

The energy of the 5 to 20 Hz band, averaged over a tenth of a second, as in Pan & Tompkins 1985, "A Real-Time
QRS Detection Algorithm", https://doi.org/10.1109/TBME.1985.325532 (who take 5 to 15 Hz and 150 ms).
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

QRS_BAND_HZ = (5.0, 20.0)
SMOOTHING_SECONDS = 0.1
AMPLITUDE_FLOOR = 0.02
"""Energy added before the root of the QRS term, relative to the mean energy of the window."""
LEAST_ENERGY = 0.05
"""Mean QRS energy of a window, of unit variance, below which the QRS term no longer scales it up."""


def is_ecg(channel: str) -> bool:
    """Whether a channel of this name is an ECG."""
    return channel.startswith("ECG")


def qrs_energy(ecg: Tensor, *, sfreq: float) -> Tensor:
    """The smoothed energy of the QRS band.

    Args:
        ecg: (B, T), in any unit.
        sfreq: sampling frequency in Hz.

    Returns:
        (B, T), in the square of that unit.
    """
    samples = ecg.shape[-1]
    hz = torch.fft.rfftfreq(samples, 1 / sfreq, device=ecg.device)
    band = (hz >= QRS_BAND_HZ[0]) & (hz <= QRS_BAND_HZ[1])
    filtered = torch.fft.irfft(torch.fft.rfft(ecg) * band, n=samples)
    width = round(SMOOTHING_SECONDS * sfreq) | 1
    return F.avg_pool1d(filtered.square()[:, None], width, 1, width // 2)[:, 0]


def qrs_term(
    reconstruction: Tensor, target: Tensor, loss_mask: Tensor, *, ecg: Sequence[int], sfreq: float
) -> Tensor:
    """QRS term: the squared error of the QRS amplitude in hidden samples.

    A squared error of the signal itself punishes a beat that is a little late more than one that is left out,
    so it is smallest where uncertain beats are flat. This term is not: it compares

        a(x) = sqrt(e(x) / E + 0.02)

    of the composite (the target, its hidden samples taken from the reconstruction) with the target's, where e
    is `qrs_energy` and E the mean of e(target) over the window, at least 0.05.

    Args:
        reconstruction: (B, C, T), in normalised units.
        target: (B, C, T), in normalised units, 0 in gaps.
        loss_mask: (B, C, T) bool, True where a sample was hidden and is real.
        ecg: the rows of C that are ECGs.
        sfreq: sampling frequency in Hz.

    Returns:
        Sums and counts (2, C), float32; 0 in the other rows.
    """
    with torch.autocast(target.device.type, enabled=False):
        composite = torch.where(loss_mask, reconstruction.float(), target.float())
        sums = composite.new_zeros(2, target.shape[1])
        for row in ecg:
            hidden, wanted = loss_mask[:, row], qrs_energy(target[:, row].float(), sfreq=sfreq)
            scale = wanted.mean(-1, keepdim=True).clamp(min=LEAST_ENERGY)
            ours, theirs = (
                (energy / scale + AMPLITUDE_FLOOR).sqrt()
                for energy in (qrs_energy(composite[:, row], sfreq=sfreq), wanted)
            )
            sums[0, row] = torch.where(hidden, (ours - theirs).square(), 0.0).sum()
            sums[1, row] = hidden.sum()
        return sums
