"""`biofound prepare`: list the cases of a source and split them by patient."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

from biofound import console
from biofound.commands.left_out import show_left_out, show_repaired
from biofound.commands.recordings import open_recordings
from biofound.data.sources import SHOWN, Case, ListedTrack, ListingSource
from biofound.data.sources.vitaldb import VitalDBSource, case_ids_in
from biofound.data.sources.vitaldb_cost import BYTES_PER_SECOND, Cost
from biofound.data.splits import SPLITS, Splits, load_splits, make_splits, save_splits
from biofound.errors import DataError, write_error_context
from biofound.files import path_to_text
from biofound.options import Invocation
from biofound.settings import PrepareSettings, resolve_channels


def execute(invocation: Invocation[PrepareSettings]) -> None:
    """Write `splits_<mode>.json`, and show the cases, patients and hours of each split."""
    settings = invocation.settings
    channels = resolve_channels(settings.channels_yaml, settings.section).channels
    source = open_recordings(settings.source_description())
    if settings.list_tracks:
        list_tracks(cast(ListingSource, source), json=invocation.json)
        return
    found = source.survey(channels)
    cases = found.usable(skip_failed=settings.skip_failed)
    splits = make_splits(
        cases,
        mode=settings.mode,
        seed=settings.seed,
        source=source.describe(),
        dataset_version=source.version(),
        channels=[channel.name for channel in channels],
        case_set=settings.case_set,
        fractions=settings.fractions,
    )
    path = settings.output / f"splits_{settings.mode}.json"
    if not settings.overwrite:
        _refuse_other_splits(path, splits)
    with write_error_context(path, option="--output"):
        save_splits(path, splits)

    counts = count_splits(splits, cases)
    costs = source.costs(channels) if isinstance(source, VitalDBSource) else {}
    if splits.mode == "full" and splits.case_set is not None:
        _note_case_set(splits.case_set)
    if invocation.json:
        console.print_json(
            {
                "split_file": path_to_text(path),
                "source": dict(splits.source),
                "splits": counts,
                "fractions": list(splits.fractions),
                "moved": splits.moved(),
                "left_out": {case_id: list(absent) for case_id, absent in found.left_out.items()},
                "refused": dict(found.refused),
                "repaired": dict(found.repaired),
                "costs": {name: asdict(cost) for name, cost in costs.items()},
            }
        )
    else:
        _show_splits(splits, counts)
        show_left_out(found.left_out, found.refused)
        show_repaired(found.repaired)
        if moved := splits.moved():
            named = ", ".join(f"{subject} to {name}" for subject, name in moved.items())
            console.note(f"so few patients that a split had nobody; moved, until others are added: {named}")
        if costs:
            _show_costs(costs)
        if not any(splits.subjects(name) for name in SPLITS):
            console.note(
                "nobody says who was recorded: these cases are for pretraining only, and serve neither as "
                "validation nor for a probe"
            )
        console.note(f"written: {path}")


def _refuse_other_splits(path: Path, splits: Splits) -> None:
    """Refuse to replace splits that another command made: of other recordings, channels, or settings."""
    if not path.exists():
        return
    try:
        differences = load_splits(path).differences(splits)
    except DataError as problem:
        differences = [str(problem)]
    if differences:
        raise DataError(
            f"{path}: is there, of another source or other settings ({'; '.join(differences)}); choose "
            "another directory with --output, or replace it with --overwrite"
        )


def count_splits(splits: Splits, cases: Sequence[Case]) -> dict[str, dict[str, Any]]:
    """Cases, patients and hours by split; hours are None where the source knows them only after reading."""
    seconds = {case.case_id: case.duration_s for case in cases}
    counts: dict[str, dict[str, Any]] = {}
    for name in SPLITS:
        durations = [seconds[case.case_id] for case in splits.of(name)]
        known = [duration for duration in durations if duration is not None]
        counts[name] = {
            "cases": len(durations),
            "subjects": len(splits.subjects(name)),
            "hours": sum(known) / 3600 if len(known) == len(durations) else None,
        }
    return counts


def _show_splits(splits: Splits, counts: Mapping[str, Mapping[str, Any]]) -> None:
    rows = [(name, row["cases"], row["subjects"], _hours(row["hours"])) for name, row in counts.items()]
    root = splits.source.get("root")
    source = f"{splits.source['name']} in {root}" if root else splits.source["name"]
    title = f"splits by patient: source {source}, mode {splits.mode}, seed {splits.seed}"
    columns = ("split", "cases", "subjects", "hours")
    console.table(title, columns, rows, numbers=columns[1:])


def _hours(hours: float | None) -> str:
    return "not known yet" if hours is None else f"{hours:.2f}"


def _note_case_set(case_set: str) -> None:
    """Say that `full` covers one set of VitalDB's cases only, where that is so."""
    members = case_ids_in(case_set)
    if members is not None:
        console.note(
            f"the case set {case_set}, {len(members):,} cases, limits these splits; "
            "--case-set all takes every case of VitalDB"
        )


def _show_costs(costs: Mapping[str, Cost]) -> None:
    """Say what the sets of VitalDB's cases cost, before `windows` downloads them."""
    rows = [
        (
            name,
            f"{cost.cases:,}",
            f"{cost.hours:,.0f}",
            f"{cost.download_bytes / 1e9:,.1f}",
            f"{cost.window_bytes / 1e9:,.1f}",
            _minutes_or_hours(cost.download_seconds),
            _minutes_or_hours(cost.build_seconds),
        )
        for name, cost in costs.items()
    ]
    columns = ("cases of", "cases", "hours", "download GB", "windows GB", "download time", "CPU time")
    title = (
        "cost of `biofound windows` with VitalDB, estimated from the track list: it downloads, here at "
        f"{BYTES_PER_SECOND / 1e6:g} MB/s, and keeps the downloads"
    )
    console.table(title, columns, rows, numbers=columns[1:])


def _minutes_or_hours(seconds: float) -> str:
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def list_tracks(source: ListingSource, *, json: bool) -> None:
    """Show the waves of a source: how many recordings have each, and which recording has which."""
    listed = source.tracks()
    if json:
        tracks = {case_id: [asdict(track) for track in found] for case_id, found in listed.tracks.items()}
        console.print_json({"tracks": tracks, "refused": dict(listed.refused)})
        return
    by_recording: list[tuple[str, str]] = []
    having: dict[tuple[str, str, str], list[ListedTrack]] = {}
    for case_id, found in listed.tracks.items():
        waves = [track for track in found if track.sfreq is not None]
        for wave in waves:
            having.setdefault((wave.name, f"{wave.sfreq:g}", wave.unit), []).append(wave)
        by_recording.append((case_id, "; ".join(_described(wave) for wave in waves) or "none"))
    columns = ("track", "Hz", "unit", "recordings", "hours")
    rows = [(*key, len(waves), _hours_of(waves)) for key, waves in sorted(having.items())]
    title = "tracks that can be channels (--json lists single values and text, too)"
    console.table(title, columns, rows, numbers=("Hz", *columns[3:]))
    title = "recordings, with the rate and the hours of signal of each track"
    console.table(title, ("recording", "tracks"), by_recording[:SHOWN])
    if len(by_recording) > SHOWN:
        console.note(f"and {len(by_recording) - SHOWN} more recordings, which --json lists")
    for reason in listed.refused.values():
        console.warning(reason)


def _described(wave: ListedTrack) -> str:
    hours = _hours_of([wave])
    return f"{wave.name} {wave.sfreq:g} Hz" + (f" {hours} h" if hours else "")


def _hours_of(waves: Sequence[ListedTrack]) -> str:
    """Hours of signal, '' where they are not known."""
    known = [wave.duration_s for wave in waves if wave.duration_s is not None]
    return f"{sum(known) / 3600:.2f}" if len(known) == len(waves) else ""
