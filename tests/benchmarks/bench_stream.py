"""Windows that a synthetic stream generates in a CPU second: `python -m tests.benchmarks --only s`."""

from collections.abc import Callable, Iterator

import numpy as np

from biofound.data.sources.populations import POPULATIONS
from biofound.data.stream import SyntheticStream
from biofound.settings import resolve_channels
from tests.benchmarks.timing import Cost, Row, in_turns, median, seconds, timed

BATCH = 128
TARGET = 1000  # windows per CPU second; training takes at most 500


def stream_rows(*, rounds: int) -> Iterator[Row]:
    """Rows s: two channels of 10 s at 125 Hz, by processor time, read in random order as in training."""
    turns = {name: _turn(name) for name in POPULATIONS}
    costs = in_turns(turns, rounds=max(rounds, 7))
    for name in POPULATIONS:
        rates = sorted(1 / each for each in seconds(costs[name], clock="cpu"))
        yield Row(
            key="s",
            what=f"synthetic windows of population {name}, generated in random order, random crops",
            value=f"{median(rates):,.0f} windows per CPU second",
            spread=f"{rates[0]:,.0f} to {rates[-1]:,.0f}",
            target=f"≥ {TARGET:,}",
            met=median(rates) >= TARGET,
        )


def _turn(population: str) -> Callable[[], Cost]:
    """Seconds a window, each turn on subjects that were not drawn before."""
    channels = resolve_channels(None, "pretrain").channels
    windows = SyntheticStream(population=population, channels=channels, hours=1000)
    random = np.random.default_rng(0)

    def turn() -> Cost:
        index = random.integers(0, len(windows), BATCH)
        crop = random.random(BATCH)
        return timed(lambda: windows.read(index, crop), steps=BATCH)

    return turn
