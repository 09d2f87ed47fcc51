"""Write synthetic records in the layout of BUT PPG, to try the chain without the data set.

    python -m biofound.data.sources.butppg_fixture DIRECTORY [--subjects 12] [--records 8] [--transposed 2]

Nothing in them was measured from a person. Subjects are hearts of the population `exercise`: half of a
subject's records are at rest, in the others it walks or runs, and the steps disturb the PPG. `Quality` is 1
where the pulse is stronger than all else in the PPG; `HR` is the true heart rate.
"""

import argparse
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from biofound.data.sources.butppg import ANNOTATIONS_CSV, SUBJECTS_CSV
from biofound.data.sources.heart_signals import pulse_to_disturbance, render
from biofound.data.sources.heart_truth import truth_of
from biofound.data.sources.hearts import Heart, draw_heart
from biofound.data.sources.populations import EXERCISE, Range

SECONDS = 10.0
FIRST_RELEASE, SECOND_RELEASE = 100, 112
"""The first subject of each release; records of the first have transposed headers and no acceleration."""

READABLE_RATIO = 2.0
"""`Quality` is 1 where the pulse has at least so many times the power of all else in the PPG."""

REST, WALKING = 0, 3
"""Codes of `Motion`."""

_AT_REST = replace(EXERCISE, pacing=0.0, movements=Range(0.0, 0.0), clipping=0.0)
_MOVING = replace(EXERCISE, pacing=1.0, pacing_size=Range(0.05, 2.0), clipping=0.0)
_BRIGHTNESS = {"PPG_R": (180.0, 12.0), "PPG_G": (60.0, 5.0), "PPG_B": (30.0, 2.0)}
"""Level and height of a pulse of each colour, of 255."""


@dataclass(frozen=True, kw_only=True)
class _Signals:
    """One WFDB record to write: `samples` (T, S) in `unit`, stored as whole numbers of 1 / `gain`."""

    kind: str
    names: tuple[str, ...]
    unit: str
    sfreq: int
    gain: int
    samples: NDArray[np.float64]


def write_fixture(
    root: Path, *, subjects: int = 12, records: int = 8, transposed: int = 2, seed: int = 0
) -> None:
    """Write `records` records of each of `subjects` subjects, and of `transposed` ones of the first release.

    Args:
        root: the directory, which must not exist yet.
        subjects: subjects of the second release, from 112 on.
        records: records of each, at least 2; every second one is at rest.
        transposed: subjects of the first release, from 100 on.
        seed: of the hearts.

    Raises:
        ValueError: a number is out of range.
        OSError: the directory exists, or the disk refuses; nothing is left behind then.
    """
    if not (1 <= subjects <= 888 and 2 <= records <= 999 and 0 <= transposed <= 12 and seed >= 0):
        raise ValueError(
            "expected 1 to 888 subjects, 2 to 999 records, 0 to 12 transposed subjects and a seed from 0 on; "
            f"got {subjects}, {records}, {transposed} and {seed}"
        )
    if root.exists():
        raise FileExistsError(f"{root} exists; give a directory that does not")
    root.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=root.parent, prefix=f".{root.name}.") as temporary:
        # One rename at the end, in place of waiting for the disk after each of the many small files.
        whole = Path(temporary) / "whole"
        _write_records(whole, subjects=subjects, records=records, transposed=transposed, seed=seed)
        whole.rename(root)


def _write_records(root: Path, *, subjects: int, records: int, transposed: int, seed: int) -> None:
    annotations, about = ["ID,Quality,HR"], ["ID,Gender,Age [years],Ear/finger,Motion"]
    numbers = [FIRST_RELEASE + k for k in range(transposed)] + [SECOND_RELEASE + k for k in range(subjects)]
    for subject in numbers:
        for number in range(1, records + 1):
            case_id = f"{subject:03d}{number:03d}"
            moving = number % 2 == 0
            heart = draw_heart(_MOVING if moving else _AT_REST, (seed, subject), SECONDS, case=number)
            _write_record(root / case_id, case_id, heart, first_release=subject < SECOND_RELEASE)
            good = pulse_to_disturbance(heart, start_s=0.0, seconds=SECONDS) >= READABLE_RATIO
            rate = float(truth_of([(heart, 0.0)], seconds=SECONDS).heart_rate[0])
            annotations.append(f"{case_id},{good:d},{rate:.0f}")
            about.append(f"{case_id},,,1,{WALKING if moving else REST}")
    for name, lines in ((ANNOTATIONS_CSV, annotations), (SUBJECTS_CSV, about)):
        (root / name).write_text("\n".join(lines) + "\n", encoding="utf-8-sig")
    (root / "README.txt").write_text("Synthetic records in the layout of BUT PPG, written by biofound.\n")


def _write_record(directory: Path, case_id: str, heart: Heart, *, first_release: bool) -> None:
    directory.mkdir(parents=True)
    ppg = _rendered(heart, ("PPG",), 30)[:, 0] / heart.perfusion
    colours = np.stack([level - height * ppg for level, height in _BRIGHTNESS.values()], axis=1)
    ecg = _Signals(
        kind="ECG", names=("ECG",), unit="mV", sfreq=1000, gain=5000, samples=_rendered(heart, ("ECG",), 1000)
    )
    if first_release:
        red = _Signals(kind="PPG", names=("PPG",), unit="a.u.", sfreq=30, gain=100, samples=-colours[:, :1])
        for signals in (red, ecg):
            _write_transposed(directory, case_id, signals)
        return
    rgb = _Signals(
        kind="PPG",
        names=tuple(_BRIGHTNESS),
        unit="a.u.",
        sfreq=30,
        gain=100,
        samples=colours.clip(0, 255),
    )
    axes = ("ACC_X", "ACC_Y", "ACC_Z")
    acc = _Signals(
        kind="ACC", names=axes, unit="g", sfreq=100, gain=4000, samples=_rendered(heart, axes, 100)
    )
    for signals in (rgb, ecg, acc):
        _write_signals(directory, case_id, signals)


def _rendered(heart: Heart, names: Sequence[str], sfreq: int) -> NDArray[np.float64]:
    """(T, S)."""
    return render(heart, names, first=0, samples=round(SECONDS * sfreq), sfreq=float(sfreq)).T


def _write_signals(directory: Path, case_id: str, signals: _Signals) -> None:
    name = f"{case_id}_{signals.kind}"
    stored = np.clip(np.rint(signals.samples * signals.gain), -32767, 32767).astype("<i2")
    sums = stored.sum(axis=0, dtype=np.int64).astype(np.int16)
    lines = [f"{name} {len(signals.names)} {signals.sfreq} {len(stored)}"]
    for column, signal in enumerate(signals.names):
        about = f"16 0 {stored[0, column]} {sums[column]} 0 {signal}"
        lines.append(f"{name}.dat 16 {signals.gain}(0)/{signals.unit} {about}")
    (directory / f"{name}.dat").write_bytes(stored.tobytes())
    (directory / f"{name}.hea").write_text("\n".join(lines) + "\n")


def _write_transposed(directory: Path, case_id: str, signals: _Signals) -> None:
    """As the first release has it: each sample a signal of its own, its value in that signal's baseline."""
    name = f"{case_id}_{signals.kind}"
    stored = np.rint(signals.samples[:, 0] * signals.gain).astype(np.int64)
    lines = [f"{name} {len(stored)} {signals.sfreq} 1"]
    for value in stored.tolist():
        lines.append(f"{name}.dat 16 {signals.gain}({-value})/{signals.unit} 16 0 0 0 0")
    (directory / f"{name}.dat").write_bytes(bytes(2 * len(stored)))
    (directory / f"{name}.hea").write_text("\n".join(lines) + "\n")


def _main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m biofound.data.sources.butppg_fixture",
        description="Write synthetic records in the layout of BUT PPG.",
    )
    parser.add_argument("directory", type=Path)
    parser.add_argument("--subjects", type=int, default=12, help="subjects with acceleration (12)")
    parser.add_argument("--records", type=int, default=8, help="records of each subject (8)")
    parser.add_argument(
        "--transposed", type=int, default=2, help="subjects with transposed headers and no acceleration (2)"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the hearts (0)")
    given = vars(parser.parse_args())
    try:
        write_fixture(given.pop("directory"), **given)
    except (ValueError, OSError) as problem:
        parser.error(str(problem))


if __name__ == "__main__":
    _main()
