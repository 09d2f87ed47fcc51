"""Batch feeding speed of a window store, against the usual DataLoader over npz files."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from biofound.data.npz import write_npz
from biofound.data.store import StoreWindows
from tests.benchmarks.timing import Cost, Row, in_turns, median, ratio, seconds, spread, timed
from tests.data.cohort import write_index

BATCH = 128
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


def feeding_rows(*, directory: Path, rounds: int) -> list[Row]:
    """Row e, by processor time: against files as `np.savez` writes them, and compressed ones."""
    directory.mkdir(parents=True)
    store = make_store(directory, cases=50, windows=300)
    costs = in_turns(
        {
            "store": _turn(batches(store, count=50, crop=True)),
            "npz": _turn(dataloader(directory, save=np.savez, count=1)),
            "compressed": _turn(dataloader(directory, save=np.savez_compressed, count=1)),
        },
        rounds=rounds,
    )
    ours = seconds(costs["store"], clock="cpu")
    rows = []
    for name, key, what in (("npz", "e", "npz"), ("compressed", "e2", "compressed npz")):
        theirs = seconds(costs[name], clock="cpu")
        value = ratio(theirs, ours)
        rows.append(
            Row(
                key=key,
                what=f"batches from the store, random crops, against a DataLoader over {what}",
                value=f"{value:.0f} ×",
                spread=spread(theirs, ours, "{:.0f}"),
                measured=f"{1 / median(ours):,.0f} against {1 / median(theirs):,.0f} windows per CPU second",
                target="≥ 20 ×",
                met=value >= 20,
            )
        )
    return rows


def _turn(feed: Callable[[], int]) -> Callable[[], Cost]:
    """Seconds a window."""

    def turn() -> Cost:
        fed = []
        cost = timed(lambda: fed.append(feed()))
        return Cost(cost.wall / fed[0], cost.cpu / fed[0])

    return turn
