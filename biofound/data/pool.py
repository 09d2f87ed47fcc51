"""How cases are worked on side by side, on one machine or a cluster, so that a dead worker costs one case.

joblib runs them: on processes of this machine (loky), or on a Dask cluster. Neither says which task a
worker died of, so each task leaves a mark while it runs; the tasks found marked after a death are tried
again one at a time, and the one that kills its worker again is given up.
"""

import functools
import pickle
import warnings
from collections.abc import Callable, Generator, Iterator, Mapping
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, TypeVar

from joblib import Parallel, delayed, parallel_config

from biofound.data.store import file_stem
from biofound.errors import DataError, SettingsError
from biofound.files import TEMPORARY_SUFFIX

SCHEDULER_TIMEOUT_SECONDS = 20
MAX_DEATHS_WITHOUT_PROGRESS = 3

Task = TypeVar("Task")
Result = TypeVar("Result")


class WorkerLostError(Exception):
    """A task's worker died, by the kernel's or somebody's hand, each time the task was tried."""


def run_pool(
    function: Callable[[Any, Task], Result],
    source: Any,
    tasks: Mapping[str, Task],
    *,
    workers: int,
    scheduler: str | None,
    marks: Path,
) -> Generator[tuple[str, Result | WorkerLostError], None, None]:
    """Give `function(source, task)` for each of `tasks`, with its key, in the order in which they end.

    Args:
        function: called in a worker; what it raises ends the run.
        source: unpickled once a worker.
        tasks: key to task.
        workers: processes; 1 means this one.
        scheduler: address of a Dask scheduler; None for this machine.
        marks: directory for the marks of running tasks, which all workers must reach.

    Raises:
        SettingsError: when `scheduler` is given and Dask is not installed, or does not answer.
        DataError: when workers die before they start on any task.
    """
    if workers == 1 and scheduler is None:
        for key, task in tasks.items():
            yield key, function(source, task)
        return
    work = functools.partial(_work, pickle.dumps((function, source)))
    remaining = dict(tasks)
    deaths = 0
    with _backend(workers, scheduler) as worker_deaths:
        while remaining:
            try:
                with closing(_side_by_side(work, remaining, marks)) as outcomes:
                    for key, result in outcomes:
                        del remaining[key]
                        deaths = 0
                        yield key, result
            except worker_deaths as error:
                deaths += 1
                suspects = [key for key in remaining if _mark(marks, key).exists()]
                if not suspects and deaths >= MAX_DEATHS_WITHOUT_PROGRESS:
                    raise DataError(f"workers die before they start on a case: {error}") from error
                for key in suspects:
                    yield key, _alone(work, key, remaining.pop(key), marks, worker_deaths)


def _alone(
    work: Callable[..., Any],
    key: str,
    task: Any,
    marks: Path,
    worker_deaths: tuple[type[Exception], ...],
) -> Any:
    try:
        ((_, result),) = _side_by_side(work, {key: task}, marks)
    except worker_deaths as error:
        _mark(marks, key).unlink(missing_ok=True)
        return WorkerLostError(str(error).splitlines()[0])
    return result


def _side_by_side(
    work: Callable[..., Any], tasks: Mapping[str, Any], marks: Path
) -> Generator[tuple[str, Any], None, None]:
    # One task a batch: a case takes seconds, and progress is shown by case.
    run = Parallel(return_as="generator_unordered", batch_size=1)
    outcomes = run(delayed(work)(key, task, _mark(marks, key)) for key, task in list(tasks.items()))
    try:
        # `yield from` would close `outcomes` outside of the filter below
        for outcome in outcomes:  # noqa: UP028
            yield outcome
    finally:
        with warnings.catch_warnings():
            # to stop early is the caller's right: what was built is on disk, and is found there next time
            warnings.filterwarnings("ignore", "[0-9]+ tasks ", UserWarning)
            outcomes.close()


def _mark(marks: Path, key: str) -> Path:
    return marks / f".{file_stem(key)}.running{TEMPORARY_SUFFIX}"


def _work(packed: bytes, key: str, task: Any, mark: Path) -> tuple[str, Any]:
    function, source = _unpack(packed)
    mark.touch()
    try:
        return key, function(source, task)
    finally:
        mark.unlink(missing_ok=True)


@functools.lru_cache(maxsize=1)
def _unpack(packed: bytes) -> Any:
    return pickle.loads(packed)


@contextmanager
def _backend(workers: int, scheduler: str | None) -> Iterator[tuple[type[Exception], ...]]:
    """Make joblib use loky or Dask inside; gives the exceptions by which it tells that a worker died."""
    if scheduler is None:
        with parallel_config(backend="loky", n_jobs=workers, inner_max_num_threads=1):
            yield (BrokenProcessPool,)
        return
    try:
        from distributed import Client

        from biofound.data.dask_backend import DaskBackend, KilledWorker
    except ImportError as error:
        raise SettingsError(
            "scheduler: working on a Dask cluster needs the extra dask: pip install 'biofound[dask]'"
        ) from error
    try:
        client = Client(scheduler, timeout=SCHEDULER_TIMEOUT_SECONDS)
    except (OSError, ValueError) as error:
        raise SettingsError(f"scheduler: no Dask scheduler answers at {scheduler} ({error})") from error
    with client, parallel_config(backend=DaskBackend(client=client), n_jobs=-1):
        yield (KilledWorker,)
