"""How much memory numpy and Python took: what a memory map holds does not count."""

import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def traced_memory() -> Iterator[Callable[[], int]]:
    """A function that gives the most bytes held at once since the context began.

    Not the process's resident memory: what earlier tests freed would hide what is taken.
    """
    tracemalloc.start()
    try:
        yield lambda: tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
