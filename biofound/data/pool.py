"""Process tasks in parallel, on this machine or a Dask cluster; a worker that dies costs one task at most.

This machine: joblib starts processes (loky). It does not say which task a worker died of, so each task
has a mark file while it is processed; the tasks found marked after a death are tried again one at a time,
and one that kills its worker again is given up.

A Dask cluster: tasks are submitted to Dask itself, without joblib. Dask names the task it gave up; that
one, too, is tried again alone. joblib's own Dask backend (1.6) is not used: it waits for ever for a task
that Dask gave up or whose result was lost with its worker, and with only one worker left it computes in
the calling process.
"""

import functools
import pickle
import time
import warnings
from collections.abc import Callable, Generator, Iterator, Mapping
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing, contextmanager
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

from joblib import Parallel, delayed, parallel_config

from biofound.data.store import file_stem
from biofound.errors import DataError, SettingsError
from biofound.files import TEMPORARY_SUFFIX

SCHEDULER_TIMEOUT_SECONDS = 20
CLUSTER_TIMEOUT_SECONDS = 120
"""How long a cluster may be without any worker: those that died need time to be started again."""
POLL_SECONDS = 2.0
MAX_DEATHS_WITHOUT_PROGRESS = 3

Task = TypeVar("Task")
Result = TypeVar("Result")
Work = Callable[[str, Any, Path | None], tuple[str, Any]]


class WorkerLostError(Exception):
    """A task's worker was killed each time the task was tried."""


def run_pool(
    function: Callable[[Any, Task], Result],
    source: Any,
    tasks: Mapping[str, Task],
    *,
    workers: int,
    scheduler: str | None,
    marks: Path,
) -> Generator[tuple[str, Result | WorkerLostError], None, None]:
    """Yield each key of `tasks` with `function(source, task)`, in the order in which they are done.

    Args:
        function: called in a worker; what it raises ends the iteration.
        source: unpickled once a worker.
        tasks: key to task.
        workers: processes; 1 means this one.
        scheduler: address of a Dask scheduler; None for this machine.
        marks: directory for the mark files.

    Raises:
        SettingsError: when `scheduler` is given and Dask is not installed, or does not answer.
        DataError: when workers die before they start on any task, or a cluster has no workers.
    """
    work = functools.partial(_work, pickle.dumps((function, source)))
    if scheduler is not None:
        yield from _on_cluster(work, tasks, scheduler)
    elif workers > 1:
        yield from _on_processes(work, tasks, workers, marks)
    else:
        for key, task in tasks.items():
            yield key, function(source, task)


def _work(packed: bytes, key: str, task: Any, mark: Path | None) -> tuple[str, Any]:
    function, source = _unpack(packed)
    if mark is not None:
        mark.touch()
    try:
        return key, function(source, task)
    finally:
        if mark is not None:
            mark.unlink(missing_ok=True)


@functools.lru_cache(maxsize=1)
def _unpack(packed: bytes) -> Any:
    return pickle.loads(packed)


# ---------------------------------------------------------------------------------------------------------
# Processes of this machine


def _on_processes(
    work: Work, tasks: Mapping[str, Any], workers: int, marks: Path
) -> Generator[tuple[str, Any], None, None]:
    remaining = dict(tasks)
    deaths = 0
    while remaining:
        try:
            with closing(_parallel(work, remaining, workers, marks)) as outcomes:
                for key, result in outcomes:
                    del remaining[key]
                    deaths = 0
                    yield key, result
        except BrokenProcessPool as error:
            deaths += 1
            suspects = [key for key in remaining if _mark(marks, key).exists()]
            if not suspects and deaths >= MAX_DEATHS_WITHOUT_PROGRESS:
                raise DataError(f"workers die before they start on a case: {error}") from error
            for key in suspects:
                yield key, _alone(work, key, remaining.pop(key), marks)


def _alone(work: Work, key: str, task: Any, marks: Path) -> Any:
    try:
        # 2 workers for one task: with 1, joblib would process it in this process
        ((_, result),) = _parallel(work, {key: task}, 2, marks)
    except BrokenProcessPool as error:
        _mark(marks, key).unlink(missing_ok=True)
        return WorkerLostError(str(error).splitlines()[0])
    return result


def _parallel(
    work: Work, tasks: Mapping[str, Any], workers: int, marks: Path
) -> Generator[tuple[str, Any], None, None]:
    with parallel_config(backend="loky", n_jobs=workers, inner_max_num_threads=1):
        # One task a batch: a case takes seconds, and progress is shown by case.
        pool = Parallel(return_as="generator_unordered", batch_size=1)
    outcomes = pool(delayed(work)(key, task, _mark(marks, key)) for key, task in list(tasks.items()))
    try:
        # `yield from` would close `outcomes` outside of the filter below
        for outcome in outcomes:  # noqa: UP028
            yield outcome
    finally:
        with warnings.catch_warnings():
            # the caller may stop early; results are kept on disk, so joblib's warning of lost ones is wrong
            warnings.filterwarnings("ignore", "[0-9]+ tasks ", UserWarning)
            outcomes.close()


def _mark(marks: Path, key: str) -> Path:
    return marks / f".{file_stem(key)}.running{TEMPORARY_SUFFIX}"


# ---------------------------------------------------------------------------------------------------------
# A Dask cluster


def _on_cluster(
    work: Work, tasks: Mapping[str, Any], scheduler: str
) -> Generator[tuple[str, Any], None, None]:
    with _dask_client(scheduler) as client:
        given_up = {}
        for key, result in _submitted(client, work, tasks):
            if isinstance(result, WorkerLostError):
                given_up[key] = tasks[key]  # Dask may blame a task for the death another one caused
            else:
                yield key, result
        for key, task in given_up.items():
            yield from _submitted(client, work, {key: task})


def _submitted(client: Any, work: Work, tasks: Mapping[str, Any]) -> Generator[tuple[str, Any], None, None]:
    from distributed import KilledWorker

    done: SimpleQueue[Any] = SimpleQueue()
    futures = {client.submit(work, key, task, None, pure=False): key for key, task in tasks.items()}
    for future in futures:
        future.add_done_callback(done.put)
    worker_seen = time.monotonic()
    try:
        while futures:
            future = None
            try:
                future = done.get(timeout=POLL_SECONDS)
                outcome = future.result(timeout=POLL_SECONDS)
            except KilledWorker as error:
                outcome = (futures[future], WorkerLostError(str(error).splitlines()[0]))
            except (Empty, TimeoutError):
                if future is not None:  # the result was lost with its worker; Dask computes it again
                    done.put(future)
                worker_seen = _refuse_empty_cluster(client, worker_seen)
                continue
            del futures[future]
            worker_seen = time.monotonic()
            yield outcome
    finally:
        client.cancel(list(futures))


def _refuse_empty_cluster(client: Any, worker_seen: float) -> float:
    """Time (monotonic) at which the cluster last had a worker, from the one known before."""
    if client.scheduler_info()["workers"]:
        return time.monotonic()
    if time.monotonic() - worker_seen > CLUSTER_TIMEOUT_SECONDS:
        raise DataError(
            f"the Dask cluster has had no worker for {CLUSTER_TIMEOUT_SECONDS} s; start workers, then run "
            "again: what is done stays"
        )
    return worker_seen


@contextmanager
def _dask_client(scheduler: str) -> Iterator[Any]:
    try:
        from distributed import Client
    except ImportError as error:
        raise SettingsError(
            "scheduler: working on a Dask cluster needs the extra dask: pip install 'biofound[dask]'"
        ) from error
    try:
        client = Client(scheduler, timeout=SCHEDULER_TIMEOUT_SECONDS)
    except (OSError, ValueError) as error:
        raise SettingsError(f"scheduler: no Dask scheduler answers at {scheduler} ({error})") from error
    with client:
        yield client
