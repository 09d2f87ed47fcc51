"""Run directories for the tests of the report, made by the writers of a training, without torch."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from biofound.commands.pretrain_data import record_data
from biofound.core.history import EpochMetrics, Losses, ProbeErrors, StepMetrics, history_json
from biofound.data.windows import open_windows
from biofound.files import append_line, hold_directory, write_json
from biofound.settings import PretrainSettings
from biofound.settings.resolve import resolve

CHANNELS = ("PPG", "ECG")
GUESS = 1.01
STATES = ("running", "finished", "resumed", "failed", "unknown")


def losses(value: float) -> Losses:
    return Losses(
        loss=2 * value,
        msm=value,
        stft=value / 2,
        msm_by_channel={name: value + place for place, name in enumerate(CHANNELS)},
        further={"global": value / 4},
    )


def epoch(number: int, *, best: bool = True, probe: bool = False) -> EpochMetrics:
    """An epoch whose validation MSM of PPG is 1 / number."""
    by_channel = dict.fromkeys(CHANNELS, GUESS)
    return EpochMetrics(
        epoch=number,
        train=losses(1.1 / number),
        val=losses(1 / number),
        monitor={
            "variance_ratio": dict.fromkeys(CHANNELS, 0.5),
            "constant_guess_msm": by_channel,
            "copy_patch_msm": dict.fromkeys(CHANNELS, 1.9),
            "r_peak_recall": 0.25,
            "r_peak_precision": None,
            "latent_rank": 4.5,
        },
        lr=1e-4 * number,
        seconds=10.0 * number,
        windows_per_second=100.0,
        best=best,
        probe=ProbeErrors(target="HR", error=3 / number, constant_error=9.0) if probe else None,
    )


def step(number: int) -> StepMetrics:
    return StepMetrics(
        step=number,
        epoch=1,
        loss=3 / number,
        msm=1 / number,
        stft=0.5,
        lr=1e-4,
        gradient_norm=float(number % 7),
        windows_per_second=90.0,
        data_wait=0.25,
    )


def write_run(
    directory: Path,
    *,
    epochs: int,
    done: int | None = None,
    steps: int = 30,
    outcome: tuple[str, str] | None = ("finished", "after step 30 of 30"),
    store: Path | None = None,
    resolved: dict[str, str] | None = None,
    probe: bool = False,
    **options: Any,
) -> Path:
    """The files of a run of so many epochs, of which `done` are done (all of them)."""
    directory.mkdir(parents=True)
    data_dir = () if store is None else (str(store),)
    given = {"epochs": epochs, "data_dir": ",".join(data_dir) or None, "output_dir": directory, **options}
    settings = resolve(PretrainSettings, options=given, environ={})
    config: dict[str, Any] = {"settings": settings.as_json(), "resolved": resolved or {"data": "synthetic"}}
    if store is not None:
        train, val = open_windows(store, "train"), open_windows(store, "val")
        config["data"] = record_data(train, val, data_dir, streams={})
    if outcome is not None:
        ended, message = outcome
        memory = {"process": 1_500_000_000, "gpu": None}
        config["outcome"] = {"ended": ended, "message": message, "peak_memory_bytes": memory}
    write_json(directory / "training_config.json", config)
    finished = [epoch(number, probe=probe) for number in range(1, (epochs if done is None else done) + 1)]
    if finished:
        write_json(directory / "training_history.json", history_json(finished, synthetic=True))
    for number in range(1, steps + 1):
        append_line(directory / "metrics.jsonl", json.dumps(asdict(step(number))))
    return directory


@contextmanager
def run_in_state(directory: Path, state: str, **more: Any) -> Iterator[Path]:
    """A run in one of `STATES`; it is running while the context is open."""
    if state == "running":
        run = write_run(directory, epochs=4, done=2, outcome=None, **more)
        with hold_directory(run, option="--output-dir"):
            yield run
    elif state == "finished":
        yield write_run(directory, epochs=4, **more)
    elif state == "resumed":
        resumed = {"data": "synthetic", "resumed": f"{directory}/last_model.pt, after step 5 of 30"}
        yield write_run(directory, epochs=4, resolved=resumed, **more)
    elif state == "failed":
        why = "the loss is not finite in epoch 1, step 3 (batch from cases <b>x</b>)"
        yield write_run(directory, epochs=4, done=0, steps=2, outcome=("failed", why), **more)
    else:
        yield write_run(directory, epochs=4, done=2, outcome=None, **more)
