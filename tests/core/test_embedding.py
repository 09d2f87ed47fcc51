from dataclasses import replace

import pytest
import torch

from biofound.core.checkpoint import load_checkpoint, save_checkpoint
from biofound.core.embedding import ConvolutionalEmbedding
from biofound.core.inflate import inflate
from biofound.core.models import build_model

from .conftest import checkpoint_of


@pytest.fixture
def convolutional(config):
    return build_model(
        replace(config, patch_embedding="convolutional", rhythm_head=True, rate_head=True), seed=0
    ).eval()


def test_without_it_the_model_is_the_one_it_was(config):
    plain = build_model(config, seed=0)
    assert plain.encoder.convolutions is None and plain.decoder.rhythm is None
    both = build_model(replace(config, patch_embedding="convolutional"), seed=0).encoder
    for name, tensor in plain.encoder.state_dict().items():
        assert torch.equal(tensor, both.state_dict()[name])


@pytest.mark.parametrize("what", [0.0, 1e30, float("nan"), float("inf")])
def test_what_stands_in_hidden_samples_leaves_the_latents_bit_identical(convolutional, x, what):
    mask = torch.zeros(len(x), 10, dtype=torch.bool)
    mask[:, [1, 4, 5, 9]] = True
    hidden = mask.repeat_interleave(25, dim=1)[:, None, :]
    encoded = convolutional.encoder.encode(x, mask=mask)
    changed = convolutional.encoder.encode(torch.where(hidden, what, x), mask=mask)
    assert torch.equal(encoded.latents, changed.latents)
    assert torch.equal(encoded.by_channel, changed.by_channel)


def test_gaps_leave_the_latents_bit_identical_and_gradients_finite(convolutional, x):
    observed = torch.ones_like(x, dtype=torch.bool)
    observed[:, 0, 30:90] = False
    with_nan = torch.where(observed, x, float("nan"))
    assert torch.equal(convolutional.encoder(x, observed=observed), convolutional.encoder(with_nan))
    out = convolutional(with_nan, torch.arange(10).expand(len(x), 10) == 5)
    (out.values[out.loss_mask].square().sum() + out.rhythm.square().sum()).backward()
    assert all(torch.isfinite(p.grad).all() for p in convolutional.parameters() if p.grad is not None)


def test_a_window_that_is_flat_has_finite_gradients(convolutional):
    out = convolutional(torch.zeros(2, 2, 250), torch.arange(10).expand(2, 10) == 5)
    out.rhythm.square().sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in convolutional.parameters() if p.grad is not None)


def test_a_hidden_patch_is_told_what_stands_beside_it(convolutional):
    embedding = convolutional.encoder.convolutions
    seen = torch.zeros(1, 1, 250)
    beside = seen.clone()
    beside[..., 130] = 1.0  # in patch 5; patch 4 is hidden
    visible = torch.ones_like(seen, dtype=torch.bool)
    visible[..., 100:125] = False
    assert not torch.equal(embedding(seen, visible)[:, :, 4], embedding(beside, visible)[:, :, 4])


def test_no_channel_reads_another(convolutional, x):
    embedding = convolutional.encoder.convolutions
    visible = torch.ones_like(x, dtype=torch.bool)
    other = x.clone()
    other[:, 1] = 7.0 * x[:, 1].flip(-1)
    assert torch.equal(embedding(x, visible)[:, 0], embedding(other, visible)[:, 0])


def test_a_frame_is_the_same_wherever_the_wave_stands():
    # Away from the ends convolutions commute with shifts by whole frames: seen in the mean over a patch.
    torch.manual_seed(0)
    embedding = ConvolutionalEmbedding(patches=10, patch_size=125, d_model=8)
    with torch.no_grad():  # keep the mean alone: what says where in the patch is switched off
        embedding.proj.weight[:, : -embedding.first[0].out_channels - 16] = 0
        embedding.proj.weight[:, :-48] = 0
    window = torch.zeros(1, 1, 1250)
    window[..., 625 + 40 : 625 + 60] = torch.hann_window(20)
    visible = torch.ones_like(window, dtype=torch.bool)
    here = embedding(window, visible)[0, 0, 5]
    later = embedding(window.roll(25, -1), visible)[0, 0, 5]
    assert torch.allclose(here, later, atol=0.05 * here.abs().max().item())


@pytest.mark.parametrize("patch_size", [7, 8, 25, 64, 125])
def test_any_patch_size_will_do(patch_size):
    embedding = ConvolutionalEmbedding(patches=6, patch_size=patch_size, d_model=8)
    seen = torch.randn(3, 2, 6 * patch_size)
    assert embedding(seen, torch.ones_like(seen, dtype=torch.bool)).shape == (3, 2, 6, 8)


def test_inflation_is_exact_with_it_whatever_the_new_channels_hold(convolutional, x):
    inflation = inflate(checkpoint_of(convolutional), channels=("ACC_X", "PPG", "ACC_Y", "ECG"))
    encoder = inflation.model.encoder
    noise = torch.randn(len(x), 2, 250)

    def with_new(new):
        return encoder(torch.stack([new[:, 0], x[:, 0], new[:, 1], x[:, 1]], 1))

    latents = convolutional.encoder(x)
    assert torch.allclose(with_new(noise), latents, atol=1e-5 * latents.abs().max().item())
    assert torch.equal(with_new(noise), with_new(1e6 * noise.square()))
    assert "rhythm.from_channel.PPG.weight" in inflation.named("copied", part="decoder")
    assert "rhythm.from_channel.ACC_X.weight" in inflation.named("new", part="decoder")
    assert not inflation.named("dropped", part="encoder") | inflation.named("dropped", part="decoder")


def test_a_checkpoint_rebuilds_it(convolutional, x, tmp_path):
    save_checkpoint(tmp_path / "model.pt", checkpoint_of(convolutional))
    again = load_checkpoint(tmp_path / "model.pt").build()
    assert torch.equal(again.encoder(x), convolutional.encoder(x))
