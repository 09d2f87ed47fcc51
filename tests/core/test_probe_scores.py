"""Are scores those of scikit-learn, and intervals those of a bootstrap over subjects?"""

import json

import numpy as np
import pytest
from sklearn.metrics import (
    average_precision_score,
    balanced_accuracy_score,
    r2_score,
    roc_auc_score,
    root_mean_squared_error,
)

from biofound.core.probe_scores import Predictions, ProbeTask, paired_difference, score


def labelled(subjects=40, seed=0):
    """Truth, a prediction that errs by subject, and subjects with 1 to 30 windows each."""
    generator = np.random.default_rng(seed)
    counts = generator.integers(1, 30, subjects)
    people = np.repeat([f"s{i:03d}" for i in range(subjects)], counts)
    truth = np.repeat(generator.normal(80, 15, subjects), counts) + generator.normal(0, 3, len(people))
    wrong = np.repeat(generator.gamma(2.0, 2.0, subjects), counts) * generator.normal(size=len(people))
    return truth, truth + wrong, people


def outcome(predicted, truth, people, *, name="row", **options):
    values = np.atleast_2d(predicted) if predicted.ndim < 3 else predicted
    task = ProbeTask(target="HR", values=truth, subjects=people)
    return score(name, Predictions(values=values), task, **{"seed": 0, **options})


def test_regression_scores_weigh_every_subject_equally():
    truth, predicted, people = labelled()
    scores = outcome(predicted, truth, people).row.scores
    weights = 1 / np.unique(people, return_counts=True)[1][np.unique(people, return_inverse=True)[1]]
    each = [(truth[people == p], predicted[people == p]) for p in np.unique(people)]
    assert scores["mae"].value == pytest.approx(np.mean([np.abs(y - z).mean() for y, z in each]))
    assert scores["rmse"].value == pytest.approx(np.mean([root_mean_squared_error(y, z) for y, z in each]))
    assert scores["r2"].value == pytest.approx(r2_score(truth, predicted, sample_weight=weights))
    correlation = np.cov(truth, predicted, aweights=weights)
    pearson = correlation[0, 1] / np.sqrt(correlation[0, 0] * correlation[1, 1])
    assert scores["pearson"].value == pytest.approx(pearson)


def test_classification_scores_are_those_of_scikit_learn_with_weights():
    truth, predicted, people = labelled()
    words = np.where(truth > 95, "fast", "slow").astype(object)
    chance = np.round(1 / (1 + np.exp(-(predicted - 95) / 20)), 1)  # rounded: ties
    row = outcome(np.stack([chance, 1 - chance], -1)[None], words, people).row
    weights = 1 / np.unique(people, return_counts=True)[1][np.unique(people, return_inverse=True)[1]]
    fast = words == "fast"
    assert fast.mean() < 0.5  # so it is the positive class
    assert row.scores["auroc"].value == pytest.approx(roc_auc_score(fast, chance, sample_weight=weights))
    assert row.scores["auprc"].value == pytest.approx(
        average_precision_score(fast, chance, sample_weight=weights)
    )
    assert row.scores["balanced_accuracy"].value == pytest.approx(
        balanced_accuracy_score(fast, chance >= 0.5, sample_weight=weights)
    )
    wrong = (chance >= 0.5) != fast
    assert row.subject_errors["s000"] == pytest.approx(wrong[people == "s000"].mean())


def test_more_classes_are_averaged_each_against_the_rest():
    generator = np.random.default_rng(0)
    people, words = (
        np.repeat(np.arange(30).astype(str), 10),
        generator.choice(["a", "b", "c"], 300).astype(object),
    )
    chance = generator.dirichlet([1, 1, 1], 300) + 0.5 * (words[:, None] == np.array(["a", "b", "c"]))
    chance /= chance.sum(1, keepdims=True)
    row = outcome(chance[None], words, people).row
    expected = roc_auc_score(words.astype(str), chance, multi_class="ovr", average="macro")
    assert row.scores["auroc"].value == pytest.approx(expected)


def test_the_interval_is_the_bootstrap_over_subjects():
    # For many subjects the bootstrap of a mean has the closed form mean ± 1.96 sd / sqrt(U).
    generator = np.random.default_rng(0)
    people = np.repeat([f"s{i:03d}" for i in range(200)], 7)
    errors = np.repeat(generator.gamma(4.0, 1.0, 200), 7)
    estimate = outcome(errors, np.zeros(1400), people, resamples=20_000).row.scores["mae"]
    by_subject = errors[::7]
    half = 1.96 * by_subject.std() / np.sqrt(200)
    assert estimate.value == pytest.approx(by_subject.mean())
    np.testing.assert_allclose(estimate.interval, by_subject.mean() + np.array([-half, half]), atol=0.01)


def test_windows_of_the_same_subject_do_not_narrow_the_interval():
    truth, predicted, people = labelled()
    once = outcome(predicted, truth, people).row.scores["mae"].interval
    thrice = outcome(np.tile(predicted, 3), np.tile(truth, 3), np.tile(people, 3)).row.scores["mae"].interval
    np.testing.assert_allclose(once, thrice)


def test_the_same_seed_gives_the_same_interval_and_repeats_are_averaged():
    truth, predicted, people = labelled()
    one = outcome(predicted, truth, people)
    assert one.row == outcome(predicted, truth, people).row
    assert one.row != outcome(predicted, truth, people, seed=1).row
    worse = truth + 2 * (predicted - truth)
    both = outcome(np.stack([predicted, worse]), truth, people).row.scores["mae"].value
    assert both == pytest.approx(1.5 * one.row.scores["mae"].value)


def test_the_paired_difference_is_narrower_than_its_parts_and_has_its_closed_form():
    generator = np.random.default_rng(1)
    people = np.repeat([f"s{i:03d}" for i in range(200)], 5)
    hard = np.repeat(generator.gamma(1.0, 5.0, 200), 5)  # some subjects are hard for everybody
    gain = np.repeat(generator.normal(0.5, 0.5, 200), 5)
    first = outcome(hard + 10, np.zeros(1000), people, name="first", resamples=20_000)
    second = outcome(hard + 10 + gain, np.zeros(1000), people, name="second", resamples=20_000)
    found = paired_difference(first, second, score="mae")
    assert (found.name, found.against) == ("first", "second")
    half = 1.96 * gain[::5].std() / np.sqrt(200)
    assert found.estimate.value == pytest.approx(-gain.mean())
    np.testing.assert_allclose(found.estimate.interval, -gain.mean() + np.array([-half, half]), atol=0.01)
    others = outcome(hard[:500], np.zeros(500), people[:500])
    with pytest.raises(ValueError, match="same subjects"):
        paired_difference(first, others, score="mae")


def test_only_windows_of_test_folds_are_scored():
    truth, predicted, people = labelled()
    unseen = np.where(people < "s020", np.nan, predicted)
    row = outcome(unseen, truth, people).row
    assert row.subjects == 20
    assert row.windows == (people >= "s020").sum()
    kept = people >= "s020"
    assert row.scores["mae"] == outcome(predicted[kept], truth[kept], people[kept]).row.scores["mae"]


def test_a_row_is_plain_json_and_marks_subjects_of_the_pretraining():
    truth, predicted, people = labelled(subjects=5)
    row = outcome(predicted, truth, people, subjects_in_pretraining=["s003", "elsewhere"]).row
    content = json.loads(json.dumps(row.as_json()))
    assert (content["name"], content["target"]) == ("row", "HR")
    assert content["subjects"] == 5
    assert content["mae_interval"][0] < content["mae"] < content["mae_interval"][1]
    assert content["subjects_in_pretraining"] == ["s003"]
    assert len(content["subject_errors"]) == 5
    assert (
        outcome(predicted, truth, people, subjects_in_pretraining=None).row.as_json()[
            "subjects_in_pretraining"
        ]
        is None
    )


def test_one_subject_has_no_interval_and_a_constant_no_correlation():
    truth, predicted, people = labelled(subjects=1)
    assert outcome(predicted, truth, people).row.scores["mae"].interval is None
    truth, _, people = labelled()
    constant = outcome(np.full(len(truth), 80.1), truth, people).row.as_json()
    assert constant["pearson"] is None
    assert constant["mae"] > 0
