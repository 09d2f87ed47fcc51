"""How are recordings fetched from afar while others are worked on?"""

import threading
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from biofound.data.sources import FetchingSource, Source
from biofound.errors import DataError

THREADS = 4
"""Cases asked for at a time; the source decides how many downloads are really under way at once."""


@contextmanager
def prefetch_cases(source: Source, case_ids: Sequence[str]) -> Iterator[None]:
    """Fetch `case_ids` in their order, in the background, while the body works on them in the same order.

    Does nothing for a source that has nothing to fetch. A case that cannot be had is no matter here: whoever
    reads it meets the same and says so. When the body ends, no further case is asked for; a download
    under way is not waited for, and ends with the process at the latest.
    """
    if not isinstance(source, FetchingSource):
        yield
        return
    waiting, over = deque(case_ids), threading.Event()
    threads = [
        threading.Thread(target=_fetch_all, args=(source, waiting, over), name="fetch", daemon=True)
        for _ in range(min(THREADS, len(waiting)))
    ]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        over.set()


def _fetch_all(source: FetchingSource, waiting: deque[str], over: threading.Event) -> None:
    while not over.is_set():
        try:
            case_id = waiting.popleft()
        except IndexError:
            return
        try:
            source.fetch(case_id)
        except (DataError, OSError):
            continue  # the worker that reads the case reports it
