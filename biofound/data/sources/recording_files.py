"""Directories of recording files, one recording a file: their cases, subjects and digests."""

import hashlib
import json
from abc import abstractmethod
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

from biofound.data.channels import Channel
from biofound.data.sources import (
    Case,
    ListedTrack,
    Source,
    Survey,
    TrackList,
    list_recordings,
    missing_channels,
    survey_recordings,
)
from biofound.data.sources.subjects import SubjectRule
from biofound.errors import DataError
from biofound.files import path_from_text, path_to_text, printable_name, sha256_of


class FilesSource(Source):
    """A directory of files, searched with its subdirectories; what is in a file, subclasses know.

    A case is a file; its id is the path without suffix, `/` written as `__`. Its subject comes from
    `subjects_csv`, `subject_pattern` or `record_is_subject`, where given; else from `subjects.csv` in the
    root; else it is unknown.

    Args:
        root: the directory.
        subjects_csv: columns `file` (or `record`; as in the directory, with or without suffix) and `subject`.
        subject_pattern: a regular expression whose first group is the subject, searched in the file's path
            below `root`.
        record_is_subject: treat each file as a different subject.

    Raises:
        DataError: when the directory or the CSV cannot be read.
        SettingsError: the pattern is no regular expression with a group, or `record_is_subject` together
            with a CSV of subjects.
    """

    suffixes: ClassVar[tuple[str, ...]]

    def __init__(
        self,
        *,
        root: str | Path,
        subjects_csv: str | Path | None = None,
        subject_pattern: str | None = None,
        record_is_subject: bool = False,
    ) -> None:
        self.root = path_from_text(root).expanduser().absolute()
        if not self.root.is_dir():
            raise DataError(
                f"{self.name} source: expected a directory of {self._kinds} files at {self.root}, found none"
            )
        self._rule = SubjectRule(
            root=self.root,
            subjects_csv=subjects_csv,
            subject_pattern=subject_pattern,
            record_is_subject=record_is_subject,
            source=self.name,
            columns=("file", "record"),
            key_of=self._key_of,
        )
        self._listed: dict[str, tuple[ListedTrack, ...]] = {}

    def describe(self) -> dict[str, str | int | float | bool | None]:
        """Plain JSON that opens this source again."""
        return {"name": self.name, "root": path_to_text(self.root), **self._rule.describe()}

    def version(self) -> str:
        """A digest of the files' names, sizes and listed subjects (`fingerprint` covers the contents)."""
        listing = {case_id: path.stat().st_size for case_id, path in self._files.items()}
        text = json.dumps([listing, self._rule.listed or {}], sort_keys=True)
        return f"{self.name}-{hashlib.sha256(text.encode()).hexdigest()[:16]}"

    def __getstate__(self) -> dict[str, Any]:
        """Without the tracks, which workers do not need."""
        return {**self.__dict__, "_listed": {}}

    def survey(self, channels: Sequence[Channel]) -> Survey:
        """All files by the channels that they have; one that cannot be used is refused.

        A case is as long as its shortest channel.

        Raises:
            DataError: none has every channel.
        """

        def look(case_id: str) -> Case | tuple[str, ...]:
            listed = {track.name: track for track in self._tracks(case_id)}
            found = {
                channel.name: self.find_track(channel, listed, what=f"case {case_id}, channel {channel.name}")
                for channel in channels
            }
            lacking = missing_channels(channels, lambda channel: found[channel.name] is not None)
            seconds = [listed[track].duration_s for track in found.values() if track is not None]
            known = [duration for duration in seconds if duration is not None]
            return lacking or Case(
                case_id=case_id,
                subject_id=self.subject_of(case_id),
                tracks=tuple(listed),
                duration_s=min(known, default=None) if len(known) == len(seconds) else None,
            )

        found = survey_recordings(self._files, look)
        if not found.cases and not found.refused:
            names = sorted({track.name for tracks in self._listed.values() for track in tracks})
            raise DataError(
                f"{self.root}: none of {len(self._files)} {self._kinds} files has every channel"
                f" ({tracks_of_all(channels)}). Their tracks: {', '.join(names) or 'none'}. Name the tracks"
                " in the channels file; `biofound prepare --list-tracks` says which file has which."
            )
        return found

    def tracks(self) -> TrackList:
        """The tracks of every file, with the seconds of signal where the file says them."""
        return list_recordings(self._files, self._tracks)

    def fingerprint(self, case_id: str) -> str:
        """SHA-256 of the file."""
        return sha256_of(self.path_of(case_id))

    def path_of(self, case_id: str) -> Path:
        """Where a case's file lies.

        Raises:
            DataError: when the directory has no such file.
        """
        path = self._files.get(case_id)
        if path is None:
            raise DataError(
                f"case {case_id}: {self.root} has no such {self._kinds} file. Prepare the splits again."
            )
        return path

    @abstractmethod
    def list_file(self, path: Path, *, what: str) -> tuple[ListedTrack, ...]:
        """The tracks of one file; a `DataError` that starts with `what` where it cannot be used."""

    def find_track(self, channel: Channel, names: Iterable[str], *, what: str) -> str | None:
        """The first of the channel's tracks that is among `names`, in any case; or None.

        Raises:
            DataError: several of `names` fit, which differ in case at most.
        """
        by_folded: dict[str, list[str]] = {}
        for name in names:
            by_folded.setdefault(name.casefold(), []).append(name)
        for wanted in channel.tracks:
            found = by_folded.get(wanted.casefold(), [])
            if wanted in found and found.count(wanted) == 1:
                return wanted
            if len(found) > 1:
                raise DataError(
                    f"{what}: {wanted} fits {len(found)} tracks ({', '.join(found)}). Give each its own name."
                )
            if found:
                return found[0]
        return None

    def subject_of(self, case_id: str) -> str | None:
        """Who was recorded; None where nobody says it."""
        if self._rule.record_is_subject:
            return case_id
        if self._rule.pattern is None:
            return (self._rule.listed or {}).get(case_id)
        path = self.path_of(case_id).relative_to(self.root)
        match = self._rule.pattern.search(printable_name(path.as_posix()))
        return match[1] or None if match else None

    @property
    def _kinds(self) -> str:
        return " or ".join(self.suffixes)

    @cached_property
    def _files(self) -> dict[str, Path]:
        """File by case id, sorted. CSVs of subjects are no recordings."""
        about_subjects = {self.root / "subjects.csv", self._rule.csv}
        files: dict[str, Path] = {}
        for path in sorted(self.root.rglob("*")):
            if path.suffix not in self.suffixes or path in about_subjects or not path.is_file():
                continue
            case_id = printable_name("__".join(path.relative_to(self.root).with_suffix("").parts))
            if case_id in files:
                raise DataError(f"{path} and {files[case_id]} would both be case {case_id}. Rename one.")
            files[case_id] = path
        if not files:
            raise DataError(f"{self.root}: expected {self._kinds} files, found none. Check the path.")
        return dict(sorted(files.items()))

    def _key_of(self, name: str) -> str:
        """The case id of a file as a CSV of subjects names it."""
        suffix = next((suffix for suffix in self.suffixes if name.endswith(suffix)), "")
        return name.removesuffix(suffix).replace("/", "__")

    def _tracks(self, case_id: str) -> tuple[ListedTrack, ...]:
        """The tracks of a file, which is read for them once."""
        if case_id not in self._listed:
            self._listed[case_id] = self.list_file(self.path_of(case_id), what=f"case {case_id}")
        return self._listed[case_id]


def tracks_of_all(channels: Sequence[Channel]) -> str:
    """The tracks that each channel may have, for messages."""
    return "; ".join(f"{channel.name}: {' or '.join(channel.tracks)}" for channel in channels)
