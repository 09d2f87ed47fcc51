"""Verification checks: each measures one property on the real model, losses, trainer and checkpoint.

A check returns what it measured, or raises `Failed` with it. An error inside a check fails that check:
the table is always complete.
"""

import copy
import math
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from biofound.checks import Check
from biofound.core import checkpoint as checkpoints
from biofound.core.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from biofound.core.global_term import CORRELATION_UNIT
from biofound.core.history import EpochMetrics, StepMetrics
from biofound.core.inflate import inflate
from biofound.core.losses import (
    LossSums,
    PretrainingLoss,
    masked_squared_error,
    mean_of,
    msm_loss,
    stft_loss,
)
from biofound.core.masking import Stream, hidden_patches
from biofound.core.models import PretrainingModel, build_model, normalise, parameter_count
from biofound.core.optimizer import learning_rate, make_optimizer
from biofound.core.qrs import AMPLITUDE_FLOOR, QRS_BAND_HZ, is_ecg
from biofound.core.trainer import TrainConfig, Trainer
from biofound.data.channels import Channel, PassBand
from biofound.data.description import DataDescription
from biofound.data.mixture import MixedWindows, Part
from biofound.data.sources.heart_signals import SIGNALS
from biofound.data.stream import SyntheticStream, forget_hearts
from biofound.data.windows import ArrayWindows

ROUNDING = 1e-4
"""How far two float32 results of the same sums in another order may differ, relative to the largest."""

WATCHED, WATCHED_BATCH = 13, 5
"""Windows of a run that is watched, and its batch size: the last batch is a smaller one."""


class Failed(Exception):
    """Raised by a check whose property does not hold; the message is what was measured."""


@dataclass(frozen=True, kw_only=True)
class VerificationTarget:
    """What is verified: a model, how it is trained, and windows (B, C, T) to try it on."""

    model: PretrainingModel
    data: DataDescription
    config: TrainConfig
    windows: NDArray[np.float32]
    checkpoint: Checkpoint | None = None

    @property
    def x(self) -> Tensor:
        """The windows as a tensor."""
        return torch.from_numpy(self.windows)

    def mask(self, windows: int | None = None) -> Tensor:
        """A mask for the windows, as training would draw it."""
        return torch.from_numpy(self.draw(np.arange(windows or len(self.windows))))

    def draw(self, index: NDArray[np.int64], *, epoch: int = 0) -> NDArray[np.bool_]:
        """Training masks (B, P) for sample indices."""
        return self.config.masks(
            patches=self.model.config.patches, stream=Stream.TRAIN_MASK, epoch=epoch, index=index
        )

    def loss_terms(self) -> PretrainingLoss:
        """The model's loss terms."""
        return self.config.loss_terms(self.data, self.model.config)


def probe_windows(
    *, windows: int, channels: int, samples: int, sfreq: float, seed: int
) -> NDArray[np.float32]:
    """Quasi-periodic windows (B, C, T) to verify a model on where no recordings are at hand.

    Each channel is three harmonics of one rhythm of 0.8-2 Hz a window, shifted from channel to channel.
    """
    random = np.random.Generator(np.random.Philox(key=seed))
    t = np.arange(samples) / sfreq
    rate = random.uniform(0.8, 2.0, (windows, 1, 1))
    shift = random.uniform(0, 1, (windows, channels, 1))
    strength = random.uniform(0.3, 1.0, (windows, channels, 3))
    waves = [strength[..., k : k + 1] * np.sin(2 * np.pi * (k + 1) * (rate * t + shift)) for k in range(3)]
    return (sum(waves) + 0.05 * random.standard_normal((windows, channels, samples))).astype(np.float32)


def verify(target: VerificationTarget) -> Iterator[Check]:
    """Run every check that applies, in the order of the table."""
    for name, check in CHECKS.items():
        if target.checkpoint is not None or check not in OF_CHECKPOINTS:
            yield run_check(name, target)


def run_check(name: str, target: VerificationTarget) -> Check:
    """Run the check of that name; whatever it raises is a failed check."""
    try:
        return Check(name=name, passed=True, measured=CHECKS[name](target))
    except Failed as failure:
        return Check(name=name, passed=False, measured=str(failure))
    except Exception as error:
        return Check(name=name, passed=False, measured=f"{type(error).__name__}: {error}")


# ---------------------------------------------------------------------------------------------------------
# Parts of the model and of training


def imports(target: VerificationTarget) -> str:
    """The encoder's blocks come from granite-tsfm itself, not from a stand-in."""
    origin = type(target.model.encoder.backbone).__module__
    text = f"granite-tsfm {version('granite-tsfm')}, torch {torch.__version__}, blocks from {origin}"
    _require(origin.startswith("tsfm_public.models.tinytimemixer"), text)
    return text


def encoder_shape(target: VerificationTarget) -> str:
    """(B, C, T) -> (B, P, D), finite."""
    config = target.model.config
    with torch.no_grad():
        latents = _frozen(target).encoder(target.x)
    text = (
        f"{_shape(target.x)} -> {_shape(latents)}, {parameter_count(target.model.encoder):,} parameters "
        f"({parameter_count(target.model.encoder.backbone):,} in the mixer)"
    )
    _require(latents.shape == (len(target.x), config.patches, config.d_model), text)
    _require(bool(torch.isfinite(latents).all()), text + ", not all finite")
    return text


def decoder_shape(target: VerificationTarget) -> str:
    """(B, P, D) -> (B, C, T), one linear map, beside the heads of the further terms."""
    config, decoder = target.model.config, target.model.decoder
    latents = torch.zeros(2, config.patches, config.d_model)
    with torch.no_grad():
        out = decoder(latents)
    heads = sum(parameter_count(head) for head in (decoder.rhythm, decoder.rate) if head is not None)
    count = parameter_count(decoder) - heads
    text = f"{_shape(latents)} -> {_shape(out)}, {count:,} parameters, {heads:,} in heads of further terms"
    _require(out.shape == (2, len(config.channels), config.context_length), text)
    samples = parameter_count(target.model.decoder.proj)
    _require(samples == (config.d_model + 1) * len(config.channels) * config.patch_size, text)
    _require(config.rhythm_head or config.rate_head or count == samples, text)
    return text


def losses_are_finite(target: VerificationTarget) -> str:
    """All losses are finite and their gradient reaches every parameter."""
    model = copy.deepcopy(target.model).requires_grad_(True)
    loss, msm, stft = _loss(model, target, heart_rate=70.0)
    torch.autograd.backward(loss)
    silent = [
        name for name, p in model.named_parameters() if p.grad is None or not torch.isfinite(p.grad).all()
    ]
    text = f"MSM {msm:.4f}, STFT {stft:.4f}, total {loss.item():.4f}"
    _require(not silent, f"{text}; no finite gradient in {', '.join(silent[:3])}")
    _require(math.isfinite(loss.item()) and msm > 0 and stft > 0, text)
    return text + f"; gradient in all {len(list(model.parameters()))} tensors"


def masking(target: VerificationTarget) -> str:
    """Masks hide exactly what they promise, everywhere equally often, and repeat."""
    config, patches = target.config, target.model.config.patches
    draws = 20_000
    hidden = hidden_patches(ratio=config.mask_ratio, patches=patches)
    masks = target.draw(np.arange(draws))
    counts = masks.sum(1)
    text = f"{hidden} of {patches} patches hidden in each of {draws:,} {config.mask_type} masks"
    _require(bool((counts == hidden).all()), f"{counts.min()} to {counts.max()} hidden instead of {hidden}")
    _require(bool((target.draw(np.arange(draws)) == masks).all()), "the same key gave another mask")
    _require(bool((target.draw(np.arange(draws), epoch=1) != masks).any()), "masks repeat in every epoch")
    if config.mask_type == "block":
        starts = patches - hidden + 1
        edges = np.diff(np.pad(masks, ((0, 0), (1, 1))).astype(int), axis=1)
        _require(bool(((edges == 1).sum(1) == 1).all()), "a block mask is not contiguous")
        shares = np.bincount(edges.argmax(1), minlength=starts) / draws
        expected = 1 / starts
    else:
        shares, expected = masks.mean(0), hidden / patches
    worst = float(np.abs(shares - expected).max())
    bound = 5 * math.sqrt(expected * (1 - expected) / draws)
    _require(worst <= bound, f"{text}, but a position is off its share {expected:.3f} by {worst:.4f}")
    return f"{text}; every position within {worst:.4f} of its share {expected:.3f}"


def forward_pass(target: VerificationTarget) -> str:
    """Windows and mask to a reconstruction of the windows' shape; the loss mask is where hidden and real."""
    mask = target.mask()
    with torch.no_grad():
        out = _frozen(target)(target.x, mask)
    share = out.loss_mask.float().mean().item()
    text = (
        f"{_shape(target.x)} -> {_shape(out.values)}, {share:.1%} in the loss, "
        f"{parameter_count(target.model):,} parameters in all"
    )
    _require(out.values.shape == target.x.shape and out.target.shape == target.x.shape, text)
    hidden = mask.repeat_interleave(target.model.config.patch_size, dim=1)[:, None, :]
    _require(bool((out.loss_mask == (hidden & torch.isfinite(target.x))).all()), text + ": not where hidden")
    return text


def optimizer_and_schedule(target: VerificationTarget) -> str:
    """Weight decay spares vectors; the learning rate rises to its peak and falls to almost 0."""
    config = target.config
    optimizer = make_optimizer(target.model, lr=config.lr, weight_decay=config.weight_decay)
    for group in optimizer.param_groups:
        wrong = [p for p in group["params"] if (p.ndim >= 2) != (group["weight_decay"] > 0)]
        _require(not wrong or config.weight_decay == 0, "weight decay on a vector, or none on a matrix")
    warmup, total = 100, 1000
    curve = [learning_rate(s, base=config.lr, warmup_steps=warmup, total_steps=total) for s in range(total)]
    text = f"from {curve[0]:.2e} over {max(curve):.2e} (step {int(np.argmax(curve)) + 1}) to {curve[-1]:.2e}"
    _require(curve[0] > 0 and curve[:warmup] == sorted(curve[:warmup]), text)
    _require(math.isclose(curve[warmup - 1], config.lr) and max(curve) <= config.lr * (1 + 1e-12), text)
    middle = curve[warmup + (total - warmup) // 2]
    _require(math.isclose(middle, config.lr / 2, rel_tol=1e-9), f"{text}; half-way {middle:.2e}")
    _require(0 < curve[-1] < 0.001 * config.lr, text)
    return text


def trainer_learns(target: VerificationTarget) -> str:
    """A new model of this kind, trained for a few steps by the real trainer, gets better."""
    with _trainer(target, epochs=20) as trainer:
        epochs = [event for event in trainer.fit() if isinstance(event, EpochMetrics)]
    first, last = epochs[0].val.loss, epochs[-1].val.loss
    text = f"loss {first:.3f} -> {last:.3f} in {len(epochs)} steps, under the same masks"
    _require(last < 0.97 * first, text)
    return text


def one_training_step(target: VerificationTarget) -> str:
    """One optimizer step changes every trainable tensor."""
    model = copy.deepcopy(target.model).requires_grad_(True)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = make_optimizer(model, lr=1e-3, weight_decay=0.0)
    loss, _, _ = _loss(model, target, heart_rate=70.0)
    torch.autograd.backward(loss)
    optimizer.step()
    still = [name for name, p in model.named_parameters() if torch.equal(p, before[name])]
    # A channel's embedding behind an all-zero fusion block moves one step after that block does.
    blocks = target.model.encoder.fusion
    excused = {f"encoder.channel_embedding.{name}" for name in blocks if not blocks[name].any()}
    text = f"{len(before) - len(still)} of {len(before)} tensors changed"
    _require(set(still) <= excused, f"{text}; not {', '.join(sorted(set(still) - excused)[:3])}")
    return text


# ---------------------------------------------------------------------------------------------------------
# What usually breaks


def learning_rate_is_applied(target: VerificationTarget) -> str:
    """In a real run the optimizer used the curve's learning rate, and the weights moved."""
    with _trainer(target, epochs=4) as trainer:
        before = {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}
        used = [step.lr for step in _steps(trainer)]
        after, base = trainer.model.state_dict(), trainer.config.lr
    wanted = [learning_rate(step, base=base, warmup_steps=1, total_steps=4) for step in range(4)]
    moved = max(float((after[name] - tensor).abs().max()) for name, tensor in before.items())
    text = f"{len(used)} steps at {min(used):.1e} to {max(used):.1e}, weights moved by up to {moved:.1e}"
    _require(used == wanted, f"{text}; the curve says {[f'{v:.1e}' for v in wanted]}")
    _require(all(lr > 0 for lr in used) and moved > 0, text)
    return text


def every_window_is_used(target: VerificationTarget) -> str:
    """In a real run each epoch trains on every window once, and validates on every window once."""
    for (split, epoch), passed in _watch(target).items():
        missing = set(range(WATCHED)) - {one.row for one in passed}
        text = f"{split}, epoch {epoch + 1}: {len(passed)} of {WATCHED} windows, {len(missing)} missing"
        _require(not missing and len(passed) == WATCHED, text)
    return f"each of {WATCHED} windows once an epoch, in batches of {WATCHED_BATCH}, in both splits"


def masks_do_not_repeat(target: VerificationTarget) -> str:
    """In a real run masks differ by window, by epoch and from validation's, which stay the same."""
    seen = _watch(target)
    masks = {key: np.stack([one.mask for one in passed]) for key, passed in seen.items()}  # (N, P)
    hidden = hidden_patches(ratio=target.config.mask_ratio, patches=target.model.config.patches)
    for (split, epoch), drawn in masks.items():
        where = f"in {split}, epoch {epoch + 1}"
        _require(bool((drawn.sum(1) == hidden).all()), f"not {hidden} patches hidden {where}")
        _require(len(np.unique(drawn, axis=0)) > 1, f"every window has the same mask {where}")
    train, later, val, val_later = (masks[split, epoch] for split in ("train", "val") for epoch in (0, 1))
    _require(not np.array_equal(train, later), "every epoch has the same masks")
    _require(not np.array_equal(train, val), "validation has the masks of training")
    _require(np.array_equal(val, val_later), "validation has other masks in the next epoch")
    different = len(np.unique(np.concatenate([train, later]), axis=0))
    return f"{different} different masks in 2 epochs of {WATCHED} windows; those of validation stay the same"


def random_crops(target: VerificationTarget) -> str:
    """In a real run training windows are cropped as the settings say, and validation windows never are."""
    seen = _watch(target)
    train, val = (sum(one.cropped for one in seen[split, 0] + seen[split, 1]) for split in ("train", "val"))
    text = f"{train} of {2 * WATCHED} training windows cropped, {val} of validation"
    _require(val == 0 and (train > 0) == target.config.random_crop, text)
    return text


def gradient_clipping(target: VerificationTarget) -> str:
    """In a real run a gradient above the limit is scaled down to it, and one below is left alone."""

    def norms(limit: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """The gradient norm of each step, as the trainer reports it and as the optimizer sees it."""
        applied: list[float] = []
        with _trainer(target, epochs=3, gradient_clip=limit) as trainer:
            grads = [p for group in trainer.optimizer.param_groups for p in group["params"]]
            trainer.optimizer.register_step_pre_hook(
                lambda *_: applied.append(float(torch.cat([p.grad.flatten() for p in grads]).norm()))
            )
            return np.array([step.gradient_norm for step in _steps(trainer)]), np.array(applied)

    found, applied = norms(1e9)
    _require(
        np.allclose(applied, found, rtol=1e-3),
        f"norm {found[0]:.3g} changed to {applied[0]:.3g} below the limit",
    )
    limit = float(found.min()) / 2
    found, clipped = norms(limit)
    text = (
        f"norms {found.min():.3g} to {found.max():.3g} clipped to {clipped.max():.3g}, the limit {limit:.3g}"
    )
    _require(np.allclose(clipped, limit, rtol=1e-3), text)
    return text + "; below the limit unchanged"


def validation(target: VerificationTarget) -> str:
    """The trainer's validation loss is that of all windows at once, without dropout."""
    with _trainer(target, dropout=0.5, batch_size=WATCHED_BATCH) as trainer:
        found, again = trainer.validate()[0].loss, trainer.validate()[0].loss
        mask = torch.from_numpy(trainer.validation_mask(np.arange(len(target.x))))
        model = trainer.model.eval()
        with torch.no_grad():
            wanted = _loss(model, target, mask)[0].item()
    text = f"{found:.4f} in batches of {WATCHED_BATCH}, {wanted:.4f} at once"
    _require(found == again, f"{found:.4f} and then {again:.4f} with the same weights")
    _require(math.isclose(found, wanted, rel_tol=ROUNDING), text)
    return text + "; no dropout"


def masked_samples_are_hidden(target: VerificationTarget) -> str:
    """Whatever is changed in hidden samples, latents and channels' features keep every bit."""
    model, x, mask = _frozen(target), target.x, target.mask()
    hidden = mask.repeat_interleave(model.config.patch_size, dim=1)[:, None, :].expand_as(x)
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
    variants = {"noise": noise, "times 1000": x * 1000, "zeros": torch.zeros_like(x), "1e30": x * 0 + 1e30}
    with torch.no_grad():
        plain = model.encoder.encode(x, mask=mask)
        for name, other in variants.items():
            changed = model.encoder.encode(torch.where(hidden, other, x), mask=mask)
            for part in ("latents", "by_channel"):
                before, after = getattr(plain, part), getattr(changed, part)
                moved = (after - before).abs().max().item()
                _require(torch.equal(after, before), f"{name} in hidden samples moved {part} by {moved:.1e}")
    share = hidden.float().mean().item()
    return (
        f"bit-identical latents for {', '.join(variants)} in {share:.0%} of the samples, "
        f"{model.config.patch_embedding} patch embedding"
    )


def absent_channels_have_no_influence(target: VerificationTarget) -> str:
    """Whatever stands in the row of an absent channel, every output keeps its bits, and no loss counts it.

    In a real run with channel dropout windows lose channels, never all, and validation windows none.
    """
    model, terms = _frozen(target), target.loss_terms()
    names, mask = model.config.channels, target.mask()
    observed, x = torch.isfinite(target.x), torch.nan_to_num(target.x)
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(6))
    rates = torch.full((len(x),), 70.0)
    for row, name in enumerate(names):
        there = observed.clone()
        there[:, row] = False
        row_of = torch.arange(len(names))[:, None] == row  # (C, 1)
        missing = torch.where(there, x, torch.nan)  # as windows say it
        variants = {
            "its signal": x,
            "noise": torch.where(row_of, noise, x),
            "1e30": torch.where(row_of, 1e30, x),
        }
        with torch.no_grad():
            plain = model(missing, mask)
            plain_sums = terms(plain, rates).values
            for what, other in variants.items():
                changed = model(other, mask, there)
                for part in ("values", "latents", "rhythm", "rate"):
                    before, after = getattr(plain, part), getattr(changed, part)
                    same = before is None or torch.equal(before, after)
                    _require(same, f"{what} in absent {name} changes {part}")
                same = torch.equal(plain_sums, terms(changed, rates).values)
                _require(same, f"{what} in absent {name} changes the loss")
        counted = int(plain_sums[1, :, row].sum())
        _require(counted == 0, f"absent {name} is counted {counted} times by the loss")
    seen = _watch(target, channel_dropout=0.5)
    lost, validated = (
        np.stack([one.lost for epoch in (0, 1) for one in seen[split, epoch]]) for split in ("train", "val")
    )
    windows = int(lost.any(1).sum())
    text = (
        f"bit-identical outputs and losses for {', '.join(variants)} in place of {', '.join(names)}; "
        f"{windows} of {len(lost)} training windows lost channels at a probability of 0.5"
    )
    _require(not lost.all(1).any() and not validated.any(), f"{text}, all of them or in validation too")
    _require((windows > 0) == (len(names) > 1), text)
    return text


def channels_are_told_apart(target: VerificationTarget) -> str:
    """Signals in each other's place give other latents."""
    names = target.model.config.channels
    if len(names) == 1:
        return f"does not apply: {names[0]} is the only channel"
    model = _frozen(target)
    with torch.no_grad():
        latents = model.encoder(target.x)
        swapped = model.encoder(target.x.roll(1, dims=1))
    change = ((swapped - latents).norm() / latents.norm()).item()
    text = f"{' <-> '.join(names)} changes the latents by {change:.1%}"
    _require(change > 0.01, text)
    return text


def scale_does_not_matter(target: VerificationTarget) -> str:
    """Scaling x to 10x + 3 changes neither latents nor, in physical units, the reconstruction."""
    model, x, mask = _frozen(target), target.x, target.mask()
    visible = torch.isfinite(x) & ~mask.repeat_interleave(model.config.patch_size, dim=1)[:, None, :]
    has_scale = visible.any(-1)  # (B, C)
    with torch.no_grad():
        plain, scaled = model.encoder(x, mask), model.encoder(10 * x + 3, mask)
        wanted = 10 * model(x, mask).in_physical_units()[has_scale] + 3
        got = model(10 * x + 3, mask).in_physical_units()[has_scale]
    latent = _relative(scaled, plain)
    output = _relative(got, wanted)
    text = f"latents differ by {latent:.1e}, the reconstruction by {output:.1e} (relative)"
    _require(latent < ROUNDING and output < ROUNDING, text)
    return text


def msm_closed_form(target: VerificationTarget) -> str:
    """An error of 0.5 everywhere costs 0.25, averaged over hidden samples only."""
    wanted, loss_mask = _normalised(target)
    off = torch.where(loss_mask, wanted + 0.5, wanted + 100.0)
    value = msm_loss(masked_squared_error(off, wanted, loss_mask)).item()
    text = f"error 0.5 -> MSM {value:.6f} (0.25 expected); errors of visible samples count nothing"
    _require(math.isclose(value, 0.25, rel_tol=1e-5), text)
    return text


def stft_closed_form(target: VerificationTarget) -> str:
    """Doubling a signal whose power is far above the floor costs log 4 in every bin."""
    stft, channels = target.loss_terms().stft, len(target.model.config.channels)
    samples = target.model.config.context_length
    noise = 1e3 * torch.randn(4, channels, samples, generator=torch.Generator().manual_seed(2))
    loss_mask = torch.ones_like(noise, dtype=torch.bool)
    same = stft_loss(stft(noise, noise, loss_mask)).item()
    doubled = stft_loss(stft(2 * noise, noise, loss_mask)).item()
    text = f"x against x: {same:.6f} (0 expected); 2x against x: {doubled:.4f} (log 4 = {math.log(4):.4f})"
    _require(same == 0 and math.isclose(doubled, math.log(4), rel_tol=1e-3), text)
    return text


def stft_pass_band(target: VerificationTarget) -> str:
    """An error above a channel's pass band costs little in the STFT loss, beside one within the band."""
    stft, config, sfreq = target.loss_terms().stft, target.model.config, target.data.sfreq
    t = torch.arange(config.context_length) / sfreq
    noise = torch.randn(4, len(config.channels), len(t), generator=torch.Generator().manual_seed(5))
    loss_mask = torch.ones_like(noise, dtype=torch.bool)
    shares = {}
    for c, name in enumerate(config.channels):
        low, high = (target.data.filters[name][edge] for edge in ("low_hz", "high_hz"))
        above = (high + sfreq / 2) / 2
        if above - high < 2 * sfreq / min(target.config.stft_windows):
            continue  # a tone there would leak into the band
        tones = (torch.sin(2 * math.pi * hz * t) for hz in ((low + high) / 2, above))
        inside, outside = (stft_loss(stft(noise + tone, noise, loss_mask)[..., [c]]).item() for tone in tones)
        shares[name] = outside / inside
    if not shares:
        return f"does not apply: every pass band reaches up to {sfreq / 2:g} Hz"
    listed = ", ".join(f"{share:.1%} for {name}" for name, share in shares.items())
    text = f"an error above the pass band costs {listed} of one within"
    _require(max(shares.values()) < 0.3, text)
    return text


def small_error_small_stft(target: VerificationTarget) -> str:
    """Of a clean tone, a reconstruction with an MSE of 1e-4 scores far less than one with an MSE of 1.

    A tone leaves most bins empty, so a loss that compares the noise there is found out.
    """
    samples, names = target.model.config.context_length, target.model.config.channels
    lows = torch.tensor([target.data.filters[name]["low_hz"] for name in names])
    t = torch.arange(samples) / target.data.sfreq
    tone = (math.sqrt(2) * torch.sin(2 * math.pi * 2 * lows[:, None] * t)).expand(4, -1, -1)
    loss_mask = torch.ones_like(tone, dtype=torch.bool)
    stft = target.loss_terms().stft
    noise = torch.randn(tone.shape, generator=torch.Generator().manual_seed(3))
    small = stft_loss(stft(tone + 0.01 * noise, tone, loss_mask)).item()
    large = stft_loss(stft(tone + noise, tone, loss_mask)).item()
    text = f"MSE 1e-4: {small:.3f}, MSE 1: {large:.3f}"
    _require(small < 0.3 and small < 0.2 * large, text)
    return text


def further_terms_closed_form(target: VerificationTarget) -> str:
    """Global, rhythm and rate term: a known rhythm is found, right answers cost 0, known errors their cost.

    Windows with a gap and windows of unknown heart rate count nothing.
    """
    text = _rhythm_of_a_tone(target)
    model = _frozen(target)
    config, terms = model.config, target.loss_terms()
    windows = 4
    x = probe_windows(
        windows=windows,
        channels=len(config.channels),
        samples=config.context_length,
        sfreq=target.data.sfreq,
        seed=1,
    )
    x[0, :, 0] = np.nan
    gap, unknown = torch.arange(windows) == 0, torch.arange(windows) == 1
    with torch.no_grad():
        out = model(torch.from_numpy(x), target.mask(windows))
    summaries, intervals = terms.rhythm(out.target)
    alike = torch.zeros_like(intervals)  # every interval is called equally likely
    heart_rate = torch.tensor([80.0, math.nan, 40.0, 160.0])
    octaves = torch.tensor([0.0, 0.0, -1.0, 1.0])[:, None]  # from 80 beats a minute
    log_rates = (octaves * math.log(2) / 0.4).expand(-1, len(config.channels))

    def costs(error: float) -> dict[str, float]:
        """The terms where both predictions are off by `error`, and by far more where nothing shall count."""
        off = torch.where(gap, 1e3, error)[:, None]
        prediction = torch.cat([summaries + off[..., None], alike], dim=-1)
        rate = log_rates + torch.where(gap | unknown, 1e3, error)[:, None]
        sums = terms(
            out._replace(rhythm=torch.stack([prediction] * 2), rate=torch.stack([rate] * 2)), heart_rate
        )
        return {name: sums.further(name).item() for name in ("global", "rhythm", "rate")}

    equal = 2 * math.log(intervals.shape[-1])
    for error, wanted in (
        (0.0, {"global": 0.0, "rhythm": equal, "rate": 0.0}),
        (0.5, {"global": 2 * 0.5**2, "rhythm": equal, "rate": 2 * 0.5**2 / 2}),
    ):
        found = costs(error)
        listed = ", ".join(f"{name} {found[name]:.4f} ({wanted[name]:.4f} expected)" for name in wanted)
        text += f"; error {error:g}: {listed}"
        right = all(math.isclose(found[name], wanted[name], rel_tol=1e-4, abs_tol=1e-6) for name in wanted)
        _require(right, text)
    return text


def _rhythm_of_a_tone(target: VerificationTarget) -> str:
    """A sinus has the autocorrelation cos(2 pi lag / interval), less by the part that does not overlap."""
    sfreq, patch, interval = target.data.sfreq, target.model.config.patch_size, 0.8
    seconds = max(10.0, target.model.config.context_length / sfreq)
    samples = patch * math.ceil(seconds * sfreq / patch)
    long = replace(target.model.config, context_length=samples)
    rhythm = target.config.loss_terms(target.data, long).rhythm
    fast = rhythm.get_buffer("fast")  # (C, 1); taken by the size of the slope, which peaks twice a cycle
    hz = torch.where(fast, 0.5, 1.0) / interval
    tone = torch.sin(2 * math.pi * hz * torch.arange(samples) / sfreq + 0.3)[None]
    summaries, likely = rhythm(tone)
    lags, intervals = (rhythm.get_buffer(name) / sfreq for name in ("lags", "intervals"))
    wanted = torch.cos(2 * math.pi * lags / interval) * (1 - lags * sfreq / samples)
    off = (summaries[0, :, : len(lags)] * CORRELATION_UNIT - wanted).abs().max().item()
    found = intervals[likely[0].argmax(-1)]  # (C,)
    wrong = (found / interval - 1).abs().max().item()
    text = (
        f"beats {interval:g} s apart: autocorrelation within {off:.3f}, likely interval "
        f"{', '.join(f'{one:.2f}' for one in found.tolist())} s"
    )
    _require(off < 0.1 and wrong < 0.03, text)  # the slope's size has harmonics: 0.08
    return text


def qrs_term_closed_form(target: VerificationTarget) -> str:
    """QRS term: a tone in the QRS band costs the difference of amplitudes, whatever its sign.

    Visible samples cost 0, and channels that are no ECG count nothing.
    """
    model, sfreq = _frozen(target), target.data.sfreq
    rows = [row for row, name in enumerate(model.config.channels) if is_ecg(name)]
    samples = model.config.context_length
    hz = round(10 * samples / sfreq) * sfreq / samples
    if not rows or not QRS_BAND_HZ[0] <= hz <= min(QRS_BAND_HZ[1], 0.4 * sfreq):
        return "does not apply: no channel is an ECG, or its windows have no tone near 10 Hz"
    terms = replace(target.config, qrs_weight=1.0).loss_terms(target.data, model.config)
    tone = math.sqrt(2) * torch.sin(2 * math.pi * hz * torch.arange(samples) / sfreq)
    tone = tone.expand(2, len(model.config.channels), -1)
    with torch.no_grad():
        out = model(tone, target.mask(2))._replace(target=tone)

    def cost(size: float, hidden: Tensor) -> Tensor:
        values = torch.where(hidden, size * tone, 1e3)  # what stands where nothing was hidden shall not count
        loss_sums: LossSums = terms(out._replace(values=values, loss_mask=hidden))
        sums = loss_sums.further_sums("qrs")
        others = [channel for channel in range(tone.shape[1]) if channel not in rows]
        _require(not sums[:, others].any(), "channels that are no ECG count")
        return sums[:, rows]

    everything = torch.ones_like(tone, dtype=torch.bool)
    found = {size: mean_of(cost(size, everything)).mean().item() for size in (-1.0, 0.5, 0.0)}
    wanted = {
        size: (math.sqrt(size**2 + AMPLITUDE_FLOOR) - math.sqrt(1 + AMPLITUDE_FLOOR)) ** 2 for size in found
    }
    text = ", ".join(
        f"{size:g} times the tone costs {found[size]:.4f} ({wanted[size]:.4f} expected)" for size in found
    )
    close = all(math.isclose(found[s], wanted[s], rel_tol=0.05, abs_tol=1e-5) for s in found)
    _require(close, text)
    total, count = cost(1.0, out.loss_mask)
    _require(not total.any(), f"{text}; visible samples cost {total.sum().item():.4f}")
    _require(torch.equal(count, out.loss_mask[:, rows].sum((0, 2)).float()), f"{text}; wrong counts")
    return text


def synthetic_stream_repeats(target: VerificationTarget) -> str:
    """Synthetic windows are the same bits alone, in a batch and drawn anew, and others in another epoch.

    Their true heart rate is that of the heart's beats.
    """
    channels = [
        Channel(
            name=name,
            tracks=(name,),
            unit="",
            band=PassBand(**target.data.filters[name]),
            quality_threshold=0.0,
        )
        for name in target.model.config.channels
        if name in SIGNALS
    ]
    if not channels:
        return f"does not apply: a synthetic stream has {', '.join(SIGNALS)}"
    stream = SyntheticStream(
        population="icu", channels=channels, hours=0.1, seed=target.config.seed, sfreq=target.data.sfreq
    )
    windows = MixedWindows([Part(name="synthetic:icu", windows=stream)])
    index, seconds = np.arange(0, len(windows), 5), stream.window_samples / stream.sfreq
    crop = np.asarray(index * 0.37 % 1, np.float64)
    batch = windows.read(index, crop)
    for row in range(len(index)):
        forget_hearts()
        alone = windows.read(index[[row]], crop[[row]])
        _require(np.array_equal(alone[0], batch[row]), f"window {index[row]} has other bits alone")
    later = windows.read(index, crop, epoch=1)
    _require(bool((later != batch).any((1, 2)).all()), "windows come again in the next epoch")
    beats = []
    for one in index.tolist():
        segment, place = divmod(one, stream.segment_windows)
        times = stream.heart(segment).times
        ends = np.interp([place * seconds, (place + 1) * seconds], times, np.arange(len(times)))
        beats.append(ends[1] - ends[0])
    rates = windows.heart_rate(index)
    off = float(np.abs(rates - 60 / seconds * np.array(beats)).max())
    text = f"{len(index)} windows: same bits alone and drawn anew, others in the next epoch; "
    text += f"heart rates {rates.min():.0f} to {rates.max():.0f} a minute are within {off:.1e} of the beats"
    _require(off < 0.01, text)
    return text


def checkpoint_round_trip(target: VerificationTarget) -> str:
    """Saved, loaded and rebuilt from the file alone, the model gives the same bits."""
    model = _frozen(target)
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "model.pt"
        save_checkpoint(path, _checkpoint_of(target))
        size = path.stat().st_size
        rebuilt = load_checkpoint(path).build()
    with torch.no_grad():
        ours, theirs = model(target.x, target.mask()).values, rebuilt(target.x, target.mask()).values
    text = f"{size / 1e6:.1f} MB, rebuilt over {', '.join(rebuilt.config.channels)}"
    _require(rebuilt.config == model.config, f"{text}: another model is described")
    _require(torch.equal(ours, theirs), f"{text}: output differs by {(ours - theirs).abs().max().item():.1e}")
    return text + ", output bit-equal"


def inflation_is_exact(target: VerificationTarget) -> str:
    """With three more channels: same latents, nothing of the new in them, and gradient that reaches it."""
    model, x = _frozen(target), target.x
    names = model.config.channels
    new = tuple(f"VERIFY_{axis}" for axis in "XYZ")
    inflated = inflate(_checkpoint_of(target), channels=(*new, *names)).model
    random = torch.Generator().manual_seed(4)
    extra = torch.randn(len(x), len(new), x.shape[-1], generator=random)
    with torch.no_grad():
        before = model.encoder(x)
        after = inflated.encoder(torch.cat([extra, x], dim=1))
        other = inflated.encoder(torch.cat([1e6 * extra.square(), x], dim=1))
    difference = (after - before).abs().max().item()
    text = f"latents differ by {difference:.1e}"
    _require(difference <= 1e-6 * max(1.0, before.abs().max().item()), text)
    _require(torch.equal(after, other), text + "; what the new channels hold changes them")
    inflated.requires_grad_(True)
    torch.autograd.backward(inflated.encoder(torch.cat([extra, x], dim=1)).square().sum())
    reached = []
    for name in new:
        gradient = inflated.encoder.fusion[name].grad
        assert gradient is not None
        reached.append(gradient.norm().item())
    text += f", not a bit from the new channels; gradient {min(reached):.1e} reaches them"
    _require(min(reached) > 0, text)
    return text


# ---------------------------------------------------------------------------------------------------------
# A checkpoint of its own


def checkpoint_is_complete(target: VerificationTarget) -> str:
    """The file names its model, channels, sampling rate, filters, data and versions."""
    checkpoint = _given(target)
    names = checkpoint.model.channels
    missing = [name for name in names if name not in checkpoint.data.filters]
    data = checkpoint.data
    kind = "synthetic" if data.synthetic else "recorded"
    text = (
        f"{', '.join(names)} at {data.sfreq:g} Hz, {kind} data {data.fingerprint[:12]}, "
        f"epoch {checkpoint.epoch}, biofound {checkpoint.versions.get('biofound', '?')}"
    )
    _require(not missing, f"{text}; no filter for {', '.join(missing)}")
    _require(set(checkpoint.versions) >= set(checkpoints.package_versions()), text + "; versions are missing")
    _require(bool(checkpoint.data.fingerprint), text + "; no data fingerprint")
    return text


def checkpoint_learned(target: VerificationTarget) -> str:
    """The weights are not those that the run began with."""
    checkpoint = _given(target)
    if checkpoint.inflated_from is not None:
        return f"does not apply: inflated from {', '.join(checkpoint.inflated_from['channels'])}"
    if checkpoint.parent is not None:
        return f"does not apply: started from the weights of {checkpoint.parent.path}"
    fresh = build_model(checkpoint.model, seed=target.config.seed).encoder.state_dict()
    still = [name for name, tensor in checkpoint.encoder.items() if torch.equal(tensor, fresh[name])]
    moved = _norm_of_difference(checkpoint.encoder, fresh)
    text = f"{len(fresh) - len(still)} of {len(fresh)} tensors moved, by {moved:.2f} of their norm"
    _require(checkpoint.step > 0 and not still and math.isfinite(moved), f"{text} in {checkpoint.step} steps")
    return f"{text} in {checkpoint.step} steps"


def better_than_a_constant_guess(target: VerificationTarget) -> str:
    """In validation every channel's MSM is below that of the visible samples' mean, the constant guess."""
    checkpoint = _given(target)
    if not checkpoint.metrics:
        return f"does not apply: {checkpoint.step} steps done, and no epoch validated yet"
    found = checkpoint.metrics["val"]["msm_by_channel"]
    guessed = checkpoint.metrics["monitor"]["constant_guess_msm"]
    listed = ", ".join(f"{name} {found[name]:.3f} (constant guess {guessed[name]:.3f})" for name in found)
    text = f"validation MSM of epoch {checkpoint.epoch}: {listed}"
    worse = [name for name in found if not found[name] < guessed[name]]
    _require(not worse, f"{text}; {', '.join(worse)} no better: train longer, or at a higher learning rate")
    return text


CHECKS: dict[str, Callable[[VerificationTarget], str]] = {
    "imports": imports,
    "encoder": encoder_shape,
    "decoder": decoder_shape,
    "losses": losses_are_finite,
    "masking": masking,
    "forward pass": forward_pass,
    "optimizer and schedule": optimizer_and_schedule,
    "trainer": trainer_learns,
    "one training step": one_training_step,
    "learning rate is applied": learning_rate_is_applied,
    "every window is used": every_window_is_used,
    "masks do not repeat": masks_do_not_repeat,
    "random crops": random_crops,
    "gradient clipping": gradient_clipping,
    "validation": validation,
    "masked samples are hidden": masked_samples_are_hidden,
    "channels are told apart": channels_are_told_apart,
    "what is absent has no influence": absent_channels_have_no_influence,
    "scale does not matter": scale_does_not_matter,
    "MSM closed form": msm_closed_form,
    "STFT closed form": stft_closed_form,
    "STFT pass band": stft_pass_band,
    "small error, small STFT": small_error_small_stft,
    "further terms closed form": further_terms_closed_form,
    "QRS term closed form": qrs_term_closed_form,
    "synthetic stream repeats": synthetic_stream_repeats,
    "checkpoint round trip": checkpoint_round_trip,
    "inflation is exact": inflation_is_exact,
    "checkpoint is complete": checkpoint_is_complete,
    "checkpoint learned": checkpoint_learned,
    "better than a constant guess": better_than_a_constant_guess,
}
OF_CHECKPOINTS = (checkpoint_is_complete, checkpoint_learned, better_than_a_constant_guess)
"""Checks that need a checkpoint."""


# ---------------------------------------------------------------------------------------------------------
# Helpers


@contextmanager
def _trainer(
    target: VerificationTarget,
    windows: ArrayWindows | None = None,
    *,
    dropout: float | None = None,
    **changes: Any,
) -> Iterator[Trainer]:
    """The real trainer of a new model, one step an epoch if nothing else is said; its files are deleted."""
    model = target.model.config if dropout is None else replace(target.model.config, dropout=dropout)
    if windows is None:
        windows = ArrayWindows(target.windows, channels=model.channels, sfreq=target.data.sfreq)
    brief = {
        "epochs": 1,
        "batch_size": len(windows),
        "lr": 3e-3,
        "warmup_epochs": 1,
        "precision": "fp32",
        "compile": False,
        "log_interval": 1,
        "checkpoint_minutes": 0.0,
        "on_write_error": "stop",
        **changes,
    }
    with tempfile.TemporaryDirectory() as directory:
        yield Trainer(
            model=build_model(model, seed=target.config.seed),
            train=windows,
            val=windows,
            data=target.data,
            config=replace(target.config, **brief),
            settings={},
            output_dir=Path(directory),
            device=torch.device("cpu"),
        )


def _steps(trainer: Trainer) -> list[StepMetrics]:
    return [event for event in trainer.fit() if isinstance(event, StepMetrics)]


class _Passed(NamedTuple):
    """A window that the trainer gave its model: its row, its mask (P,), whether it was cropped.

    `lost` (C,) are the channels of which it has nothing.
    """

    row: int
    mask: NDArray[np.bool_]
    cropped: bool
    lost: NDArray[np.bool_]


class _WatchedWindows(ArrayWindows):
    """Windows that remember which row each channel of each read window was of, by its bytes."""

    def read(self, index: NDArray[np.int64], crop: NDArray[np.float64] | None = None) -> NDArray[np.float32]:
        found = super().read(index, crop)
        for x, row in zip(found, index.tolist(), strict=True):
            self.rows.update({channel.tobytes(): row for channel in x})
        return found

    rows: dict[bytes, int]


def _watch(target: VerificationTarget, **changes: Any) -> dict[tuple[str, int], list[_Passed]]:
    """What the real trainer gives its model in two epochs, by split and epoch, in the order of the rows.

    The windows are adjacent, so they can be cropped. `changes` are of the `TrainConfig`.
    """
    config, sfreq = target.model.config, target.data.sfreq
    x = probe_windows(
        windows=WATCHED, channels=len(config.channels), samples=config.context_length, sfreq=sfreq, seed=0
    )
    starts = np.arange(WATCHED) * config.context_length / sfreq
    windows = _WatchedWindows(x, channels=config.channels, sfreq=sfreq, start_s=starts)
    windows.rows = {}
    seen: dict[tuple[str, int], list[_Passed]] = {
        (split, epoch): [] for epoch in (0, 1) for split in ("train", "val")
    }

    def note(model: torch.nn.Module, args: tuple[Tensor, Tensor]) -> None:
        for window, mask in zip(args[0].numpy(), args[1].numpy(), strict=True):
            lost = np.isnan(window).all(-1)  # (C,)
            row = next((windows.rows[channel.tobytes()] for channel in window[~lost]), -1)
            passed = _Passed(row, mask, not np.array_equal(window[~lost], x[row][~lost]), lost)
            seen["train" if model.training else "val", trainer.epoch].append(passed)

    with _trainer(target, windows, epochs=2, batch_size=WATCHED_BATCH, **changes) as trainer:
        trainer.model.register_forward_pre_hook(note)
        list(trainer.fit())
    return {key: sorted(passed, key=lambda one: one.row) for key, passed in seen.items()}


def _loss(
    model: PretrainingModel,
    target: VerificationTarget,
    mask: Tensor | None = None,
    *,
    heart_rate: float | None = None,
) -> tuple[Tensor, float, float]:
    """The loss, its MSM and its STFT term; with a `heart_rate` that of windows of known rate."""
    out = model(target.x, target.mask() if mask is None else mask)
    rates = None if heart_rate is None else torch.full((len(target.x),), heart_rate)
    sums: LossSums = target.loss_terms()(out, rates)
    return sums.loss(target.config.loss_weights), msm_loss(sums.msm).item(), stft_loss(sums.stft).item()


def _normalised(target: VerificationTarget) -> tuple[Tensor, Tensor]:
    observed = torch.isfinite(target.x)
    hidden = target.mask().repeat_interleave(target.model.config.patch_size, dim=1)[:, None, :]
    return normalise(target.x, visible=observed & ~hidden, observed=observed).values, observed & hidden


def _frozen(target: VerificationTarget) -> PretrainingModel:
    return target.model.eval()


def _checkpoint_of(target: VerificationTarget) -> Checkpoint:
    """The model as it stands, with no history of training."""
    model = target.model
    return Checkpoint(
        model=model.config,
        encoder=model.encoder.state_dict(),
        decoder=model.decoder.state_dict(),
        data=target.data,
        settings={},
        epoch=0,
        step=0,
        best_val_loss=None,
        metrics={},
    )


def _given(target: VerificationTarget) -> Checkpoint:
    if target.checkpoint is None:
        raise Failed("no checkpoint was given")
    return target.checkpoint


def _norm_of_difference(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> float:
    moved = sum(float((ours[name] - tensor).square().sum()) for name, tensor in theirs.items())
    return math.sqrt(moved / sum(float(tensor.square().sum()) for tensor in theirs.values()))


def _relative(got: Tensor, wanted: Tensor) -> float:
    return ((got - wanted).abs().max() / wanted.abs().max()).item()


def _shape(tensor: Tensor) -> str:
    return "(" + ", ".join(str(size) for size in tensor.shape) + ")"


def _require(holds: bool, measured: str) -> None:
    if not holds:
        raise Failed(measured)
