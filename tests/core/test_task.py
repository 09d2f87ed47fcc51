"""Task models: heads in closed form, freezing, files, and the call of the first specification."""

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

from biofound import load_pretrained_with_channel_inflate
from biofound.core.archive import write_content
from biofound.core.checkpoint import load_checkpoint
from biofound.core.heads import HEADS, AttentionPool, build_head
from biofound.core.predict import WindowPredictor
from biofound.core.task import (
    TaskCheckpoint,
    TaskConfig,
    TaskModel,
    build_task_model,
    load_task_checkpoint,
    save_task_checkpoint,
)
from biofound.data.windows import ArrayWindows
from biofound.errors import CheckpointError, DataError, SettingsError

from .conftest import DATA, MemoryWindows

QUALITY = TaskConfig(task="classification", target="quality", classes=("bad", "good"))
FIVE = ("ACC_X", "ACC_Y", "ACC_Z", "PPG", "ECG")


@pytest.fixture
def task_model(config):
    return build_task_model(config, QUALITY, seed=3).eval()


def task_checkpoint(model, **changes):
    return TaskCheckpoint(
        model=model.encoder.config,
        task=model.config,
        encoder=model.encoder.state_dict(),
        head=model.head.state_dict(),
        data=DATA,
        parent={"sha256": "1" * 64, "channels": ["PPG", "ECG"], "synthetic": True},
        settings={"seed": 1},
        epoch=2,
        step=9,
        metrics={"loss": 0.5},
        **changes,
    )


# ---- Heads


def test_the_linear_head_is_a_linear_map_of_normalised_mean_and_standard_deviation():
    torch.manual_seed(0)
    head, latents = build_head("linear", d_model=6, outputs=3, hidden=4, dropout=0.0), torch.randn(5, 7, 6)
    h = latents.numpy().astype(np.float64)
    pooled = np.concatenate([h.mean(1), np.sqrt(h.var(1) + 1e-6)], axis=1)
    centred = pooled - pooled.mean(1, keepdims=True)
    normalised = centred / np.sqrt((centred**2).mean(1, keepdims=True) + 1e-5)
    weight, bias = (p.detach().numpy() for p in (head[-1].weight, head[-1].bias))
    np.testing.assert_allclose(head(latents).detach().numpy(), normalised @ weight.T + bias, atol=1e-5)


def test_attention_weighs_patches_by_their_softmax():
    torch.manual_seed(0)
    pool, latents = AttentionPool(6, hidden=4), torch.randn(2, 7, 6)
    for row in latents:
        h = pool.norm(row)
        score = torch.tanh(h @ pool.inner.weight.T + pool.inner.bias) @ pool.score.weight[0] + pool.score.bias
        weights = torch.exp(score) / torch.exp(score).sum()
        torch.testing.assert_close(
            pool(row[None])[0], sum(w * one for w, one in zip(weights, h, strict=True))
        )


@pytest.mark.parametrize("kind", HEADS)
def test_gradient_reaches_every_tensor_of_a_head_also_where_patches_are_equal(kind):
    head = build_head(kind, d_model=6, outputs=2, hidden=4, dropout=0.0)
    latents = torch.randn(3, 1, 6).expand(3, 7, 6).clone().requires_grad_()
    head(latents).square().sum().backward()
    assert torch.isfinite(latents.grad).all()
    assert all(torch.isfinite(p.grad).all() for p in head.parameters())


# ---- Losses and outputs


def test_losses_are_those_of_their_closed_form(config, x):
    model = build_task_model(config, QUALITY, seed=0)
    out, labels = torch.tensor([[0.0, 0.0], [2.0, 1.0]]), torch.tensor([1, 0])
    expected = torch.tensor([np.log(2), np.log(1 + np.exp(-1))], dtype=torch.float32)
    torch.testing.assert_close(model.losses(out, labels), expected)
    weighted = model.losses(out, labels, torch.tensor([3.0, 0.5]))
    torch.testing.assert_close(weighted, expected * torch.tensor([0.5, 3.0]))
    probabilities = model.predict(x)
    torch.testing.assert_close(probabilities.sum(1), torch.ones(len(x)))

    rate = TaskConfig(task="regression", target="HR", target_mean=80.0, target_std=10.0)
    regression = build_task_model(config, rate, seed=0)
    numbers = regression.losses(torch.tensor([[90.0], [70.0]]), torch.tensor([80.0, 75.0]))
    torch.testing.assert_close(numbers, torch.tensor([1.0, 0.25]))
    raw = regression.head(regression.encoder(x))
    torch.testing.assert_close(regression(x), raw * 10 + 80)


@pytest.mark.parametrize(
    "wrong", [{"classes": ("one",)}, {"classes": ("a", "a")}, {"task": "regression"}, {"target_std": 0.0}]
)
def test_a_task_that_cannot_be_is_refused(wrong):
    with pytest.raises(ValueError, match=r"classes|target_std"):
        replace(QUALITY, **wrong)


# ---- Files


@pytest.mark.slow  # a new process imports everything
def test_a_file_gives_the_same_outputs_in_a_fresh_process(task_model, x, tmp_path):
    save_task_checkpoint(tmp_path / "model.pt", task_checkpoint(task_model))
    loaded = load_task_checkpoint(tmp_path / "model.pt")
    assert loaded.task == QUALITY
    assert torch.equal(loaded.build()(x), task_model(x))
    np.save(tmp_path / "x.npy", x.numpy())
    script = (
        "import sys, numpy, torch; from biofound.core.task import load_task_checkpoint as load\n"
        "x = torch.from_numpy(numpy.load(sys.argv[2]))\n"
        "numpy.save(sys.argv[3], load(sys.argv[1]).build().predict(x).numpy())"
    )
    files = [str(tmp_path / name) for name in ("model.pt", "x.npy", "out.npy")]
    subprocess.run([sys.executable, "-c", script, *files], check=True)
    assert np.array_equal(np.load(tmp_path / "out.npy"), task_model.predict(x).numpy())


def test_a_damaged_or_another_file_is_refused(task_model, path, tmp_path):
    with pytest.raises(CheckpointError, match="not a biofound task model"):
        load_task_checkpoint(path)
    file = tmp_path / "model.pt"
    save_task_checkpoint(file, task_checkpoint(task_model))
    with pytest.raises(CheckpointError, match="not a biofound checkpoint"):
        load_checkpoint(file)
    content = torch.load(file, weights_only=True)
    content["head_state_dict"]["2.bias"] += 1e-6
    torch.save(content, file)
    with pytest.raises(CheckpointError, match=r"head_state_dict\.2\.bias: damaged"):
        load_task_checkpoint(file)
    content["head_state_dict"]["2.bias"] -= 1e-6
    content["task"]["classes"] = ["good", "bad"]
    torch.save(content, file)
    with pytest.raises(CheckpointError, match="damaged"):
        load_task_checkpoint(file)


def test_a_file_says_which_channels_were_absent_and_whom_it_was_stopped_early_by(task_model, x, tmp_path):
    path = tmp_path / "model.pt"
    saved = task_checkpoint(task_model, absent=("ECG",), validation_subjects=("v1", "v2"))
    save_task_checkpoint(path, saved)
    loaded = load_task_checkpoint(path)
    assert (loaded.absent, loaded.validation_subjects) == (("ECG",), ("v1", "v2"))
    for available in (["PPG"], ["ECG", "PPG"]):
        assert loaded.absent_channels(available) == ("ECG",)
    with pytest.raises(DataError, match=r"takes PPG; there is ECG, but no PPG"):
        loaded.absent_channels(["ECG"])

    content = torch.load(path, weights_only=True)  # as before there were these two
    for key in ("validation_subjects", "absent_channels", "tensor_sha256", "values_sha256"):
        del content[key]
    write_content(path, content)
    earlier = load_task_checkpoint(path)
    assert (earlier.absent, earlier.validation_subjects) == ((), ())
    with pytest.raises(DataError, match="but no ECG"):
        earlier.absent_channels(["PPG"])
    assert torch.equal(earlier.build()(x), loaded.build()(x))


def test_what_stands_in_an_absent_channel_changes_no_prediction(task_model, windows):
    predictor = WindowPredictor(task_checkpoint(task_model, absent=("ECG",)))
    given = [windows, np.stack([windows[:, 0], -3 * windows[:, 1] + 1], axis=1)]
    found = [predictor.rows_in_memory(MemoryWindows(one)) for one in given]
    alone = ArrayWindows(windows[:, :1], channels=("PPG",), sfreq=125.0)
    found.append(predictor.rows_in_memory(alone))
    for rows in found[1:]:
        np.testing.assert_array_equal(rows.probability, found[0].probability)
    assert np.isnan(found[2].quality[:, 1]).all()
    whole = WindowPredictor(task_checkpoint(task_model)).rows_in_memory(MemoryWindows(windows))
    assert (whole.probability != found[0].probability).all()


# ---- The call of the first specification


def test_the_call_of_the_first_specification_gives_an_encoder_with_its_head(path, model, x):
    called = {
        "checkpoint_path": path,
        "pretrain_channels": 2,
        "finetune_channels": 5,
        "freeze_pretrained": True,
    }
    told = {"task": "classification", "num_classes": 2, "input_channels": 5, "context_length": 250}
    task_model = load_pretrained_with_channel_inflate(**called, model_config=told)
    five = torch.cat([torch.randn(len(x), 3, x.shape[2]), x], dim=1)
    assert isinstance(task_model, TaskModel)
    assert task_model.training
    assert task_model(five).shape == (len(x), 2)
    torch.testing.assert_close(task_model.encoder(five), model.encoder(x), rtol=0, atol=1e-6)
    frozen = {name for name, p in task_model.named_parameters() if not p.requires_grad}
    new = {f"encoder.{part}.{name}" for part in ("fusion", "channel_embedding") for name in FIVE[:3]}
    assert {name for name, _ in task_model.named_parameters()} - frozen == new | {
        name for name, _ in task_model.named_parameters() if name.startswith("head.")
    }

    regression = load_pretrained_with_channel_inflate(**called, model_config={"task": "regression"})
    assert regression(five).shape == (len(x), 1)
    bare = load_pretrained_with_channel_inflate(**called)
    assert bare(five).shape == (len(x), 10, 16)
    two = load_pretrained_with_channel_inflate(
        **{**called, "finetune_channels": 2}, model_config={"task": "classification", "num_classes": 4}
    )
    assert two(x).shape == (len(x), 4)


def test_twenty_lines_train_the_head_and_the_new_channels_alone(path, x):
    model = load_pretrained_with_channel_inflate(
        checkpoint_path=path,
        pretrain_channels=2,
        finetune_channels=5,
        model_config={"task": "classification", "num_classes": 2, "input_channels": 5},
    )
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    windows = torch.cat([torch.randn(len(x), 3, x.shape[2]), x], dim=1)
    labels = torch.arange(len(x)) % 2
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    first = None
    for _ in range(12):
        loss = torch.nn.functional.cross_entropy(model(windows), labels)
        first = loss.item() if first is None else first
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < first
    trainable = {name for name, p in model.named_parameters() if p.requires_grad}
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed == trainable


def test_absent_and_unobserved_channels_give_the_same_output(path, x):
    model = load_pretrained_with_channel_inflate(
        checkpoint_path=path, pretrain_channels=2, finetune_channels=5, model_config={"task": "regression"}
    ).eval()
    with torch.no_grad():
        for name in FIVE[:3]:
            model.encoder.fusion[name].normal_()  # trained: what ACC holds counts
    absent = torch.cat([torch.full((len(x), 3, x.shape[2]), torch.nan), x], dim=1)
    noise = torch.cat([torch.randn(len(x), 3, x.shape[2]), x], dim=1)
    assert not torch.equal(model(noise), model(absent))
    assert torch.equal(model(noise, observed=torch.isfinite(absent)), model(absent))


@pytest.mark.parametrize(
    ("told", "message"),
    [
        ({"num_classes": 2}, "no task"),
        ({"task": "segmentation"}, "expected task classification or regression"),
        ({"task": "regression", "num_classes": 2}, "num_classes is about a classification"),
        ({"task": "classification", "num_classes": 3, "classes": ["a", "b"]}, "num_classes is 3, but 2"),
        ({"task": "classification", "num_classes": 1}, "2 or more distinct classes"),
        ({"task": "classification", "head": "forest"}, "head linear, mlp, attention"),
        ({"input_channels": 4}, "input_channels is 4, but 5 are named"),
    ],
)
def test_a_task_that_does_not_fit_is_told(path, told, message):
    with pytest.raises(SettingsError, match=message):
        load_pretrained_with_channel_inflate(
            checkpoint_path=path, pretrain_channels=2, finetune_channels=5, model_config=told
        )
