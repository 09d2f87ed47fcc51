"""Ablations: every variant trains, and changes what it says and nothing else."""

import json
import math
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from biofound.commands.probe_data import JoinedWindows, LabelledWindows
from biofound.core.losses import masked_squared_error
from biofound.core.masking import Stream
from biofound.core.models import ModelConfig, build_model
from biofound.core.monitor import r_peaks
from biofound.core.trainer import TrainConfig
from biofound.core.verify import probe_windows
from biofound.data.windows import open_windows
from tests.benchmarks import ablations
from tests.benchmarks.ablation_changes import (
    ChannelMaskedEncoder,
    ChannelMasks,
    EarlyFusion,
    LatentTarget,
    PatchNormalised,
    PatchNormalisedLoss,
    WithEncoder,
    beat_term,
    info_nce,
    latent_term,
    magnitude_term,
    patch_statistics,
    slope_term,
)
from tests.benchmarks.ablations import GROUPS, VARIANTS, Place, trainer_for
from tests.benchmarks.recipes import HeartRateProbe, trainer_of
from tests.core.conftest import TRAINING

SMALL = {"d_model": 16}
CONFIG = ModelConfig(
    channels=("PPG", "ECG"),
    context_length=1250,
    patch_size=125,
    num_layers=4,
    expansion_factor=2,
    dropout=0.0,
    patch_embedding="convolutional",
    rhythm_head=True,
    **SMALL,
)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Six windows of two recordings to train on, and four of four other patients to judge on."""
    root = tmp_path_factory.mktemp("ablations")
    x = probe_windows(windows=10, channels=2, samples=1250, sfreq=125.0, seed=0)
    for name, split, rows, each in (("corpus", "train", x[:6], 3), ("judged", "val", x[6:], 1)):
        (root / name).mkdir()
        owner = np.array([f"{name}{row // each}" for row in range(len(rows))])
        np.savez(
            root / name / f"{split}_windows.npz",
            x=rows,
            channels=("PPG", "ECG"),
            sfreq=125.0,
            subjects=owner,
            case_ids=owner,
            start_s=10.0 * (np.arange(len(rows)) % each),
        )
    return Place(corpus=root / "corpus", judged=root / "judged", precision="fp32")


@pytest.fixture(scope="module")
def probe(place):
    windows = open_windows(place.judged, "val")
    rows = np.arange(len(windows))
    labelled = LabelledWindows(
        windows=JoinedWindows(parts=[windows], rows=rows),
        values=60.0 + rows,
        subjects=windows.info(rows).subject_id,
        unlabelled=0,
    )
    return HeartRateProbe(labelled, folds=2, repeats=1, resamples=10)


@pytest.fixture(scope="module")
def trained(place):
    """A variant's trainer after two steps, made once."""
    made = {}

    def train(name):
        if name not in made:
            made[name] = trainer_for(VARIANTS[name], place, seed=0, steps=2, **SMALL)
            for _ in made[name].fit():
                pass
        return made[name]

    return train


@pytest.fixture(scope="module")
def x(place):
    return torch.from_numpy(open_windows(place.corpus, "train").read(np.arange(6)))


@pytest.fixture(scope="module")
def mask():
    return torch.rand(6, 10, generator=torch.Generator().manual_seed(0)) < 0.4


SAME_WITH_ONE_BATCH = {"base", "batch_16", "batch_64", "batch_128", "steps_500", "steps_4000"}


def of_settings_alone(name):
    """Whether a variant differs in settings of `biofound pretrain` alone, and has no code of its own."""
    settings = ("change", "recipe", "options", "steps", "cost", "note")
    plain = ablations.Variant(**{field: getattr(VARIANTS[name], field) for field in settings})
    return name != "base" and VARIANTS[name] == plain


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[pytest.mark.slow] * of_settings_alone(name)) for name in VARIANTS],
)
def test_a_variant_trains_and_is_judged_and_differs_from_base(trained, place, name):
    trainer = trained(name)
    judged = ablations.reconstructed(trainer, place, **SMALL)
    assert trainer.step == 2 and all(math.isfinite(value) for value in judged["msm"].values())
    ours, base = (trained(each).model.decoder.proj.bias for each in (name, "base"))
    assert torch.equal(ours, base) == (name in SAME_WITH_ONE_BATCH)
    assert list(place.corpus.iterdir()) == [place.corpus / "train_windows.npz"]


@pytest.mark.parametrize("name", VARIANTS)
def test_a_variant_changes_the_settings_that_it_names_and_no_other(place, name):
    variant = VARIANTS[name]
    head = ablations.Variant(change="", recipe=variant.recipe)
    ours, others = (place.settings(each, seed=0, steps=2).model_dump() for each in (variant, head))
    named = {**variant.options, **({"data_dir": ...} if variant.synthetic else {})}
    assert {key for key in ours if ours[key] != others[key]} == set(named)


def test_base_is_the_programs_own_trainer_bit_for_bit(place):
    # Ten steps of one batch an epoch: the program's epochs are whole and its warm-up is a tenth of them.
    ours = trainer_for(VARIANTS["base"], place, seed=3, steps=10, **SMALL)
    settings = place.settings(VARIANTS["base"], seed=3, steps=10, **SMALL)
    options = settings.model_dump(
        include={"batch_size", "lr", "expansion_factor", "rate_weight", "mask_ratio"}
    )
    assert options == {
        "batch_size": 32,
        "lr": 2e-3,
        "expansion_factor": 2,
        "rate_weight": 0.0,
        "mask_ratio": 0.4,
    }
    output = place.corpus.parent / "program"
    output.mkdir()
    theirs = trainer_of(settings, *place.windows(settings), precision="fp32", output_dir=output)
    for trainer in (ours, theirs):
        list(trainer.fit())
        assert trainer.step == 10
    states = [trainer.model.state_dict() for trainer in (ours, theirs)]
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[1])


def test_steps_are_those_of_equal_cpu_time_unless_the_length_is_the_change():
    assert ablations.Variant(change="", cost=2.0).steps_of(1500) == 750
    assert VARIANTS["steps_500"].steps_of(1500) == 500
    assert VARIANTS["base"].steps_of(1500) == 1500


def test_a_series_resumes_and_shows_its_rows(place, probe, tmp_path, monkeypatch):
    output, ran = tmp_path / "rows.jsonl", []
    real = ablations.run
    monkeypatch.setattr(
        ablations,
        "run",
        lambda name, *a, seed, **k: (ran.append((name, seed)), real(name, *a, seed=seed, **k))[1],
    )
    series = partial(ablations.run_all, place=place, probe=probe, steps=1, output=output, **SMALL)
    first = list(series(["patch_target"], [0]))
    both = list(series(["patch_target", "no_terms"], [0, 1]))
    assert ran == [("patch_target", 0), ("no_terms", 0), ("patch_target", 1), ("no_terms", 1)]
    rows = ablations.rows_in(output)
    assert rows == json.loads(json.dumps(first + both))
    assert {(row["precision"], row["classical"]["value"]) for row in rows} == {
        ("fp32", probe.classical.row.scores["mae"].value)
    }
    shown = ablations.table(rows).splitlines()
    heads = [line for line in shown if line.startswith("###")]
    assert heads == ["### Loss terms", "### Targets"]  # in the order of the groups
    assert [line.split(" | ")[:2] for line in shown if line.startswith("| without both")] == [
        ["| without both terms", "0"],
        ["| without both terms", "1"],
    ]
    hr = rows[0]["hr"]["channels_mean_std"]
    assert f"{hr['value']:.2f} [{hr['interval'][0]:.2f}" in ablations.table(rows)
    classical = rows[0]["classical"]["value"]
    assert "true mean and scale" in shown[-3]
    assert shown[-1].startswith(f"Classical features in the same folds: HR {classical:.2f} [")


def test_a_judged_store_with_training_windows_is_refused(place):
    both = Place(corpus=place.judged, judged=place.corpus, precision="fp32")
    with pytest.raises(SystemExit, match="expected windows of the split val alone"):
        trainer_for(VARIANTS["base"], both, seed=0, steps=1, **SMALL)


# --------------------------------------------------------------------------------------------------- masks


def channel_masks(stream=Stream.TRAIN_MASK, **changes):
    config = ChannelMasks(**vars(TRAINING), **changes)
    return config.masks(patches=10, stream=stream, epoch=2, index=np.arange(400))


def test_independent_masks_hide_as_much_of_each_channel_and_not_the_same():
    masks = channel_masks(independent=True)
    assert masks.shape == (400, 2, 10) and np.all(masks.sum(-1) == 4)
    both = (masks[:, 0] & masks[:, 1]).sum(-1).mean()
    assert both == pytest.approx(1.6, abs=0.15)  # 0.4 * 0.4 * 10: independent


def test_one_channel_is_hidden_whole_in_the_share_asked_for_and_the_rest_is_as_base():
    masks = channel_masks(whole_share=0.3)
    whole = masks.all(-1).any(-1)
    assert whole.mean() == pytest.approx(0.3, abs=0.06)
    assert np.all(masks[whole].any(-1).sum(-1) == 1)  # the other is visible throughout
    assert masks[whole][:, 0].all(-1).mean() == pytest.approx(0.5, abs=0.12)
    shared = TrainConfig.masks(TRAINING, patches=10, stream=Stream.TRAIN_MASK, epoch=2, index=np.arange(400))
    assert np.array_equal(masks[~whole], np.repeat(shared[~whole][:, None], 2, axis=1))


def test_validation_masks_are_shared_whatever_training_masks_are():
    shared = TrainConfig.masks(
        TRAINING, patches=10, stream=Stream.VALIDATION_MASK, epoch=2, index=np.arange(400)
    )
    assert np.array_equal(channel_masks(Stream.VALIDATION_MASK, independent=True, whole_share=0.5), shared)


def test_equal_masks_by_channel_are_to_the_encoder_what_shared_masks_are(x, mask):
    model = WithEncoder(CONFIG, encoder=ChannelMaskedEncoder).eval()
    with torch.no_grad():
        shared, by_channel = model(x, mask), model(x, mask[:, None].repeat(1, 2, 1))
    for ours, theirs in zip(by_channel, shared, strict=True):
        assert ours is theirs is None or torch.equal(ours, theirs)


def test_what_one_channel_hides_cannot_reach_the_latents_and_counts_in_it_alone(x, mask):
    encoder = ChannelMaskedEncoder(CONFIG).eval()
    masks = torch.stack([mask, torch.ones_like(mask)], dim=1)  # the second channel is hidden whole
    hidden = masks.repeat_interleave(125, dim=2)
    with torch.no_grad():
        one = encoder.encode(x, mask=masks)
        other = encoder.encode(torch.where(hidden, 1e3 * torch.randn_like(x), x), mask=masks)
    assert torch.equal(one.latents, other.latents)
    assert torch.equal(one.loss_mask, hidden)
    target = one.normalised.values[:, 1]
    assert torch.allclose(target.mean(-1), torch.zeros(6), atol=1e-4)
    assert torch.allclose(target.std(-1, correction=0), torch.ones(6), atol=1e-3)


# -------------------------------------------------------------------------------------------------- fusion


@pytest.mark.parametrize("layers", [1, 2])
def test_a_block_of_zeros_adds_exactly_nothing_to_an_early_fusion(x, layers):
    torch.manual_seed(0)
    two = EarlyFusion(CONFIG, layers=layers).eval()
    three = EarlyFusion(
        ModelConfig(**{**vars(CONFIG), "channels": ("ACC_X", "PPG", "ECG")}), layers=layers
    ).eval()
    three.load_state_dict({**three.state_dict(), **two.state_dict()})
    with torch.no_grad():
        three.fusion["ACC_X"].zero_()
        wanted = two(x)
        quiet, loud = (
            three(torch.cat([acc.expand(6, 1, 1250), x], 1)) for acc in (torch.zeros(1), 1e6 * x[:, :1])
        )
    assert torch.equal(quiet, loud)
    assert (quiet - wanted).abs().max() <= 1e-6


def test_early_fusion_has_the_weights_and_layers_of_base_and_mixes_channels_not_linearly(x):
    torch.manual_seed(0)
    early = EarlyFusion(CONFIG, layers=2).eval()
    base = build_model(CONFIG, seed=0).encoder
    assert len(early.backbone.encoder.mlp_mixer_encoder.mixers) == len(early.fused_mixers) == 2
    assert all(torch.equal(a, b) for a, b in zip(sorted_values(early), sorted_values(base), strict=True))
    with torch.no_grad():
        assert not torch.allclose(early(x), base.eval()(x), atol=1e-3)


def sorted_values(module):
    return sorted(
        (value.flatten() for value in module.state_dict().values()), key=lambda v: (len(v), v.tolist())
    )


def test_mix_channel_is_granites(trained):
    mixers = trained("mix_channel").model.encoder.backbone.encoder.mlp_mixer_encoder.mixers
    assert [mixer.mode for mixer in mixers] == ["mix_channel"] * 4
    assert all(hasattr(mixer, "channel_feature_mixer") for mixer in mixers)


# ------------------------------------------------------------------------------------------------- targets


def test_a_patch_target_has_mean_0_and_variance_1_by_patch(x):
    mean, std = patch_statistics(x, 125)
    by_patch = ((x - mean) / std).unflatten(-1, (10, 125))
    assert torch.allclose(by_patch.mean(-1), torch.zeros(6, 2, 10), atol=1e-4)
    assert torch.allclose(by_patch.var(-1, correction=0), torch.ones(6, 2, 10), atol=1e-2)


def test_the_patch_loss_is_0_where_the_normalised_patches_are_met_and_further_terms_stay(x, mask, trained):
    base = trained("base").loss_terms
    model = PatchNormalised(CONFIG)
    out = model.train()(x, mask)
    mean, std = patch_statistics(out.target, 125)
    met = out._replace(values=(out.target - mean) / std)
    sums = PatchNormalisedLoss(base, patch_size=125)(met)
    assert sums.msm[0].abs().max() == 0 and sums.stft[0].abs().max() < 1e-3 < sums.stft[1].min()
    assert torch.equal(sums.values[:, -3:], base(out).values[:, -3:])
    judged = model.eval()(x, mask)  # in the common units
    assert torch.allclose(judged.values, out.values * std + mean, atol=1e-5)
    assert masked_squared_error(judged.values, judged.target, judged.loss_mask)[0].min() > 0


def test_the_teacher_follows_by_the_momentum_formula_and_sees_the_whole_window(place, x, mask):
    trainer = trainer_for(VARIANTS["latent_1"], place, seed=0, steps=2, log_interval=1, **SMALL)
    model: LatentTarget = trainer.model
    token = [m.mask_token for m in (model.teacher, model.encoder)]
    wanted = token[0].detach().clone()
    assert torch.equal(*token) and not token[0].requires_grad
    for step, _ in enumerate(trainer.fit(), start=1):
        momentum = 0.99 + 0.009 * step / 2
        wanted = torch.lerp(wanted, token[1].detach(), 1 - momentum)
        assert torch.equal(token[0], wanted) and not torch.equal(*token)
    out = model.train()(x, mask)
    predicted, target = out.rate
    assert torch.equal(target, F.layer_norm(model.teacher(x), (16,)))
    assert torch.equal(predicted, model.predictor(out.latents))
    error = [
        F.smooth_l1_loss(predicted[b, p], target[b, p]) for b in range(6) for p in range(10) if mask[b, p]
    ]
    total, count = latent_term(out)
    assert count == len(error) and total.item() == pytest.approx(sum(error).item(), rel=1e-5)


def test_info_nce_is_the_reference():
    a, b = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(0)).double().numpy()
    a, b = (v / np.linalg.norm(v, axis=1, keepdims=True) for v in (a, b))
    s = np.exp(a @ b.T / 0.1)
    wanted = -sum(np.log(s[i, i] / s[i].sum()) + np.log(s[i, i] / s[:, i].sum()) for i in range(5))
    assert info_nce(torch.from_numpy(3 * a), torch.from_numpy(2 * b)).item() == pytest.approx(wanted)


def test_a_batch_of_neighbours_holds_a_window_beside_each_of_the_same_recording(trained):
    trainer = trained("contrast")
    assert trainer.neighbour.tolist() == [1, 2, 1, 4, 5, 4]
    (own,) = trainer._load(np.array([0, 5])).micro_batches
    (alone,) = trainer._load(np.array([1, 4])).micro_batches
    assert own.windows.shape == (4, 2, 1250)
    assert torch.equal(own.windows[2:], alone.windows[:2]) and torch.equal(own.mask[2:], alone.mask[:2])


WEIGHTS = [("latent_0.5", 0.5), ("latent_1", 1.0), ("contrast", 0.1), ("magnitude_0.3", 0.3)]
WEIGHTS += [("slope_0.3", 0.3), ("slope_1", 1.0), ("beats_1", 1.0)]


def test_terms_that_ask_for_beats_are_0_where_they_are_met_whatever_the_sign(trained, x, mask):
    out = trained("base").model.eval()(x, mask)
    silent = torch.zeros_like(out.target)
    for term in (slope_term, magnitude_term):
        right, wrong = (term(out._replace(values=values))[0] for values in (out.target, silent))
        assert right.item() == 0 and wrong.item() > 1
    flipped = out._replace(values=-out.target, loss_mask=torch.ones_like(out.loss_mask))
    assert all(term(flipped)[0].item() == pytest.approx(0, abs=1e-9) for term in (slope_term, magnitude_term))


def test_the_slope_term_of_silence_is_the_second_moment_of_the_slope(trained, x, mask):
    out = trained("base").model.eval()(x, mask)
    everything = out._replace(values=torch.zeros_like(out.target), loss_mask=torch.ones_like(out.loss_mask))
    total, count = slope_term(everything)
    slope = np.abs(np.diff(out.target[:, 1].numpy(), append=out.target[:, 1, -1:].numpy()))
    smooth = np.stack([np.convolve(row, np.full(13, 1 / 13), mode="same") for row in slope])
    wanted = np.mean(smooth**2 / smooth.var(1, keepdims=True, ddof=1))
    assert (total / count).item() == pytest.approx(wanted, rel=1e-4)


def test_the_beat_term_asks_each_hidden_patch_for_the_bins_of_its_r_peaks(trained, x, mask):
    out = trained("beats_1").model.train()(x, mask)
    assert out.rate.shape == (6, 10, 25)
    peaks, _ = r_peaks(out.target[:, 1].double(), sfreq=125.0)
    bins = peaks.view(6, 10, 25, 5).any(-1)
    hidden = out.loss_mask[:, 1].view(6, 10, 125).any(-1)
    right = torch.where(hidden[..., None], torch.where(bins, 50.0, -50.0), 7.0)
    total, count = beat_term(out._replace(rate=right))
    assert total.item() < 1e-9 and count.item() == hidden.sum()
    total, count = beat_term(out._replace(rate=torch.zeros_like(right)))
    assert (total / count).item() == pytest.approx(25 * math.log(2), rel=1e-5)


@pytest.mark.parametrize(("name", "weight"), WEIGHTS)
def test_a_further_term_is_added_with_its_weight(trained, name, weight):
    trainer = trained(name)
    batch = trainer._load(np.arange(4))
    trainer.model.train()
    sums = [trainer.loss_terms(trainer._forward(own.windows, own.mask)) for own in batch.micro_batches]
    whole = sum(sums[1:], start=sums[0])
    weights = trainer.config.loss_weights
    others = {key: value for key, value in weights.items() if key != "rate"}
    term = whole.further("rate")
    assert weights["rate"] == weight and term > 0
    assert whole.loss(weights).item() == pytest.approx((whole.loss(others) + weight * term).item())


def test_every_variant_is_in_one_group_and_says_its_change_once():
    names = [name for group in GROUPS.values() for name in group]
    assert len(names) == len(set(names))
    changes = [variant.change for variant in VARIANTS.values()]
    assert len(changes) == len(set(changes))
