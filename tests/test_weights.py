"""The weights in the package: what they are, that they work by name, and that their training repeats."""

import json
import time
from pathlib import Path

import numpy as np
import pytest

import biofound
from biofound.core.checkpoint import load_checkpoint
from biofound.core.probe import pretraining_subjects
from biofound.model_card import NOT_MEASURED
from biofound.weights import PLACE, find_weights, name_of, names
from tests.chain import done, run, start

NAME = "synthetic-base"
LOSSES = Path(__file__).parent / "synthetic_base_losses.json"
"""The first losses of the training, from its `metrics.jsonl`."""


def test_an_encoder_is_at_hand_in_three_lines():
    x = np.random.default_rng(0).standard_normal((2, 30 * 250))
    encoder = biofound.load_pretrained(NAME)
    windows = encoder.preprocess(x, sfreq=250, gate=False)
    vectors = encoder.embed(windows.x)
    assert (vectors.shape, windows.x.shape) == ((3, 768), (3, 2, 1250))
    assert np.isfinite(vectors).all()
    expected = biofound.embed_array(NAME, x, sfreq=250, channels=("PPG", "ECG"), gate=False)
    np.testing.assert_array_equal(vectors, expected.vectors)


def test_they_owe_nothing_to_any_patient_and_small_data_made_them():
    checkpoint = load_checkpoint(NAME)
    data = checkpoint.data
    assert (data.synthetic, data.synthetic_share) == (True, 1.0)
    assert all(subject.startswith("synthetic") for subject in data.subjects)
    assert "data_dir" not in checkpoint.settings
    seen = pretraining_subjects(
        fingerprint=data.fingerprint, subjects=data.subjects, synthetic=data.synthetic, stores={}
    )
    assert seen == ()


def test_their_card_says_what_their_file_says():
    checkpoint, card = load_checkpoint(NAME), (PLACE / NAME / "README.md").read_text()
    numbers = [
        *checkpoint.metrics["val"]["msm_by_channel"].values(),
        *checkpoint.metrics["monitor"]["constant_guess_msm"].values(),
    ]
    assert [number for number in numbers if f"{number:.3f}" not in card] == []
    assert checkpoint.encoder_sha256 in card
    assert "synthetic hearts alone; no person was recorded" in card
    assert NOT_MEASURED not in card.split("## Probe")[1].split("##")[0]


def test_commands_take_them_by_name(tmp_path):
    done("inflate", "--checkpoint", NAME, "--to", 5, "--output", tmp_path / "five.pt")
    assert load_checkpoint(tmp_path / "five.pt").inflated_from["channels"] == ["PPG", "ECG"]
    refused = run("inflate", "--checkpoint", NAME, "--to", 5)
    assert (refused.exit_code, "name a file" in refused.stderr) == (2, True)
    unknown = run("inflate", "--checkpoint", "synthetic-bas", "--to", 5, "--output", tmp_path / "no.pt")
    assert (unknown.exit_code, "the name of weights" in unknown.stderr) == (1, True)


def test_a_file_outranks_the_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert names() == (NAME,)
    assert find_weights(Path(NAME)) == PLACE / NAME / "model.safetensors"
    assert name_of(find_weights(Path(NAME))) == NAME
    Path(NAME).write_bytes(b"mine")
    assert find_weights(Path(NAME)) == Path(NAME)
    assert name_of(Path(NAME)) == NAME


@pytest.mark.slow
def test_their_training_repeats_in_its_first_steps(tmp_path):
    noted = json.loads(LOSSES.read_text())
    said = tmp_path / "stderr"
    process = start(*noted["command"], "--output-dir", tmp_path / "run", stderr=said)
    metrics, deadline = tmp_path / "run" / "metrics.jsonl", time.monotonic() + 600
    try:
        found: list[dict] = []
        while len(found) < len(noted["steps"]):
            assert process.is_alive() and time.monotonic() < deadline, said.read_text()
            time.sleep(1)
            lines = metrics.read_text().splitlines(keepends=True) if metrics.is_file() else []
            rows = [json.loads(line) for line in lines if line.endswith("\n")]
            found = [row for row in rows if "step" in row]
    finally:
        process.kill()
        process.join()
    for row, expected in zip(found, noted["steps"], strict=False):
        assert row["step"] == expected["step"]
        for name in ("loss", "msm", "stft"):
            assert row[name] == pytest.approx(expected[name], rel=noted["rtol"])
