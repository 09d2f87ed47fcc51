"""Prefetch recordings in background threads."""

import threading
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from biofound.data.sources import FetchingSource, Source
from biofound.errors import DataError

THREADS = 4
"""Cases asked for at a time; the source limits how many of them are downloaded at once."""


@contextmanager
def prefetch_cases(source: Source, case_ids: Sequence[str]) -> Iterator[None]:
    """Prefetch `case_ids` in their order while the `with` body reads them in the same order.

    A source that is no `FetchingSource` needs none. A case that cannot be fetched is skipped: whoever reads
    it meets and reports the same error. When the body ends, no further case is asked for; a download under
    way is not waited for, and ends with the process at the latest.
    """
    if not isinstance(source, FetchingSource):
        yield
        return
    waiting, ended = deque(case_ids), threading.Event()
    threads = [
        threading.Thread(target=_fetch_all, args=(source, waiting, ended), name="fetch", daemon=True)
        for _ in range(min(THREADS, len(waiting)))
    ]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        ended.set()


def _fetch_all(source: FetchingSource, waiting: deque[str], ended: threading.Event) -> None:
    while not ended.is_set():
        try:
            case_id = waiting.popleft()
        except IndexError:
            return
        try:
            source.fetch(case_id)
        except (DataError, OSError):
            continue  # the worker that reads the case reports it
