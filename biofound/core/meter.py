"""How fast a run goes, and how much of its time it waits for windows."""

import time
from collections.abc import Iterator
from contextlib import contextmanager


class ThroughputMeter:
    """Windows a second, and the share of the time spent waiting for them, since the last report."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Begin anew."""
        self._started = time.perf_counter()
        self._waited = 0.0
        self._windows = 0

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """The time within counts as waiting."""
        before = time.perf_counter()
        yield
        self._waited += time.perf_counter() - before

    def count(self, windows: int) -> None:
        """So many windows more are done."""
        self._windows += windows

    def rate(self) -> float:
        """Windows a second."""
        return self._windows / max(time.perf_counter() - self._started, 1e-9)

    def data_wait_fraction(self) -> float:
        """The share of the time that was spent waiting, 0 to 1."""
        return self._waited / max(time.perf_counter() - self._started, 1e-9)
