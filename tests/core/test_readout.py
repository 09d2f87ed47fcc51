"""Are read-outs the activations they name, of the encoder as it is, whatever the batch?"""

from dataclasses import replace

import numpy as np
import pytest
import torch

from biofound.core.models import build_model
from biofound.core.readout import READOUTS, batch_features, capture, embed_windows

from .conftest import MemoryWindows


def test_the_mean_read_out_is_the_mean_of_the_latents(model, windows, x):
    latents = model.eval().encoder(x).detach()  # (B, P, D)
    np.testing.assert_allclose(
        embed_windows(model.encoder, windows, readout="mean"), latents.mean(1).numpy(), atol=1e-6
    )
    spread = torch.cat([latents.mean(1), latents.std(1, correction=0)], dim=1)
    np.testing.assert_allclose(
        embed_windows(model.encoder, windows, readout="mean_std"), spread.numpy(), atol=1e-6
    )


def test_features_of_each_channel_are_what_the_fusion_gets(model, windows, x):
    encoder = model.eval().encoder
    taken = capture(encoder, x)
    assert [tuple(layer.shape) for layer in taken.layers] == [(12, 2, 10, 16)] * 3  # patches, two mixers
    torch.testing.assert_close(encoder._fuse(taken.layers[-1]), taken.latents)
    features = embed_windows(encoder, windows, readout="channels_mean")
    np.testing.assert_allclose(features, taken.layers[-1].mean(2).flatten(1).detach().numpy(), atol=1e-6)
    every = embed_windows(encoder, windows, readout="layers_mean")
    np.testing.assert_array_equal(every[:, -32:], features)
    # A channel's features do not know the other channel.
    alone = windows.copy()
    alone[:, 1] = 0
    np.testing.assert_array_equal(
        embed_windows(encoder, alone, readout="channels_mean")[:, :16], features[:, :16]
    )


@pytest.mark.parametrize("readout", READOUTS)
def test_features_do_not_depend_on_the_batch_nor_on_the_form_of_the_windows(model, windows, readout):
    whole = embed_windows(model.encoder, windows, readout=readout)
    parts = embed_windows(model.encoder, windows, readout=readout, batch_size=5)
    np.testing.assert_allclose(whole, parts, atol=1e-5)
    read = embed_windows(model.encoder, MemoryWindows(windows), readout=readout)
    np.testing.assert_array_equal(whole, read)


def test_windows_are_read_by_batch_so_that_memory_does_not_grow_with_them():
    class Reader:
        lengths = ()

        def __len__(self):
            return 1000

        def read(self, index):
            self.lengths += (len(index),)
            return np.repeat(index, 6).reshape(-1, 2, 3).astype(np.float32)

    reader = Reader()
    features = batch_features(reader, lambda batch: batch[:, :, 0], batch_size=64, what="first samples")
    np.testing.assert_array_equal(features, np.repeat(np.arange(1000), 2).reshape(-1, 2))
    assert max(reader.lengths) == 64


def test_the_encoder_is_left_as_it_was(config, windows):
    encoder = build_model(replace(config, dropout=0.5), seed=0).encoder.train()
    first = embed_windows(encoder, windows)
    np.testing.assert_array_equal(first, embed_windows(encoder, windows))  # no dropout
    assert encoder.training
    assert not any(module._forward_hooks for module in encoder.modules())
    with pytest.raises(ValueError, match="shape"):
        embed_windows(encoder, windows[:, :, :100])
    assert encoder.training
    assert not any(module._forward_hooks for module in encoder.modules())


def test_a_frozen_backbone_stays_in_eval_mode(model, windows):
    encoder = model.encoder.train()
    encoder.backbone.requires_grad_(False)
    encoder.train()
    embed_windows(encoder, windows)
    assert encoder.training
    assert not encoder.backbone.training


def test_a_pretraining_head_can_be_the_read_out(model, windows, x):
    def head(activations):
        return model.decoder(activations.latents).flatten(1)

    expected = model.eval().decoder(model.encoder(x)).flatten(1).detach().numpy()
    np.testing.assert_allclose(embed_windows(model.encoder, windows, readout=head), expected, atol=1e-6)


def test_unknown_read_outs_and_odd_features_are_refused(model, windows):
    with pytest.raises(ValueError, match="channels_mean_std"):
        embed_windows(model.encoder, windows, readout="max")

    def features(function, windows=windows):
        return batch_features(windows, function, batch_size=5, what="theirs")

    with pytest.raises(ValueError, match=r"theirs: .*\(5, F\)"):
        features(lambda batch: batch)
    with pytest.raises(ValueError, match=r"theirs: .*\(2, F\)"):
        features(lambda batch: np.zeros((5, 3)))
    with pytest.raises(ValueError, match=r"theirs: .*finite"):
        features(lambda batch: np.full((len(batch), 3), np.nan))
    with pytest.raises(ValueError, match="none"):
        features(lambda batch: np.zeros((len(batch), 3)), windows[:0])
