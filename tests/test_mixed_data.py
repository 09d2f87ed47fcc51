"""`prepare --fractions`, and `pretrain` on several stores and synthetic streams, through the command line."""

import json
from pathlib import Path

import numpy as np
import pytest

from biofound.core.checkpoint import load_checkpoint
from biofound.data.store import read_index
from tests.chain import SMALL_RUN, answer, chain, done, run
from tests.data.cohort import change_sealed

STREAM_RUN = (*SMALL_RUN, "--hours-per-epoch", 0.05)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """A pure pretraining corpus: a store with train windows only."""
    root = tmp_path_factory.mktemp("corpus")
    source = ("--source", "synthetic", "--subjects", 4, "--minutes", 0.6, "--population", "icu")
    said = done("prepare", *source, "--seed", 2, "--fractions", "1,0,0", "--output", root)
    assert "splits by patient" in said.stderr
    built = done("windows", "--split-file", root / "splits_full.json", "--outdir", root / "w", "--workers", 1)
    assert "split val, test: empty" in built.stderr
    assert sorted(path.name for path in (root / "w").iterdir()) == ["train"]
    return root / "w"


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch):
    """Drawing takes longer than training here."""
    monkeypatch.setattr("biofound.commands.pretrain.draw_figures", lambda *_: None)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return chain(tmp_path_factory.getbasetemp()).store


def losses(output: Path) -> list[float]:
    history = json.loads((output / "training_history.json").read_text())
    return history["train_loss"] + history["val_loss"]


def test_a_stream_alone_trains_and_writes_no_file_of_its_own(tmp_path, monkeypatch):
    monkeypatch.setattr("biofound.commands.pretrain_data.VALIDATION_HOURS", 0.05)
    whole = tmp_path / "whole"
    said = done("pretrain", "--data-dir", "synthetic:icu", "--output-dir", whole, *STREAM_RUN)
    assert "no recording was given" in " ".join(said.output.replace("│", " ").split())
    checkpoint = load_checkpoint(whole / "last_model.pt")
    assert checkpoint.data.synthetic and checkpoint.data.synthetic_share == 1
    assert checkpoint.data.parts == [{"name": "synthetic:icu", "windows": 18, "synthetic": True}]
    written = {path.name for path in tmp_path.rglob("*") if path.is_file()}
    run_files = {"training_config.json", "training_history.json", "metrics.jsonl"}
    assert written == run_files | {"best_model.pt", "last_model.pt"}


def test_stores_and_a_stream_train_together(store, corpus, tmp_path):
    output = tmp_path / "run"
    renamed = tmp_path / "renamed"  # as both cohorts name their subjects alike
    for path, content in ((p, p.read_bytes()) for p in corpus.rglob("*") if p.is_file()):
        target = renamed / path.relative_to(corpus)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)

    def rename(index):
        for case in index["cases"]:
            case["subject_id"] = f"other{case['subject_id']}"

    change_sealed(renamed / "train" / "index.json", rename)
    sources = ("--data-dir", store, "--data-dir", renamed, "--data-dir", "synthetic:exercise:0.5")
    done("pretrain", *sources, "--output-dir", output, *SMALL_RUN)
    recorded = read_index(store / "train").totals.windows + read_index(renamed / "train").totals.windows
    checkpoint = load_checkpoint(output / "last_model.pt")
    assert [part["name"] for part in checkpoint.data.parts] == [
        str(store),
        str(renamed),
        "synthetic:exercise:0.5",
    ]
    assert abs(checkpoint.data.parts[2]["windows"] - recorded / 2) < 6
    assert np.isfinite(losses(output)).all()


def test_a_patient_in_train_of_one_store_and_val_of_another_is_refused(store, tmp_path):
    clone = tmp_path / "clone" / "train"
    clone.mkdir(parents=True)
    for path in (store / "val").iterdir():
        (clone / path.name).write_bytes(path.read_bytes())
    sources = ("--data-dir", store, "--data-dir", clone.parent)
    result = run("pretrain", *sources, "--output-dir", tmp_path / "run", *SMALL_RUN)
    assert result.exit_code == 1
    text = " ".join(result.output.split())
    assert f"in train of {clone.parent} and in val of {store}" in text.replace("- ", "-")
    assert not (tmp_path / "run").exists()


def test_a_corpus_alone_has_nothing_to_validate_on(corpus, tmp_path):
    result = run("pretrain", "--data-dir", corpus, "--output-dir", tmp_path / "run", *SMALL_RUN)
    assert result.exit_code == 1 and "no windows for split 'val'" in " ".join(result.output.split())


@pytest.mark.parametrize("text", ["synthetic:icy", "synthetic:icu:0", "synthetic:icu:x", "synthetic:"])
def test_a_stream_that_cannot_be_is_refused_with_what_is_expected(text, tmp_path):
    result = run("pretrain", "--data-dir", text, "--output-dir", tmp_path / "run")
    assert result.exit_code == 2 and "synthetic:<rest|icu|exercise>" in " ".join(result.output.split())


def test_fractions_are_checked_and_said(tmp_path):
    source = ("--source", "synthetic", "--subjects", 4, "--output", tmp_path)
    result = run("prepare", *source, "--fractions", "0.8,0.1")
    assert result.exit_code == 2, result.output
    result = run("prepare", *source, "--fractions", "0.8,0.1,0.2")
    assert result.exit_code == 2 and "add up to 1" in " ".join(result.output.split())
    said = answer("prepare", *source, "--fractions", "0,0,1")
    assert said["splits"]["test"]["cases"] == 4 and said["fractions"] == [0, 0, 1]
