"""Does a run's probe score what it says, choose the best epoch, and leave the training alone?"""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from biofound.commands.pretrain_resume import differences
from biofound.core.checkpoint import load_checkpoint
from biofound.core.history import EpochMetrics, StepMetrics
from biofound.core.probe import predict_from_features, subject_folds
from biofound.core.readout import embed_windows
from biofound.core.scores import ScoredTask
from biofound.core.validation_probe import ValidationProbe
from biofound.errors import DataError, SettingsError
from biofound.settings import PretrainSettings
from biofound.settings.resolve import plain_values

from .conftest import validation_probe


def task_of(values, subjects):
    return ScoredTask(target="HR", values=np.array(values), subjects=np.array(subjects))


def epochs(events):
    return [event for event in events if isinstance(event, EpochMetrics)]


@pytest.fixture
def given_errors(monkeypatch):
    """A probe that measures the errors that are given, one after the other."""

    def give(*errors):
        left = list(errors)
        monkeypatch.setattr(ValidationProbe, "measure", lambda self, encoder: left.pop(0))

    return give


def test_the_constant_guess_is_the_median_of_the_other_subjects(windows):
    # Each of three subjects is tested on the median of the other two: |60 - 85|, |70 - 80|, |100 - 65|.
    task = task_of([60.0, 60, 70, 70, 100, 100], list("aabbcc"))
    found = validation_probe(windows[:6], task=task).beside_constant(4.0)
    assert (found.error, found.constant_error) == (4.0, pytest.approx(70 / 3))


def test_the_constant_guess_of_words_has_a_balanced_error_of_one_half(windows):
    words = np.array(["AF", "N"] * 6, dtype=object)
    task = task_of(words, np.repeat(list("abc"), 4))  # of each both words
    probe = validation_probe(windows, task=task)
    assert probe.beside_constant(0.0).constant_error == pytest.approx(0.5)


def test_the_error_is_the_mean_over_subjects_of_what_ridge_in_folds_gives(windows, model):
    probe = validation_probe(windows)
    values, subjects = probe.task.values, probe.task.subjects
    features = embed_windows(model.encoder, windows)
    folds = subject_folds(subjects, folds=4, repeats=1, seed=0)
    off = np.abs(predict_from_features(features, probe.task, folds, seed=0).values[0] - values)
    expected = np.mean([off[subjects == who].mean() for who in np.unique(subjects)])
    assert probe.measure(model.encoder) == pytest.approx(expected, rel=1e-12)


def test_probes_come_every_few_epochs_and_after_the_last(windows):
    probe = validation_probe(windows)
    assert [epoch for epoch in range(1, 6) if probe.due(epoch, epochs=5)] == [2, 4, 5]


def test_training_is_untouched_by_a_probe_and_the_history_holds_it(make_trainer, windows, tmp_path):
    without, probed = (
        make_trainer(tmp_path / "a", dropout=0.2),
        make_trainer(tmp_path / "b", dropout=0.2, probe=validation_probe(windows)),
    )
    ours, theirs = list(probed.fit()), list(without.fit())
    steps = [[e.loss for e in events if isinstance(e, StepMetrics)] for events in (ours, theirs)]
    assert steps[0] == steps[1]
    assert [e.val for e in epochs(ours)] == [e.val for e in epochs(theirs)]
    states = [trainer.model.state_dict() for trainer in (probed, without)]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[1])

    errors = [e.probe and e.probe.error for e in epochs(ours)]
    assert errors[0] is None and np.isfinite(errors[1:]).all()
    assert errors[2] == probed.probe.measure(probed.model.encoder)
    history, plain = (
        json.loads((t.output_dir / "training_history.json").read_text()) for t in (probed, without)
    )
    constant = probed.probe.beside_constant(0.0).constant_error
    assert history["val_probe"] == {
        "target": "HR",
        "error": errors,
        "constant_error": [None, constant, constant],
    }
    assert "val_probe" not in plain and history["best_epoch"] == plain["best_epoch"]
    saved = load_checkpoint(probed.output_dir / "last_model.pt").metrics["probe"]
    assert saved == {"target": "HR", "error": errors[2], "constant_error": constant}


@pytest.mark.parametrize(
    ("interval", "errors", "best"),
    [(1, (5.0, 3.0, 4.0), [True, True, False]), (2, (3.0, 4.0), [False, True, False])],
)
def test_the_best_epoch_has_the_smallest_probe_error_and_a_probe(
    make_trainer, windows, given_errors, interval, errors, best
):
    given_errors(*errors)
    trainer = make_trainer(probe=validation_probe(windows, interval=interval, chooses_best=True))
    seen = []
    for event in trainer.fit():
        if isinstance(event, EpochMetrics):
            seen.append((trainer.output_dir / "best_model.pt").is_file())
    assert [event.best for event in trainer.epochs_done] == best
    assert seen == [interval == 1, True, True]
    saved = load_checkpoint(trainer.output_dir / "best_model.pt")
    assert (saved.epoch, saved.best_val_loss) == (2, trainer.epochs_done[1].val.loss)
    assert trainer.history()["best_epoch"] == 2


@pytest.mark.parametrize(
    ("values", "subjects", "words"),
    [
        ([60.0] * 12, ["a", "b"] * 6, "at least 3 subjects"),
        (
            np.array(["N"] * 9 + ["AF"] * 3, object),
            list("aaabbbcccddd"),
            "all windows to train on have HR 'N'",
        ),
    ],
)
def test_labels_that_cannot_be_probed_are_refused_before_the_training(windows, values, subjects, words):
    with pytest.raises(DataError, match=words):
        validation_probe(windows, task=task_of(values, subjects))


def test_a_run_is_not_resumed_with_other_labels(make_trainer, windows):
    settings, first = PretrainSettings(), make_trainer(probe=validation_probe(windows))
    first.settings = plain_values(settings)
    task = first.probe.task
    other = validation_probe(windows, task=task_of(task.values + 1, task.subjects))
    saved = first.checkpoint()
    assert differences(Path("x"), saved, settings, make_trainer(probe=validation_probe(windows))) == []
    with pytest.raises(SettingsError, match="labels of the probe"):
        differences(Path("x"), saved, settings, make_trainer(probe=other))


def test_the_fingerprint_is_that_of_labels_and_subjects(windows):
    probe = validation_probe(windows)
    task = probe.task
    others = [
        validation_probe(windows, task=task_of(task.values + 1, task.subjects)),
        validation_probe(windows, task=task_of(task.values, task.subjects[::-1])),
        validation_probe(windows, folds=3),
    ]
    assert validation_probe(windows).fingerprint == probe.fingerprint
    assert len({one.fingerprint for one in [probe, *others]}) == 4
