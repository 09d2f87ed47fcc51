import math

import pytest
import torch

from biofound.core.models import build_model
from biofound.core.optimizer import flat_grad_buffer, learning_rate, make_optimizer


def curve(warmup, total, base=5e-4):
    return [learning_rate(s, base=base, warmup_steps=warmup, total_steps=total) for s in range(total)]


def test_warm_up_is_a_straight_line_that_ends_at_the_peak_and_never_is_zero():
    lrs = curve(10, 100)
    assert lrs[:10] == pytest.approx([5e-4 * (k + 1) / 10 for k in range(10)])
    assert max(lrs) == pytest.approx(5e-4)
    assert curve(0, 50)[0] == 5e-4


def test_cosine_passes_half_the_peak_half_way_and_ends_almost_at_zero():
    lrs = curve(10, 110)
    assert lrs[60] == pytest.approx(2.5e-4)
    assert lrs[35] == pytest.approx(2.5e-4 * (1 + math.cos(math.pi / 4)))
    assert 0 < lrs[-1] < 1e-6


def test_weight_decay_spares_biases_norms_and_embeddings(config):
    model = build_model(config, seed=0)
    decayed, spared = make_optimizer(model, lr=1e-3, weight_decay=0.01).param_groups
    names = {p: name for name, p in model.named_parameters()}
    assert decayed["weight_decay"] == 0.01 and spared["weight_decay"] == 0.0
    assert all("bias" not in names[p] and "norm" not in names[p] for p in decayed["params"])
    assert {names[p].split(".")[1] for p in spared["params"]} >= {"mask_token", "channel_embedding"}
    assert len(decayed["params"]) + len(spared["params"]) == len(names)
    assert decayed["betas"] == (0.9, 0.999)


def test_the_gradient_buffer_is_every_gradient(model, x):
    buffer = flat_grad_buffer(model)
    model.encoder(x).square().mean().backward()
    assert torch.equal(buffer, torch.cat([p.grad.flatten() for p in model.parameters()]))
    assert buffer.any()
