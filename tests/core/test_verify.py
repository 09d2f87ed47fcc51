"""Every check passes on a sound model, and fails when its property is broken."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from biofound.core import global_term, losses, models, trainer, training_loop, verify
from biofound.core import inflate as inflation
from biofound.core.checkpoint import Checkpoint
from biofound.core.embedding import ConvolutionalEmbedding
from biofound.core.masking import Stream
from biofound.core.models import ModelConfig, build_model
from biofound.core.verify import probe_windows
from biofound.data import stream
from biofound.settings import PretrainSettings
from tests.chain import TRAINS

from .conftest import DATA, SMALL, TRAINING, MemoryWindows, small_windows


def sound_target():
    model = build_model(ModelConfig(channels=("PPG", "ECG"), dropout=0.0, **SMALL), seed=0)
    return verify.VerificationTarget(model=model, data=DATA, config=TRAINING, windows=small_windows())


@pytest.fixture
def target():
    return sound_target()


@pytest.fixture(scope="module")
def sound():
    """What each check says of `sound_target()`, by its name."""
    return {check.name: check for check in verify.verify(sound_target())}


@pytest.fixture(scope="module")
def learned(tmp_path_factory):
    """The checkpoint of a run of 16 steps, after which the validation windows are known by heart."""
    windows = small_windows()
    changes = {"epochs": 1, "warmup_epochs": 0, "batch_size": 24, "lr": 0.03, "random_crop": False}
    run = trainer.Trainer(
        model=build_model(ModelConfig(channels=("PPG", "ECG"), dropout=0.0, **SMALL), seed=TRAINING.seed),
        train=MemoryWindows(np.tile(windows, (32, 1, 1))),
        val=MemoryWindows(windows),
        data=DATA,
        config=replace(TRAINING, **changes),
        settings={},
        output_dir=tmp_path_factory.mktemp("learned"),
        device=torch.device("cpu"),
    )
    list(run.fit())
    return run.checkpoint()


@pytest.fixture
def with_checkpoint(target, learned):
    return replace(target, model=learned.build(), checkpoint=learned)


@pytest.fixture(autouse=True)
def no_odd_hearts_are_kept():
    yield
    stream.forget_hearts()


def outcome(target, name):
    return verify.run_check(name, target)


def test_every_check_passes_on_a_sound_model_and_says_what_it_measured(sound):
    checks = sound.values()
    assert [c.name for c in checks if not c.passed] == []
    assert len(checks) == len(verify.CHECKS) - len(verify.OF_CHECKPOINTS)
    assert all(any(character.isdigit() for character in c.measured) for c in checks)


def test_every_check_passes_on_a_checkpoint_and_on_what_is_inflated_from_it(with_checkpoint, windows):
    """But for those that train a new model; test_end_to_end.py has them, too, on what is inflated."""
    of_checkpoints = [name for name, check in verify.CHECKS.items() if check in verify.OF_CHECKPOINTS]
    assert [c for c in (outcome(with_checkpoint, name) for name in of_checkpoints) if not c.passed] == []
    source = with_checkpoint.checkpoint
    wide = inflation.inflate(source, channels=("ACC_X", "PPG", "ECG")).model
    bands = {**source.data.filters, "ACC_X": {"low_hz": 0.5, "high_hz": 10.0, "order": 4}}
    target = replace(
        with_checkpoint,
        model=wide,
        data=replace(source.data, filters=bands),
        windows=np.concatenate([windows[:, :1], windows], axis=1),
        checkpoint=replace(
            source,
            model=wide.config,
            encoder=wide.encoder.state_dict(),
            decoder=wide.decoder.state_dict(),
            data=replace(source.data, filters=bands),
            inflated_from={"channels": ["PPG", "ECG"], "sha256": "0"},
        ),
    )
    at_once = [name for name in verify.CHECKS if name not in TRAINS]
    assert [c for c in (outcome(target, name) for name in at_once) if not c.passed] == []


@pytest.mark.slow  # half a minute; a checkpoint of another size is checked in test_end_to_end.py
def test_the_default_recipe_passes(data):
    recipe = PretrainSettings()
    target = verify.VerificationTarget(
        model=build_model(recipe.fill(ModelConfig), seed=0),
        data=data,
        config=recipe.fill(trainer.TrainConfig, precision="fp32"),
        windows=probe_windows(windows=8, channels=2, samples=1250, sfreq=125.0, seed=0),
    )
    assert [c for c in verify.verify(target) if not c.passed] == []


@pytest.mark.slow  # a third of a minute
def test_every_check_passes_with_all_further_terms(target, config):
    weights = {"global_weight": 0.3, "rhythm_weight": 0.1, "rate_weight": 0.1}
    weights |= {"qrs_weight": 0.3, "channel_dropout": 0.5}
    heads = {"patch_embedding": "convolutional", "rhythm_head": True, "rate_head": True}
    target = replace(
        target,
        model=build_model(replace(config, **heads), seed=0),
        config=replace(target.config, **weights),
    )
    assert [c for c in verify.verify(target) if not c.passed] == []


def leak_masked_samples(monkeypatch):
    sound = models.normalise
    monkeypatch.setattr(
        models, "normalise", lambda x, *, visible, observed: sound(x, visible=observed, observed=observed)
    )


def leak_through_the_convolutions(monkeypatch):
    """Only what the convolutions read is not blanked."""
    normalised, whole = models.normalise, []

    def remember(x, **kw):
        scaled = normalised(x, **kw)
        whole.append(scaled.values)
        return scaled

    sound = ConvolutionalEmbedding.forward
    monkeypatch.setattr(models, "normalise", remember)
    monkeypatch.setattr(
        ConvolutionalEmbedding, "forward", lambda self, seen, visible: sound(self, whole[-1], visible)
    )


def see_absent_channels_that_hold_numbers(monkeypatch):
    sound = models.Encoder._checked

    def finite_is_there(self, x, mask, observed):
        return sound(self, x, mask, torch.isfinite(x))

    monkeypatch.setattr(models.Encoder, "_checked", finite_is_there)


def count_absent_channels(monkeypatch):
    sound = losses.rate_term
    monkeypatch.setattr(
        losses, "rate_term", lambda prediction, rate, counts: sound(prediction, rate, torch.ones_like(counts))
    )
    whole = models.Encoder.encode

    def counted(self, x, *, mask=None, observed=None):
        encoded = whole(self, x, mask=mask, observed=observed)
        hidden = mask.repeat_interleave(self.config.patch_size, dim=1)[:, None, :]
        return encoded._replace(loss_mask=hidden.expand_as(x))

    monkeypatch.setattr(models.Encoder, "encode", counted)


def drop_channels_with(monkeypatch, changed):
    sound = trainer.draw_channel_dropout
    monkeypatch.setattr(trainer, "draw_channel_dropout", lambda *args, **kw: changed(sound(*args, **kw)))


def drop_no_channel(monkeypatch):
    drop_channels_with(monkeypatch, np.zeros_like)


def drop_whole_windows(monkeypatch):
    drop_channels_with(monkeypatch, lambda dropped: dropped | dropped.any(1, keepdims=True))


def average_the_channels(monkeypatch):
    monkeypatch.setattr(
        models.Encoder,
        "_fuse",
        lambda self, mixed: torch.einsum("bcpd,de->bpe", mixed, self.fusion["PPG"]),
    )
    monkeypatch.setattr(
        models.Encoder,
        "_stacked",
        lambda self, by_name: torch.stack([by_name["PPG"]] * len(self.config.channels)),
    )


def keep_physical_units(monkeypatch):
    def raw(x, *, visible, observed):
        zero = torch.zeros_like(x[..., :1])
        return models.Normalised(torch.where(observed, x, 0.0), zero, zero + 1)

    monkeypatch.setattr(models, "normalise", raw)


def rate_of_zero(monkeypatch):
    monkeypatch.setattr(trainer, "learning_rate", lambda step, **_: 0.0)


def curve_of_zero(monkeypatch):
    monkeypatch.setattr(verify, "learning_rate", lambda step, **_: 0.0)


def decay_everything(monkeypatch):
    def optimizer(model, *, lr, weight_decay):
        return torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=weight_decay)

    monkeypatch.setattr(verify, "make_optimizer", optimizer)


def optimizer_of_a_copy(monkeypatch):
    sound = training_loop.make_optimizer
    monkeypatch.setattr(
        verify, "make_optimizer", lambda model, **kw: sound(build_model(model.config, seed=0), **kw)
    )


def trainer_of_a_copy(monkeypatch):
    sound = training_loop.make_optimizer
    monkeypatch.setattr(
        training_loop, "make_optimizer", lambda model, **kw: sound(build_model(model.config, seed=0), **kw)
    )


def draw_masks_with(monkeypatch, **changes):
    sound = trainer.draw_masks
    monkeypatch.setattr(trainer, "draw_masks", lambda **kw: sound(**{**kw, **changes}))


def mask_too_little(monkeypatch):
    draw_masks_with(monkeypatch, ratio=0.3)


def mask_the_beginning(monkeypatch):
    def first(*, ratio, patches, index, **_):
        mask = np.zeros((len(index), patches), bool)
        mask[:, : round(ratio * patches)] = True
        return mask

    monkeypatch.setattr(trainer, "draw_masks", first)


def mask_alike_every_epoch(monkeypatch):
    draw_masks_with(monkeypatch, epoch=0)


def mask_alike_in_both_splits(monkeypatch):
    draw_masks_with(monkeypatch, stream=Stream.TRAIN_MASK)


def mask_every_window_alike(monkeypatch):
    sound = trainer.draw_masks
    monkeypatch.setattr(trainer, "draw_masks", lambda *, index, **kw: sound(index=0 * index, **kw))


def change_validation_masks(monkeypatch):
    def by_epoch(self, index):
        patches = self.model.config.patches
        return self.config.masks(
            patches=patches, stream=Stream.VALIDATION_MASK, epoch=self.epoch, index=index
        )

    monkeypatch.setattr(trainer.Trainer, "validation_mask", by_epoch)


def drop_last_training_batch(monkeypatch):
    sound = training_loop.prefetched
    monkeypatch.setattr(
        training_loop, "prefetched", lambda load, batches, meter: sound(load, batches[:-1], meter)
    )


def drop_last_validation_batch(monkeypatch):
    def split(order, batch_size):
        batches = sound(order, batch_size)
        return batches[:-1] if len(batches) > 1 and (np.diff(order) == 1).all() else batches

    sound = trainer.split_batches
    monkeypatch.setattr(trainer, "split_batches", split)


def train_with(monkeypatch, **changes):
    """The trainer does not use its settings, but these."""
    sound = trainer.Trainer.__init__
    monkeypatch.setattr(
        trainer.Trainer,
        "__init__",
        lambda self, *, config, **kw: sound(self, config=replace(config, **changes), **kw),
    )


def never_crop(monkeypatch):
    train_with(monkeypatch, random_crop=False)


def never_clip(monkeypatch):
    train_with(monkeypatch, gradient_clip=1e12)


def always_clip(monkeypatch):
    train_with(monkeypatch, gradient_clip=1e-3)


def validate_with_dropout(monkeypatch):
    monkeypatch.setattr(models.PretrainingModel, "eval", lambda self: self.train())


def ignore_the_pass_band(monkeypatch):
    sound = losses.MultiResolutionSTFT.__init__
    monkeypatch.setattr(
        losses.MultiResolutionSTFT,
        "__init__",
        lambda self, *, bands, **kw: sound(self, bands=[(0.0, 62.5)] * len(bands), **kw),
    )


def count_visible_samples(monkeypatch):
    def everywhere(reconstruction, target, loss_mask):
        return losses.masked_squared_error(reconstruction, target, torch.ones_like(loss_mask))

    monkeypatch.setattr(verify, "masked_squared_error", everywhere)


def count_the_wrong_samples(monkeypatch):
    sound = models.PretrainingModel.forward

    def inverted(self, x, mask, observed=None):
        out = sound(self, x, mask, observed)
        return out._replace(loss_mask=~out.loss_mask)

    monkeypatch.setattr(models.PretrainingModel, "forward", inverted)


def absolute_floor(monkeypatch):
    def init(self, **kw):
        sound(self, **{**kw, "floor": 1e-8, "bands": [(0.5, 62.0)] * len(kw["bands"])})

    sound = losses.MultiResolutionSTFT.__init__
    monkeypatch.setattr(losses.MultiResolutionSTFT, "__init__", init)


def magnitude_instead_of_log_power(monkeypatch):
    def magnitude(self, frames, basis):
        real, imaginary = torch.nn.functional.conv1d(frames, basis).chunk(2, dim=1)
        return (real.square() + imaginary.square()).sqrt()

    monkeypatch.setattr(losses.MultiResolutionSTFT, "_log_power", magnitude)


def stop_the_gradient(monkeypatch):
    sound = models.ReconstructionHead1D.forward
    monkeypatch.setattr(models.ReconstructionHead1D, "forward", lambda self, z: sound(self, z.detach()))


def read_at_longer_lags(monkeypatch):
    sound = global_term._at
    monkeypatch.setattr(global_term, "_at", lambda values, place: sound(values, 1.1 * place))


def half_the_interval(monkeypatch):
    """The comb forgets that a beat's half is no beat."""

    def likely(self, correlation):
        interval = self.get_buffer("intervals")
        return torch.softmax(12 * global_term._at(correlation, 2 * interval), dim=-1)

    monkeypatch.setattr(global_term.RhythmTargets, "_likely_intervals", likely)


def count_windows_with_gaps(monkeypatch):
    sound = losses.global_terms
    monkeypatch.setattr(
        losses,
        "global_terms",
        lambda prediction, summaries, intervals, counts: sound(
            prediction, summaries, intervals, torch.ones_like(counts)
        ),
    )


def one_prediction_of_two(monkeypatch):
    sound = losses.global_terms
    monkeypatch.setattr(losses, "global_terms", lambda prediction, *others: sound(prediction[:1], *others))


def swap_the_terms(monkeypatch):
    sound = losses.global_terms
    monkeypatch.setattr(losses, "global_terms", lambda *args: sound(*args).flip(1))


def unknown_rates_are_80(monkeypatch):
    sound = losses.rate_term
    monkeypatch.setattr(
        losses, "rate_term", lambda prediction, rate, counts: sound(prediction, rate.nan_to_num(80.0), counts)
    )


def rate_of_channels_with_a_gap(monkeypatch):
    sound = losses.rate_term
    monkeypatch.setattr(
        losses, "rate_term", lambda prediction, rate, counts: sound(prediction, rate, torch.ones_like(counts))
    )


def rate_in_hz(monkeypatch):
    monkeypatch.setattr(global_term, "rate_target", lambda heart_rate: heart_rate / 60)


def change_the_qrs_term(monkeypatch, changed):
    """`changed` gets the term and its arguments, reconstruction, target, mask and the rest by name."""
    sound = losses.qrs_term
    monkeypatch.setattr(losses, "qrs_term", lambda *args, **kw: changed(sound, *args, **kw))


def qrs_with_its_sign(monkeypatch):
    monkeypatch.setattr(
        losses,
        "qrs_term",
        lambda ours, target, mask, **_: losses.masked_squared_error(ours, target, mask),
    )


def qrs_of_visible_samples(monkeypatch):
    change_the_qrs_term(
        monkeypatch, lambda sound, ours, target, mask, **kw: sound(ours, target, torch.ones_like(mask), **kw)
    )


def qrs_of_every_channel(monkeypatch):
    change_the_qrs_term(
        monkeypatch, lambda sound, *args, ecg, sfreq: sound(*args, ecg=range(args[0].shape[1]), sfreq=sfreq)
    )


def no_qrs_term(monkeypatch):
    change_the_qrs_term(monkeypatch, lambda sound, ours, *args, **kw: 0 * sound(ours, *args, **kw))


def hearts_from_nowhere(monkeypatch):
    sound, random = stream.draw_heart, np.random.default_rng()
    monkeypatch.setattr(
        stream,
        "draw_heart",
        lambda population, key, *rest: sound(population, (random.integers(99), 0), *rest),
    )


def window_scaled_by_its_batch(monkeypatch):
    sound = stream.SyntheticStream.read

    def scaled(self, index, crop=None):
        batch = sound(self, index, crop)
        return batch / batch.std()

    monkeypatch.setattr(stream.SyntheticStream, "read", scaled)


def hearts_again_in_every_epoch(monkeypatch):
    sound = stream.SyntheticStream.read
    monkeypatch.setattr(
        stream.SyntheticStream, "read", lambda self, index, crop=None: sound(self, index % len(self), crop)
    )


def twice_the_heart_rate(monkeypatch):
    sound = stream.SyntheticStream.heart_rate
    monkeypatch.setattr(stream.SyntheticStream, "heart_rate", lambda self, *args: 2 * sound(self, *args))


def forget_a_tensor(monkeypatch):
    sound = verify.save_checkpoint

    def rounded(path, checkpoint):
        state = {name: t.bfloat16().float() for name, t in checkpoint.encoder.items()}
        sound(path, replace(checkpoint, encoder=state))

    monkeypatch.setattr(verify, "save_checkpoint", rounded)


def transfer_nothing(monkeypatch):
    def fresh(checkpoint, *, channels, seed=0):
        config = replace(checkpoint.model, channels=channels)
        return inflation.Inflation(model=build_model(config, seed=99), transfers=())

    monkeypatch.setattr(verify, "inflate", fresh)


def inflate_with(monkeypatch, change):
    sound = verify.inflate

    def changed(checkpoint, *, channels, seed=0):
        result = sound(checkpoint, channels=channels, seed=seed)
        with torch.no_grad():
            change(result.model.encoder)
        return result

    monkeypatch.setattr(verify, "inflate", changed)


def let_new_channels_in(monkeypatch):
    inflate_with(monkeypatch, lambda encoder: encoder.fusion["VERIFY_X"].add_(1e-5))


def cut_new_channels_off(monkeypatch):
    sound = models.Encoder._fuse

    def old_only(self, mixed):
        kept = torch.tensor([not name.startswith("VERIFY") for name in self.config.channels])
        return sound(self, mixed * kept[None, :, None, None])

    monkeypatch.setattr(models.Encoder, "_fuse", old_only)


def wrong_width(monkeypatch):
    monkeypatch.setattr(
        models.Encoder, "forward", lambda self, x, mask=None: self.encode(x, mask=mask).latents[..., 1:]
    )


def wrong_length(monkeypatch):
    sound = models.ReconstructionHead1D.forward
    monkeypatch.setattr(models.ReconstructionHead1D, "forward", lambda self, z: sound(self, z)[..., 1:])


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("encoder", wrong_width),
        ("decoder", wrong_length),
        ("losses", stop_the_gradient),
        ("masking", mask_too_little),
        ("masking", mask_the_beginning),
        ("masking", mask_alike_every_epoch),
        ("forward pass", count_the_wrong_samples),
        ("optimizer and schedule", curve_of_zero),
        ("optimizer and schedule", decay_everything),
        ("trainer", rate_of_zero),
        ("trainer", trainer_of_a_copy),
        ("one training step", optimizer_of_a_copy),
        ("learning rate is applied", rate_of_zero),
        ("learning rate is applied", trainer_of_a_copy),
        ("every window is used", drop_last_training_batch),
        ("every window is used", drop_last_validation_batch),
        ("masks do not repeat", mask_every_window_alike),
        ("masks do not repeat", mask_alike_every_epoch),
        ("masks do not repeat", mask_alike_in_both_splits),
        ("masks do not repeat", change_validation_masks),
        ("random crops", never_crop),
        ("gradient clipping", never_clip),
        ("gradient clipping", always_clip),
        ("validation", validate_with_dropout),
        ("validation", drop_last_validation_batch),
        ("STFT pass band", ignore_the_pass_band),
        ("masked samples are hidden", leak_masked_samples),
        ("what is absent has no influence", see_absent_channels_that_hold_numbers),
        ("what is absent has no influence", count_absent_channels),
        ("what is absent has no influence", drop_no_channel),
        ("what is absent has no influence", drop_whole_windows),
        ("channels are told apart", average_the_channels),
        ("scale does not matter", keep_physical_units),
        ("MSM closed form", count_visible_samples),
        ("STFT closed form", magnitude_instead_of_log_power),
        ("small error, small STFT", absolute_floor),
        ("further terms closed form", read_at_longer_lags),
        ("further terms closed form", half_the_interval),
        ("further terms closed form", count_windows_with_gaps),
        ("further terms closed form", one_prediction_of_two),
        ("further terms closed form", swap_the_terms),
        ("further terms closed form", unknown_rates_are_80),
        ("further terms closed form", rate_of_channels_with_a_gap),
        ("further terms closed form", rate_in_hz),
        ("QRS term closed form", qrs_with_its_sign),
        ("QRS term closed form", qrs_of_visible_samples),
        ("QRS term closed form", qrs_of_every_channel),
        ("QRS term closed form", no_qrs_term),
        ("synthetic stream repeats", hearts_from_nowhere),
        ("synthetic stream repeats", window_scaled_by_its_batch),
        ("synthetic stream repeats", hearts_again_in_every_epoch),
        ("synthetic stream repeats", twice_the_heart_rate),
        ("checkpoint round trip", forget_a_tensor),
        ("inflation is exact", transfer_nothing),
        ("inflation is exact", let_new_channels_in),
        ("inflation is exact", cut_new_channels_off),
    ],
)
def test_a_check_fails_when_its_property_is_broken(sound, target, monkeypatch, name, damage):
    assert sound[name].passed
    damage(monkeypatch)
    assert not outcome(target, name).passed


def test_hidden_samples_that_only_the_convolutions_read_are_noticed(target, config, monkeypatch):
    target = replace(target, model=build_model(replace(config, patch_embedding="convolutional"), seed=0))
    assert outcome(target, "masked samples are hidden").passed
    leak_through_the_convolutions(monkeypatch)
    assert not outcome(target, "masked samples are hidden").passed


def test_every_check_has_a_test_that_breaks_it():
    mark = test_a_check_fails_when_its_property_is_broken.pytestmark[0]
    elsewhere = {verify.imports, *verify.OF_CHECKPOINTS}
    broken = {name for name, _ in mark.args[1]}
    assert broken == {name for name, check in verify.CHECKS.items() if check not in elsewhere}


def test_a_stand_in_for_granite_is_noticed(target):
    class StandIn(torch.nn.Module):
        pass

    target.model.encoder.backbone = StandIn()
    check = outcome(target, "imports")
    assert not check.passed
    assert "test_verify" in check.measured


def test_block_masks_that_are_not_contiguous_are_noticed(target, monkeypatch):
    block = replace(target, config=replace(target.config, mask_type="block"))
    assert outcome(block, "masking").passed
    draw_masks_with(monkeypatch, kind="random")
    assert not outcome(block, "masking").passed


def test_a_checkpoint_that_describes_too_little_is_noticed(with_checkpoint):
    assert outcome(with_checkpoint, "checkpoint is complete").passed
    whole = with_checkpoint.checkpoint
    for damaged in (
        replace(whole, data=replace(whole.data, filters={})),
        replace(whole, data=replace(whole.data, fingerprint="")),
        replace(whole, versions={}),
    ):
        check = outcome(replace(with_checkpoint, checkpoint=damaged), "checkpoint is complete")
        assert not check.passed


def test_a_checkpoint_that_never_learned_is_noticed(with_checkpoint, train_config):
    assert outcome(with_checkpoint, "checkpoint learned").passed
    fresh = build_model(with_checkpoint.model.config, seed=train_config.seed)
    whole = with_checkpoint.checkpoint
    unmoved = Checkpoint(**{**vars(whole), "encoder": fresh.encoder.state_dict()})
    check = outcome(replace(with_checkpoint, checkpoint=unmoved), "checkpoint learned")
    assert not check.passed
    assert check.measured.startswith("0 of")
    broken = {name: tensor * float("nan") for name, tensor in whole.encoder.items()}
    damaged = Checkpoint(**{**vars(whole), "encoder": broken})
    assert not outcome(replace(with_checkpoint, checkpoint=damaged), "checkpoint learned").passed


def test_a_checkpoint_no_better_than_a_constant_guess_in_one_channel_fails(with_checkpoint):
    name, whole = "better than a constant guess", with_checkpoint.checkpoint
    val, guess = whole.metrics["val"]["msm_by_channel"], whole.metrics["monitor"]["constant_guess_msm"]
    check = outcome(with_checkpoint, name)
    assert check.passed
    assert f"PPG {val['PPG']:.3f} (constant guess {guess['PPG']:.3f})" in check.measured

    def with_msm(**msm):
        metrics = {**whole.metrics, "val": {**whole.metrics["val"], "msm_by_channel": {**val, **msm}}}
        return outcome(replace(with_checkpoint, checkpoint=replace(whole, metrics=metrics)), name)

    assert with_msm(ECG=guess["ECG"] - 1e-6).passed
    for worse in (guess["ECG"], 2 * guess["ECG"], float("nan")):
        check = with_msm(ECG=worse)
        assert not check.passed
        assert "; ECG no better" in check.measured
    unvalidated = replace(with_checkpoint, checkpoint=replace(whole, metrics={}))
    assert outcome(unvalidated, name).measured.startswith("does not apply")


def test_crops_that_the_settings_turn_off_are_noticed(target, monkeypatch):
    uncropped = replace(target, config=replace(target.config, random_crop=False))
    assert outcome(uncropped, "random crops").passed
    train_with(monkeypatch, random_crop=True)
    assert not outcome(uncropped, "random crops").passed


def test_an_error_inside_a_check_fails_that_check_alone(target, monkeypatch):
    def broken(**_):
        raise RuntimeError("no masks today")

    monkeypatch.setattr(trainer, "draw_masks", broken)
    check = outcome(target, "masking")
    assert not check.passed
    assert check.measured == "RuntimeError: no masks today"
    assert outcome(target, "encoder").passed


def test_checks_pass_on_windows_of_which_some_lack_a_channel(target, windows):
    lacking = windows.copy()
    lacking[:4, 1] = np.nan
    lacking[5, 0, 40:90] = np.nan
    target = replace(target, windows=lacking)
    names = ("forward pass", "validation", "masked samples are hidden", "scale does not matter")
    names += ("what is absent has no influence", "further terms closed form", "QRS term closed form")
    names += ("inflation is exact",)
    assert [c for c in (outcome(target, name) for name in names) if not c.passed] == []
