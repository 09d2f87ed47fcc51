import copy
import importlib.util
import sys

import pytest
import torch

from biofound.core import models
from biofound.core.models import (
    Encoder,
    ModelConfig,
    PretrainingModel,
    build_model,
    channel_rows,
    normalise,
    parameter_count,
)


def patch_mask(windows, *hidden, patches=10):
    mask = torch.zeros(windows, patches, dtype=torch.bool)
    mask[:, list(hidden)] = True
    return mask


def test_the_contract_of_shapes_and_parameter_counts(default_config):
    model = build_model(default_config, seed=0)
    latents = model.encoder(torch.randn(2, 2, 1250))
    assert latents.shape == (2, 10, 192)
    assert model.decoder(latents).shape == (2, 2, 1250)
    assert parameter_count(model.decoder) == 48_250
    assert parameter_count(model.encoder.backbone) == 2_400_232
    # mask token, one embedding and one fusion block a channel, fusion bias
    assert parameter_count(model.encoder) == 2_400_232 + 192 + 2 * 192 + 2 * 192 * 192 + 192


def test_the_blocks_are_granites_own_and_mix_without_gate(model):
    blocks = model.encoder.backbone
    assert type(blocks).__module__.startswith("tsfm_public.models.tinytimemixer")
    assert not any("gating" in name for name, _ in blocks.named_modules())
    assert type(blocks.scaler).__name__ == "TinyTimeMixerNOPScaler"


def test_a_missing_granite_is_an_error_not_a_stand_in(monkeypatch):
    for name in [name for name in sys.modules if name.partition(".")[0] == "tsfm_public"]:
        monkeypatch.setitem(sys.modules, name, None)
    spec = importlib.util.spec_from_file_location("models_anew", models.__file__)
    with pytest.raises(ImportError, match="tsfm_public"):
        spec.loader.exec_module(importlib.util.module_from_spec(spec))


def test_granite_embeds_patches_in_the_order_of_time(config, model):
    # What `encode` hands to granite's mixer is the linear map of each patch: checked against plain torch.
    x = torch.randn(3, 2, 250)
    seen = []
    hook = model.encoder.backbone.encoder.mlp_mixer_encoder.register_forward_pre_hook(
        lambda module, args: seen.append(args[0])
    )
    model.encoder(x)
    hook.remove()
    values = (x - x.mean(-1, keepdim=True)) / x.std(-1, keepdim=True, correction=0)
    patcher = model.encoder.backbone.encoder.patcher
    names = torch.stack([model.encoder.channel_embedding[name] for name in config.channels])
    expected = values.reshape(3, 2, 10, 25) @ patcher.weight.T + patcher.bias + names[:, None, :]
    assert torch.allclose(seen[0], expected, atol=1e-5)


def test_normalising_takes_mean_and_scale_from_visible_samples_only():
    x = torch.tensor([[[1.0, 3.0, 1.0, 3.0, 700.0, float("nan")]]])
    observed = torch.isfinite(x)
    visible = observed.clone()
    visible[..., 4] = False
    out = normalise(x, visible=visible, observed=observed)
    assert out.mean.item() == pytest.approx(2.0)
    assert out.std.item() == pytest.approx(1.0)
    assert out.values.flatten().tolist() == pytest.approx([-1, 1, -1, 1, 698, 0])


def test_normalising_a_flat_channel_or_one_with_nothing_visible_stays_finite():
    x = torch.full((1, 2, 8), 5.0)
    visible = torch.ones_like(x, dtype=torch.bool)
    visible[:, 1] = False
    out = normalise(x, visible=visible, observed=torch.ones_like(visible))
    assert out.values[:, 0].abs().max() < 1
    assert out.mean[0, 1].item() == 0 and out.std[0, 1].item() == 1


def test_the_scale_of_an_almost_flat_channel_has_a_floor():
    x = 1.0 + torch.tensor([0, 2**-23] * 8)[None, None]  # the two neighbours in float32: rounding, no signal
    everything = torch.ones_like(x, dtype=torch.bool)
    out = normalise(x, visible=everything, observed=everything)
    assert out.std.item() == pytest.approx(1e-6, rel=1e-3)
    assert out.values.abs().max() < 0.1


@pytest.mark.parametrize("scale", [1e-30, 1e-6, 1.0, 1e6, 1e30])
def test_normalising_works_at_any_finite_scale(scale):
    x = torch.randn(2, 1, 500, generator=torch.Generator().manual_seed(0))
    everything = torch.ones_like(x, dtype=torch.bool)
    out = normalise(x * scale, visible=everything, observed=everything)
    assert torch.allclose(out.values, normalise(x, visible=everything, observed=everything).values, atol=1e-4)


@pytest.mark.parametrize("what", [0.0, 1e30, float("nan"), float("inf")])
def test_what_stands_in_hidden_samples_leaves_the_latents_bit_identical(model, x, what):
    mask = patch_mask(len(x), 1, 4, 5, 9)
    hidden = mask.repeat_interleave(25, dim=1)[:, None, :]
    changed = torch.where(hidden, what, x)
    assert torch.equal(model.encoder(x, mask), model.encoder(changed, mask))
    seen = torch.where(~hidden, what, x)
    assert not torch.equal(model.encoder(x, mask), model.encoder(seen, mask))


def test_what_stands_in_gaps_leaves_the_latents_bit_identical_and_gradients_finite(model, x):
    observed = torch.ones_like(x, dtype=torch.bool)
    observed[:, 0, 30:90] = False
    latents = model.encoder(x, observed=observed)
    with_nan = torch.where(observed, x, float("nan"))
    assert torch.equal(latents, model.encoder(with_nan, observed=observed))
    assert torch.equal(latents, model.encoder(with_nan))  # NaN is a gap where nothing else is said
    out = model(with_nan, patch_mask(len(x), 0, 5))
    assert not out.loss_mask[:, 0, 30:90].any()
    out.values[out.loss_mask].square().sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


def test_the_loss_mask_marks_the_hidden_real_samples(model, x):
    holed = x.clone()
    holed[:, 1, 100:120] = float("nan")
    out = model(holed, patch_mask(len(x), 4))
    expected = torch.zeros_like(x, dtype=torch.bool)
    expected[..., 100:125] = True
    expected[:, 1, 100:120] = False
    assert torch.equal(out.loss_mask, expected)


def test_a_hidden_patch_is_the_mask_token_not_a_flat_line(model, x):
    mask = patch_mask(len(x), 3)
    before = model.encoder(x, mask)
    with torch.no_grad():
        model.encoder.mask_token += 1
    assert not torch.equal(model.encoder(x, mask), before)
    untouched = build_model(model.config, seed=0).encoder
    assert torch.equal(model.encoder(x), untouched(x))


def test_a_patch_without_any_sample_is_the_mask_token_too(model, x):
    holed = x.clone()
    holed[:, 0, 50:75] = float("nan")
    before = model.encoder(holed)
    with torch.no_grad():
        model.encoder.mask_token += 1
    assert not torch.equal(model.encoder(holed), before)


def test_swapping_channels_changes_the_latents(model, x):
    latents, swapped = model.encoder(x), model.encoder(x.flip(1))
    assert ((swapped - latents).norm() / latents.norm()).item() > 0.05


def test_parameters_follow_their_channel_by_name_into_another_order(model, x, config):
    other = Encoder(ModelConfig(**{**vars(config), "channels": ("ECG", "PPG")}))
    other.load_state_dict(model.encoder.state_dict())
    assert torch.allclose(other(x.flip(1)), model.encoder(x), atol=1e-6)


def test_rescaling_changes_neither_latents_nor_the_reconstruction_in_physical_units(model, x):
    mask = patch_mask(len(x), 2, 3)
    assert torch.allclose(model.encoder(10 * x + 3, mask), model.encoder(x, mask), atol=1e-5)
    ours, scaled = model(x, mask).in_physical_units(), model(10 * x + 3, mask).in_physical_units()
    assert torch.allclose(scaled, 10 * ours + 3, atol=1e-4)


def test_the_decoders_rows_stand_by_channel(model, config):
    latents = torch.randn(2, 10, 16)
    whole = model.decoder(latents)
    rows = channel_rows(config, "ECG")
    ecg = latents @ model.decoder.proj.weight[rows].T + model.decoder.proj.bias[rows]
    assert torch.allclose(whole[:, 1], ecg.flatten(1), atol=1e-6)


def test_weights_depend_on_the_seed_alone_and_the_global_generator_is_left_alone(config):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first = build_model(config, seed=1)
    assert torch.equal(torch.rand(3), expected)
    again, other = build_model(config, seed=1), build_model(config, seed=2)
    states = [m.state_dict() for m in (first, again, other)]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert not torch.equal(states[0]["encoder.mask_token"], states[2]["encoder.mask_token"])


def test_dropout_stays_off_in_a_frozen_backbone(config, x):
    model = PretrainingModel(ModelConfig(**{**vars(config), "dropout": 0.5}))
    model.train()
    assert not torch.equal(model.encoder(x), model.encoder(x))
    model.encoder.backbone.requires_grad_(False)
    model.train()
    assert torch.equal(model.encoder(x), model.encoder(x))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"channels": ("PPG", "PPG")}, "distinct names"),
        ({"channels": ("a.b",)}, "letters, digits"),
        ({"channels": ()}, "distinct names"),
        ({"context_length": 260}, "must be a multiple"),
        ({"context_length": 25}, "must be a multiple"),
    ],
)
def test_a_config_that_makes_no_model_is_refused(config, changed, message):
    with pytest.raises(ValueError, match=message):
        ModelConfig(**{**vars(config), **changed})


def test_config_goes_through_plain_json(config):
    assert ModelConfig.from_json(config.as_json()) == config
    with pytest.raises(TypeError):
        ModelConfig.from_json({**config.as_json(), "colour": 1})


@pytest.mark.parametrize(
    ("shape", "mask", "observed", "message"),
    [
        ((4, 3, 250), None, None, r"expected windows of shape \(B, 2, 250\)"),
        ((4, 2, 249), None, None, r"expected windows of shape \(B, 2, 250\)"),
        ((4, 2, 250), torch.zeros(4, 9, dtype=torch.bool), None, r"mask of shape \(4, 10\)"),
        ((4, 2, 250), torch.zeros(4, 10), None, "bool mask"),
        ((4, 2, 250), None, torch.ones(4, 2, 249, dtype=torch.bool), "bool observed"),
    ],
)
def test_a_wrong_shape_says_what_was_expected(model, shape, mask, observed, message):
    with pytest.raises(ValueError, match=message):
        model.encoder(torch.randn(shape), mask, observed)


def test_copies_of_a_model_are_independent(model, x):
    other = copy.deepcopy(model)
    before = model.encoder(x)
    with torch.no_grad():
        other.encoder.mask_token += 1
        other.encoder.fusion_bias += 1
    assert torch.equal(model.encoder(x), before)
