"""Batch feeding speed of a window store, against the usual DataLoader over npz files.

Run it: `python -m tests.benchmarks.bench_feeding`. Windows per CPU second, medians over rounds.
"""

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from biofound.data.npz import write_npz
from biofound.data.store import StoreWindows
from tests.benchmarks.timing import anonymous_memory
from tests.data.cohort import write_index

BATCH, ROUNDS = 128, 5
SHAPE = (2, 1250)


def make_store(directory: Path, *, cases: int, windows: int) -> StoreWindows:
    """A store of random windows in which every case is one segment."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(windows, *SHAPE)).astype(np.float16)
    start_s = np.arange(windows) * 10.0
    quality = np.ones((windows, SHAPE[0]), np.float32)
    names = [f"case{number:04d}" for number in range(cases)]
    for name in names:
        with (directory / f"{name}.npz").open("wb") as file:
            write_npz(file, {"x": x, "start_s": start_s, "quality": quality})
    write_index(directory, dict.fromkeys(names, windows))
    return StoreWindows(directory)


class Npz(torch.utils.data.Dataset[torch.Tensor]):
    """The usual: one window an item, `np.load` of its (compressed) file each time."""

    def __init__(self, files: list[Path], windows: int) -> None:
        self.files, self.windows = files, windows

    def __len__(self) -> int:
        return len(self.files) * self.windows

    def __getitem__(self, item: int) -> torch.Tensor:
        case, row = divmod(item, self.windows)
        with np.load(self.files[case]) as archive:
            return torch.from_numpy(archive["x"][row].astype(np.float32))


def rate(feed: Callable[[], int]) -> float:
    """Windows per CPU second: the median over rounds, after one that warms up."""
    feed()
    rates = []
    for _ in range(ROUNDS):
        start = time.process_time()
        rates.append(feed() / (time.process_time() - start))
    return statistics.median(rates)


def batches(store: StoreWindows, *, count: int, crop: bool) -> Callable[[], int]:
    rng = np.random.default_rng(0)

    def feed() -> int:
        for _ in range(count):
            store.read(rng.integers(0, len(store), BATCH), rng.random(BATCH) if crop else None)
        return count * BATCH

    return feed


def dataloader(directory: Path, *, save: Callable[..., None], count: int) -> Callable[[], int]:
    rng = np.random.default_rng(0)
    files = [directory / f"{save.__name__}{number}.npz" for number in range(4)]
    for path in files:
        save(path, x=rng.normal(size=(360, *SHAPE)).astype(np.float16))
    loader = torch.utils.data.DataLoader(Npz(files, 360), batch_size=BATCH, shuffle=True)

    def feed() -> int:
        seen = 0
        for batch in loader:
            seen += len(batch)
            if seen >= count * BATCH:
                break
        return seen

    return feed


def main() -> None:
    torch.set_num_threads(1)
    table = Table("what", "windows / CPU s", "times", "anonymous memory gained", title="Batch feeding")
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        base = rate(dataloader(directory, save=np.savez_compressed, count=1))
        table.add_row("DataLoader over compressed npz", f"{base:,.0f}", "1", "")
        plain = rate(dataloader(directory, save=np.savez, count=1))
        table.add_row("DataLoader over npz", f"{plain:,.0f}", f"{plain / base:,.0f}", "")
        for cases, windows, what in ((50, 300, "50 cases"), (6000, 12, "6000 cases")):
            (directory / what).mkdir()
            store = make_store(directory / what, cases=cases, windows=windows)
            for crop in (False, True):
                before = anonymous_memory()
                ours = rate(batches(store, count=50, crop=crop))
                gained = f"{(anonymous_memory() - before) / 1e6:.1f} MB"
                label = f"store of {what}, {'random crops' if crop else 'as stored'}"
                table.add_row(label, f"{ours:,.0f}", f"{ours / base:,.0f}", gained)
    Console().print(table)


if __name__ == "__main__":
    main()
