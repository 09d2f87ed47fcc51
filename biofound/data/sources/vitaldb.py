"""Read VitalDB, downloaded case by case into a cache, and directories of `.vital` files.

VitalDB: Lee et al. 2022, "VitalDB, a high-fidelity multi-parameter vital signs database in surgical
patients", https://doi.org/10.1038/s41597-022-01411-5.
"""

import csv
import gzip
import hashlib
import io
import sys
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from pydantic_core import from_json
from urllib3 import Retry

from biofound.data.channels import Channel
from biofound.data.sources import (
    Case,
    ListedTrack,
    Recording,
    Source,
    Survey,
    TrackList,
    missing_channels,
    survey_recordings,
)
from biofound.data.sources.download import GZIP_MAGIC, fetch
from biofound.data.sources.recording_files import FilesSource, tracks_of_all
from biofound.data.sources.registry import CASE_SETS, DEFAULT_CASE_SET
from biofound.data.sources.vital_file import (
    MAX_HOURS,
    check_complete,
    find_track,
    list_tracks,
    read_recording,
)
from biofound.data.sources.vitaldb_cost import Cost, estimate_cost
from biofound.errors import DataError, SettingsError
from biofound.files import path_from_text, path_to_text, sha256_of, write_json

BASE_URL = "https://api.vitaldb.net"
"""Address of the open data set's API."""

DATASET_VERSION = "1.0.1"
"""Version of the `.vital` files, and the folder of the API they lie in: packed, all tracks on one clock."""

FASTTRACK_CASES = 70
"""Cases of the mode `fasttrack`."""

_TABLES = {
    "cases": ("the clinical table", ("caseid", "subjectid"), 1 << 25),
    "trks": ("the track list", ("caseid", "tname"), 1 << 27),
}
"""By name: for messages, the columns that it must have, and the bytes beyond which it is refused.

Those of version 1.0.1 have 2 and 32 MB.
"""

_KEPT = ("subjectid", "casestart", "caseend")  # of the clinical table's 74 columns


def case_ids_in(case_set: str) -> frozenset[str] | None:
    """The case ids of one of `CASE_SETS`; None for `all`."""
    if case_set == "all":
        return None
    import vitaldb  # takes nearly two seconds

    return frozenset(map(str, getattr(vitaldb, f"caseids_{case_set}")))


class VitalDBSource(Source):
    """The VitalDB open data set, downloaded case by case into a cache.

    Whole `.vital` files are taken rather than the API's per-track CSV: one file holds both tracks on one
    clock with their rate, integer packing and gap sentinel, where the CSV has neither rate nor gaps of
    a wave and may be shifted by a constant per case.

    Args:
        cache_dir: directory of tables and cases; with everything in it no network is needed.
        case_set: one of `CASE_SETS`.
        base_url: another server that answers as the API does (a mirror, a test).
        dataset_version: folder of the `.vital` files on the server.
        timeout_s: seconds without an answer, or of a transfer that crawls, until an attempt is given up.
        retries: attempts after the first.
        backoff_s: factor of urllib3's exponential back-off: waits of 0, 2, 4, 8, ... times this.
        longest_wait_s: no wait is longer, whatever the server's `Retry-After` asks for.
        at_once: downloads at a time, over all processes that share the cache.
    """

    name = "vitaldb"
    on_retry: Callable[[str], None] | None = None
    """Told, in words, when a download has failed and is tried again."""

    def __init__(
        self,
        *,
        cache_dir: str | Path,
        case_set: str = DEFAULT_CASE_SET,
        base_url: str = BASE_URL,
        dataset_version: str = DATASET_VERSION,
        timeout_s: float = 30.0,
        retries: int = 5,
        backoff_s: float = 1.0,
        longest_wait_s: float = 60.0,
        at_once: int = 4,
    ) -> None:
        if case_set not in CASE_SETS:
            raise SettingsError(f"case set: expected one of {', '.join(CASE_SETS)}; got {case_set}.")
        if urlsplit(base_url).scheme not in ("http", "https"):
            raise SettingsError(f"VitalDB's address: expected http(s)://..., got {base_url!r}.")
        self.cache_dir = path_from_text(cache_dir).expanduser().absolute()
        self.case_set = case_set
        self.base_url = base_url.rstrip("/")
        self.dataset_version = dataset_version
        self._fetch = partial(
            fetch,
            cache_dir=self.cache_dir,
            retry=Retry(total=retries, backoff_factor=backoff_s, backoff_max=longest_wait_s),
            timeout_s=timeout_s,
            at_once=at_once,
        )

    def __getstate__(self) -> dict[str, Any]:
        """Without the parsed tables: half a million track names need not travel to every worker.

        Workers do not say that they retry: the process that downloads ahead for them does.
        """
        left_behind = ("_clinical", "_tracks", "on_retry")
        return {key: value for key, value in self.__dict__.items() if key not in left_behind}

    def describe(self) -> dict[str, str | int | float | bool | None]:
        """Plain JSON that opens this source again; without the settings of its downloads."""
        return {
            "name": self.name,
            "cache_dir": path_to_text(self.cache_dir),
            "case_set": self.case_set,
            "base_url": self.base_url,
            "dataset_version": self.dataset_version,
        }

    def version(self) -> str:
        """The files' version and a digest of the two tables (in the cache, so it changes with that)."""
        digest = hashlib.sha256()
        for table in _TABLES:
            digest.update(_text_of(self._table(table), table))
        return f"{self.dataset_version}-{digest.hexdigest()[:16]}"

    def survey(self, channels: Sequence[Channel]) -> Survey:
        """The cases of the case set, by the channels in their track lists.

        The subject is the clinical table's `subjectid`; None for a case that the table does not have.

        Raises:
            DataError: the tables cannot be downloaded, or no case is left (with the counts at each step).
        """
        chosen = case_ids_in(self.case_set)
        clinical, tracks = self._clinical, self._tracks
        inside = [case_id for case_id in tracks if chosen is None or case_id in chosen]
        found = survey_recordings(
            inside,
            lambda case_id: _lacking(channels, tracks[case_id], case_id) or self._case(case_id),
        )
        if not found.cases and not found.refused:
            raise DataError(
                f"VitalDB: no case is left. The clinical table has {len(clinical)} cases, the track list"
                f" {len(tracks)}, case set {self.case_set} {len(inside)} of them, and none of those has every"
                f" channel ({tracks_of_all(channels)}). Choose another case set or other tracks."
            )
        return found

    def tracks(self) -> TrackList:
        """The track list of each case of the case set; rates and units are those of the whole data set."""
        from vitaldb.utils import TRACK_INFO  # as slow to import as all of the package

        chosen = case_ids_in(self.case_set)
        listed = {
            name: ListedTrack(
                name=name,
                sfreq=TRACK_INFO.get(name, {}).get("srate"),
                unit=TRACK_INFO.get(name, {}).get("unit", ""),
                duration_s=None,
            )
            for name in set().union(*self._tracks.values())
        }
        return TrackList(
            tracks={
                case_id: tuple(listed[name] for name in names)
                for case_id, names in sorted(self._tracks.items())
                if chosen is None or case_id in chosen
            },
            refused={},
        )

    def costs(self, channels: Sequence[Channel]) -> dict[str, Cost]:
        """What to expect of `fasttrack` (of this case set), the case set, `bis` and `all`.

        Estimated from the clinical table's lengths and the track list, and corrected by the files that are
        in the cache.
        """
        from vitaldb.utils import TRACK_INFO

        able = [case for case, names in self._tracks.items() if not _lacking(channels, names, case)]
        members = {name: case_ids_in(name) for name in dict.fromkeys((self.case_set, "bis", "all"))}
        sfreqs = {name: info["srate"] for name, info in TRACK_INFO.items() if "srate" in info}

        def cost(case_ids: Sequence[str], **more: Any) -> Cost:
            return estimate_cost(
                [_duration_of(self._clinical.get(case_id, {})) for case_id in case_ids],
                [self._tracks[case_id] for case_id in case_ids],
                sfreqs=sfreqs,
                channels=len(channels),
                **more,
            )

        cached = {case_id: path.stat().st_size for case_id in able if (path := self._path(case_id)).is_file()}
        expected = cost(list(cached)).download_bytes
        measured = sum(cached.values()) / expected if expected > 0 else 1.0
        ids = {
            name: [case_id for case_id in able if chosen is None or case_id in chosen]
            for name, chosen in members.items()
        }
        fasttrack = cost(ids[self.case_set], cases=FASTTRACK_CASES, measured=measured)
        return {
            "fasttrack": fasttrack,
            **{name: cost(case_ids, measured=measured) for name, case_ids in ids.items()},
        }

    def fetch(self, case_id: str) -> Path:
        """The case's file in the cache, downloaded and checked if it is not there yet.

        Safe to call from several threads and processes, to download ahead of reading.

        Raises:
            DataError: the file cannot be downloaded, with the reason.
        """
        path, _ = self._checked(case_id)
        return path

    def read(self, case_id: str, channels: Sequence[Channel]) -> Recording:
        """The samples of one case at their native rates, NaN in gaps, on one clock.

        Raises:
            DataError: the file cannot be downloaded, or a channel is absent, all gaps or at another rate than
                the data set's.
        """
        from vitaldb.utils import TRACK_INFO  # as slow to import as all of the package

        path = self.fetch(case_id)
        return read_recording(path, case_id=case_id, channels=channels, known=TRACK_INFO)

    def fingerprint(self, case_id: str) -> str:
        """SHA-256 of the case's file (downloaded if need be; remembered beside it in the cache).

        The remembered digest is given without the file too: files of one version of the data set do not
        change, so those removed to save space are not downloaded again.
        """
        path = self._path(case_id)
        known = None if path.exists() else _read_record(path.with_suffix(".json"))
        return self._checked(case_id)[1] if known is None else str(known["sha256"])

    def _path(self, case_id: str) -> Path:
        """Where the case's file goes in the cache."""
        if not (case_id.isascii() and case_id.isdigit()):
            raise DataError(f"case {case_id}: VitalDB's cases are numbers. Check the split file.")
        return self.cache_dir / self.dataset_version / f"{case_id}.vital"

    def _checked(self, case_id: str) -> tuple[Path, str]:
        """The case's file, known to be complete, and its SHA-256.

        A record beside the file says that these very bytes (by size and time of change) were checked;
        a file without one, or changed since, is checked again, and replaced if it is damaged.
        """
        path, what = self._path(case_id), f"case {case_id}"
        record = path.with_suffix(".json")
        # The record may be written of the temporary file: a rename changes neither its size nor its time.
        self._fetch(
            f"{self.base_url}/{self.dataset_version}/{case_id}.vital",
            path,
            what=what,
            check=lambda file: _check_and_record(file, record, what=what),
            already_checked=lambda file: _is_recorded(file, record),
            on_retry=self.on_retry,
        )
        known = _read_record(record)
        if known is None:
            raise DataError(f"case {case_id}: {record} was removed while it was in use. Rerun the command.")
        return path, str(known["sha256"])

    def _table(self, table: str) -> Path:
        """One of the API's two tables, in the cache."""
        path = self.cache_dir / f"{table}.csv"
        self._fetch(
            f"{self.base_url}/{table}",
            path,
            what=_TABLES[table][0],
            check=lambda file: _check_table(file, table),
            accept_gzip=True,
            on_retry=self.on_retry,
        )
        return path

    @cached_property
    def _clinical(self) -> dict[str, dict[str, str]]:
        """Row of the clinical table by case id."""
        clinical: dict[str, dict[str, str]] = {}
        for row in _rows(self._table("cases"), "cases"):
            if row["caseid"] in clinical:
                raise DataError(f"the clinical table lists case {row['caseid']} twice")
            clinical[row["caseid"]] = {name: row[name] for name in _KEPT if name in row}
        return clinical

    @cached_property
    def _tracks(self) -> dict[str, tuple[str, ...]]:
        """Track names by case id."""
        names = defaultdict(list)
        for row in _rows(self._table("trks"), "trks"):
            names[sys.intern(row["caseid"])].append(sys.intern(row["tname"]))
        return {case_id: tuple(tracks) for case_id, tracks in names.items()}

    def _case(self, case_id: str) -> Case:
        row = self._clinical.get(case_id, {})
        return Case(
            case_id=case_id,
            subject_id=row.get("subjectid") or None,
            tracks=self._tracks[case_id],
            duration_s=_duration_of(row),
        )


class VitalFilesSource(FilesSource):
    """A directory of `.vital` files from any hospital; see `FilesSource`."""

    name = "vital"
    suffixes = (".vital",)

    def list_file(self, path: Path, *, what: str) -> tuple[ListedTrack, ...]:
        """The tracks of a file, which is read to its end for them."""
        return list_tracks(path, what=what)

    def find_track(self, channel: Channel, names: Iterable[str], *, what: str) -> str | None:
        """The track of a channel, with or without its device; see `vital_file.find_track`."""
        return find_track(channel.tracks, names, what=what)

    def read(self, case_id: str, channels: Sequence[Channel]) -> Recording:
        """The samples of one file at their native rates, NaN in gaps, on one clock.

        Raises:
            DataError: the file is damaged, or a channel is absent, all gaps or not at the header's rate.
        """
        return read_recording(self.path_of(case_id), case_id=case_id, channels=channels, known={})


def _lacking(channels: Sequence[Channel], tracks: Sequence[str], case_id: str) -> tuple[str, ...]:
    """The channels that a case would need to have a track of."""

    def has(channel: Channel) -> bool:
        what = f"case {case_id}, channel {channel.name}"
        return find_track(channel.tracks, tracks, what=what) is not None

    return missing_channels(channels, has)


def _text_of(path: Path, table: str) -> bytes:
    """A table's text, unzipped if the server compressed it, without byte order mark."""
    what, _, largest = _TABLES[table]
    with path.open("rb") as raw:
        zipped = raw.read(len(GZIP_MAGIC)) == GZIP_MAGIC
        raw.seek(0)
        with gzip.open(raw) if zipped else raw as text:
            content = text.read(largest + 1)
    if len(content) > largest:
        raise DataError(f"{what} ({path}) has more than {largest} bytes: it is not VitalDB's")
    return content.removeprefix(b"\xef\xbb\xbf")


def _rows(path: Path, table: str) -> Iterator[dict[str, str]]:
    """The rows of a table by column.

    Raises:
        DataError: it is cut short, is something else (an error page), or has a row that cannot be.
    """
    what, columns, _ = _TABLES[table]
    try:
        rows = csv.reader(io.StringIO(_text_of(path, table).decode("utf-8"), newline=""))
        header = next(rows, [])
        missing = [column for column in columns if column not in header]
        if missing:
            has = ", ".join(header[:8])[:200] or "none"
            raise DataError(f"{what} ({path}) has no column {', '.join(missing)}, but {has}")
        for row in filter(None, rows):
            found = dict(zip(header, row, strict=False))
            short = not found.keys() >= set(columns)
            if short or not (found["caseid"].isascii() and found["caseid"].isdigit()):
                raise DataError(
                    f"{what} ({path}), line {rows.line_num}: expected a number as caseid, and"
                    f" {', '.join(columns[1:])}; got {','.join(row)[:60]!r}. Remove the file, so that it is"
                    " downloaded again"
                )
            yield found
    except (EOFError, zlib.error, gzip.BadGzipFile, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{what} ({path}) is cut short or damaged ({error})") from error


def _check_table(path: Path, table: str) -> None:
    """Refuse a table that is cut short, is something else (an error page), or is empty."""
    if sum(1 for _ in _rows(path, table)) == 0:
        raise DataError(f"{_TABLES[table][0]} has no rows")


def _duration_of(row: Mapping[str, str]) -> float | None:
    """Length of the recording in seconds by the clinical table, where it says so and that can be."""
    try:
        duration = float(row["caseend"]) - float(row["casestart"])
    except (KeyError, ValueError):
        return None
    return duration if 0 < duration <= MAX_HOURS * 3600 else None


def _check_and_record(path: Path, record: Path, *, what: str) -> None:
    """Check that a `.vital` file is complete, and record its size, time of change and SHA-256."""
    stamp = _stamp_of(path)
    check_complete(path, what=what)
    write_json(record, stamp | {"sha256": sha256_of(path)})


def _is_recorded(path: Path, record: Path) -> bool:
    """Whether the file was checked, by the size and time of change on record."""
    known = _read_record(record)
    try:  # not `exists` first: another process may be replacing the file just now
        return known is not None and known.items() >= _stamp_of(path).items()
    except FileNotFoundError:
        return False


def _stamp_of(path: Path) -> dict[str, int]:
    status = path.stat()
    return {"size": status.st_size, "mtime_ns": status.st_mtime_ns}


def _read_record(path: Path) -> dict[str, Any] | None:
    """The record of a checked file; None without a readable one, so that the file is checked again."""
    try:
        record = from_json(path.read_bytes())
    except (OSError, ValueError):
        return None
    return record if isinstance(record, dict) and isinstance(record.get("sha256"), str) else None
