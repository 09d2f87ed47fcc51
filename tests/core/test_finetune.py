"""Fine-tuning loop: what each stage changes, early stopping, resuming, and the sums of its loss."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from biofound.core.finetune import (
    FinetuneConfig,
    FineTuner,
    LabelledRows,
    Stage,
    balanced_weights,
    fit_head,
    predict_rows,
    task_sums,
    trained_parameters,
)
from biofound.core.history import FinetuneEpoch, FinetuneStep
from biofound.core.inflate import task_model_for
from biofound.core.models import ModelConfig, build_model
from biofound.core.probe import Fold, predict_from_features
from biofound.core.run_files import BEST, LAST
from biofound.core.scores import ScoredTask
from biofound.core.task import TaskConfig, build_task_model, load_task_checkpoint
from biofound.core.verify import probe_windows
from biofound.data.windows import ArrayWindows

from .conftest import DATA, SMALL, MemoryWindows, checkpoint_of, small_windows

STAGES = (
    Stage(name="head", epochs=2, lr=3e-3),
    Stage(name="layers", epochs=2, lr=3e-3),
    Stage(name="all", epochs=2, lr=3e-3),
)
CONFIG = FinetuneConfig(
    epochs=6,
    batch_size=5,
    weight_decay=0.01,
    gradient_clip=1.0,
    shuffle="full",
    seed=3,
    precision="fp32",
    compile=False,
    log_interval=1,
    save_interval=100,
    checkpoint_minutes=0,
    on_write_error="stop",
    stages=STAGES,
    unfreeze_layers=1,
    patience=100,
    class_weights=None,
)
QUALITY = TaskConfig(task="classification", target="quality", classes=("bad", "good"))
RATE = TaskConfig(task="regression", target="HR", target_mean=80.0, target_std=10.0)
MIXERS = "encoder.backbone.encoder.mlp_mixer_encoder.mixers"


def gappy_windows():
    """Windows of which each lacks the first second of a channel, so that the mask token is used."""
    x = small_windows()
    x[:, 0, :125] = np.nan
    return x


def small_tuner(output, windows, *, task=QUALITY, dropout=0.0, stop=lambda: False, **changes):
    """A fine-tuning of the small model on nine windows, judged on three more."""
    labels = np.arange(12) % 2 if task is QUALITY else 60 + 4 * np.arange(12, dtype=np.float32)
    rows, cases = np.arange(12), np.array([f"c{k}" for k in range(12)])
    config = ModelConfig(channels=("PPG", "ECG"), dropout=dropout, **SMALL)

    def part(which):
        return LabelledRows(
            windows=MemoryWindows(windows),
            rows=rows[which],
            labels=labels[which],
            subjects=cases[which],
            cases=cases[which],
        )

    return FineTuner(
        model=build_task_model(config, replace(task, dropout=dropout), seed=1),
        train=part(slice(0, 9)),
        val=part(slice(9, 12)),
        data=DATA,
        parent=None,
        config=replace(CONFIG, **changes),
        settings={"seed": 3},
        output_dir=output,
        device=torch.device("cpu"),
        stop=stop,
    )


@pytest.fixture
def make(tmp_path):
    def make(output=tmp_path / "run", **changes):
        return small_tuner(output, gappy_windows(), **changes)

    return make


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that nothing stopped; to be read only."""
    tuner = small_tuner(tmp_path_factory.mktemp("whole"), gappy_windows(), dropout=0.2, patience=2)
    list(tuner.fit())
    return tuner


def state_of(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def changed(before, after):
    return {name for name in before if not torch.equal(before[name], after[name])}


# ---- Stages


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_each_stage_changes_exactly_what_it_names(make, dropout):
    tuner = make(dropout=dropout)
    head = {name for name in tuner.model.state_dict() if name.startswith("head.")}
    behind = {
        name
        for name in tuner.model.state_dict()
        if name.startswith((f"{MIXERS}.1.", "encoder.fusion.", "encoder.fusion_bias"))
    }
    expected = {"head": head, "layers": head | behind, "all": set(tuner.model.state_dict())}
    before, stage = state_of(tuner.model), "head"
    for event in tuner.fit():
        if isinstance(event, FinetuneStep) and event.step % tuner.steps_per_epoch == 0 and event.epoch % 2:
            # after an epoch inside the stage, before it goes back to the best model
            after = state_of(tuner.model)
            assert event.stage == stage
            assert changed(before, after) == expected[stage] == set(tuner.trained())
            training = {name for name, module in tuner.model.named_modules() if module.training}
            frozen = f"{MIXERS}.0.patch_mixer.mlp.dropout1"
            assert (frozen in training) == (stage == "all" and dropout > 0) or dropout == 0
            assert "head" in training
        if isinstance(event, FinetuneEpoch) and event.epoch % 2 == 0:
            before = state_of(tuner.model)  # the best so far, which the next stage starts from
            stage = {"head": "layers", "layers": "all", "all": "over"}[stage]
    assert stage == "over"


def test_a_stage_starts_from_the_best_model_and_the_end_is_the_best_model(make, tmp_path):
    tuner = make(task=RATE)
    epochs = [event for event in tuner.fit() if isinstance(event, FinetuneEpoch)]
    best = min(epochs, key=lambda epoch: epoch.val.loss)
    assert [epoch.epoch for epoch in epochs if epoch.best][-1] == best.epoch
    assert tuner.validate() == best.val
    saved = load_task_checkpoint(tmp_path / "run" / BEST)
    assert saved.epoch == best.epoch
    assert not changed(saved.build().state_dict(), tuner.model.state_dict())


def test_a_stage_ends_early_when_nothing_gets_better(make):
    tuner = make(patience=1, stages=tuple(replace(stage, epochs=50, lr=0.9) for stage in STAGES))
    epochs = [event for event in tuner.fit() if isinstance(event, FinetuneEpoch)]
    for name in ("head", "layers", "all"):
        mine = [epoch.best for epoch in epochs if epoch.stage == name]
        assert mine[-1] is False
        assert all(mine[:-1])
        assert len(mine) < 50


def test_the_learning_rate_of_each_stage_warms_up_to_its_peak_and_falls(make):
    stages = tuple(
        replace(stage, epochs=5, lr=lr) for stage, lr in zip(STAGES, (3e-3, 2e-3, 1e-3), strict=True)
    )
    steps = [event for event in make(stages=stages).fit() if isinstance(event, FinetuneStep)]
    for stage in stages:
        rates = [step.lr for step in steps if step.stage == stage.name]
        assert len(rates) == 10
        assert max(rates) == rates[0] == pytest.approx(stage.lr)  # a tenth of 10 steps
        assert rates == sorted(rates, reverse=True)
        assert rates[-1] < 0.1 * stage.lr


def test_it_learns_and_says_so_in_the_unit_of_the_label(make):
    tuner = make(task=RATE, stages=(Stage(name="all", epochs=30, lr=1e-2),))
    epochs = [event for event in tuner.fit() if isinstance(event, FinetuneEpoch)]
    assert epochs[-1].train.error < 0.3 * epochs[0].train.error
    predicted = predict_rows(tuner.model, tuner.val.windows, tuner.val.rows, batch_size=2)
    assert predicted.shape == (3, 1)
    assert np.abs(predicted[:, 0] - tuner.val.labels).mean() == pytest.approx(
        tuner.validate().error, rel=1e-5
    )


@pytest.mark.parametrize("task", [QUALITY, RATE, replace(QUALITY, classes=("good", "fair", "bad"))])
def test_a_fitted_head_is_the_linear_probe_of_what_it_pools(config, windows, task):
    classes, rows = task.classes, np.arange(len(windows))
    labels = rows % len(classes) if classes else 60 + 4 * rows.astype(np.float32)
    people = np.array([f"s{row // 3}" for row in rows])
    model = build_task_model(config, task, seed=1)
    before = state_of(model)
    train = LabelledRows(
        windows=MemoryWindows(windows), rows=rows, labels=labels, subjects=people, cases=people
    )
    fit_head(model, train, seed=4, balanced=True, batch_size=5)
    assert changed(before, state_of(model)) == {"head.2.weight", "head.2.bias"}
    with torch.no_grad():
        pooled = model.head[0](model.eval().encoder(torch.from_numpy(windows))).numpy()
    values = np.array(classes)[labels] if classes else labels.astype(float)
    probed = ScoredTask(target=task.target, values=values, subjects=people)
    folds = [[Fold(train=rows, test=rows)]]  # the probe of `biofound probe`, fitted and asked on the same
    expected = predict_from_features(pooled, probed, folds, seed=4).values[0]
    if classes:
        expected = expected[:, [sorted(classes).index(name) for name in classes]]
    found = predict_rows(model, train.windows, rows, batch_size=7)
    np.testing.assert_allclose(found if classes else found[:, 0], expected, rtol=1e-4, atol=1e-4)
    assert np.ptp(found, axis=0).min() > 0


def test_a_head_is_fitted_to_one_subject_and_where_a_class_is_one_subjects(config, windows):
    rows = np.arange(len(windows))
    for labels, people in ((rows % 2, rows * 0), (rows // 6, rows // 6), (rows // 10, rows // 2)):
        model, people = build_task_model(config, QUALITY, seed=1), people.astype(str)
        train = LabelledRows(
            windows=MemoryWindows(windows), rows=rows, labels=labels, subjects=people, cases=people
        )
        fit_head(model, train, seed=4, balanced=True, batch_size=5)
        loss = model.losses(model.eval()(torch.from_numpy(windows)), torch.from_numpy(labels))
        assert loss.mean() < np.log(2)


# ---- Resuming


@pytest.mark.parametrize("at", [1, 4, 5, 8])
def test_stopped_and_resumed_it_is_the_same_run(make, whole, tmp_path, at):
    def history_of(tuner):
        history = tuner.history()
        return {key: value for key, value in history.items() if "second" not in key}

    first = make(tmp_path / "cut", dropout=0.2, patience=2)
    first.stop = lambda: first.step + 1 == at
    list(first.fit())
    assert first.interrupted
    again = make(tmp_path / "cut", dropout=0.2, patience=2)
    again.restore(load_task_checkpoint(tmp_path / "cut" / LAST))
    assert again.step == at
    list(again.fit())
    assert history_of(again) == history_of(whole)
    assert not changed(whole.model.state_dict(), again.model.state_dict())
    kept = [load_task_checkpoint(run.output_dir / BEST) for run in (whole, again)]
    assert not changed(*(one.build().state_dict() for one in kept))


# ---- New channels


@pytest.mark.slow  # ten trainings
def test_on_a_task_that_needs_acceleration_five_channels_beat_two_for_every_seed(config, tmp_path):
    parent = checkpoint_of(build_model(config, seed=0))
    scores: dict[int, list[float]] = {2: [], 5: []}
    for seed in range(5):
        random = np.random.default_rng(seed)
        labels, seconds = random.permutation(96) % 2, np.arange(250) / 125
        turns = np.where(labels == 1, 7.0, 3.0)[:, None, None] * seconds + random.uniform(size=(96, 3, 1))
        acc = np.sin(2 * np.pi * turns) + 0.3 * random.normal(size=turns.shape)
        pulse = probe_windows(windows=96, channels=2, samples=250, sfreq=125.0, seed=seed)
        every = np.concatenate([acc.astype(np.float32), pulse], axis=1)
        for channels in (("PPG", "ECG"), ("ACC_X", "ACC_Y", "ACC_Z", "PPG", "ECG")):
            windows = ArrayWindows(every[:, -len(channels) :], channels=channels, sfreq=125.0)
            train, val, test = np.split(np.arange(96), [48, 64])
            part = [
                LabelledRows(
                    windows=windows,
                    rows=rows,
                    labels=labels[rows],
                    subjects=rows.astype(str),
                    cases=rows.astype(str),
                )
                for rows in (train, val)
            ]
            tuner = FineTuner(
                model=task_model_for(parent, channels=channels, task=QUALITY, seed=seed)[0],
                train=part[0],
                val=part[1],
                data=DATA,
                parent=None,
                config=replace(
                    CONFIG,
                    batch_size=16,
                    seed=seed,
                    stages=(*STAGES[:2], Stage(name="all", epochs=12, lr=1e-2)),
                    epochs=16,
                    log_interval=100,
                ),
                settings={},
                output_dir=tmp_path / f"{seed}_{len(channels)}",
                device=torch.device("cpu"),
            )
            list(tuner.fit())
            right = predict_rows(tuner.model, windows, test, batch_size=32).argmax(1) == labels[test]
            scores[len(channels)].append(right.mean())
    assert min(scores[5]) > max(scores[2]) + 0.1, scores


# ---- Sums


def test_the_sums_are_those_of_their_closed_form(config):
    model = build_task_model(config, replace(QUALITY, classes=("a", "b", "c")), seed=0)
    out, labels = torch.randn(7, 3), torch.tensor([0, 0, 1, 2, 2, 2, 0])
    weights = torch.tensor([0.5, 2.0, 1.0])
    found = task_sums(model, out, labels, class_weights=weights)
    expected = torch.nn.functional.cross_entropy(out, labels, weight=weights)
    torch.testing.assert_close(found.loss(), expected)
    recalls = [(out.argmax(1) == k)[labels == k].double().mean().item() for k in range(3)]
    assert found.losses().error == pytest.approx(1 - np.mean(recalls))
    halves = [task_sums(model, out[k], labels[k], class_weights=weights) for k in (slice(0, 3), slice(3, 7))]
    together = sum(half.with_counts_of(found).loss() for half in halves)
    torch.testing.assert_close(together, expected)
    without = task_sums(model, out[:3], labels[:3], class_weights=weights).losses()  # class c is not there
    assert without.error == pytest.approx(
        1 - np.mean([(out[:2].argmax(1) == 0).double().mean(), (out[2:3].argmax(1) == 1).double().mean()])
    )


def test_balanced_weights_give_every_class_the_same_weight():
    codes = np.array([0, 0, 0, 1, 2, 2])
    weights = np.array(balanced_weights(codes, classes=3))
    assert weights * np.bincount(codes) == pytest.approx([2.0, 2.0, 2.0])
    with pytest.raises(ValueError, match=r"each of 4 classes"):
        balanced_weights(codes, classes=4)


def test_stages_name_parameters_that_exist(config):
    model = build_task_model(config, QUALITY, seed=0)
    sizes = [
        len(trained_parameters(model, stage, layers=layers))
        for stage, layers in (("head", 1), ("layers", 1), ("layers", 2), ("all", 1))
    ]
    assert sizes == sorted(set(sizes))
