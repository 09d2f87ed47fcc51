"""Subjects of recordings: read from a CSV, or found by a pattern."""

import csv
import re
from collections.abc import Callable, Sequence
from pathlib import Path

from biofound.errors import DataError, SettingsError
from biofound.files import path_from_text, path_to_text


class SubjectRule:
    """Who was recorded, as a user says it: by a CSV, a pattern, or each recording a subject of its own.

    Args:
        root: the directory of the recordings; its `subjects.csv` counts where there is no pattern.
        subjects_csv: the CSV that the user names.
        subject_pattern: a regular expression whose first group is the subject.
        record_is_subject: treat each recording as a different subject.
        source: the name of the source, for messages.
        columns: see `find_subjects`.
        key_of: see `find_subjects`.

    Attributes:
        csv: the CSV that the user names, if any.
        pattern: the pattern, compiled, if any.
        record_is_subject: as given.
        listed: the subject by recording, from a CSV; None without one.

    Raises:
        DataError: when the CSV cannot be read.
        SettingsError: the pattern is no regular expression with a group, or `record_is_subject` together
            with a CSV.
    """

    def __init__(
        self,
        *,
        root: Path,
        subjects_csv: str | Path | None,
        subject_pattern: str | None,
        record_is_subject: bool,
        source: str,
        columns: Sequence[str],
        key_of: Callable[[str], str],
    ) -> None:
        self.csv = None if subjects_csv is None else path_from_text(subjects_csv).expanduser().absolute()
        self.pattern = None if subject_pattern is None else compile_subject_pattern(subject_pattern)
        self.record_is_subject = record_is_subject
        self.listed = find_subjects(
            root if subject_pattern is None else None,
            self.csv,
            record_is_subject=record_is_subject,
            source=source,
            columns=columns,
            key_of=key_of,
        )

    def describe(self) -> dict[str, str | bool | None]:
        """Plain JSON of what the user said, by the names of the sources' settings."""
        return {
            "subjects_csv": None if self.csv is None else path_to_text(self.csv),
            "subject_pattern": None if self.pattern is None else self.pattern.pattern,
            "record_is_subject": self.record_is_subject,
        }


def find_subjects(
    root: Path | None,
    given: Path | None,
    *,
    record_is_subject: bool,
    source: str,
    columns: Sequence[str],
    key_of: Callable[[str], str] = str,
) -> dict[str, str] | None:
    """The subject of each recording from `given`, else from `subjects.csv` in the root; None without either.

    Args:
        root: the directory of the recordings; None to ignore its `subjects.csv`.
        given: the CSV that the user names.
        record_is_subject: treat each recording as a different subject; then there must be no CSV.
        source: the name of the source, for messages.
        columns: accepted names of the column of recordings; the first is used in messages.
        key_of: the key of a recording, from its name in that column.

    Raises:
        DataError: when the CSV cannot be read, or does not give each recording it names one subject.
        SettingsError: `record_is_subject` together with a CSV.
    """
    in_root = None if root is None else root / "subjects.csv"
    path = given or (in_root if in_root is not None and in_root.is_file() else None)
    if path is None:
        return None
    if record_is_subject:
        raise SettingsError(
            f"{source} source: {path} says who was recorded, so a {columns[0]} cannot be taken for a "
            "subject; leave out record_is_subject, or move the file away"
        )
    return _read(path, columns, key_of)


def _read(path: Path, columns: Sequence[str], key_of: Callable[[str], str]) -> dict[str, str]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            fields = list(reader.fieldnames or [])
            rows = [(reader.line_num, row) for row in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"subjects file {path}: cannot be read as CSV: {error}") from error
    column = next((name for name in columns if name in fields), None)
    expected = f"the columns {column or columns[0]} and subject"
    if column is None or "subject" not in fields:
        raise DataError(f"subjects file {path}: expected {expected}, got {', '.join(fields) or 'none'}")
    subjects: dict[str, str] = {}
    for line, row in rows:
        name, subject = (row[column] or "").strip(), (row["subject"] or "").strip()
        key = key_of(name)
        if not key or not subject:
            raise DataError(
                f"{path}:{line}: expected {expected}, both filled in; got {name!r} and {subject!r}"
            )
        if subjects.setdefault(key, subject) != subject:
            raise DataError(
                f"{path}:{line}: {column} {name} is given to {subjects[key]} and to {subject}; keep one"
            )
    if not subjects:
        raise DataError(f"subjects file {path}: expected rows below {expected}, found none")
    return subjects


def compile_subject_pattern(pattern: str) -> re.Pattern[str]:
    """Compile a regular expression with a group; SettingsError where it is none."""
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise SettingsError(f"subject_pattern {pattern!r} is not a regular expression: {error}") from error
    if compiled.groups < 1:
        raise SettingsError(
            f"subject_pattern {pattern!r}: expected a group, (...), around the subject; it has none"
        )
    return compiled
