"""Build a split's window store case by case, in parallel; stopped at any moment, it can be resumed.

A case's old sidecar goes before its npz is replaced, and its new one comes after: a sidecar that is
there describes the npz beside it. The index goes before anything it describes changes, and comes last.
"""

import hashlib
import json
import os
from collections import Counter
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, get_args

from joblib import cpu_count

from biofound import __version__
from biofound.data.channels import Channel, DType, MotionGate, samples_in_window
from biofound.data.extract import CaseWindows, extract_windows
from biofound.data.npz import member_names, write_npz
from biofound.data.pool import WorkerLostError, run_pool
from biofound.data.prefetch import prefetch_cases
from biofound.data.sources import UNREADABLE, Source, why_unreadable
from biofound.data.splits import SplitCase, SplitName, recordings_of
from biofound.data.store import (
    INDEX_NAME,
    MEMBERS,
    CaseHeader,
    Sidecar,
    StoreHeader,
    StoreIndex,
    file_stem,
    make_index,
    read_index,
    read_sidecar,
    total,
)
from biofound.errors import DataError, SettingsError
from biofound.files import hold_directory, sha256_of, sweep_temporary_files, write_atomically, write_json

SIDECAR_KIND = CaseHeader.model_fields["kind"].default


@dataclass(frozen=True, kw_only=True)
class CaseResult:
    """The result of one case; `status` says whether its windows were built now or were there already.

    `sidecar` describes the windows; `error` says why a `failed` case has none.
    """

    case_id: str
    status: Literal["built", "unchanged", "failed"]
    sidecar: Sidecar | None = None
    error: str = ""

    @property
    def windows(self) -> int:
        """The windows kept."""
        return self.sidecar.windows if self.sidecar else 0

    @property
    def hours(self) -> float:
        """The hours of signal kept."""
        return self.sidecar.hours if self.sidecar else 0.0


class FailedCasesError(DataError):
    """Cases of a split failed, and must not be left out; `index` is that of the windows of the others.

    The index is not on disk: the store is not whole.
    """

    def __init__(self, failed: Sequence[CaseResult], index: StoreIndex, *, cases: int) -> None:
        lines = "\n".join(f"  {result.error}" for result in failed)
        super().__init__(
            f"split {index.split}: {len(failed)} of {cases} cases failed; the others are done and will not "
            f"be built again. Correct these, or leave them out with --skip-failed:\n{lines}"
        )
        self.index = index


@dataclass(frozen=True, kw_only=True)
class BuildConfig:
    """All that decides what a case's windows hold, besides its recording."""

    channels: tuple[Channel, ...]
    sfreq: float
    window_samples: int
    max_gap_seconds: float
    dtype: DType
    motion_gate: MotionGate = "off"

    def header(self) -> StoreHeader:
        """What the index and every sidecar say."""
        return StoreHeader(
            biofound_version=__version__,
            settings_sha256=self.digest(),
            channels=tuple(channel.name for channel in self.channels),
            optional_channels=tuple(channel.name for channel in self.channels if not channel.required),
            units={channel.name: channel.unit for channel in self.channels},
            filters={channel.name: channel.band for channel in self.channels},
            quality_thresholds={channel.name: channel.quality_threshold for channel in self.channels},
            sfreq=self.sfreq,
            window_samples=self.window_samples,
            max_gap_seconds=self.max_gap_seconds,
            dtype=self.dtype,
            motion_gate=self.motion_gate,
        )

    def digest(self) -> str:
        """The SHA-256 of every setting, with the tracks looked for and the version of biofound."""
        versions = {"version": __version__, "format_version": Sidecar.model_fields["format_version"].default}
        return hashlib.sha256(json.dumps({**versions, **asdict(self)}, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True, kw_only=True)
class _Task:
    """One case to build, as it is sent to a worker."""

    case_id: str
    subject_id: str
    directory: Path
    config: BuildConfig
    builder_pid: int | None
    """The process whose child the worker must be to continue; None where it is no child (Dask)."""

    @property
    def npz(self) -> Path:
        return self.directory / f"{file_stem(self.case_id)}.npz"

    @property
    def sidecar_path(self) -> Path:
        return self.npz.with_suffix(".json")

    def header(self, source_name: str, source_fingerprint: str) -> CaseHeader:
        """What the case's sidecar says when it is up to date."""
        return CaseHeader(
            **dict(self.config.header()),
            case_id=self.case_id,
            subject_id=self.subject_id,
            source=source_name,
            source_fingerprint=source_fingerprint,
        )


def build_windows(
    *,
    source: Source,
    entries: Sequence[SplitCase],
    split: SplitName,
    channels: Sequence[Channel],
    sfreq: float,
    window_seconds: float,
    max_gap_seconds: float,
    dtype: DType,
    motion_gate: MotionGate = "off",
    outdir: Path,
    workers: int | None = None,
    scheduler: str | None = None,
    skip_failed: bool = False,
    overwrite: bool = False,
) -> Generator[CaseResult, None, None]:
    """Build the store `outdir/split`, or what is missing or out of date of it.

    Gives each case's result as it is done, in any order; the index is written when the last result has
    been taken. Stopped at any moment and run again, it ends in the same bytes as if left alone.

    Args:
        source: where recordings come from; picklable.
        entries: the cases of the split; cases that are no longer among them leave the store.
        split: `train`, `val` or `test`; the directory's name.
        channels: the channels wanted, in order.
        sfreq: sampling rate of the windows in Hz.
        window_seconds: window length; a whole number of samples.
        max_gap_seconds: longest gap that is bridged.
        dtype: `float16` or `float32`.
        motion_gate: whether windows are dropped whose PPG is motion; see `MotionGate`.
        outdir: the data directory, parent of the store.
        workers: number of processes; 1 works in this process, None is one a core.
        scheduler: address of a Dask scheduler to work on instead, such as `tcp://host:8786`.
        skip_failed: leave out the cases that fail; else they end the run, after all others are done.
        overwrite: replace windows that are there of other cases or with other settings.

    Raises:
        SettingsError: at once, for settings that cannot work.
        DataError: at once, for windows of other cases or settings in the directory; at the end, when no
            window was kept.
        FailedCasesError: at the end, when cases failed.
    """
    if dtype not in get_args(DType):
        raise SettingsError(f"dtype: expected {' or '.join(get_args(DType))}, got {dtype!r}")
    workers = cpu_count() if workers is None else workers
    if workers < 1:
        raise SettingsError(f"workers: expected 1 or more, got {workers}")
    config = BuildConfig(
        channels=tuple(channels),
        sfreq=float(sfreq),
        window_samples=samples_in_window(window_seconds, sfreq),
        max_gap_seconds=float(max_gap_seconds),
        dtype=dtype,
        motion_gate=motion_gate,
    )
    _refuse_bad_entries(entries, split)
    if not overwrite:
        _refuse_other_windows(outdir / split, {entry.case_id for entry in entries}, config, source)
    return _build(source, entries, split, config, outdir / split, workers, scheduler, skip_failed)


def _refuse_bad_entries(entries: Sequence[SplitCase], split: str) -> None:
    if not entries:
        raise DataError(f"split {split}: it has no cases; make splits again with `biofound prepare`")
    repeated = [case_id for case_id, n in Counter(entry.case_id for entry in entries).items() if n > 1]
    if repeated:
        raise DataError(f"split {split}: cases listed more than once: {', '.join(repeated)}")


def _refuse_other_windows(directory: Path, case_ids: set[str], config: BuildConfig, source: Source) -> None:
    """Refuse to replace or remove windows of other recordings, other cases, or other settings."""
    now = config.header()
    others: dict[str, int] = {}
    for header, ids in _windows_in(directory):
        for difference in _differences(header, now, source):
            others[difference] = others.get(difference, 0) + len(ids)
        if departed := len(ids - case_ids):
            others["cases"] = others.get("cases", 0) + departed
    if others:
        counts = ", ".join(f"{name} ({number} cases)" for name, number in others.items())
        raise DataError(
            f"{directory}: holds windows of another build, which differs in {counts}; choose another "
            "--outdir, or replace them with --overwrite"
        )


def _windows_in(directory: Path) -> Iterator[tuple[StoreIndex | Sidecar, set[str]]]:
    """How the windows in a store were made, and of which cases; of an unfinished store case by case."""
    try:
        index = read_index(directory)
    except DataError:
        for path in _files(directory, "*.json"):
            with suppress(DataError):
                sidecar = read_sidecar(path)
                yield sidecar, {sidecar.case_id}
    else:
        yield index, {case.case_id for case in index.cases}


def _files(directory: Path, pattern: str) -> list[Path]:
    """The regular files among those of a pattern: reading a pipe would wait for ever."""
    return sorted(path for path in directory.glob(pattern) if path.is_file())


def _differences(before: StoreIndex | Sidecar, now: StoreHeader, source: Source) -> Iterator[str]:
    """The settings in which earlier windows differ, except for the version of biofound."""
    names = set(StoreHeader.model_fields) - {"biofound_version", "settings_sha256"}
    differing = sorted(name for name in names if getattr(before, name) != getattr(now, name))
    same_version = before.biofound_version == now.biofound_version
    if not differing and same_version and before.settings_sha256 != now.settings_sha256:
        differing = ["tracks of the channels"]
    if isinstance(before, StoreIndex):
        same_source = recordings_of(before.source) == recordings_of(source.describe())
    else:
        same_source = before.source == source.name
    yield from differing if same_source else [*differing, "source"]


def _build(
    source: Source,
    entries: Sequence[SplitCase],
    split: SplitName,
    config: BuildConfig,
    directory: Path,
    workers: int,
    scheduler: str | None,
    skip_failed: bool,
) -> Generator[CaseResult, None, None]:
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _cannot_write(directory, error) from error
    tasks = {
        entry.case_id: _Task(
            case_id=entry.case_id,
            subject_id=entry.subject_id,
            directory=directory,
            config=config,
            builder_pid=None if scheduler else os.getpid(),
        )
        for entry in entries
    }
    results = []
    with _only_builder(directory):
        _remove_departed(directory, {file_stem(case_id) for case_id in tasks})
        wanted = [case_id for case_id, task in tasks.items() if not _seems_built(task, source.name)]
        outcomes = run_pool(_build_case, source, tasks, workers=workers, scheduler=scheduler, marks=directory)
        with prefetch_cases(source, wanted), closing(outcomes):
            for case_id, outcome in outcomes:
                result = _lost(tasks[case_id], outcome) if isinstance(outcome, WorkerLostError) else outcome
                results.append(result)
                yield result
        results.sort(key=lambda result: result.case_id)
        failed = [result for result in results if result.status == "failed"]
        index = make_index(
            [result.sidecar for result in results if result.sidecar],
            header=config.header(),
            split=split,
            source=source.describe(),
            dataset_version=source.version(),
            failed_cases=[result.case_id for result in failed],
        )
        if failed and not skip_failed:
            raise FailedCasesError(failed, index, cases=len(results))
        if index.totals.windows == 0:
            reasons = _listed_reasons(index)
            raise DataError(f"split {split}: none of {index.totals.candidates} windows was kept; {reasons}")
        for result in failed:
            _remove_case(directory, file_stem(result.case_id))
        try:
            write_json(directory / INDEX_NAME, index)
        except OSError as error:
            raise _cannot_write(directory / INDEX_NAME, error) from error


@contextmanager
def _only_builder(directory: Path) -> Iterator[None]:
    """Lock `directory` against a second build, and remove temporary files that killed builds left."""
    with hold_directory(directory, option="--outdir"):
        sweep_temporary_files(directory)
        try:
            yield
        finally:
            sweep_temporary_files(directory)


# ---------------------------------------------------------------------------------------------------------
# One case, in a worker


def _build_case(source: Source, task: _Task) -> CaseResult:
    """Build one case, or find it up to date. Failures in the data are its result."""
    config = task.config
    try:
        header = task.header(source.name, source.fingerprint(task.case_id))
        sidecar = _up_to_date(task, header)
        if sidecar is not None:
            return CaseResult(case_id=task.case_id, status="unchanged", sidecar=sidecar)
        windows = extract_windows(
            source.read(task.case_id, config.channels),
            config.channels,
            sfreq=config.sfreq,
            window_samples=config.window_samples,
            max_gap_seconds=config.max_gap_seconds,
            dtype=config.dtype,
            motion_gate=config.motion_gate,
        )
    except UNREADABLE as error:
        reason = why_unreadable(task.case_id, error)
        return CaseResult(case_id=task.case_id, status="failed", error=reason)
    _leave_if_abandoned(task)
    # a worker believed lost may have finished the case since
    sidecar = _up_to_date(task, header)
    if sidecar is None:
        try:
            sidecar = _write_case(task, windows, header)
        except OSError as error:  # the next case would fare no better, so this ends the build
            raise _cannot_write(task.npz, error) from error
    return CaseResult(case_id=task.case_id, status="built", sidecar=sidecar)


def _cannot_write(path: Path, error: OSError) -> DataError:
    return DataError(f"{path}: cannot be written ({error.strerror}); free the disk, or change outdir")


def _sidecar_of(task: _Task) -> Sidecar | None:
    """The sidecar of a case that has an npz; None where it is missing, damaged or from another version."""
    try:
        sidecar = read_sidecar(task.sidecar_path)
    except DataError:
        return None
    return sidecar if task.npz.is_file() else None


def _says(sidecar: Sidecar, header: CaseHeader) -> bool:
    return all(getattr(sidecar, name) == value for name, value in header)


def _seems_built(task: _Task, source_name: str) -> bool:
    """Whether a case is up to date according to its sidecar; its recording and npz are not read."""
    sidecar = _sidecar_of(task)
    return sidecar is not None and _says(sidecar, task.header(source_name, sidecar.source_fingerprint))


def _up_to_date(task: _Task, header: CaseHeader) -> Sidecar | None:
    """The sidecar, if it says what `header` says and the npz beside it is whole; else None."""
    sidecar = _sidecar_of(task)
    same = sidecar is not None and _says(sidecar, header) and sidecar.npz_sha256 == sha256_of(task.npz)
    return sidecar if same else None


def _write_case(task: _Task, case: CaseWindows, header: CaseHeader) -> Sidecar:
    (task.directory / INDEX_NAME).unlink(missing_ok=True)
    task.sidecar_path.unlink(missing_ok=True)
    arrays = {name: getattr(case, name) for name in MEMBERS}
    write_atomically(task.npz, lambda file: write_npz(file, arrays))
    sidecar = Sidecar.seal(
        **dict(header),
        file=task.npz.name,
        npz_sha256=sha256_of(task.npz),
        npz_bytes=task.npz.stat().st_size,
        candidates=case.candidates,
        windows=len(case.x),
        hours=header.hours_of(len(case.x)),
        dropped=case.dropped,
        rejected=case.rejected,
        timing=case.timing,
    )
    write_json(task.sidecar_path, sidecar)
    return sidecar


def _leave_if_abandoned(task: _Task) -> None:
    """End a worker whose builder was killed: a new build may be writing here, with other settings."""
    if task.builder_pid not in (None, os.getpid(), os.getppid()):
        raise SystemExit(1)


def _failed(task: _Task, reason: str) -> CaseResult:
    return CaseResult(case_id=task.case_id, status="failed", error=f"case {task.case_id}: {reason}")


def _lost(task: _Task, error: WorkerLostError) -> CaseResult:
    return _failed(
        task,
        f"every worker that tried it died, the last with no other case beside it ({error}); it may need "
        "more memory than there is",
    )


# ---------------------------------------------------------------------------------------------------------
# The whole split


def _remove_departed(directory: Path, stems: set[str]) -> None:
    """Remove the files of cases that have left the split; files that are not a store's stay."""
    for path in _files(directory, "*.json"):
        if path.name != INDEX_NAME and path.stem not in stems and _is_sidecar(path):
            _remove_case(directory, path.stem)
    for path in _files(directory, "*.npz"):
        if path.stem not in stems and _is_case(path):
            _remove_case(directory, path.stem)


def _is_sidecar(path: Path) -> bool:
    try:
        return bool(json.loads(path.read_bytes()).get("kind") == SIDECAR_KIND)
    except (ValueError, AttributeError, RecursionError):
        return False


def _is_case(path: Path) -> bool:
    try:
        return set(member_names(path)) == set(MEMBERS)
    except DataError:
        return False


def _remove_case(directory: Path, stem: str) -> None:
    for path in (directory / f"{stem}.json", directory / f"{stem}.npz"):
        if path.exists():
            (directory / INDEX_NAME).unlink(missing_ok=True)
            path.unlink()


def _listed_reasons(index: StoreIndex) -> str:
    dropped = index.dropped
    if not dropped:
        return "the recordings are shorter than one window, or every case failed"
    reasons = [
        f"{reason} {total({reason: row})} ({', '.join(f'{name} {n}' for name, n in sorted(row.items()))})"
        for reason, row in sorted(dropped.items())
    ]
    return "dropped for: " + "; ".join(reasons)
