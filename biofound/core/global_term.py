"""Global terms: what the latents of a masked window shall tell about the rhythm of the whole window.

The target is computed from the window itself, hidden samples included: its autocorrelation and spectrum
(global term), and how likely each beat interval is by the autocorrelation (rhythm term). No label is used.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_LAGS_S = tuple(0.24 + 0.04 * k for k in range(45))  # to 2 s
_FREQUENCIES_HZ = tuple(0.5 + 0.1 * k for k in range(76))  # to 8 Hz
_INTERVALS_S = tuple(0.3 * (2 / 0.3) ** (k / 63) for k in range(64))  # to 2 s: 200 to 30 beats a minute
_SHARPNESS = 12.0
CORRELATION_UNIT = 0.3
"""What the autocorrelation is divided by in the summaries."""
_POWER_FLOOR = 1e-4
_FAST_BAND_HZ = 10.0
_SMOOTHING_S = 0.1

SUMMARIES = len(_LAGS_S) + len(_FREQUENCIES_HZ)
INTERVALS = len(_INTERVALS_S)


class RhythmTargets(nn.Module):
    """The targets of the global and the rhythm term, for windows of T samples.

    A channel whose pass band ends above 10 Hz (ECG) is taken as the smoothed size of its slope, in which
    every beat is one bump whatever its shape; another (PPG) as it is.
    """

    def __init__(self, *, sfreq: float, bands: Sequence[tuple[float, float]], samples: int) -> None:
        """Prepare for windows of `samples`, whose channels have these pass bands (low, high) in Hz."""
        super().__init__()
        self.smoothing = max(round(_SMOOTHING_S * sfreq), 1) // 2 * 2 + 1
        window = torch.hann_window(samples, dtype=torch.float64)
        window = (
            window / (window.square().sum() * samples / 2).sqrt()
        )  # all bins of unit variance add up to 1
        phase = torch.outer(torch.arange(samples), torch.tensor(_FREQUENCIES_HZ)).double()
        phase = phase * (2 * math.pi / sfreq)
        basis = window[:, None] * torch.cat([phase.cos(), phase.sin()], dim=1)  # (T, 2F)
        fast = torch.tensor([[high > _FAST_BAND_HZ] for _, high in bands])  # (C, 1)
        self.register_buffer("fast", fast, persistent=False)
        self.register_buffer("basis", basis.float(), persistent=False)
        self.register_buffer("lags", torch.tensor(_LAGS_S) * sfreq, persistent=False)
        self.register_buffer("intervals", torch.tensor(_INTERVALS_S) * sfreq, persistent=False)

    @torch.no_grad()
    def forward(self, target: Tensor) -> tuple[Tensor, Tensor]:
        """The targets of windows (B, C, T), normalised, 0 in gaps.

        Returns:
            Summaries (B, C, S): autocorrelation, then log power, each about of unit size; and how likely each
            beat interval is, (B, C, I), which sums to 1.
        """
        with torch.autocast(target.device.type, enabled=False):
            signal = self._signal(target.float())
            correlation = _autocorrelation(signal)
            cosine, sine = (signal @ self.get_buffer("basis")).chunk(2, dim=-1)
            power = (cosine.square() + sine.square() + _POWER_FLOOR).log()
            summaries = torch.cat(
                [_at(correlation, self.get_buffer("lags")) / CORRELATION_UNIT, (power + 6.5) / 2], -1
            )
            return summaries, self._likely_intervals(correlation)

    def _signal(self, target: Tensor) -> Tensor:
        """What beats are looked for in, (B, C, T): mean 0, variance 1 (0 where it is flat)."""
        slope = F.pad(target.diff(dim=-1).abs(), (0, 1))
        smooth = F.avg_pool1d(slope, self.smoothing, stride=1, padding=self.smoothing // 2)
        signal = torch.where(self.get_buffer("fast"), smooth, target)
        signal = signal - signal.mean(-1, keepdim=True)
        return signal / signal.std(-1, keepdim=True).clamp(min=1e-6)

    def _likely_intervals(self, correlation: Tensor) -> Tensor:
        """Softmax of a comb: high at once and twice the interval, low at a half and one and a half of it."""
        interval = self.get_buffer("intervals")
        comb = _at(correlation, interval) + 0.5 * _at(correlation, 2 * interval)
        comb = comb - 0.5 * _at(correlation, interval / 2) - 0.25 * _at(correlation, 1.5 * interval)
        return torch.softmax(_SHARPNESS * comb, dim=-1)


class RhythmHead(nn.Module):
    """Linear maps from pooled features to the targets of each channel, keyed by the channel's name.

    One map reads the latents, another the channel's own features before the fusion: so no channel's rhythm
    is lost where another one's is easier to read.
    """

    def __init__(self, channels: Sequence[str], *, d_model: int) -> None:
        super().__init__()
        outputs = SUMMARIES + INTERVALS

        def maps() -> nn.ModuleDict:
            return nn.ModuleDict({name: nn.Linear(2 * d_model, outputs) for name in channels})

        self.from_latents, self.from_channel = maps(), maps()

    def forward(self, latents: Tensor, by_channel: Tensor) -> Tensor:
        """Predictions (2, B, C, S + I), from the latents (B, P, D) and from features (B, C, P, D)."""
        fused, own = pooled(latents), pooled(by_channel).unbind(1)
        from_latents = torch.stack([read(fused) for read in self.from_latents.values()], 1)
        from_channel = torch.stack(
            [read(features) for read, features in zip(self.from_channel.values(), own, strict=True)], 1
        )
        return torch.stack([from_latents, from_channel])


class RateHead(nn.Module):
    """Linear maps from pooled features to the log heart rate: one from the latents, one from each channel.

    It learns from synthetic windows, whose rate is known; no person's label is used.
    """

    def __init__(self, channels: Sequence[str], *, d_model: int) -> None:
        super().__init__()
        self.from_latents = nn.Linear(2 * d_model, 1)
        self.from_channel = nn.ModuleDict({name: nn.Linear(2 * d_model, 1) for name in channels})

    def forward(self, latents: Tensor, by_channel: Tensor) -> Tensor:
        """Predictions (2, B, C) of `rate_target`: from the latents, repeated, and from each channel."""
        own = pooled(by_channel).unbind(1)
        from_channel = torch.cat(
            [read(features) for read, features in zip(self.from_channel.values(), own, strict=True)], 1
        )
        from_latents = self.from_latents(pooled(latents)).expand_as(from_channel)
        return torch.stack([from_latents, from_channel])


def rate_target(heart_rate: Tensor) -> Tensor:
    """The log of a heart rate in beats a minute, about of unit size between 40 and 180."""
    return (heart_rate.log() - math.log(80.0)) / 0.4


def rate_term(prediction: Tensor, heart_rate: Tensor, counts: Tensor) -> Tensor:
    """Rate term: the Huber loss of the log heart rate, over the windows whose rate is known.

    Args:
        prediction: (2, B, C), of `RateHead`; both predictions are added.
        heart_rate: (B,) beats a minute, NaN where unknown.
        counts: (B, C) bool, True where the channel counts.

    Returns:
        Sums and counts (2, C).
    """
    known = torch.isfinite(heart_rate)
    target = rate_target(torch.where(known, heart_rate, 80.0))[:, None]
    error = F.huber_loss(prediction.float(), target.expand_as(prediction), reduction="none").sum(0)  # (B, C)
    counts = counts & known[:, None]
    return torch.stack([torch.where(counts, error, 0.0).sum(0), counts.sum(0).float()])


def pooled(features: Tensor) -> Tensor:
    """Mean and standard deviation over patches, in float32: (..., P, D) -> (..., 2D).

    By hand, as `Tensor.var` over a dimension that is not the last takes four times as long.
    """
    features = features.float()
    mean = features.mean(-2, keepdim=True)
    variance = (features - mean).square().mean(-2) + 1e-6  # finite gradient where nothing varies
    return torch.cat([mean.squeeze(-2), variance.sqrt()], dim=-1)


def global_terms(prediction: Tensor, summaries: Tensor, intervals: Tensor, counts: Tensor) -> Tensor:
    """Global term (squared error of summaries) and rhythm term (cross-entropy of beat intervals).

    Both are means over those windows and channels that are real throughout, added over the two predictions.

    Args:
        prediction: (2, B, C, S + I).
        summaries: (B, C, S).
        intervals: (B, C, I), sums to 1.
        counts: (B, C) bool, True where the channel counts.

    Returns:
        Sums and counts (2, 2, C) of the global and the rhythm term.
    """
    values, logits = torch.split(prediction.float(), [SUMMARIES, INTERVALS], dim=-1)
    squared = (values - summaries).square().mean(-1)  # (2, B, C)
    entropy = -(intervals * logits.log_softmax(-1)).sum(-1)
    both = torch.stack([squared, entropy])  # (2, 2, B, C)
    sums = torch.where(counts, both, 0.0).sum((1, 2))  # (2, C)
    return torch.stack([sums, counts.sum(0).float().expand_as(sums)])


def _autocorrelation(signal: Tensor) -> Tensor:
    """(..., T) -> (..., T): the sum of x[t] x[t + lag], 1 at lag 0 (0 where the signal is 0)."""
    spectrum = torch.fft.rfft(signal, 2 * signal.shape[-1])
    correlation: Tensor = torch.fft.irfft(spectrum.abs().square())[..., : signal.shape[-1]]
    return correlation / correlation[..., :1].clamp(min=1e-6)


def _at(values: Tensor, place: Tensor) -> Tensor:
    """(..., T) at places (K,) between samples, by linear interpolation, 0 from T on: (..., K)."""
    below = place.long()
    share = place - below
    values = F.pad(values, (0, max(int(below.max()) + 2 - values.shape[-1], 0)))
    return values[..., below] * (1 - share) + values[..., below + 1] * share
