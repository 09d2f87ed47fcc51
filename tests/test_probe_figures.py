import matplotlib.pyplot as plt
import numpy as np
import pytest

from biofound.core.probe_scores import Predictions, ProbeTask, score
from biofound.probe_figures import draw_bland_altman, draw_probe, draw_subject_errors


@pytest.fixture
def task():
    generator = np.random.default_rng(0)
    return ProbeTask(
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
    spread = np.std([1.0, 2.0, 6.0])
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


def test_the_picture_is_written_for_numbers_and_for_words(tmp_path, task):
    rows = [outcome(task, name, error) for name, error in (("good", 1.0), ("bad", 9.0))]
    draw_probe(tmp_path / "numbers.png", rows, task)
    words = ProbeTask(
        target="pace", values=np.where(task.values > 80, "fast", "slow"), subjects=task.subjects
    )
    chance = np.random.default_rng(0).uniform(size=60)
    row = score("row", Predictions(values=np.stack([chance, 1 - chance], -1)[None]), words, seed=0)
    draw_probe(tmp_path / "words.png", [row], words)
    for name in ("numbers.png", "words.png"):
        assert plt.imread(tmp_path / name).shape[0] > 300
    assert not plt.get_fignums()
