"""Batch feeding as rows of the table: the store against a DataLoader over npz files, in turns."""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from tests.benchmarks.bench_feeding import batches, dataloader, make_store
from tests.benchmarks.timing import Cost, Row, in_turns, median, ratio, seconds, spread, timed


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
