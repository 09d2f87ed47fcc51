import matplotlib.pyplot as plt
import numpy as np
import pytest

from biofound.core.scores import Predictions, ScoredTask, score
from biofound.score_figures import (
    draw_bland_altman,
    draw_calibration,
    draw_confusion,
    draw_roc,
    draw_scores,
    draw_subject_errors,
)


@pytest.fixture
def task():
    generator = np.random.default_rng(0)
    return ScoredTask(
        target="HR",
        values=generator.normal(80, 10, 60),
        subjects=np.repeat(["a", "b", "c"], [10, 20, 30]),
    )


def outcome(task, name, error, **options):
    return score(name, Predictions(values=(task.values + error)[None]), task, seed=0, resamples=20, **options)


def test_bland_altman_lines_are_bias_and_limits_with_equal_weight_for_subjects(task):
    error = np.repeat([1.0, 2.0, 6.0], [10, 20, 30])
    _, axis = plt.subplots()
    draw_bland_altman(axis, outcome(task, "row", error), task)
    spread = np.std([1.0, 2.0, 6.0], ddof=1)
    levels = [line.get_ydata()[0] for line in axis.lines]
    np.testing.assert_allclose(levels, [3, 3 - 1.96 * spread, 3 + 1.96 * spread])
    np.testing.assert_allclose(axis.collections[0].get_offsets()[:, 1], error)
    plt.close("all")


def test_errors_by_subject_stand_in_their_order_and_mark_who_was_seen(task):
    error = np.repeat([6.0, -1.0, 2.0], [10, 20, 30])
    _, axis = plt.subplots()
    draw_subject_errors(axis, [outcome(task, "row", error, subjects_in_pretraining=["c"])], task)
    np.testing.assert_allclose(axis.lines[0].get_ydata(), [1, 2, 6])
    assert [label.get_text() for label in axis.get_xticklabels()] == ["b", "c", "a"]
    np.testing.assert_allclose(axis.collections[0].get_offsets(), [[1, 2]])
    assert axis.get_legend().get_texts()[0].get_text() == "row (3.00)"
    plt.close("all")


@pytest.fixture
def rhythm(task):
    """Words of three classes, and two rows that know something and nothing of them."""
    generator = np.random.default_rng(1)
    words = generator.choice(["AF", "N", "other"], 60)
    told = ScoredTask(target="rhythm", values=words, subjects=task.subjects)
    chance = generator.dirichlet([1, 1, 1], 60) + 0.6 * (words[:, None] == told.classes)
    constant = np.tile([0.0, 1.0, 0.0], (60, 1))
    rows = {"encoder": chance / chance.sum(1, keepdims=True), "majority": constant}
    return told, [
        score(name, Predictions(values=values[None]), told, seed=0, resamples=20)
        for name, values in rows.items()
    ]


def two_of(rhythm):
    """The same windows with two classes."""
    told, (one, _) = rhythm
    two = ScoredTask(target="AF", values=np.where(told.values == "AF", "yes", "no"), subjects=told.subjects)
    chance = one.predictions.values[0][:, 0]
    return two, score(
        "row", Predictions(values=np.stack([1 - chance, chance], -1)[None]), two, seed=0, resamples=0
    )


def test_the_area_below_a_roc_curve_is_the_auroc(rhythm):
    _, axis = plt.subplots()
    two, one = two_of(rhythm)
    draw_roc(axis, [one], two)
    area = np.trapezoid(axis.lines[1].get_ydata(), axis.lines[1].get_xdata())
    assert area == pytest.approx(one.row.scores["auroc"].value) and "ROC of yes" in axis.get_title(loc="left")
    _, axis = plt.subplots()
    draw_roc(axis, rhythm[1], rhythm[0])
    for line, outcome_ in zip(axis.lines[1:], rhythm[1], strict=True):
        area = np.trapezoid(line.get_ydata(), line.get_xdata())
        assert area == pytest.approx(outcome_.row.scores["auroc"].value, abs=1e-3)
    plt.close("all")


def test_the_gaps_of_a_calibration_curve_make_up_the_expected_error(rhythm):
    _, axis = plt.subplots()
    draw_calibration(axis, rhythm[1], rhythm[0])
    for dots, outcome_ in zip(axis.collections, rhythm[1], strict=True):
        confidence, hits = dots.get_offsets().T
        weight = (dots.get_sizes() - 4) / 80
        assert weight.sum() == pytest.approx(1)
        error = (weight * np.abs(hits - confidence)).sum()
        assert error == pytest.approx(outcome_.row.scores["calibration_error"].value)
    plt.close("all")


def test_a_confusion_matrix_has_true_classes_as_rows(rhythm):
    told, rows = rhythm
    _, axis = plt.subplots()
    draw_confusion(axis, rows[1])  # everything is N
    written = {text.get_position(): text.get_text() for text in axis.texts}
    for k, name in enumerate(told.classes):
        assert written[1, k] == f"{(told.values == name).sum()}\n100%" and written[0, k] == "0\n0%"
    assert [label.get_text() for label in axis.get_yticklabels()] == ["AF", "N", "other"]
    plt.close("all")


def test_the_picture_is_written_for_numbers_and_for_words(tmp_path, task, rhythm):
    rows = [outcome(task, name, error) for name, error in (("good", 1.0), ("bad", 9.0))]
    draw_scores(tmp_path / "numbers.png", rows, task, title="HR")
    draw_scores(tmp_path / "words.png", rhythm[1], rhythm[0], title="rhythm")
    for name in ("numbers.png", "words.png"):
        assert plt.imread(tmp_path / name).shape[0] > 300
    assert not plt.get_fignums()
