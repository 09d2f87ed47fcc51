"""Training speed and memory of the default model on a GPU."""

import time
from pathlib import Path

import numpy as np
import torch

from biofound.core.devices import resolve_precision
from biofound.core.gpu_cache import GpuWindowCache
from tests.benchmarks.bench_feeding import make_store
from tests.benchmarks.ours import our_trainer
from tests.benchmarks.timing import GB, Row

EPOCH_WINDOWS = 50_000
BATCHES = (128, 2048)


def gpu_rows(*, directory: Path) -> list[Row]:
    """The GPU's rows, or one that says that there is none."""
    if not torch.cuda.is_available():
        return [
            Row(key="gpu", what="windows/s, GPU memory, a 50,000-window epoch", value="no GPU: not measured")
        ]
    return [_epoch(directory, batch) for batch in BATCHES]


def _epoch(directory: Path, batch: int) -> Row:
    """The second epoch of 50,000 windows that lie on the device, without its validation and files."""
    device = torch.device("cuda")
    precision = resolve_precision("auto", device)
    (directory / f"gpu{batch}").mkdir(parents=True)
    store = make_store(directory / f"gpu{batch}", cases=100, windows=EPOCH_WINDOWS // 100)
    steps = -(-EPOCH_WINDOWS // batch)
    trainer = our_trainer(
        store, directory / f"gpu{batch}", precision=precision, steps=steps, device="cuda", batch_size=batch
    )
    cache = GpuWindowCache(store, device)
    trainer.train, trainer.val = cache, _First(cache, batch)
    held = torch.cuda.memory_allocated(device)
    seconds, waiting = [], []
    events = trainer.fit()
    torch.cuda.reset_peak_memory_stats(device)
    for _ in range(3):
        torch.cuda.synchronize()
        start = time.perf_counter()
        step = next(events)
        torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
        waiting.append(step.data_wait)  # type: ignore[union-attr]
        next(events)  # the epoch's metrics, after validation and checkpoints
    best = float(np.median(seconds[1:]))
    peak = torch.cuda.max_memory_allocated(device)
    name = torch.cuda.get_device_name()
    model = f"{(peak - held) / GB:.2f} GB besides {held / GB:.2f} GB of windows and weights"
    return Row(
        key="gpu",
        what=f"an epoch of {EPOCH_WINDOWS:,} windows, batch {batch}, {precision}, {name}",
        value=f"{best:.2f} s",
        measured=f"{EPOCH_WINDOWS / best:,.0f} windows/s; {max(waiting):.0%} waiting for data",
        target="≤ 1 s" if batch > 128 else "< 1 GB of GPU memory",
        met=best <= 1 if batch > 128 else peak - held < GB,
        memory=model,
    )


class _First:
    """The first windows of a reader."""

    def __init__(self, windows: GpuWindowCache, count: int) -> None:
        self.windows, self.count, self.channels = windows, count, windows.channels
        self.read, self.info = windows.read, windows.info

    def __len__(self) -> int:
        return self.count
