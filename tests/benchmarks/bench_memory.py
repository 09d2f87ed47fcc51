"""Memory of a training run, beside a store of 0.1 GB and one of 4 GB.

Judged by anonymous memory: mapped pages of the store count as resident, but the system takes them back
whenever it needs them.
"""

import shutil
from pathlib import Path

import numpy as np
import torch

from biofound.data.store import StoreWindows
from tests.benchmarks.bench_feeding import make_store
from tests.benchmarks.ours import BATCH, our_trainer
from tests.benchmarks.timing import GB, MB, MemoryWatch, Row, in_new_process
from tests.data.cohort import write_index

WINDOWS_A_CASE = 600
"""About 100 minutes, 3 MB."""
STEPS = 8
BATCHES_READ = 300


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
