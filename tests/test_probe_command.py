"""`biofound probe`: its rows on a small cohort, its numbers against plain scikit-learn, and its refusals."""

import csv
import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge
from sklearn.model_selection import GroupKFold
from sklearn.preprocessing import StandardScaler

from biofound.core.checkpoint import load_checkpoint, save_checkpoint
from biofound.core.probe import ALPHAS
from biofound.core.probe_features import count_beats
from biofound.core.readout import READOUTS
from biofound.core.readout_names import DEFAULT_READOUT
from biofound.data.splits import UNKNOWN
from biofound.data.windows import open_windows
from biofound.settings import ProbeSettings
from biofound.settings.base import choices_of
from tests.chain import Chain, answer, chain, done, run, write_plain
from tests.data.cohort import change_sealed

SPLITS = ("train", "val", "test")
FOLDS = ("--folds", 3, "--repeats", 2)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Chain:
    return chain(tmp_path_factory.getbasetemp())


@pytest.fixture(scope="module")
def checkpoint(small: Chain) -> Path:
    return small.output / "best_model.pt"


def read_all(store: Path):
    """Every window (N, C, T) of a store, and what is known of each."""
    parts = [open_windows(store, split) for split in SPLITS]
    infos = [part.info(np.arange(len(part))) for part in parts]
    known = {
        key: np.concatenate([getattr(i, key) for i in infos]) for key in ("case_id", "subject_id", "start_s")
    }
    return np.concatenate([part.read(np.arange(len(part))) for part in parts]), known


@pytest.fixture(scope="module")
def labels(small: Chain, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """HR counted in every window, in words too, a word that is always the same, and one row in 5 empty."""
    x, known = read_all(small.store)
    rates = count_beats(x, 125.0, channels=("PPG", "ECG"))
    path = tmp_path_factory.mktemp("labels") / "labels.csv"
    with path.open("w", newline="") as file:
        out = csv.writer(file)
        out.writerow(["case_id", "start_s", "end_s", "HR", "pace", "same", "some", "code"])
        for row, (case, start, rate) in enumerate(
            zip(known["case_id"], known["start_s"], rates, strict=True)
        ):
            fast = rate > np.median(rates)
            some = "" if row % 5 == 0 else rate
            out.writerow([case, start, start + 10, rate, "fast" if fast else "slow", "one", some, int(fast)])
    return path


def rows_of(*arguments: object) -> dict:
    return {row["name"]: row for row in answer("probe", *arguments, *FOLDS)["rows"]}


# ---- Rows


def test_an_independent_script_gives_the_row_of_a_checkpoint(small, checkpoint, labels) -> None:
    found = answer("probe", "--checkpoint", checkpoint, "--data-dir", small.store, "--labels", labels,
                   "--target", "HR", "--folds", 3, "--repeats", 1, "--seed", 7)  # fmt: skip
    row = next(row for row in found["rows"] if row["name"] == str(checkpoint))

    # From here on plain PyTorch and scikit-learn.
    x, known = read_all(small.store)
    with labels.open() as file:
        y, who = np.array([float(line["HR"]) for line in csv.DictReader(file)]), known["subject_id"]
    layers, encoder = [], load_checkpoint(checkpoint).build().encoder
    encoder.backbone.encoder.mlp_mixer_encoder.mixers[-1].register_forward_hook(
        lambda module, inputs, output: layers.append(output)
    )
    with torch.no_grad():
        encoder(torch.from_numpy(x))
    features = torch.cat([layers[0].mean(2), layers[0].std(2, correction=0)], -1).flatten(1).double().numpy()

    def fit(train, test, alpha):
        scaler = StandardScaler().fit(features[train])
        ridge = Ridge(alpha=alpha).fit(scaler.transform(features[train]), y[train])
        return ridge.predict(scaler.transform(features[test]))

    def error(predicted, rows):
        return np.mean([np.abs(predicted - y[rows])[who[rows] == one].mean() for one in np.unique(who[rows])])

    predicted = np.zeros(len(y))
    for train, test in GroupKFold(3, shuffle=True, random_state=7).split(features, groups=who):
        inner = np.zeros((len(ALPHAS), len(train)))
        for a, b in GroupKFold(5, shuffle=True, random_state=7).split(train, groups=who[train]):
            inner[:, b] = [fit(train[a], train[b], alpha) for alpha in ALPHAS]
        best = ALPHAS[int(np.argmin([error(one, train) for one in inner]))]
        predicted[test] = fit(train, test, best)
    assert row["mae"] == pytest.approx(error(predicted, np.arange(len(y))), rel=1e-4)
    assert row["subject_errors"] == pytest.approx(
        {one: np.abs(predicted - y)[who == one].mean() for one in np.unique(who)}, rel=1e-3
    )


def test_every_row_is_scored_on_the_same_subjects(
    small, checkpoint, labels, tmp_path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "their_model.py").write_text(
        "def embed(x, sfreq):\n    return x[:, :, ::50].reshape(len(x), -1)\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))  # the command adds where the user is
    last = str(small.output / "last_model.pt")
    found = answer(
        "probe", "--checkpoint", checkpoint, "--checkpoint", last, "--data-dir", small.store,
        "--labels", labels, "--target", "HR", "--encoder", "their_model:embed",
        "--picture", "probe.png", *FOLDS,
    )  # fmt: skip
    rows = {row["name"]: row for row in found["rows"]}
    ours = [str(checkpoint), last, "their_model:embed"]
    assert list(rows) == ["training median", "random encoder", "classical features", "beat counter", *ours]
    for row in rows.values():
        assert {"name", "target", "mae", "mae_interval", "rmse", "r2", "pearson", "subjects"} <= row.keys()
        assert (row["target"], row["subjects"]) == ("HR", len(row["subject_errors"]))
        assert row["mae_interval"][0] <= row["mae"] <= row["mae_interval"][1]
        assert row["mae"] == pytest.approx(np.mean(list(row["subject_errors"].values())))
        assert row["subject_errors"].keys() == rows["training median"]["subject_errors"].keys()
    assert rows["beat counter"]["mae"] == pytest.approx(0.0, abs=1e-6)  # which made the labels
    assert [name for name, row in rows.items() if row["readout"] == DEFAULT_READOUT] == [
        "random encoder", *ours[:2]
    ]  # fmt: skip
    pairs = {(each["name"], each["against"]): each for each in found["differences"]}
    assert {(name, "classical features") for name in ours} <= pairs.keys()
    assert {(name, "random encoder") for name in ours[:2]} | {(ours[0], ours[1])} <= pairs.keys()
    first = pairs[ours[0], "classical features"]
    assert first["difference"] == pytest.approx(rows[ours[0]]["mae"] - rows["classical features"]["mae"])
    assert (tmp_path / "probe.png").read_bytes().startswith(b"\x89PNG")


def test_the_true_rate_as_a_feature_scores_about_0(small, labels, tmp_path, monkeypatch) -> None:
    (tmp_path / "truth.py").write_text(
        "from biofound.core.probe_features import count_beats\n"
        "def embed(x, sfreq):\n    return count_beats(x, sfreq, channels=('PPG', 'ECG'))[:, None]\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    rows = rows_of(
        "--data-dir", small.store, "--labels", labels, "--target", "HR", "--encoder", "truth:embed"
    )
    assert list(rows) == ["training median", "classical features", "beat counter", "truth:embed"]
    assert rows["truth:embed"]["mae"] < 0.05 * rows["training median"]["mae"]
    assert rows["truth:embed"]["subjects_in_pretraining"] is None


def test_words_are_classified(small, labels) -> None:
    common = ("--data-dir", small.store, "--labels", labels)
    rows = rows_of(*common, "--target", "pace")
    assert list(rows) == ["training majority", "classical features"]
    assert {"auroc", "auprc", "balanced_accuracy"} <= rows["classical features"].keys()
    coded = rows_of(*common, "--target", "code", "--classes")
    assert coded["classical features"]["auroc"] == rows["classical features"]["auroc"]


def test_the_table_has_rows_and_intervals_and_tells_what_was_left_out(small, checkpoint, labels) -> None:
    said = done("probe", "--checkpoint", checkpoint, "--data-dir", small.store, "--labels", labels,
                "--target", "some", *FOLDS)  # fmt: skip
    text = " ".join(said.stderr.split())
    assert said.stdout == ""
    for words in ("training median", "random encoder", "classical features", DEFAULT_READOUT, "2 x 3 folds"):
        assert words in text
    assert "windows have no label some" in text and "were in its pretraining" in text


# ---- Whom an encoder has seen


def test_subjects_of_the_pretraining_are_marked_on_any_store(small, checkpoint, labels, tmp_path) -> None:
    train = set(open_windows(small.store, "train").subjects)
    common = ("--data-dir", small.store, "--labels", labels, "--target", "HR")
    row = rows_of("--checkpoint", checkpoint, *common)[str(checkpoint)]
    assert set(row["subjects_in_pretraining"]) == train & row["subject_errors"].keys()

    known = load_checkpoint(checkpoint)
    assert set(known.data.subjects) == train
    for name, changes, seen in (
        ("by fingerprint", {"subjects": (), "synthetic": False}, train),
        ("unknown", {"subjects": (), "synthetic": False, "fingerprint": "other"}, None),
        ("nobody", {"subjects": (), "fingerprint": "other"}, set()),
    ):
        path = tmp_path / f"{name}.pt"
        save_checkpoint(path, replace(known, data=replace(known.data, **changes)))
        found = rows_of("--checkpoint", path, *common)[str(path)]["subjects_in_pretraining"]
        assert (found if found is None else set(found)) == seen, name


def test_a_test_set_is_other_people_and_alone_is_scored(small, checkpoint, labels, tmp_path) -> None:
    for part, splits in (("fit", ("train",)), ("score", ("val", "test"))):
        for split in splits:
            shutil.copytree(small.store / split, tmp_path / part / split)
    common = (
        "--checkpoint",
        checkpoint,
        "--data-dir",
        tmp_path / "fit",
        "--labels",
        labels,
        "--target",
        "HR",
    )
    row = rows_of(*common, "--test-data-dir", tmp_path / "score")[str(checkpoint)]
    others = {who for split in ("val", "test") for who in open_windows(small.store, split).subjects}
    assert row["subject_errors"].keys() == others
    assert row["subjects_in_pretraining"] == [] and len(row["regularisation"]) == 1
    same = run("probe", *common, "--test-data-dir", tmp_path / "fit")
    assert same.exit_code == 1 and "in the training and in the test set" in same.stderr


# ---- Refusals


def test_read_outs_are_those_that_can_be_asked_for() -> None:
    assert choices_of(ProbeSettings.model_fields["readout"]) == tuple(READOUTS)


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("--target", "SpO2"), 1, ("no label 'SpO2'", "HR, pace, same")),
        (("--target", "same"), 1, ("'one'", "two classes")),
        (("--target", "HR", "--folds", 60), 1, ("60 folds",)),
        (("--target", "HR", "--readout", "middle"), 2, ("--readout", "channels_mean_std", "'middle'")),
        (("--target", "HR", "--encoder", "nowhere:embed"), 2, ("nowhere",)),
        (("--target", "HR", "--encoder", "json:embed"), 2, ("no function embed", "dumps")),
        (("--target", "HR", "--encoder", "json:dumps"), 1, ("json:dumps failed", "TypeError")),
        (("--target", "HR", "--encoder", "json:dumps,json:dumps"), 2, ("json:dumps twice",)),
        (("--target", "HR", "--picture", "probe.pdf"), 2, (".png",)),
        (("--target", "HR", "--labels", "numerics"), 2, ("source wfdb", "synthetic", "CSV")),
        (("--target", "HR", "--labels", "numerics", "--classes"), 2, ("classes",)),
        (("--target", "HR", "--labels-root", "x"), 2, ("labels_root",)),
        (("--target", "HR", "--labels", "nothing.csv"), 1, ("nothing.csv",)),
        (("--target", "HR", "--checkpoint", "nothing.pt"), 1, ("nothing.pt", "no such file")),
        ((), 2, ("--target is required",)),
    ],
)
def test_what_cannot_be_probed_is_refused(small, labels, arguments, code: int, words) -> None:
    given = ("--data-dir", small.store, *(() if "--labels" in arguments else ("--labels", labels)))
    result = run("probe", *given, *arguments)
    assert result.exit_code == code, result.output
    assert all(word in result.stderr for word in words), result.stderr
    assert result.stdout == ""


@pytest.mark.parametrize(
    ("line", "word"),
    [("elsewhere,0,10,70", "case ids such as"), ("{case},5000,5010,70", "none of its")],
)
def test_labels_of_other_cases_and_other_times_are_refused(small, tmp_path, line: str, word: str) -> None:
    case = open_windows(small.store, "train").info(np.arange(1)).case_id[0]
    path = tmp_path / "labels.csv"
    path.write_text(f"case_id,start_s,end_s,HR\n{line.format(case=case)}\n")
    result = run("probe", "--data-dir", small.store, "--labels", path, "--target", "HR")
    assert result.exit_code == 1 and word in result.stderr


def test_windows_must_be_of_the_kind_that_the_encoder_takes(small, checkpoint, labels, tmp_path) -> None:
    given = ("--data-dir", small.store, "--labels", labels, "--target", "HR")
    five = run("probe", "--checkpoint", small.inflated, *given)
    assert five.exit_code == 1 and "there is PPG, ECG, but no ACC_X" in five.stderr
    known = load_checkpoint(checkpoint)
    bands = {**known.data.filters, "ECG": {**known.data.filters["ECG"], "high_hz": 15.0}}
    path = tmp_path / "other.pt"
    save_checkpoint(path, replace(known, data=replace(known.data, filters=bands)))
    filtered = run("probe", "--checkpoint", path, *given)
    assert filtered.exit_code == 1 and "filter of ECG" in filtered.stderr


def test_a_plain_npz_without_subjects_and_times_is_refused(small, labels, tmp_path) -> None:
    plain = write_plain(tmp_path / "plain", small.store)
    result = run("probe", "--data-dir", plain, "--labels", labels, "--target", "HR")
    assert result.exit_code == 1 and "`subjects`, `case_ids` and `start_s`" in result.stderr


def test_recordings_of_unknown_patients_are_refused(small, labels, tmp_path) -> None:
    index = json.loads((small.store / "val" / "index.json").read_text())
    shutil.copytree(small.store / "val", tmp_path / "val")
    windows = index["cases"][0]["windows"]
    change_sealed(tmp_path / "val" / "index.json", lambda index: index["cases"][0].update(subject_id=UNKNOWN))
    result = run("probe", "--data-dir", tmp_path, "--labels", labels, "--target", "HR")
    assert result.exit_code == 1 and f"{windows} do not say whose they are" in result.stderr


# ---- Real recordings


@pytest.mark.slow
def test_the_monitors_rate_of_bidmc(bidmc_dir: Path, tmp_path: Path) -> None:
    """The numbers that the baselines have had on BIDMC; the recordings then move."""
    moved = tmp_path / "recordings"
    moved.symlink_to(bidmc_dir)
    done("prepare", "--source", "wfdb", "--root", moved, "--mode", "full", "--output", tmp_path)
    done("windows", "--split-file", tmp_path / "splits_full.json", "--outdir", tmp_path / "windows")
    given = ("--data-dir", tmp_path / "windows", "--labels", "numerics", "--target", "HR")
    rows = {row["name"]: row for row in answer("probe", *given)["rows"]}
    assert rows["training median"]["mae"] > 8
    assert rows["classical features"]["mae"] < 3.5
    assert rows["beat counter"]["mae"] < 1.6
    moved.unlink()
    result = run("probe", *given)
    assert result.exit_code == 1 and "--labels-root" in result.stderr
    again = answer("probe", *given, "--labels-root", bidmc_dir)["rows"]
    assert {row["name"]: row["mae"] for row in again} == {name: row["mae"] for name, row in rows.items()}
