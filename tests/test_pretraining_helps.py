"""Pretraining against random initialisation, at a tenth of the labels.

On synthetic hearts: the encoder is pretrained here, without labels; the task, the heart rate of other hearts
in intensive care, needs the pulse.
"""

import csv
from pathlib import Path

import numpy as np
import pytest

from biofound.data.stream import SyntheticStream
from biofound.settings import resolve_channels
from tests.chain import answer, done

HEARTS = {"train": 300, "val": 120, "test": 100}
"""Whose windows have a label, two each; of the first two a tenth is given."""
WINDOWS = 2
SEEDS = range(5)
T_QUANTILE = 2.776
"""Of Student's t with 4 degrees of freedom: 95 % of the means of 5 lie within so many standard errors."""


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory) -> Path:
    """A small encoder after two minutes on synthetic hearts, of whose truth it is told nothing."""
    output = tmp_path_factory.mktemp("pretrained") / "run"
    done(
        *("pretrain", "--data-dir", "synthetic:icu", "--steps", 500, "--batch-size", 32, "--lr", 2e-3),
        *("--d-model", 64, "--num-layers", 2, "--rate-weight", 0, "--seed", 0),
        *("--threads", 1, "--device", "cpu", "--output-dir", output),
    )
    return output / "best_model.pt"


def write_tenth(directory: Path, *, seed: int) -> None:
    """Windows of a tenth of the hearts of train and val, and of all of test; their rates in labels.csv."""
    directory.mkdir()
    channels = resolve_channels(None, "pretrain").channels
    draw = np.random.default_rng(seed)
    rows = [("case_id", "start_s", "end_s", "HR")]
    for split, hearts in HEARTS.items():
        stream = SyntheticStream(
            population="icu",
            channels=channels,
            hours=hearts * WINDOWS / 360,
            seed=1,
            split=f"task-{split}",
            segment_windows=WINDOWS,
        )
        chosen = np.arange(hearts) if split == "test" else draw.choice(hearts, hearts // 10, replace=False)
        index = (WINDOWS * np.sort(chosen)[:, None] + np.arange(WINDOWS)).ravel()
        info, rate = stream.info(index), stream.truth(index).heart_rate
        np.savez(
            directory / f"{split}_windows.npz",
            x=stream.read(index),
            channels=stream.channels,
            sfreq=stream.sfreq,
            subjects=info.subject_id,
            case_ids=info.case_id,
            start_s=info.start_s,
        )
        rows += [
            (case, str(start), str(start + 10), str(value))
            for case, start, value in zip(info.case_id, info.start_s, rate, strict=True)
        ]
    with (directory / "labels.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)


def interval(values: list[float]) -> tuple[float, float]:
    """The 95 % interval of the mean over seeds."""
    half = T_QUANTILE * np.std(values, ddof=1) / len(values) ** 0.5
    return float(np.mean(values) - half), float(np.mean(values) + half)


@pytest.mark.slow  # two minutes of pretraining, ten trainings
def test_with_a_tenth_of_the_labels_pretrained_beats_random_initialisation(pretrained, tmp_path):
    errors: dict[str, list[float]] = {"fine-tuned": [], "random initialisation": []}
    for seed in SEEDS:
        data = tmp_path / f"data_{seed}"
        write_tenth(data, seed=seed)
        found = answer(
            *("finetune", "--checkpoint", pretrained, "--data-dir", data, "--labels", data / "labels.csv"),
            *("--target", "HR", "--task", "regression", "--batch-size", 16, "--seed", seed),
            *("--threads", 1, "--device", "cpu", "--output-dir", tmp_path / f"model_{seed}"),
        )
        for row in found["rows"]:
            if row["name"] in errors:
                errors[row["name"]].append(row["mae"])
    ours, theirs = (interval(errors[name]) for name in ("fine-tuned", "random initialisation"))
    assert ours[1] < theirs[0], errors
