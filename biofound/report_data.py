"""Data of a report: what a run directory, its window stores and the answers of other commands say.

Everything is read without torch. A file that is not there is said to be so; a damaged one is an error. What a
newer version, or another command, has added is read by its form: each list of numbers that is as long as the
epochs is a measure by epoch.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import from_json

from biofound.core.run_files import CONFIG, EARLIER, HISTORY, METRICS
from biofound.data.npz_windows import npz_file
from biofound.data.store import INDEX_NAME, Counts, read_index
from biofound.errors import DataError
from biofound.files import lock_holder, path_from_text, printable_name

RESULTS = "results.json"
"""Results of a run that has some: rows and differences as a probe's, or values in any nesting."""
SPLITS = ("train", "val")
MAX_RESULTS = 200
"""Values of `results.json` that are shown."""

Numbers = tuple[float | None, ...]
Key = tuple[str, ...]
"""The keys that lead to a value, such as ("val_monitor", "variance_ratio", "PPG")."""
Answer = TypeVar("Answer", bound=BaseModel)
State = Literal["running", "finished", "stopped", "failed", "unknown"]


class _Json(BaseModel):
    """Part of a JSON file: further keys are left alone, those named here must fit."""

    model_config = ConfigDict(frozen=True, extra="ignore", strict=True)


class Setting(_Json):
    """A setting of a run as the run noted it."""

    value: Any
    origin: str


class DataPart(_Json):
    """A part of the data as the run noted it: `subjects` is None where nobody says who was recorded."""

    name: str
    windows: int
    hours: float
    subjects: int | None
    synthetic: bool
    fingerprint: str


class _Data(_Json):
    directories: list[str]
    train: list[DataPart]
    val: list[DataPart]


class Outcome(_Json):
    """How a training ended, and the most memory it held: by `process` and `gpu`, in bytes."""

    ended: Literal["finished", "stopped", "failed"]
    message: str
    peak_memory_bytes: dict[str, int | None]


class RunConfig(_Json):
    """`training_config.json`; runs of earlier versions lack `data` and `outcome`."""

    settings: dict[str, Setting] = {}
    resolved: dict[str, str] = {}
    data: _Data | None = None
    outcome: Outcome | None = None

    @property
    def directories(self) -> list[str]:
        """The window directories and streams of the run, as it noted or was given them."""
        if self.data is not None:
            return self.data.directories
        given = self.settings["data_dir"].value if "data_dir" in self.settings else []
        return [str(name) for name in given] if isinstance(given, list) else [given] if given else []

    def epochs(self) -> int | None:
        """The epochs asked for; None where the settings do not say, as with `steps`."""
        found = {name: self.settings[name].value for name in ("epochs", "steps") if name in self.settings}
        epochs = found.get("epochs")
        return epochs if isinstance(epochs, int) and found.get("steps") is None else None


class CheckResult(_Json):
    """One check of `biofound verify --json`."""

    name: str
    passed: bool
    measured: str


class Verification(_Json):
    """What `biofound verify --json` prints."""

    passed: bool
    checks: list[CheckResult]
    encoder_sha256: str | None = None
    """The digest of the checkpoint's encoder; None without a checkpoint, and of earlier versions."""


class ProbeRow(_Json):
    """A row of `biofound probe --json`; its scores are further keys, each with an interval."""

    model_config = ConfigDict(frozen=True, extra="allow", strict=True)

    name: str
    subjects: int
    windows: int
    subjects_in_pretraining: list[str] | None

    @property
    def scores(self) -> dict[str, tuple[float | None, list[float] | None]]:
        """Score to its value and 95 % interval."""
        found = self.model_extra or {}
        return {
            name: (found[name], found[f"{name}_interval"]) for name in found if f"{name}_interval" in found
        }


class ProbeDifference(_Json):
    """A paired difference in `biofound probe --json`."""

    name: str
    against: str
    score: str
    difference: float | None
    interval: tuple[float, float] | None


class Probe(_Json):
    """What `biofound probe --json` prints."""

    target: str
    rows: list[ProbeRow]
    differences: list[ProbeDifference]
    windows_without_label: int
    encoders: dict[str, str] = {}
    """The row of each checkpoint to the digest of its encoder; earlier versions say nothing."""
    channels: list[str] = []
    """The channels of the windows."""


@dataclass(frozen=True, kw_only=True)
class FileRead:
    """A file that was looked for: its size in bytes, None where it is not there, and when it was written."""

    name: str
    bytes: int | None
    modified: str
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class History:
    """Measures by epoch.

    `columns` are lists as long as `epochs`, by their keys, None where nothing was measured; `words` are
    single values by key; `unread` are keys of another form.
    """

    epochs: Numbers
    columns: Mapping[Key, Numbers]
    words: Mapping[str, str]
    best_epoch: int | None
    unread: tuple[str, ...]

    def last(self, *key: str) -> float | None:
        """The last value of a measure; None where it has none."""
        return next((value for value in reversed(self.columns.get(key, ())) if value is not None), None)

    def best(self, *key: str) -> float | None:
        """The value of a measure in the best epoch; None where there is none."""
        column = self.columns.get(key)
        if column is None or self.best_epoch not in self.epochs:
            return None
        return column[self.epochs.index(self.best_epoch)]

    def under(self, *prefix: str) -> dict[str, Numbers]:
        """The measures right below a key, by their last key: `under("val_msm_by_channel")` by channel."""
        depth = len(prefix)
        return {
            key[depth]: column
            for key, column in self.columns.items()
            if len(key) == depth + 1 and key[:depth] == prefix
        }


@dataclass(frozen=True, kw_only=True)
class EarlierRun:
    """A run that was moved aside from the same output directory: `changed` are settings that differ."""

    name: str
    history: History | None
    changed: Mapping[str, tuple[str, str]]


@dataclass(frozen=True, kw_only=True)
class StoreFacts:
    """Windows of one split in one directory that a run was trained or validated on.

    `said` is what is there in words; `same` whether the windows are those of the run, None where it does not
    say. The counts are None for windows that are no store.
    """

    directory: Path
    split: str
    said: str
    same: bool | None
    cases: int | None = None
    subjects: int | None = None
    candidates: int | None = None
    windows: int | None = None
    hours: float | None = None
    dropped: Counts | None = None


@dataclass(frozen=True, kw_only=True)
class RunData:
    """One run: `name` is unique in the report.

    Its `results.json` is in `scores` where it has rows and differences as a probe has, else in `results`, of
    which `results_left_out` values are too many.
    """

    directory: Path
    name: str
    state: State
    state_said: str
    config: RunConfig
    history: History | None
    steps: Mapping[str, Numbers]
    stores: tuple[StoreFacts, ...]
    scores: Probe | None
    results: Mapping[str, str]
    results_left_out: int
    earlier: tuple[EarlierRun, ...]
    files: tuple[FileRead, ...]

    @property
    def epochs_done(self) -> int:
        """Epochs in the history."""
        return len(self.history.epochs) if self.history else 0

    @property
    def parts(self) -> dict[str, list[DataPart]]:
        """The data by split as the run noted it; empty for runs of earlier versions."""
        data = self.config.data
        return {} if data is None else {"train": data.train, "val": data.val}


# ---------------------------------------------------------------------------------------------------------
# A run


def read_runs(directories: Sequence[Path]) -> list[RunData]:
    """What the directories of one or several runs hold.

    Raises:
        DataError: when a directory holds no run, or a file of it is damaged.
    """
    names = [printable_name(path.absolute().name) or str(path) for path in directories]
    if len(set(names)) < len(names):
        names = [printable_name(str(path)) for path in directories]
    return [_read_run(path, name) for path, name in zip(directories, names, strict=True)]


def _read_run(directory: Path, name: str) -> RunData:
    if not directory.is_dir():
        found = "a file" if directory.exists() else "no such directory"
        raise DataError(f"--run {directory}: {found}; expected the output directory of a training")
    config = read_config(directory / CONFIG)
    history = _read_history(directory / HISTORY)
    results = _read_json(directory / RESULTS)
    if config is None and history is None and results is None:
        raise DataError(
            f"--run {directory}: holds no run (neither {CONFIG} nor {HISTORY} is there); give the "
            "--output-dir of a training"
        )
    config = config or RunConfig()
    steps, note = _read_steps(directory / METRICS)
    state, said = _state(directory, config, history, has_results=results is not None)
    scores = None if results is None else _scores(directory / RESULTS)
    shown = dict(_flat(results or {})) if scores is None else {}
    return RunData(
        directory=directory,
        name=name,
        state=state,
        state_said=said,
        config=config,
        history=history,
        steps=steps,
        stores=tuple(_stores(config)),
        scores=scores,
        results=dict(list(shown.items())[:MAX_RESULTS]),
        results_left_out=max(0, len(shown) - MAX_RESULTS),
        earlier=tuple(_earlier_runs(directory, config)),
        files=tuple(
            _file_read(directory / file, note if file == METRICS else "")
            for file in (CONFIG, HISTORY, METRICS, RESULTS)
        ),
    )


def _state(
    directory: Path, config: RunConfig, history: History | None, *, has_results: bool
) -> tuple[State, str]:
    """How far the run is, and the evidence for it in words."""
    if (holder := lock_holder(directory)) is not None:
        return "running", f"{holder}, holds its output directory"
    if config.outcome is not None:
        return config.outcome.ended, config.outcome.message
    if has_results:
        return "finished", f"its {RESULTS} is there"
    done, wanted = len(history.epochs) if history else 0, config.epochs()
    if wanted is not None and done == wanted:
        return "finished", f"all {done} epochs are in its history"
    of = "" if wanted is None else f" of {wanted}"
    return "unknown", (
        f"{done}{of} epochs are in its history, nothing is running, and the run does not say how it ended: "
        "it was killed, or is of an earlier version"
    )


def _earlier_runs(directory: Path, config: RunConfig) -> Iterator[EarlierRun]:
    """The runs that were moved aside, the latest first."""
    found = [
        path
        for path in directory.glob(f"{EARLIER}*")
        if path.is_dir() and path.name.removeprefix(EARLIER).isdecimal()
    ]
    for path in sorted(found, key=lambda path: int(path.name.removeprefix(EARLIER)), reverse=True):
        before = read_config(path / CONFIG) or RunConfig()
        yield EarlierRun(
            name=path.name,
            history=_read_history(path / HISTORY),
            changed=differing_settings(before, config),
        )


def differing_settings(one: RunConfig, other: RunConfig) -> dict[str, tuple[str, str]]:
    """The settings that both runs have and that differ, as text."""
    both = [name for name in one.settings if name in other.settings]
    values = {name: (text_of(one.settings[name].value), text_of(other.settings[name].value)) for name in both}
    return {name: pair for name, pair in values.items() if pair[0] != pair[1]}


def text_of(value: Any) -> str:
    """A plain value as text; a dash for nothing."""
    if isinstance(value, list):
        return ", ".join(map(text_of, value)) or "-"
    if isinstance(value, bool):
        return "on" if value else "off"
    return "-" if value is None else str(value)


def _stores(config: RunConfig) -> Iterator[StoreFacts]:
    """What is now in the directories that the run was trained and validated on."""
    digests = None
    if config.data is not None:
        noted = {"train": config.data.train, "val": config.data.val}
        digests = {split: {part.fingerprint for part in parts} for split, parts in noted.items()}
    for name in config.directories:
        directory = path_from_text(name)
        if ":" in name and not directory.exists():
            continue  # a synthetic stream, of which nothing is on disk
        found = [split for split in SPLITS if (directory / split / INDEX_NAME).is_file()]
        plain = [split for split in SPLITS if npz_file(directory, split).is_file()]
        if not found and not plain:
            said = "the windows are not there any more"
            yield StoreFacts(directory=directory, split="-", said=said, same=None)
        for split in found:
            index = read_index(directory / split)
            same = None if digests is None else index.fingerprint in digests[split]
            words = {
                True: "the windows of the run",
                None: "the run does not say whether these are its windows",
            }
            totals = index.totals
            yield StoreFacts(
                directory=directory,
                split=split,
                said=words.get(same, "other windows than the run's: they have been made anew since"),
                same=same,
                cases=totals.cases,
                subjects=totals.subjects,
                candidates=totals.candidates,
                windows=totals.windows,
                hours=totals.hours,
                dropped=index.dropped,
            )
        for split in plain:
            if split not in found:
                said = "a plain npz, which does not say what was dropped"
                yield StoreFacts(directory=directory, split=split, said=said, same=None)


# ---------------------------------------------------------------------------------------------------------
# Files


def read_verification(path: Path) -> Verification:
    """What `biofound verify --json` printed into a file.

    Raises:
        DataError: when it is not there, or something else.
    """
    return _answer(path, Verification, option="--verify", command="verify")


def read_probe(path: Path) -> Probe:
    """What `biofound probe --json` printed into a file.

    Raises:
        DataError: when it is not there, or something else.
    """
    return _answer(path, Probe, option="--probe", command="probe")


def _answer(path: Path, model: type[Answer], *, option: str, command: str) -> Answer:
    expected = f"expected what `biofound {command} --json` printed"
    content = _read_bytes(path)
    if content is None:
        raise DataError(f"{option} {path}: no such file; {expected}")
    try:
        return model.model_validate_json(content)
    except ValidationError as error:
        raise DataError(f"{option} {path}: {_first_problem(error)}; {expected}") from error


def _scores(path: Path) -> Probe | None:
    """The rows and differences of a `results.json` that has them in the form of a probe's."""
    try:
        return Probe.model_validate_json(_read_bytes(path) or b"")
    except ValidationError:
        return None


def read_config(path: Path) -> RunConfig | None:
    """`training_config.json`; None where it is not there.

    Raises:
        DataError: when it is damaged or something else.
    """
    content = _read_bytes(path)
    if content is None:
        return None
    try:
        return RunConfig.model_validate_json(content)
    except ValidationError as error:
        raise DataError(f"{path}: damaged, or no file of a training: {_first_problem(error)}") from error


def _first_problem(error: ValidationError) -> str:
    first = error.errors()[0]
    return f"{'.'.join(map(str, first['loc']))}: {first['msg']}" if first["loc"] else first["msg"]


def _read_history(path: Path) -> History | None:
    content = _read_json(path)
    if content is None:
        return None
    epochs: Any = content.get("epoch")
    if not _is_column(epochs, None) or None in epochs:
        raise DataError(
            f"{path}: expected `epoch`, a list of numbers, one an epoch; the file is damaged or foreign"
        )
    columns: dict[Key, Numbers] = {}
    words: dict[str, str] = {}
    unread = []
    for key, value in _leaves(content):
        if _is_column(value, len(epochs)):
            columns[key] = tuple(value)
        elif isinstance(value, str | int | float) or value is None:
            words[".".join(key)] = text_of(value)
        else:
            unread.append(".".join(key))
    best = content.get("best_epoch")
    return History(
        epochs=columns.pop(("epoch",)),
        columns=columns,
        words=words,
        best_epoch=best if isinstance(best, int) else None,
        unread=tuple(unread),
    )


def _is_column(value: Any, length: int | None) -> bool:
    numbers = isinstance(value, list) and all(
        item is None or (isinstance(item, int | float) and not isinstance(item, bool)) for item in value
    )
    return numbers and (length is None or len(value) == length)


def _leaves(value: Mapping[str, Any], key: Key = ()) -> Iterator[tuple[Key, Any]]:
    for name, item in value.items():
        if isinstance(item, dict):
            yield from _leaves(item, (*key, name))
        else:
            yield (*key, name), item


def _flat(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Every single value in any nesting as text, by its keys; lists of single values as one."""
    if isinstance(value, dict):
        for name, item in value.items():
            yield from _flat(item, f"{key}.{name}" if key else str(name))
    elif isinstance(value, list) and any(isinstance(item, dict | list) for item in value):
        for number, item in enumerate(value, start=1):
            yield from _flat(item, f"{key}.{number}")
    else:
        yield key, text_of(value)


def _read_steps(path: Path) -> tuple[dict[str, Numbers], str]:
    """The measures by step, and a note on a last line that is not whole."""
    content = _read_bytes(path)
    if content is None:
        return {}, ""
    *lines, rest = content.split(b"\n")  # what a killed process was writing has no end of line
    rows = []
    for number, line in enumerate(lines, start=1):
        row = _parsed(line, f"{path}:{number}")
        if not isinstance(row.get("step"), int):
            raise DataError(f"{path}:{number}: expected a JSON object with `step`, a whole number")
        rows.append(row)
    names = dict.fromkeys(name for row in rows for name, value in row.items() if _is_column([value], None))
    columns = {name: tuple(row.get(name) for row in rows) for name in names}
    unfit = [name for name, column in columns.items() if not _is_column(list(column), None)]
    if unfit:
        raise DataError(
            f"{path}: {unfit[0]} is a number in some lines and none in others; the file is damaged"
        )
    return columns, "its last line was not whole, and is left out" if rest else ""


def _read_json(path: Path) -> dict[str, Any] | None:
    content = _read_bytes(path)
    return None if content is None else _parsed(content, str(path))


def _parsed(content: bytes, where: str) -> dict[str, Any]:
    try:
        value = from_json(content, allow_inf_nan=False)
    except ValueError as error:
        raise DataError(f"{where}: not JSON ({error}); the file is damaged") from error
    if not isinstance(value, dict):
        raise DataError(f"{where}: expected a JSON object, got {type(value).__name__}")
    return value


def _read_bytes(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error


def _file_read(path: Path, note: str) -> FileRead:
    try:
        about = path.stat()
    except FileNotFoundError:
        return FileRead(name=path.name, bytes=None, modified="", note=note)
    modified = datetime.fromtimestamp(about.st_mtime).astimezone().isoformat(sep=" ", timespec="seconds")
    return FileRead(name=path.name, bytes=about.st_size, modified=modified, note=note)
