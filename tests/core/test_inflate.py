from dataclasses import replace

import pytest
import torch

from biofound.core.checkpoint import load_checkpoint, save_checkpoint
from biofound.core.inflate import (
    inflate,
    inflated_checkpoint,
    load_pretrained_with_channel_inflate,
    transfer_weights,
)
from biofound.core.models import build_model, channel_rows
from biofound.core.optimizer import make_optimizer
from biofound.data.channels import Channel, PassBand
from biofound.errors import CheckpointError, SettingsError

from .conftest import checkpoint_of

FIVE = ("ACC_X", "ACC_Y", "ACC_Z", "PPG", "ECG")


@pytest.fixture
def checkpoint(model):
    optimizer = make_optimizer(model, lr=1e-3, weight_decay=0.0)
    return checkpoint_of(model, optimizer=optimizer.state_dict())


def five(x, acc):
    return torch.cat([acc.expand(len(x), 3, x.shape[-1]), x], dim=1)


ACC = {
    "silence": torch.zeros(1),
    "noise": torch.randn(12, 3, 250, generator=torch.Generator().manual_seed(0)),
    "huge": torch.full((1,), 1e30),
    "gaps": torch.full((1,), float("nan")),
}


@pytest.mark.parametrize("what", ACC)
def test_the_inflated_encoder_computes_what_the_original_did_whatever_the_new_channels_hold(
    checkpoint, model, x, what
):
    inflated = inflate(checkpoint, channels=FIVE).model.encoder
    latents = model.encoder(x)
    got = inflated(five(x, ACC[what]))
    assert (got - latents).abs().max().item() <= 1e-6
    assert torch.equal(got, inflated(five(x, ACC["silence"])))


def test_the_default_size_is_exact_too(default_config):
    model = build_model(default_config, seed=3)
    checkpoint = checkpoint_of(model)
    x = torch.randn(8, 2, 1250, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        got = inflate(checkpoint, channels=FIVE).model.encoder(five(x, torch.zeros(1)))
        assert (got - model.encoder(x)).abs().max().item() <= 1e-6


def test_channels_are_found_by_name_in_any_order(checkpoint, model, x):
    inflated = inflate(checkpoint, channels=("ECG", "ACC_X", "PPG")).model.encoder
    other = torch.stack([x[:, 1], torch.randn(12, 250), x[:, 0]], dim=1)
    assert torch.allclose(inflated(other), model.encoder(x), atol=1e-6)


def test_gradient_reaches_the_new_channels_and_one_step_changes_what_reads_them(checkpoint, x):
    model = inflate(checkpoint, channels=FIVE).model
    optimizer = make_optimizer(model, lr=1e-3, weight_decay=0.0)
    before = model.encoder.fusion["ACC_X"].detach().clone()
    model.encoder(five(x, ACC["noise"])).square().mean().backward()
    optimizer.step()
    assert not torch.equal(model.encoder.fusion["ACC_X"], before)
    with torch.no_grad():
        quiet, loud = model.encoder(five(x, ACC["silence"])), model.encoder(five(x, ACC["noise"]))
    assert not torch.equal(quiet, loud)


def test_every_tensor_of_both_models_is_accounted_for(checkpoint):
    inflation = inflate(checkpoint, channels=FIVE)
    after = {f"encoder.{n}" for n in inflation.model.encoder.state_dict()}
    after |= {f"decoder.{n}" for n in inflation.model.decoder.state_dict()}
    by_status = {}
    for item in inflation.transfers:
        by_status.setdefault(item.status, set()).add(item.name)
    assert by_status["copied"] | by_status["inflated"] | by_status["new"] == after
    assert by_status["copied"] == {f"encoder.{n}" for n in checkpoint.encoder}
    assert by_status["inflated"] == {"decoder.proj.weight", "decoder.proj.bias"}
    assert by_status["dropped"] == {"optimizer state"}
    assert len(inflation.transfers) == len(after) + 1


def test_copied_tensors_are_equal_and_decoder_rows_stand_by_name(checkpoint, config):
    inflation = inflate(checkpoint, channels=FIVE)
    state = inflation.model.encoder.state_dict()
    for name in inflation.named("copied", part="encoder"):
        assert torch.equal(state[name], checkpoint.encoder[name])
    weight = inflation.model.decoder.proj.weight
    for name in config.channels:
        new, old = (channel_rows(c, name) for c in (inflation.model.config, config))
        assert torch.equal(weight[new], checkpoint.decoder["proj.weight"][old])


def test_an_inflated_checkpoint_says_where_it_came_from_and_rebuilds_itself(checkpoint, path, tmp_path, x):
    inflation = inflate(checkpoint, channels=FIVE)
    band = PassBand(low_hz=0.5, high_hz=10.0, order=4)
    new = [Channel(name=name, tracks=(), unit="g", band=band, quality_threshold=0.2) for name in FIVE[:3]]
    result = inflated_checkpoint(checkpoint, inflation, path=path, new=new)
    save_checkpoint(tmp_path / "inflated.pt", result)
    loaded = load_checkpoint(tmp_path / "inflated.pt")
    assert loaded.inflated_from["channels"] == ["PPG", "ECG"]
    assert set(loaded.data.filters) == set(loaded.data.units) == set(FIVE)
    assert loaded.data.quality_thresholds == dict(zip(FIVE, (0.2, 0.2, 0.2, 0.5, 0.5), strict=True))
    assert loaded.optimizer is None
    wide = five(x, ACC["noise"])
    assert torch.equal(loaded.build().encoder(wide), inflation.model.encoder(wide))


@pytest.mark.parametrize(
    ("channels", "message"),
    [
        (("PPG", "ECG"), "ask for more than that, not 2"),
        (("ACC_X", "ACC_Y", "PPG"), "ECG is not among the new channels"),
        (("ACC_X", "ACC_X", "PPG", "ECG"), "distinct names"),
        (("ACC.X", "PPG", "ECG"), "letters, digits"),
    ],
)
def test_channels_that_do_not_fit_are_refused(checkpoint, channels, message):
    with pytest.raises(SettingsError, match=message):
        inflate(checkpoint, channels=channels)


def test_a_checkpoint_with_foreign_tensors_is_refused(checkpoint):
    checkpoint.encoder["channel_embedding.RESP"] = torch.zeros(16)
    with pytest.raises(CheckpointError, match=r"channel_embedding\.RESP"):
        inflate(checkpoint, channels=FIVE)


def load(path, **changes):
    arguments = {"pretrain_channels": 2, "finetune_channels": 5, "freeze_pretrained": True}
    return load_pretrained_with_channel_inflate(checkpoint_path=path, **{**arguments, **changes})


def test_freezing_leaves_the_new_parts_and_a_head_trainable_and_the_copied_ones_still(path, x):
    encoder = load(path)
    trainable = {name for name, p in encoder.named_parameters() if p.requires_grad}
    assert trainable == {f"{part}.ACC_{a}" for part in ("fusion", "channel_embedding") for a in "XYZ"}
    head = torch.nn.Linear(16, 3)
    both = torch.nn.ModuleList([encoder, head])
    before = {name: p.detach().clone() for name, p in both.named_parameters()}
    optimizer = make_optimizer(both, lr=1e-2, weight_decay=0.1)
    for _ in range(2):  # the embedding of a new channel moves once its fusion block is no longer zero
        optimizer.zero_grad()
        head(encoder(five(x, ACC["noise"]))).square().mean().backward()
        optimizer.step()
    moved = {name for name, p in both.named_parameters() if not torch.equal(p, before[name])}
    assert moved == {f"0.{name}" for name in trainable} | {"1.weight", "1.bias"}


def test_without_freezing_everything_is_trainable(path):
    assert all(p.requires_grad for p in load(path, freeze_pretrained=False).parameters())


def test_names_may_be_given_and_other_counts_need_them(path, x):
    encoder = load(
        path, finetune_channels=3, model_config={"channels": ["TEMP", "PPG", "ECG"], "d_model": 16}
    )
    assert encoder.config.channels == ("TEMP", "PPG", "ECG")
    with pytest.raises(SettingsError, match="no default names for 4 channels"):
        load(path, finetune_channels=4)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"pretrain_channels": 3}, CheckpointError, "expected 3 channels .* found 2: PPG, ECG"),
        (
            {"model_config": {"d_model": 192}},
            CheckpointError,
            "d_model = 192, but the checkpoint's model has 16",
        ),
        ({"model_config": {"width": 192}}, SettingsError, "no field width"),
        ({"finetune_channels": 4, "model_config": {"channels": ["PPG"]}}, SettingsError, "1 are named"),
    ],
)
def test_what_the_caller_says_is_checked_against_the_checkpoint(path, changes, error, message):
    with pytest.raises(error, match=message):
        load(path, **changes)


def test_weights_are_transferred_by_name_into_another_order_and_heads_come_and_go(config, x):
    with_heads = replace(config, rhythm_head=True, rate_head=True)
    source = build_model(with_heads, seed=3).eval()
    optimizer = make_optimizer(source, lr=1e-3, weight_decay=0.0)
    checkpoint = checkpoint_of(source, optimizer=optimizer.state_dict())
    swapped = transfer_weights(checkpoint, replace(with_heads, channels=("ECG", "PPG"), dropout=0.2), seed=0)
    mask = torch.arange(10).expand(len(x), 10) == 4
    ours, theirs = swapped.model(x.flip(1), mask), source(x, mask)
    assert torch.allclose(ours.values.flip(1), theirs.values, atol=1e-6)
    assert torch.allclose(ours.rhythm.flip(2), theirs.rhythm, atol=1e-6)
    assert {item.status for item in swapped.transfers} == {"copied", "dropped"}
    assert [item.name for item in swapped.transfers if item.status == "dropped"] == ["optimizer state"]
    bare = transfer_weights(checkpoint, replace(config, channels=FIVE, rate_head=True), seed=0)
    heads = {name for name in checkpoint.decoder if name.startswith("rhythm.")}
    assert bare.named("dropped", part="decoder") == heads and len(heads) == 8
    assert bare.named("new", part="decoder") == {
        f"rate.from_channel.ACC_{axis}.{kind}" for axis in "XYZ" for kind in ("weight", "bias")
    }
    accounted = bare.named("copied", part="decoder") | bare.named("inflated", part="decoder") | heads
    assert accounted == set(checkpoint.decoder)
    latents = source.encoder(x)
    assert (bare.model.encoder(five(x, ACC["noise"])) - latents).abs().max().item() <= 1e-6
    again = transfer_weights(checkpoint_of(bare.model), replace(with_heads, channels=FIVE), seed=1)
    assert again.named("new", part="decoder") == {
        f"rhythm.{source}.{name}.{kind}"
        for source in ("from_latents", "from_channel")
        for name in FIVE
        for kind in ("weight", "bias")
    }


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"channels": ("PPG", "ACC_X", "ACC_Y")}, "ECG is not among the new channels"),
        ({"d_model": 32}, r"d_model 16 \(not 32\)"),
        ({"patch_embedding": "convolutional"}, r"patch_embedding linear \(not convolutional\)"),
        (
            {"context_length": 500, "patch_size": 50},
            r"context_length 250 \(not 500\), patch_size 25 \(not 50\)",
        ),
    ],
)
def test_weights_are_not_transferred_into_another_encoder(checkpoint, config, changes, message):
    with pytest.raises(SettingsError, match=message):
        transfer_weights(checkpoint, replace(config, **changes), seed=0)
