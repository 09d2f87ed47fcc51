"""Is a probe what an independent scikit-learn script says it is, and do its folds keep subjects apart?"""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import mean_absolute_error
from sklearn.model_selection import GridSearchCV, GroupKFold, LeaveOneGroupOut
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from biofound.core.probe import (
    ALPHAS,
    Fold,
    predict_constant,
    predict_directly,
    predict_from_features,
    pretraining_subjects,
    separate_test,
    subject_folds,
)
from biofound.core.scores import ScoredTask, score
from biofound.errors import DataError


def cohort(subjects=12, each=20, width=6, noise=0.3, seed=0):
    """Features (N, F), a rate (N,) that depends on them and differs between subjects, and the subjects."""
    generator = np.random.default_rng(seed)
    people = np.repeat([f"s{i:02d}" for i in range(subjects)], each)
    x = generator.normal(size=(len(people), width)) + np.repeat(
        generator.normal(size=(subjects, width)), each, 0
    )
    y = 75 + 10 * x[:, 0] + noise * 10 * generator.normal(size=len(people))
    return x, y, people


@pytest.fixture
def data():
    return cohort()


def task_of(y, people):
    return ScoredTask(target="HR", values=y, subjects=people)


def mae(predictions, task):
    return score("row", predictions, task, seed=0, resamples=10).row.scores["mae"].value


def test_an_independent_script_gives_the_same_numbers(data):
    x, y, people = data
    task = task_of(y, people)
    ours = predict_from_features(x, task, subject_folds(people, folds=4, repeats=2, seed=5), seed=9)

    # From here on plain scikit-learn.
    for repeat in range(2):
        predicted, splitter = np.zeros(len(y)), GroupKFold(4, shuffle=True, random_state=5 + repeat)
        for train, test in splitter.split(x, groups=people):
            inner = GroupKFold(5, shuffle=True, random_state=9 + repeat)
            errors = np.zeros((len(ALPHAS), len(train)))
            for a, alpha in enumerate(ALPHAS):
                model = make_pipeline(StandardScaler(), Ridge(alpha=alpha))
                for fit, held in inner.split(x[train], groups=people[train]):
                    model.fit(x[train][fit], y[train][fit])
                    errors[a, held] = np.abs(model.predict(x[train][held]) - y[train][held])
            means = [np.mean([e[people[train] == p].mean() for p in set(people[train])]) for e in errors]
            best = make_pipeline(StandardScaler(), Ridge(alpha=ALPHAS[int(np.argmin(means))]))
            predicted[test] = best.fit(x[train], y[train]).predict(x[test])
        np.testing.assert_allclose(ours.values[repeat], predicted, rtol=1e-9)
    by_subject = [
        [mean_absolute_error(y[people == p], v[people == p]) for p in set(people)] for v in ours.values
    ]
    assert mae(ours, task) == pytest.approx(np.mean(by_subject), rel=1e-9)


def test_a_grid_search_of_scikit_learn_chooses_the_same_penalty(monkeypatch):
    # With one inner fold a subject, the mean over folds is the mean over subjects.
    x, y, people = cohort(subjects=6, each=8, width=40, noise=2.0)
    monkeypatch.setattr("biofound.core.probe.INNER_FOLDS", 6)
    train, test = np.flatnonzero(people != "s00"), np.flatnonzero(people == "s00")
    ours = predict_from_features(x, task_of(y, people), [[Fold(train=train, test=test)]], seed=0)
    search = GridSearchCV(
        make_pipeline(StandardScaler(), Ridge()),
        {"ridge__alpha": ALPHAS},
        scoring="neg_mean_absolute_error",
        cv=LeaveOneGroupOut(),
    ).fit(x[train], y[train], groups=people[train])
    assert ours.regularisation == (pytest.approx(search.best_params_["ridge__alpha"]),)
    np.testing.assert_allclose(ours.values[0, test], search.predict(x[test]), rtol=1e-9)
    assert np.isnan(ours.values[0, train]).all()


def test_the_true_rate_as_a_feature_scores_about_0(data):
    _, y, people = data
    folds = subject_folds(people, folds=4, repeats=1, seed=0)
    assert (
        mae(predict_from_features(y[:, None], task_of(y, people), folds, seed=0), task_of(y, people)) < 0.02
    )


def test_shuffled_labels_give_the_error_of_the_median(data):
    x, y, people = data
    task = task_of(np.random.default_rng(1).permutation(y), people)
    folds = subject_folds(people, folds=4, repeats=3, seed=0)
    assert mae(predict_from_features(x, task, folds, seed=0), task) == pytest.approx(
        mae(predict_constant(task, folds), task), rel=0.05
    )


def test_folds_keep_subjects_apart_and_test_every_window_once_a_repeat(data):
    _, _, people = data
    repeats = subject_folds(people, folds=5, repeats=3, seed=2)
    tested = []
    for folds in repeats:
        for fold in folds:
            assert not set(people[fold.train]) & set(people[fold.test])
            assert len(fold.train) + len(fold.test) == len(people)
        together = np.concatenate([fold.test for fold in folds])
        assert sorted(together) == list(range(len(people)))
        tested.append({frozenset(people[fold.test]) for fold in folds})
    assert tested[0] != tested[1] != tested[2]
    again = subject_folds(people, folds=5, repeats=3, seed=2)
    assert all(
        (a.test == b.test).all()
        for x, y in zip(repeats, again, strict=True)
        for a, b in zip(x, y, strict=True)
    )


def test_what_is_predicted_does_not_depend_on_the_labels_or_features_of_other_test_windows(data):
    x, y, people = data
    folds = subject_folds(people, folds=4, repeats=1, seed=0)
    before = predict_from_features(x, task_of(y, people), folds, seed=0).values
    test = folds[0][0].test
    x2, y2 = x.copy(), y.copy()
    x2[test[1:]], y2[test] = 1e3, -1e3
    after = predict_from_features(x2, task_of(y2, people), [folds[0][:1]], seed=0).values
    np.testing.assert_array_equal(before[0, test[0]], after[0, test[0]])


def test_too_few_subjects_and_a_subject_on_both_sides_are_refused(data):
    _, _, people = data
    with pytest.raises(DataError, match="13 folds and 12 subjects"):
        subject_folds(people, folds=13, repeats=1, seed=0)
    with pytest.raises(DataError, match="s03"):
        separate_test(np.array(["s01", "s02", "s03"]), np.array(["s03", "s04"]))
    with pytest.raises(DataError, match="got 1 and 2"):
        separate_test(np.array(["s01", "s01"]), np.array(["s03", "s04"]))


def test_a_separate_test_set_is_trained_on_nothing_else(data):
    x, y, people = data
    train, test = people < "s08", people >= "s08"
    task = ScoredTask(target="HR", values=y, subjects=people)
    folds = separate_test(people[train], people[test])
    ours = predict_from_features(x, task, folds, seed=0)
    alpha = ours.regularisation[0]
    model = make_pipeline(StandardScaler(), Ridge(alpha=alpha)).fit(x[train], y[train])
    np.testing.assert_allclose(ours.values[0, test], model.predict(x[test]), rtol=1e-9)
    assert score("row", ours, task, seed=0).row.subjects == 4


def test_a_counter_is_taken_at_its_word_and_the_median_stands_in_where_it_has_none(data):
    _, y, people = data
    task, folds = task_of(y, people), subject_folds(people, folds=4, repeats=1, seed=0)
    counted = y + 1.0
    assert mae(predict_directly(counted, task, folds), task) == pytest.approx(1.0)
    counted[3] = np.nan
    found = predict_directly(counted, task, folds)
    assert found.unpredicted == 1
    assert found.values[0, 3] == predict_constant(task, folds).values[0, 3]


def test_words_are_classified_as_scikit_learn_does(data):
    x, y, people = data
    words = np.where(y > np.median(y) + 5, "fast", "slow").astype(object)
    task = ScoredTask(target="pace", values=words, subjects=people)
    train, test = people < "s08", people >= "s08"
    ours = predict_from_features(x, task, separate_test(people[train], people[test]), seed=0)
    model = make_pipeline(
        StandardScaler(), LogisticRegression(C=ours.regularisation[0], class_weight="balanced", max_iter=5000)
    ).fit(x[train], words[train].astype(str))
    assert task.classes.tolist() == ["fast", "slow"]
    np.testing.assert_allclose(ours.values[0, test], model.predict_proba(x[test]), atol=1e-3)
    row = score("row", ours, task, seed=0).row
    assert row.scores["auroc"].value > 0.9
    constant = score(
        "constant", predict_constant(task, separate_test(people[train], people[test])), task, seed=0
    )
    assert constant.row.scores["auroc"].value == pytest.approx(0.5)
    assert constant.row.scores["balanced_accuracy"].value == pytest.approx(0.5)


def test_a_class_that_a_fold_lacks_gets_no_probability_and_one_class_alone_is_refused():
    x, y, people = cohort(subjects=6)
    words = np.where(people == "s00", "rare", np.where(y > 75, "fast", "slow")).astype(object)
    task = ScoredTask(target="pace", values=words, subjects=people)
    found = predict_from_features(x, task, separate_test_on(people, "s00"), seed=0)
    assert (found.values[0, people == "s00", 1] == 0).all()
    single = ScoredTask(
        target="pace", values=np.where(people == "s00", "a", "b").astype(object), subjects=people
    )
    with pytest.raises(DataError, match="'b'"):
        predict_from_features(x, single, separate_test_on(people, "s00"), seed=0)


def separate_test_on(people, who):
    return [[Fold(train=np.flatnonzero(people != who), test=np.flatnonzero(people == who))]]


def test_whom_a_checkpoint_was_pretrained_on():
    stores = {"f1": ["a", "b"], "f2": ["c"]}
    assert pretraining_subjects(fingerprint="f1", subjects=(), synthetic=False, stores=stores) == ("a", "b")
    assert pretraining_subjects(fingerprint="f9", subjects=["c"], synthetic=False, stores=stores) == ("c",)
    assert pretraining_subjects(fingerprint="f9", subjects=(), synthetic=False, stores=stores) is None
    assert pretraining_subjects(fingerprint="f9", subjects=(), synthetic=True, stores=stores) == ()
    assert pretraining_subjects(fingerprint="f9", subjects=["c"], synthetic=True, stores=stores) == ("c",)
