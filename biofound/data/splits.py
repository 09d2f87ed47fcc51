"""Who is trained on, who is validated on, who is kept for the test: splits by patient, and their JSON file.

A patient's split depends on (seed, patient) alone, through a hash, so that cases that are added move nobody;
both modes share the thresholds, so a test patient of `fasttrack` is no training patient of `full`.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, cast, get_args

from biofound.data.sources import Case
from biofound.errors import DataError, SettingsError
from biofound.files import write_json

T = TypeVar("T")
Mode = Literal["full", "fasttrack"]
SplitName = Literal["train", "val", "test"]

FORMAT_VERSION = 1
KIND = "biofound-splits"
SPLITS: tuple[SplitName, ...] = get_args(SplitName)

_TRAIN_BELOW, _VAL_BELOW = 0.8, 0.9
_FASTTRACK_CASES: dict[SplitName, int] = {"train": 50, "val": 10, "test": 10}
_SEEDS_TRIED = 1000
_SHOWN = 5


@dataclass(frozen=True, kw_only=True)
class SplitCase:
    """One case of a split and whose it is."""

    case_id: str
    subject_id: str


@dataclass(frozen=True, kw_only=True)
class Splits:
    """The cases of each split and all that decided about them; what `splits_<mode>.json` holds.

    `source` is what `Source.describe` gave, `channels` the names that every case has, `case_set` VitalDB's
    set of cases or None.
    """

    source: Mapping[str, Any]
    dataset_version: str
    channels: tuple[str, ...]
    mode: Mode
    case_set: str | None
    seed: int
    train: tuple[SplitCase, ...]
    val: tuple[SplitCase, ...]
    test: tuple[SplitCase, ...]

    def of(self, split: SplitName) -> tuple[SplitCase, ...]:
        """The cases of one split, sorted by case id."""
        return {"train": self.train, "val": self.val, "test": self.test}[split]

    def subjects(self, split: SplitName) -> tuple[str, ...]:
        """The patients of one split, sorted."""
        return tuple(sorted({case.subject_id for case in self.of(split)}))


def make_splits(
    cases: Sequence[Case],
    *,
    mode: Mode,
    seed: int,
    source: Mapping[str, Any],
    dataset_version: str,
    channels: Sequence[str],
    case_set: str | None = None,
) -> Splits:
    """Divide cases by patient: about 80/10/10 %, or 50/10/10 cases of the same division with `fasttrack`.

    `fasttrack` takes whole patients in the order of a second hash, leaving out whom there is no room for;
    where there are fewer cases it takes all.

    Args:
        cases: what `Source.cases` listed for `channels`.
        mode: `full` or `fasttrack`.
        seed: which division; the same seed gives the same.
        source: what `Source.describe` gave.
        dataset_version: what `Source.version` gave.
        channels: the names of the channels that all cases have.
        case_set: VitalDB's set of cases, or None.

    Raises:
        DataError: when there are no cases, a case is listed twice, a case's subject is unknown, or a split
            comes out empty.
        SettingsError: when the mode is unknown.
    """
    if mode not in get_args(Mode):
        raise SettingsError(f"mode must be one of {', '.join(get_args(Mode))}, got {mode!r}")
    _refuse_unusable(cases, channels)
    by_split = _divide(cases, seed)
    _refuse_empty(by_split, cases, seed)
    if mode == "fasttrack":
        by_split = {name: _take(by_split[name], _FASTTRACK_CASES[name], seed) for name in SPLITS}
    return Splits(
        source=dict(source),
        dataset_version=dataset_version,
        channels=tuple(channels),
        mode=mode,
        case_set=case_set,
        seed=seed,
        train=by_split["train"],
        val=by_split["val"],
        test=by_split["test"],
    )


def split_of(subject_id: str, *, seed: int) -> SplitName:
    """The split a patient belongs to, in every data set and mode."""
    place = _fraction(f"{seed}:{subject_id}")
    if place < _TRAIN_BELOW:
        return "train"
    return "val" if place < _VAL_BELOW else "test"


def save_splits(path: Path, splits: Splits) -> None:
    """Write `splits` as JSON, atomically.

    Raises:
        OSError: when the disk refuses; `path` is then untouched.
    """
    write_json(
        path,
        {
            "format_version": FORMAT_VERSION,
            "kind": KIND,
            "source": dict(splits.source),
            "dataset_version": splits.dataset_version,
            "channels": list(splits.channels),
            "mode": splits.mode,
            "case_set": splits.case_set,
            "seed": splits.seed,
            "splits": {
                name: [{"case_id": c.case_id, "subject_id": c.subject_id} for c in splits.of(name)]
                for name in SPLITS
            },
        },
    )


def load_splits(path: Path) -> Splits:
    """Read what `save_splits` wrote, and check that no patient is in two splits.

    Raises:
        DataError: when the file is missing, is not JSON, is no splits file, has another format version, lacks
            something, or has a patient or case in two splits.
    """
    content = _read_json(path)
    if not isinstance(content, dict) or content.get("kind") != KIND:
        kind = content.get("kind", "no kind") if isinstance(content, dict) else type(content).__name__
        raise DataError(
            f"{path}: expected a splits file (kind {KIND!r}), got {kind!r}; write one with `biofound prepare`"
        )
    if content.get("format_version") != FORMAT_VERSION:
        raise DataError(
            f"{path}: expected format version {FORMAT_VERSION}, got {content.get('format_version')!r}; the "
            "file is from another version of biofound: write it again with `biofound prepare`"
        )
    try:
        splits = _from_json(content)
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"{path}: not a whole splits file ({type(error).__name__}: {error}); write it again with "
            "`biofound prepare`"
        ) from error
    _refuse_shared(path, splits)
    return splits


def _divide(cases: Sequence[Case], seed: int) -> dict[SplitName, tuple[SplitCase, ...]]:
    known = [
        SplitCase(case_id=case.case_id, subject_id=cast(str, case.subject_id))
        for case in sorted(cases, key=lambda case: case.case_id)
    ]
    return {
        name: tuple(case for case in known if split_of(case.subject_id, seed=seed) == name) for name in SPLITS
    }


def _take(cases: tuple[SplitCase, ...], room: int, seed: int) -> tuple[SplitCase, ...]:
    """Whole patients in a hashed order while there is room; at least one."""
    sizes = Counter(case.subject_id for case in cases)
    taken: set[str] = set()
    for subject in sorted(sizes, key=lambda subject: (_fraction(f"{seed}:order:{subject}"), subject)):
        if sizes[subject] <= room or not taken:
            taken.add(subject)
            room -= sizes[subject]
    return tuple(case for case in cases if case.subject_id in taken)


def _fraction(text: str) -> float:
    """A number in [0, 1) from the SHA-256 of `text`; Python's own hash() differs from run to run."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:6], "big") / 2**48


def _refuse_unusable(cases: Sequence[Case], channels: Sequence[str]) -> None:
    if not cases:
        raise DataError(
            f"expected cases with the channels {', '.join(channels)}, found none; compare the channels' "
            "tracks with the names in the recordings"
        )
    twice = [case_id for case_id, count in Counter(case.case_id for case in cases).items() if count > 1]
    if twice:
        raise DataError(f"the source lists {_some(twice)} more than once; every case needs an id of its own")
    unknown = [case.case_id for case in cases if case.subject_id is None]
    if unknown:
        raise DataError(
            f"the source cannot say who was recorded in {len(unknown)} of {len(cases)} cases "
            f"({_some(unknown)}), and splits are by patient. Give a subjects.csv (columns record,subject) "
            "with --subjects-csv, a rule with --subject-pattern, or, if every record is another person, say "
            "so with --record-is-subject"
        )


def _refuse_empty(
    by_split: Mapping[SplitName, tuple[SplitCase, ...]], cases: Sequence[Case], seed: int
) -> None:
    if all(by_split.values()):
        return
    subjects = {cast(str, case.subject_id) for case in cases}
    counts = ", ".join(f"{name} {len(by_split[name])}" for name in SPLITS)
    raise DataError(
        f"seed {seed} leaves a split without cases ({counts}) of {len(cases)} cases of {len(subjects)} "
        f"patients; {_advice(subjects)}"
    )


def _advice(subjects: set[str]) -> str:
    if len(subjects) < len(SPLITS):
        return f"three splits need at least {len(SPLITS)} patients"
    for seed in range(_SEEDS_TRIED):
        if {split_of(subject, seed=seed) for subject in subjects} == set(SPLITS):
            return f"another seed gives three: --seed {seed}"
    return "try another seed"


def _read_json(path: Path) -> object:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise DataError(
            f"{path}: expected a splits file, found none; write one with `biofound prepare`"
        ) from error
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: the splits file cannot be read: {error}") from error
    except json.JSONDecodeError as error:
        raise DataError(f"{path}: expected JSON, got something else: {error}") from error


def _from_json(content: dict[str, Any]) -> Splits:
    """The splits in a file's content; KeyError, TypeError or ValueError where it is not what is written."""
    parts = {name: _cases_from_json(content["splits"][name]) for name in SPLITS}
    return Splits(
        source=_typed(content["source"], dict, "source"),
        dataset_version=_typed(content["dataset_version"], str, "dataset_version"),
        channels=tuple(
            _typed(name, str, "channels") for name in _typed(content["channels"], list, "channels")
        ),
        mode=_mode(content["mode"]),
        case_set=None if content["case_set"] is None else _typed(content["case_set"], str, "case_set"),
        seed=_typed(content["seed"], int, "seed"),
        train=parts["train"],
        val=parts["val"],
        test=parts["test"],
    )


def _cases_from_json(rows: object) -> tuple[SplitCase, ...]:
    return tuple(
        SplitCase(
            case_id=_typed(row["case_id"], str, "case_id"),
            subject_id=_typed(row["subject_id"], str, "subject_id"),
        )
        for row in _typed(rows, list, "splits")
    )


def _mode(value: object) -> Mode:
    if value not in get_args(Mode):
        raise ValueError(f"mode {value!r}")
    return cast(Mode, value)


def _typed(value: object, kind: type[T], key: str) -> T:
    if not isinstance(value, kind):
        raise TypeError(f"{key} must be {kind.__name__}, got {value!r}")
    return value


def _refuse_shared(path: Path, splits: Splits) -> None:
    for what, of_case in (("patients", "subject_id"), ("cases", "case_id")):
        seen: dict[str, str] = {}
        for name in SPLITS:
            mine = {getattr(case, of_case) for case in splits.of(name)}
            shared = sorted(mine & seen.keys())
            if shared:
                raise DataError(
                    f"{path}: {what} {_some(shared)} are in both {seen[shared[0]]} and {name}; every number "
                    "computed from such splits is too good: write them again with `biofound prepare`"
                )
            seen.update(dict.fromkeys(mine, name))


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
