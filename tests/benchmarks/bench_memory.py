"""Memory of a training run, beside a store of 0.1 GB and one of 4 GB, and over the steps on a stream.

Judged by anonymous memory: mapped pages of the store count as resident, but the system takes them back
whenever it needs them.
"""

import shutil
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from biofound.core.history import StepMetrics
from biofound.data.mixture import MixedWindows, Part
from biofound.data.store import StoreWindows
from biofound.data.stream import HEARTS_KEPT, SyntheticStream
from biofound.settings import resolve_channels
from tests.benchmarks.bench_feeding import make_store
from tests.benchmarks.ours import BATCH, our_trainer
from tests.benchmarks.timing import (
    GB,
    MB,
    MemoryWatch,
    Row,
    anonymous_memory,
    in_new_process,
    median,
)
from tests.data.cohort import write_index

WINDOWS_A_CASE = 600
"""About 100 minutes, 3 MB."""
STEPS = 8
BATCHES_READ = 300
STREAM_STEPS, STREAM_WARM_UP = 200, 100
STREAM_HOURS = {"train": 640 / 60, "val": 0.1}
"""30 whole batches an epoch; so validation and checkpoints come within the measurement."""


def memory_rows(*, directory: Path, precision: str, threads: int) -> list[Row]:
    """Row f: growth and total of anonymous memory."""
    peaks = []
    for gigabytes in (0.1, 4.0):
        store = large_store(directory / f"{gigabytes:g}GB", gigabytes)
        peaks.append(in_new_process(peak_of_training, store, precision, threads))
        shutil.rmtree(store)
    small, large = peaks
    measured = f"{small / MB:.0f} MB beside 0.1 GB, {large / MB:.0f} MB beside 4 GB"
    return [
        Row(
            key="f",
            what=f"anonymous memory {what}",
            value=value,
            measured=measured,
            target=f"< {limit} MB",
            met=found < limit * MB,
            memory=f"{large / MB:.0f}",
        )
        for what, found, value, limit in (
            ("gained from 0.1 GB to 4 GB of windows", large - small, f"{(large - small) / MB:+.0f} MB", 50),
            ("while training from 4 GB of windows", large, f"{large / MB:.0f} MB", 900),
        )
    ]


def large_store(directory: Path, gigabytes: float) -> Path:
    """A store of so many GB: one case's file, copied."""
    directory.mkdir(parents=True)
    make_store(directory, cases=1, windows=WINDOWS_A_CASE)
    source = directory / "case0000.npz"
    names = [f"case{number:04d}" for number in range(round(gigabytes * GB / source.stat().st_size))]
    for name in names[1:]:
        shutil.copyfile(source, directory / f"{name}.npz")
    write_index(directory, dict.fromkeys(names, WINDOWS_A_CASE))
    return directory


def peak_of_training(directory: Path, precision: str, threads: int) -> int:
    """The most anonymous memory of a process that trains some steps and reads many batches more."""
    torch.set_num_threads(threads)
    with MemoryWatch() as watch:
        store = StoreWindows(directory)
        output = directory / "output"
        output.mkdir()
        next(iter(our_trainer(store, output, precision=precision, steps=STEPS).fit()))
        random = np.random.default_rng(0)
        for _ in range(BATCHES_READ):
            store.read(random.integers(0, len(store), BATCH), random.random(BATCH))
    return watch.peak


def stream_memory_rows(*, directory: Path, precision: str, threads: int) -> list[Row]:
    """Rows sm: growth of anonymous memory over the steps, and the time spent waiting for windows."""
    measured = in_new_process(train_on_stream, directory, precision, threads)
    memory, seconds, waited, first = measured.T
    third = len(memory) // 3
    early, late = median(memory[:third].tolist()), median(memory[-third:].tolist())
    share, later = (100 * (waited * kept).sum() / (seconds * kept).sum() for kept in (1, 1 - first))
    steps = f"steps {STREAM_WARM_UP} to {STREAM_STEPS} of training on synthetic:icu"
    return [
        Row(
            key="sm",
            what=f"anonymous memory gained in {steps}",
            value=f"{(late - early) / MB:+.1f} MB",
            measured=f"{early / MB:.0f} MB, {late / MB:.0f} MB",
            target="< 10 MB",
            met=late - early < 10 * MB,
            memory=f"{max(memory) / MB:.0f}",
        ),
        Row(
            key="sm",
            what=f"share of the time spent waiting for windows in {steps}",
            value=f"{later:.2f} %",
            measured=f"{share:.2f} % with the first step of each epoch, which waits",
            target="< 1 %",
            met=later < 1,
        ),
    ]


def train_on_stream(directory: Path, precision: str, threads: int) -> NDArray[np.float64]:
    """Of each step: anonymous memory in bytes, seconds, seconds of waiting, and 1 for an epoch's first."""
    torch.set_num_threads(threads)
    directory.mkdir(parents=True)
    channels = resolve_channels(None, "pretrain").channels
    parts = {
        split: SyntheticStream(population="icu", channels=channels, hours=hours, split=split)
        for split, hours in STREAM_HOURS.items()
    }
    for segment in range(10**6, 10**6 + HEARTS_KEPT):
        parts["train"].heart(segment)  # the store of hearts is as full as it gets
    windows = {split: MixedWindows([Part(name=split, windows=part)]) for split, part in parts.items()}
    trainer = our_trainer(windows["train"], directory, precision=precision, steps=1)
    trainer.val = windows["val"]
    rows = []
    for event in trainer.fit():
        if isinstance(event, StepMetrics) and event.step > STREAM_WARM_UP:
            seconds = BATCH / event.windows_per_second
            first = (event.step - 1) % trainer.steps_per_epoch == 0
            rows.append((anonymous_memory(), seconds, event.data_wait * seconds, first))
            if event.step >= STREAM_STEPS:
                break
    return np.array(rows, np.float64)
