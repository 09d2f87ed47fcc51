"""Train, validation and test splits by patient, and their JSON file.

A patient's split depends on (seed, patient) alone, through a hash, so that cases that are added move nobody;
both modes share the thresholds, so a test patient of `fasttrack` is no training patient of `full`. The
exception is a cohort so small that the hash gives a split nobody: it then gets the patient whose hash is
nearest, who may move when patients are added (`Splits.moved`).
"""

import hashlib
import math
from collections import Counter
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, Self, cast, get_args

from pydantic import AfterValidator, model_validator

from biofound.errors import DataError, SettingsError
from biofound.files import JsonFile, StrictModel, read_json_as, write_json

if TYPE_CHECKING:
    from biofound.data.sources import Case  # numpy comes with it, and the settings import this module

Mode = Literal["full", "fasttrack"]
SplitName = Literal["train", "val", "test"]
SPLITS: tuple[SplitName, ...] = get_args(SplitName)
SourceDescription = dict[str, str | int | float | bool | None]
"""What `Source.describe` gives: plain values that open the source again."""


def _with_name(source: SourceDescription) -> SourceDescription:
    if not isinstance(source.get("name"), str):
        raise ValueError("expected the name of the source under the key name")
    return source


NamedSource = Annotated[SourceDescription, AfterValidator(_with_name)]
"""A source's description, as a file holds it."""

Fractions = tuple[float, float, float]
"""The shares of the patients in train, val and test; they add up to 1."""
FRACTIONS: Fractions = (0.8, 0.1, 0.1)

UNKNOWN = ""
"""The subject of a recording of which nobody says who was recorded."""

_FASTTRACK_CASES: dict[SplitName, int] = {"train": 50, "val": 10, "test": 10}
_SHOWN = 5


class SplitCase(StrictModel):
    """One case of a split and whose it is; '' where the source does not know."""

    case_id: str
    subject_id: str


class CasesBySplit(StrictModel):
    """The cases of each split, sorted by case id; no case and no patient is in two."""

    train: tuple[SplitCase, ...]
    val: tuple[SplitCase, ...]
    test: tuple[SplitCase, ...]

    @model_validator(mode="after")
    def _refuse_shared(self) -> Self:
        everyone = {case.subject_id for name in SPLITS for case in getattr(self, name)}
        if UNKNOWN in everyone and (self.val or self.test or len(everyone) > 1):
            raise ValueError(
                "cases whose patients are unknown may only be all cases, all in train: the same patient may "
                "be in several"
            )
        for what, key in (("patients", "subject_id"), ("cases", "case_id")):
            members = {name: {getattr(case, key) for case in getattr(self, name)} for name in SPLITS}
            for one, other in combinations(SPLITS, 2):
                if shared := sorted(members[one] & members[other]):
                    raise ValueError(
                        f"{what} {_some(shared)} are in both {one} and {other}; every number computed from "
                        "such splits is too good"
                    )
        return self


class Splits(JsonFile):
    """The cases of each split and all that decided about them: what `splits_<mode>.json` holds.

    `channels` are the names that every case has, `case_set` is VitalDB's set of cases or None, `fractions`
    the shares of the patients in train, val and test.
    """

    kind: Literal["biofound-splits"] = "biofound-splits"
    format_version: Literal[1] = 1
    source: NamedSource
    dataset_version: str
    channels: tuple[str, ...]
    mode: Mode
    case_set: str | None
    seed: int
    fractions: Fractions = FRACTIONS
    splits: CasesBySplit

    def of(self, split: SplitName) -> tuple[SplitCase, ...]:
        """The cases of one split, sorted by case id."""
        return cast(tuple[SplitCase, ...], getattr(self.splits, split))

    def subjects(self, split: SplitName) -> tuple[str, ...]:
        """The patients of one split, sorted; empty where they are unknown."""
        return tuple(sorted({case.subject_id for case in self.of(split)} - {UNKNOWN}))

    def moved(self) -> dict[str, SplitName]:
        """The patients who are not in the split of their hash, as that left a split without anybody."""
        return {
            subject: name
            for name in SPLITS
            for subject in self.subjects(name)
            if split_of(subject, seed=self.seed, fractions=self.fractions) != name
        }

    def differences(self, other: "Splits") -> list[str]:
        """In what two files differ that were not made by the same command, in words; the cases may differ.

        Splits that are made again after recordings were added or mended do not differ.
        """
        settings = ("channels", "mode", "case_set", "seed", "fractions")
        pairs = {name: (getattr(self, name), getattr(other, name)) for name in settings}
        ours, theirs = recordings_of(self.source), recordings_of(other.source)
        for name in {**ours, **theirs}:
            pairs[f"source {name}"] = ours.get(name), theirs.get(name)
        return [f"{name}: {before}, not {now}" for name, (before, now) in pairs.items() if before != now]


def make_splits(
    cases: Sequence["Case"],
    *,
    mode: Mode,
    seed: int,
    source: SourceDescription,
    dataset_version: str,
    channels: Sequence[str],
    case_set: str | None = None,
    fractions: Fractions = FRACTIONS,
) -> Splits:
    """Divide cases by patient: about 80/10/10 %, or 50/10/10 cases of the same division with `fasttrack`.

    `fasttrack` takes whole patients in the order of a second hash, leaving out whom there is no room for;
    where there are fewer cases it takes all. Every split of a share above 0 has somebody, if there are as
    many patients as such splits.

    Args:
        cases: what `Source.cases` listed for `channels`.
        mode: `full` or `fasttrack`.
        seed: which division; the same seed gives the same.
        source: what `Source.describe` gave.
        dataset_version: what `Source.version` gave.
        channels: the names of the channels that all cases have.
        case_set: VitalDB's set of cases, or None.
        fractions: the shares of the patients in train, val and test. A split of share 0 is empty. Only
            (1, 0, 0) takes cases whose patients are unknown.

    Raises:
        DataError: when there are no cases, a case is listed twice, a case's subject is unknown, or there
            are fewer patients than splits of a share above 0.
        SettingsError: when the mode is unknown, or the shares do not add up to 1.
    """
    if mode not in get_args(Mode):
        raise SettingsError(f"mode must be one of {', '.join(get_args(Mode))}, got {mode!r}")
    if problem := problem_of_fractions(fractions):
        raise SettingsError(f"fractions: {problem}")
    _refuse_unusable(cases, channels, fractions)
    by_split = _divide(cases, seed, fractions)
    if mode == "fasttrack":
        by_split = {name: _take(by_split[name], _FASTTRACK_CASES[name], seed) for name in SPLITS}
    return Splits(
        source=source,
        dataset_version=dataset_version,
        channels=tuple(channels),
        mode=mode,
        case_set=case_set,
        seed=seed,
        fractions=fractions,
        splits=CasesBySplit(**by_split),
    )


def recordings_of(source: SourceDescription) -> SourceDescription:
    """Which recordings a source has, and whose: not how they are downloaded, chosen, and checked."""
    others = ("cache_dir", "base_url", "case_set", "ignore_checksums")
    return {key: value for key, value in source.items() if value and key not in others}


def problem_of_fractions(fractions: Fractions) -> str | None:
    """What is wrong with shares of train, val and test, in words; None when they can be used."""
    if len(fractions) == len(SPLITS) and min(fractions) >= 0 and math.isclose(sum(fractions), 1):
        return None
    return (
        "expected three numbers of 0 or more that add up to 1 (train, val, test), such as 0.8,0.1,0.1; got "
        + ",".join(f"{share:g}" for share in fractions)
    )


def split_of(subject_id: str, *, seed: int, fractions: Fractions = FRACTIONS) -> SplitName:
    """The split of a patient's hash: theirs in every data set and mode that leaves no split empty."""
    fraction = _fraction(f"{seed}:{subject_id}")
    train, val, test = fractions
    if fraction < train or val == test == 0:
        return "train"
    return "val" if fraction < train + val or test == 0 else "test"


def save_splits(path: Path, splits: Splits) -> None:
    """Write `splits` as JSON, atomically.

    Raises:
        OSError: when the disk refuses; `path` is then untouched.
    """
    write_json(path, splits)


def load_splits(path: Path) -> Splits:
    """Read what `save_splits` wrote.

    Raises:
        DataError: when the file is missing or no whole splits file of this format version, or has a patient
            or case in two splits.
    """
    if path.is_dir():
        held = ", ".join(str(file) for file in sorted(path.glob("splits_*.json"))) or "no splits_<mode>.json"
        raise DataError(f"{path}: expected a file of splits, got a directory, which holds {held}")
    return read_json_as(path, Splits, hint="write the splits again with `biofound prepare`")


def _divide(
    cases: Sequence["Case"], seed: int, fractions: Fractions
) -> dict[SplitName, tuple[SplitCase, ...]]:
    subjects = sorted({case.subject_id or UNKNOWN for case in cases})
    home = {subject: split_of(subject, seed=seed, fractions=fractions) for subject in subjects}
    _fill_empty_splits(home, seed, fractions)
    by_split: dict[SplitName, list[SplitCase]] = {name: [] for name in SPLITS}
    for case in sorted(cases, key=lambda case: case.case_id):
        entry = SplitCase(case_id=case.case_id, subject_id=case.subject_id or UNKNOWN)
        by_split[home[entry.subject_id]].append(entry)
    return {name: tuple(members) for name, members in by_split.items()}


def _fill_empty_splits(home: dict[str, SplitName], seed: int, fractions: Fractions) -> None:
    """Give each split without anybody the patient whose hash is nearest to it, from a split of several."""
    wanted = wanted_splits(fractions)
    if len(home) < len(wanted):
        raise DataError(
            f"expected at least {len(wanted)} patients for the splits {', '.join(wanted)}, got {len(home)}; "
            "--fractions 1,0,0 takes them all for training, --fractions 0,0,1 for a test"
        )
    for name in wanted:
        if name in home.values():
            continue
        start = sum(fractions[: SPLITS.index(name)])
        middle = start + fractions[SPLITS.index(name)] / 2
        sizes = Counter(home.values())
        spare = (subject for subject, split in home.items() if sizes[split] > 1)
        # outside of an interval, the nearer to its middle the nearer to it
        nearest = min(spare, key=lambda subject: abs(_fraction(f"{seed}:{subject}") - middle))
        home[nearest] = name


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


def _refuse_unusable(cases: Sequence["Case"], channels: Sequence[str], fractions: Fractions) -> None:
    if not cases:
        raise DataError(
            f"expected cases with the channels {', '.join(channels)}, found none; compare the channels' "
            "tracks with the names in the recordings"
        )
    twice = [case_id for case_id, count in Counter(case.case_id for case in cases).items() if count > 1]
    if twice:
        raise DataError(f"the source lists {_some(twice)} more than once; every case needs an id of its own")
    unknown = [case.case_id for case in cases if case.subject_id is None]
    if unknown and (fractions[0] < 1 or len(unknown) < len(cases)):
        raise DataError(
            f"the source cannot say who was recorded in {len(unknown)} of {len(cases)} cases "
            f"({_some(unknown)}), and splits are by patient. Give a subjects.csv (columns record,subject) "
            "with --subjects-csv, a rule with --subject-pattern, or, if every record is another person, say "
            "so with --record-is-subject. Where nobody knows any of the patients, --fractions 1,0,0 takes "
            "all cases for pretraining, and for that only"
        )


def wanted_splits(fractions: Fractions) -> tuple[SplitName, ...]:
    """The splits of a share above 0."""
    return tuple(name for name, share in zip(SPLITS, fractions, strict=True) if share > 0)


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
