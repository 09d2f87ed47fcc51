"""How joblib works on a Dask cluster when workers die, or when there is but one.

joblib's own backend (1.6) notes the error of a task that Dask gave up, but never calls back, so that
`Parallel` waits for ever; and where one worker is left, `Parallel` runs the tasks in the calling process.
Only this module needs the extra `dask`.
"""

from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from distributed import KilledWorker
from joblib._dask import DaskDistributedBackend

__all__ = ["DaskBackend", "KilledWorker"]


class DaskBackend(DaskDistributedBackend):  # type: ignore[misc]
    """joblib's Dask backend, which reports what Dask could not do, and leaves all work to the cluster."""

    def effective_n_jobs(self, n_jobs: int) -> int:
        """The threads of the cluster, and at least 2: with 1, `Parallel` would not ask the cluster."""
        return max(2, int(super().effective_n_jobs(n_jobs)))

    def submit(self, func: Any, callback: Callable[[Any], None] | None = None) -> Any:
        """Schedule `func`; `callback` gets its result, or the exception by which Dask gave it up."""
        future: Future[Any] = super().submit(func, callback)

        def report(done: Future[Any]) -> None:
            error = done.exception()
            if error is not None and callback is not None:
                callback(error)

        future.add_done_callback(report)
        return future
