"""Are scores those of scikit-learn, and intervals those of a bootstrap over subjects?"""

import json

import numpy as np
import pytest
from sklearn.metrics import (
    average_precision_score,
    balanced_accuracy_score,
    confusion_matrix,
    f1_score,
    r2_score,
    roc_auc_score,
    root_mean_squared_error,
)

from biofound.core.scores import Predictions, ScoredTask, paired_difference, score


def labelled(subjects=40, seed=0):
    """Truth, a prediction that errs by subject, and subjects with 1 to 30 windows each."""
    generator = np.random.default_rng(seed)
    counts = generator.integers(1, 30, subjects)
    people = np.repeat([f"s{i:03d}" for i in range(subjects)], counts)
    truth = np.repeat(generator.normal(80, 15, subjects), counts) + generator.normal(0, 3, len(people))
    wrong = np.repeat(generator.gamma(2.0, 2.0, subjects), counts) * generator.normal(size=len(people))
    return truth, truth + wrong, people


def equal_weights(people):
    return 1 / np.unique(people, return_counts=True)[1][np.unique(people, return_inverse=True)[1]]


def outcome(predicted, truth, people, *, name="row", **options):
    values = np.atleast_2d(predicted) if predicted.ndim < 3 else predicted
    task = ScoredTask(target="HR", values=truth, subjects=people)
    return score(name, Predictions(values=values), task, **{"seed": 0, **options})


def test_regression_scores_weigh_every_subject_equally():
    truth, predicted, people = labelled()
    scores = outcome(predicted, truth, people).row.scores
    weights = equal_weights(people)
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
    weights = equal_weights(people)
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


def three_classes(subjects=30, seed=0):
    """Words of three classes, probabilities (N, 3) that know something of them, and subjects."""
    generator = np.random.default_rng(seed)
    people = np.repeat([f"s{i:02d}" for i in range(subjects)], generator.integers(1, 20, subjects))
    words = generator.choice(["a", "b", "c"], len(people), p=[0.6, 0.3, 0.1])
    chance = generator.dirichlet([1, 1, 1], len(people)) + 0.5 * (words[:, None] == np.array(["a", "b", "c"]))
    return words.astype(object), chance / chance.sum(1, keepdims=True), people


def expected_calibration_error(chance, words, weights):
    """As in Guo et al. 2017, equations 2, 3 and 5, bin by bin."""
    confidence, hit = chance.max(1), np.array(["a", "b", "c"])[chance.argmax(1)] == words
    error = 0.0
    for m in range(1, 16):
        inside = ((m - 1) / 15 < confidence) & (confidence <= m / 15)
        if inside.any():
            accuracy = np.average(hit[inside], weights=weights[inside])
            mean = np.average(confidence[inside], weights=weights[inside])
            error += weights[inside].sum() / weights.sum() * abs(accuracy - mean)
    return error


def test_more_classes_are_averaged_each_against_the_rest():
    words, chance, people = three_classes()
    row = outcome(chance[None], words, people).row
    told = {"average": "macro", "sample_weight": equal_weights(people)}
    expected = roc_auc_score(words.astype(str), chance, multi_class="ovr", **told)
    assert row.scores["auroc"].value == pytest.approx(expected)
    predicted = np.array(["a", "b", "c"])[chance.argmax(1)]
    assert row.scores["f1"].value == pytest.approx(f1_score(words.astype(str), predicted, **told))
    assert row.positive is None and row.classes == ("a", "b", "c")
    np.testing.assert_array_equal(row.confusion, confusion_matrix(words.astype(str), predicted))


def test_of_two_classes_f1_is_that_of_the_rarer_which_the_row_names():
    truth, predicted, people = labelled()
    words = np.where(truth > 95, "fast", "slow").astype(object)
    chance = 1 / (1 + np.exp(-(predicted - 95) / 20))
    row = outcome(np.stack([chance, 1 - chance], -1)[None], words, people).row
    assert row.positive == "fast"
    hit = f1_score(words == "fast", chance > 0.5, sample_weight=equal_weights(people))
    assert row.scores["f1"].value == pytest.approx(hit)
    content = json.loads(json.dumps(row.as_json()))
    assert content["confusion"] == confusion_matrix(words == "slow", chance < 0.5).tolist()
    assert (content["classes"], content["positive"]) == (["fast", "slow"], "fast")


def test_calibration_error_is_the_gap_between_confidence_and_hits():
    # Two bins: in one 80 % sure and 60 % right, in the other 60 % sure and as often right.
    people = np.arange(20).astype(str)
    words = np.array((["a"] * 6 + ["b"] * 4) * 2, object)
    sure = np.repeat([0.8, 0.6], 10)
    error = outcome(np.stack([sure, 1 - sure], -1)[None], words, people).row.scores["calibration_error"]
    assert error.value == pytest.approx(0.1)
    words, chance, people = three_classes()
    expected = expected_calibration_error(chance, words, equal_weights(people))
    measured = outcome(chance[None], words, people).row.scores["calibration_error"].value
    assert measured == pytest.approx(expected) and 0.02 < expected < 0.5


def test_every_resample_has_the_scores_of_its_subjects_taken_as_often():
    words, chance, people = three_classes(subjects=8)
    found = outcome(chance[None], words, people, resamples=40).resampled
    names = np.unique(people)
    draws = np.random.default_rng(0).multinomial(8, np.full(8, 1 / 8), size=40)
    for k, draw in enumerate(draws):
        rows = np.concatenate([np.flatnonzero(people == name) for name in np.repeat(names, draw)])
        weights = np.concatenate(
            [np.full(n, 1 / n) for n in [(people == name).sum() for name in np.repeat(names, draw)]]
        )
        truth, predicted = words[rows].astype(str), np.array(["a", "b", "c"])[chance[rows].argmax(1)]
        f1 = f1_score(truth, predicted, average="macro", sample_weight=weights, zero_division=0.0)
        assert found["f1"][k] == pytest.approx(f1)
        calibration = expected_calibration_error(chance[rows], words[rows], weights)
        assert found["calibration_error"][k] == pytest.approx(calibration)
        if len(np.unique(truth)) == 3:
            balanced = balanced_accuracy_score(truth, predicted, sample_weight=weights)
            assert found["balanced_accuracy"][k] == pytest.approx(balanced)


def test_predictions_may_have_classes_that_no_window_has():
    words, chance, people = three_classes()
    chance = chance[:, [2, 0, 1]]
    kept = words != "b"

    def row(classes):
        task = ScoredTask(target="t", values=words[kept], subjects=people[kept], known_classes=tuple(classes))
        return score("row", Predictions(values=chance[None, kept]), task, seed=0, resamples=9).row

    found = row("cab")
    assert found.classes == ("c", "a", "b") and found.confusion[2] == (0, 0, 0) and found.confusion[0][2] > 0
    areas = [roc_auc_score(words[kept] == "ca"[k], chance[kept, k], sample_weight=equal_weights(people[kept]))
             for k in (0, 1)]  # fmt: skip
    assert found.scores["auroc"].value == pytest.approx(np.mean(areas))
    with pytest.raises(ValueError, match="among x, a, b; got c"):
        row("xab")


def test_bland_altman_limits_are_those_of_the_paper_where_each_subject_has_one_window():
    truth, predicted, _ = labelled()
    people = np.arange(len(truth)).astype(str)
    scores = outcome(predicted, truth, people).row.scores
    difference = predicted - truth
    deviation = 1.96 * difference.std(ddof=1)
    assert scores["bias"].value == pytest.approx(difference.mean())
    assert scores["loa_lower"].value == pytest.approx(difference.mean() - deviation)
    assert scores["loa_upper"].value == pytest.approx(difference.mean() + deviation)
    low, high = scores["loa_upper"].interval  # Bland & Altman 1986: SE of a limit is sqrt(3 s² / n)
    assert high - low == pytest.approx(2 * 1.96 * np.sqrt(3 / len(truth)) * difference.std(), rel=0.35)


def test_bland_altman_limits_hold_differences_between_and_within_subjects():
    # Subjects differ by 3, their windows by 4: a window of a new subject is off by 5, however many each has.
    generator = np.random.default_rng(0)
    counts = generator.integers(1, 50, 4000)
    people = np.repeat([f"s{i:04d}" for i in range(4000)], counts)
    error = 2 + np.repeat(generator.normal(0, 3, 4000), counts) + generator.normal(0, 4, len(people))
    scores = outcome(error, np.zeros(len(error)), people, resamples=0).row.scores
    assert scores["loa_lower"].value == pytest.approx(2 - 1.96 * 5, abs=0.3)
    assert scores["loa_upper"].value == pytest.approx(2 + 1.96 * 5, abs=0.3)


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
    scores = outcome(predicted, truth, people).row.scores
    assert scores["mae"].interval is None
    assert scores["bias"].value == pytest.approx((predicted - truth).mean())
    assert scores["loa_upper"].value is None  # how far people differ cannot be told
    truth, _, people = labelled()
    constant = outcome(np.full(len(truth), 80.1), truth, people).row.as_json()
    assert constant["pearson"] is None
    assert constant["mae"] > 0
