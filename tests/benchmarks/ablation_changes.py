"""Changes that ablations make and settings cannot: masks by channel, fusion, targets, further terms.

They are here and not in biofound because nothing shows that they help (docs/experiments.md). Each is a
subclass or wrapper of one class of `biofound.core` and leaves the rest as it is.
"""

from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from biofound.core.distributed import MicroBatch
from biofound.core.global_term import global_terms
from biofound.core.history import WriteFailure
from biofound.core.losses import FURTHER_TERMS, LossSums, PretrainingLoss, masked_squared_error
from biofound.core.masking import Stream, keyed_uniform
from biofound.core.models import (
    Encoded,
    Encoder,
    ModelConfig,
    PretrainingModel,
    Reconstruction,
    ReconstructionHead1D,
    normalise,
)
from biofound.core.monitor import r_peaks
from biofound.core.trainer import LoadedMicroBatch, TrainConfig, Trainer
from biofound.core.training_loop import Batch

CHANNELS = 2
ECG = 1
"""Of the channels PPG and ECG."""
SMOOTHING, BEAT_BINS = 13, 25
"""Samples of 0.1 s, for `slope_term`; and bins of a patch, for `beat_term`."""
WARMUP = 0.1
"""Share of the steps in which the learning rate rises."""
WHOLE_CHANNEL_STREAM: Any = 4
"""The stream of random numbers for `ChannelMasks`, beside those of `Stream`."""
TEMPERATURE = 0.1
MOMENTUM = (0.99, 0.999)
"""Of the teacher, at the first and at the last step."""


# ---------------------------------------------------------------------------------------------------------
# Trainers


class ExactSteps(Trainer):
    """The trainer of `biofound pretrain` for a number of steps, without validation and without files.

    The program rounds up to whole epochs, and warms up for a whole epoch at least: runs with batches or
    mixtures of another size would differ in both.
    """

    def __init__(self, *, steps: int, **given: Any) -> None:
        super().__init__(stop=lambda: self.step + 1 >= steps, **given)
        self.total_steps, self.warmup_steps = steps, max(1, round(WARMUP * steps))

    def _end_epoch(self, started: float) -> Iterator[Any]:
        self.epoch += 1
        yield from ()

    def write(self, name: str, write: Callable[[Path], object]) -> Iterator[WriteFailure]:
        yield from ()


class WithTeacher(ExactSteps):
    """After every step the model's teacher follows its encoder, more slowly from step to step."""

    model: "LatentTarget"

    def _train_step(self, batch: Batch[LoadedMicroBatch]) -> tuple[float, LossSums, Tensor]:
        result = super()._train_step(batch)
        first, last = MOMENTUM
        self.model.follow(first + (last - first) * self.step / self.total_steps)
        return result


class WithNeighbours(ExactSteps):
    """Each batch holds B windows and, behind them, a crop of the window beside each: 2B windows.

    A window that adjoins none (7 % of Challenge 2015's) stands for its own neighbour. The batch is not
    halved, as a contrast is over all of it.
    """

    @cached_property
    def neighbour(self) -> NDArray[np.int64]:
        """(N,): the next window of the segment; of the last one, that before it."""
        segments, rows = self.train.segments(), np.arange(len(self.train))
        last = rows + 1 == segments.first + segments.length
        return np.where(segments.length == 1, rows, np.where(last, rows - 1, rows + 1))

    def _own_micro_batches(self, index: NDArray[np.int64]) -> list[MicroBatch]:
        return self.group.micro_batches(index, alone=1)

    def _load_micro_batch(self, own: MicroBatch) -> LoadedMicroBatch:
        both = MicroBatch(own.number, np.concatenate([own.index, self.neighbour[own.index]]))
        return super()._load_micro_batch(both)


# ---------------------------------------------------------------------------------------------------------
# Masks


@dataclass(frozen=True, kw_only=True)
class ChannelMasks(TrainConfig):
    """Masks (B, C, P) by channel, in training; validation masks are as they are."""

    independent: bool = False
    """Each channel hides patches of its own; else all hide the same."""
    whole_share: float = 0.0
    """Share of the windows in which one channel is hidden whole and the others are visible instead."""

    def masks(
        self, *, patches: int, stream: Stream, epoch: int, index: NDArray[np.int64]
    ) -> NDArray[np.bool_]:
        """The masks (B, C, P) of the windows `index` (B,)."""
        key: dict[str, Any] = {"patches": patches, "stream": stream, "epoch": epoch}
        shared = TrainConfig.masks(self, index=index, **key)
        if stream != Stream.TRAIN_MASK:
            return shared
        usual = np.repeat(shared[:, None], CHANNELS, axis=1)
        if self.independent:
            numbers = CHANNELS * index[:, None] + np.arange(CHANNELS)
            usual = TrainConfig.masks(self, index=numbers.ravel(), **key).reshape(usual.shape)
        draw = keyed_uniform(
            seed=self.seed, stream=WHOLE_CHANNEL_STREAM, epoch=epoch, index=index, count=2
        )  # whether, and which
        whole = np.arange(CHANNELS) == np.floor(draw[:, 1:] * CHANNELS)  # (B, C)
        return np.where(draw[:, :1, None] < self.whole_share, whole[:, :, None], usual)


class ChannelMaskedEncoder(Encoder):
    """Takes masks (B, C, P) too.

    Samples hidden in one channel only are to the encoder what gaps are. A channel hidden whole has no visible
    sample to be normalised by: its target is normalised by all of its own.
    """

    def encode(self, x: Tensor, *, mask: Tensor | None = None, observed: Tensor | None = None) -> Encoded:
        """See `Encoder.encode`."""
        if mask is None or mask.ndim == 2:
            return super().encode(x, mask=mask, observed=observed)
        observed = torch.isfinite(x) if observed is None else observed
        hidden = mask.repeat_interleave(self.config.patch_size, dim=2)  # (B, C, T)
        visible = observed & ~hidden
        encoded = super().encode(x, observed=visible)
        statistics = torch.where(visible.any(-1, keepdim=True), visible, observed)
        return encoded._replace(
            normalised=normalise(x, visible=statistics, observed=observed),
            loss_mask=observed & hidden,
            whole=observed.all(-1),
        )


# ---------------------------------------------------------------------------------------------------------
# Encoders


class EarlyFusion(Encoder):
    """Fuses the channels after the first `layers` mixer layers; the others mix the fused latents.

    So channels meet in something that is not linear. What a channel's block of zeros multiplies still adds
    exactly nothing, hence inflation stays exact.
    """

    def __init__(self, config: ModelConfig, *, layers: int) -> None:
        super().__init__(config)
        mixer = self.backbone.encoder.mlp_mixer_encoder
        self.fused_mixers = mixer.mixers[layers:]
        mixer.mixers = mixer.mixers[:layers]

    def _fuse(self, mixed: Tensor) -> Tensor:
        latents = super()._fuse(mixed)[:, None]  # (B, 1, P, D)
        for layer in self.fused_mixers:
            latents = layer(latents)
        return latents[:, 0]


class MixedChannels(Encoder):
    """Granite's `mix_channel`: every mixer layer also mixes the channels, by their place."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        described = deepcopy(self.backbone.config)
        described.mode = "mix_channel"
        self.backbone = type(self.backbone)(described)
        for layer in self.backbone.encoder.mlp_mixer_encoder.mixers:  # as in `Encoder`, for speed
            layer.patch_mixer.mlp.fc1.register_forward_pre_hook(lambda _, inputs: inputs[0].contiguous())


class WithEncoder(PretrainingModel):
    """A model with another encoder; weights are drawn in the same order: what is the same begins the same."""

    def __init__(self, config: ModelConfig, *, encoder: Callable[[ModelConfig], Encoder]) -> None:
        nn.Module.__init__(self)
        self.config = config
        self.encoder, self.decoder = encoder(config), ReconstructionHead1D(config)


# ---------------------------------------------------------------------------------------------------------
# Targets


def patch_statistics(target: Tensor, patch_size: int) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each patch, spread over its samples: (B, C, T) each."""
    by_patch = target.unflatten(-1, (-1, patch_size))
    spread = (by_patch.var(-1, correction=0) + 1e-6).sqrt()
    mean = by_patch.mean(-1)
    return mean.repeat_interleave(patch_size, -1), spread.repeat_interleave(patch_size, -1)


class PatchNormalisedLoss(nn.Module):
    """MSM and STFT against a target of which each patch has mean 0 and variance 1.

    He et al. 2022, https://arxiv.org/abs/2111.06377. The targets of the global and rhythm terms stay.
    """

    def __init__(self, base: PretrainingLoss, *, patch_size: int) -> None:
        super().__init__()
        self.base, self.patch_size = base, patch_size

    def forward(self, out: Reconstruction, heart_rate: Tensor | None = None) -> LossSums:
        """See `PretrainingLoss.forward`."""
        mean, std = patch_statistics(out.target, self.patch_size)
        target = (out.target - mean) / std
        msm = masked_squared_error(out.values, target, out.loss_mask)
        stft = self.base.stft(out.values, target, out.loss_mask)
        further = msm.new_zeros(2, len(FURTHER_TERMS), msm.shape[1])
        if out.rhythm is not None:
            further[:, :2] = global_terms(out.rhythm, *self.base.rhythm(out.target), out.whole)
        return LossSums(torch.cat([msm[:, None], stft, further], dim=1))


class PatchNormalised(PretrainingModel):
    """In evaluation its reconstruction is given each patch's true mean and standard deviation."""

    def forward(self, x: Tensor, mask: Tensor, observed: Tensor | None = None) -> Reconstruction:
        """See `PretrainingModel.forward`."""
        out = super().forward(x, mask, observed)
        if self.training:
            return out
        mean, std = patch_statistics(out.target, self.config.patch_size)
        return out._replace(values=out.values.float() * std + mean)


class LatentTarget(PretrainingModel):
    """Beside the reconstruction predicts what a slower copy of the encoder makes of the whole window.

    Baevski et al. 2022, https://arxiv.org/abs/2202.03555. In training `Reconstruction.rate` holds prediction
    and target (2, B, P, D) for `latent_term`.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        width = config.d_model
        self.predictor = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, width))
        self.teacher = deepcopy(self.encoder).requires_grad_(False)

    def forward(self, x: Tensor, mask: Tensor, observed: Tensor | None = None) -> Reconstruction:
        """See `PretrainingModel.forward`."""
        out = super().forward(x, mask, observed)
        if not self.training:
            return out
        with torch.no_grad():
            wanted = self.teacher(x, observed=observed).float()
        wanted = F.layer_norm(wanted, wanted.shape[-1:])
        return out._replace(rate=torch.stack([self.predictor(out.latents).float(), wanted]))

    @torch.no_grad()
    def follow(self, momentum: float) -> None:
        """Move the teacher: momentum * teacher + (1 - momentum) * encoder."""
        for slow, quick in zip(self.teacher.parameters(), self.encoder.parameters(), strict=True):
            slow.lerp_(quick, 1 - momentum)


# ---------------------------------------------------------------------------------------------------------
# Further terms

Term = Callable[[Reconstruction], tuple[Tensor, int | Tensor]]
"""A term's sum over a micro-batch, and how many it is a sum of."""


class WithTerm(nn.Module):
    """The loss terms and one more, in the place and with the weight of the rate term, which is not used."""

    def __init__(self, base: PretrainingLoss, *, term: Term) -> None:
        super().__init__()
        self.base, self.term = base, term

    def forward(self, out: Reconstruction, heart_rate: Tensor | None = None) -> LossSums:
        """See `PretrainingLoss.forward`."""
        values = self.base(out._replace(rate=None)).values.clone()
        total, count = self.term(out)
        row = FURTHER_TERMS.index("rate") - len(FURTHER_TERMS)
        values[0, row], values[1, row] = total, count  # the same in every channel: their ratio is the mean
        return LossSums(values)


def composite_ecg(out: Reconstruction) -> tuple[Tensor, Tensor, Tensor]:
    """The ECG with hidden samples from the reconstruction, as it is, and which are hidden: (B, T) each."""
    composite = torch.where(out.loss_mask, out.values.float(), out.target)
    return composite[:, ECG], out.target[:, ECG], out.loss_mask[:, ECG]


def slope_term(out: Reconstruction) -> tuple[Tensor, Tensor]:
    """Squared error of the smoothed size of the ECG's slope, in hidden samples; of unit variance."""
    composite, target, hidden = composite_ecg(out)

    def envelope(ecg: Tensor) -> Tensor:
        slope = F.pad(ecg.diff(dim=-1).abs(), (0, 1))[:, None]
        return F.avg_pool1d(slope, SMOOTHING, 1, SMOOTHING // 2)[:, 0]

    wanted = envelope(target)
    error = (envelope(composite) - wanted) / wanted.std(-1, keepdim=True).clamp(min=1e-4)
    return torch.where(hidden, error.square(), 0.0).sum(), hidden.sum()


def magnitude_term(out: Reconstruction) -> tuple[Tensor, int]:
    """Squared error of the ECG's STFT magnitude, in frames that hold hidden samples: a mean.

    It is twice the mean over bins, and the mean over windows of 64 and of 128 samples.
    """
    composite, target, hidden = composite_ecg(out)
    means = []
    for n in (64, 128):
        window = torch.hann_window(n)
        window = window / window.square().sum().sqrt()
        ours, theirs = (
            torch.view_as_real(torch.stft(ecg, n, n // 4, window=window, return_complex=True)[:, 1:])
            for ecg in (composite, target)
        )
        ours, theirs = ((bins.square().sum(-1) + 1e-4).sqrt() for bins in (ours, theirs))
        error = 2 * (ours - theirs).square().mean(1)  # (B, frames)
        padded = F.pad(hidden.float(), (n // 2, n // 2))
        touched = F.max_pool1d(padded[:, None], n, n // 4)[:, 0]
        means.append((error * touched).sum() / touched.sum().clamp(min=1))
    return torch.stack(means).mean(), 1


class BeatPlaces(PretrainingModel):
    """A linear map from each patch's latent to whether an R peak is in each of its 25 bins.

    In training `Reconstruction.rate` holds the logits (B, P, 25) for `beat_term`.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self.beats = nn.Linear(config.d_model, BEAT_BINS)

    def forward(self, x: Tensor, mask: Tensor, observed: Tensor | None = None) -> Reconstruction:
        """See `PretrainingModel.forward`."""
        out = super().forward(x, mask, observed)
        return out._replace(rate=self.beats(out.latents)) if self.training else out


def beat_term(out: Reconstruction, *, sfreq: float = 125.0) -> tuple[Tensor, Tensor]:
    """Cross-entropy of the R peaks' bins in hidden patches; of the model `BeatPlaces`."""
    assert out.rate is not None
    _, target, hidden = composite_ecg(out)
    peaks, _ = r_peaks(target.double(), sfreq=sfreq)
    wanted = peaks.unflatten(-1, (out.rate.shape[1], BEAT_BINS, -1)).any(-1).float()  # (B, P, bins)
    counts = hidden.unflatten(-1, (out.rate.shape[1], -1)).any(-1)  # (B, P)
    error = F.binary_cross_entropy_with_logits(out.rate.float(), wanted, reduction="none").sum(-1)
    return torch.where(counts, error, 0.0).sum(), counts.sum()


def latent_term(out: Reconstruction) -> tuple[Tensor, Tensor]:
    """Smooth L1 of predicted latents, over hidden patches; of the model `LatentTarget`."""
    assert out.rate is not None
    predicted, wanted = out.rate  # (B, P, D) each
    error = F.smooth_l1_loss(predicted, wanted, reduction="none").mean(-1)
    hidden = out.loss_mask.unflatten(-1, (error.shape[1], -1)).any(-1).any(1)  # (B, P)
    return torch.where(hidden, error, 0.0).sum(), hidden.sum()


def contrast_term(out: Reconstruction) -> tuple[Tensor, int]:
    """`info_nce` between the mean latents of windows and of their neighbours; of `WithNeighbours`."""
    first, second = out.latents.float().mean(1).chunk(2)
    return info_nce(first, second), 2 * len(first)


def info_nce(first: Tensor, second: Tensor) -> Tensor:
    """InfoNCE of pairs (B, D): the sum of the cross-entropies of finding each one's partner among B.

    van den Oord et al. 2018, https://arxiv.org/abs/1807.03748; cosine similarity, in both directions.
    """
    similarity = F.normalize(first, dim=-1) @ F.normalize(second, dim=-1).T / TEMPERATURE
    partner = torch.arange(len(first), device=first.device)
    ours = F.cross_entropy(similarity, partner, reduction="sum")
    return ours + F.cross_entropy(similarity.T, partner, reduction="sum")
