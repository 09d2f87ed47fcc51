"""Quality check of windows, measured: the tables and pictures of docs/signal_quality.md.

    python -m tests.benchmarks.quality_report [--bidmc DIR] [--pictures DIR] [--hours H]

Without --bidmc only the synthetic cohort is measured. The pictures are derived from BIDMC (Pimentel et al.
2016, ODC-By), so --pictures needs --bidmc.
"""

import argparse
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console
from rich.table import Table

from biofound.data.channels import Channel
from biofound.data.conditioning import Conditioned, condition
from biofound.data.quality import Reason, WindowQuality, assess
from biofound.data.sources import Recording, Source
from biofound.data.sources.synthetic import SyntheticSource
from biofound.data.sources.wfdb import WfdbSource
from biofound.settings import ChannelsSettings, WindowsSettings
from tests.benchmarks.per_window import judge_by_loop

SFREQ = 125.0
WINDOW_S = 10.0
WINDOW = round(WINDOW_S * SFREQ)
HARD_SHARE = 0.2
HELD_BACK_SEED = 977
LOOKED_AT = 20

_TABLE = {channel.name: channel for channel in ChannelsSettings().section("finetune")}
CHANNELS = (_TABLE["PPG"], _TABLE["ECG"], _TABLE["ACC_X"])
"""The shipped channels; one ACC axis stands for three."""


@dataclass(frozen=True, kw_only=True)
class Judged:
    """A window of a labelled recording: share covered by hard artefacts, and the kind that covers most."""

    channel: str
    hard: float
    kind: str
    quality: float
    reason: Reason


@dataclass(kw_only=True)
class Rates:
    """Counts of clean and hard windows (`HARD_SHARE` or more covered), and of those kept or dropped."""

    clean: int = 0
    clean_kept: int = 0
    hard: int = 0
    hard_dropped: int = 0
    by_kind: dict[str, list[int]] = field(default_factory=dict)
    clean_quality: list[float] = field(default_factory=list)
    motion_quality: list[float] = field(default_factory=list)


def judge(recording: Recording, channels: Sequence[Channel]) -> list[WindowQuality]:
    """The quality of each channel's windows, as `biofound windows` measures it."""
    return gate(recording, conditioned_by_default(recording, channels), channels)


def conditioned_by_default(recording: Recording, channels: Sequence[Channel]) -> Conditioned:
    gap = WindowsSettings.model_fields["max_gap_seconds"].default
    return condition(recording, channels, sfreq=SFREQ, max_gap_seconds=gap)


def gate(recording: Recording, conditioned: Conditioned, channels: Sequence[Channel]) -> list[WindowQuality]:
    """The quality of each channel's windows, of a recording that is conditioned already."""
    return [
        assess(
            recording.signals[channel.name],
            conditioned.samples[row],
            conditioned.invalid[row],
            channel=channel,
            sfreq=SFREQ,
            window_samples=WINDOW,
        )
        for row, channel in enumerate(channels)
    ]


def judge_cohort(*, seed: int, subjects: int, minutes: float) -> list[Judged]:
    """All windows of an embedded cohort at 500 Hz, with their labels."""
    source = SyntheticSource(seed=seed, subjects=subjects, minutes=minutes)
    windows = []
    for case in source.cases(CHANNELS):
        results = judge(source.read(case.case_id, CHANNELS), CHANNELS)
        for channel, result in zip(CHANNELS, results, strict=True):
            covered = _hard_seconds(source, case.case_id, channel.name, len(result.reason))
            for index, (quality, reason) in enumerate(zip(result.quality, result.reason, strict=True)):
                kinds = covered[index]
                windows.append(
                    Judged(
                        channel=channel.name,
                        hard=kinds.total() / WINDOW_S,
                        kind=kinds.most_common(1)[0][0] if kinds else "",
                        quality=float(quality),
                        reason=Reason(reason),
                    )
                )
    return windows


def _hard_seconds(source: SyntheticSource, case_id: str, channel: str, count: int) -> list[Counter[str]]:
    """For each window the seconds that each kind of hard artefact covers."""
    covered: list[Counter[str]] = [Counter() for _ in range(count)]
    for label in source.labels(case_id):
        if label.channel != channel or not label.hard:
            continue
        for index in range(int(label.start_s // WINDOW_S), min(count, int(np.ceil(label.stop_s / WINDOW_S)))):
            start, stop = index * WINDOW_S, (index + 1) * WINDOW_S
            covered[index][label.kind] += min(stop, label.stop_s) - max(start, label.start_s)
    return covered


def rates(windows: Sequence[Judged]) -> dict[str, Rates]:
    """Channel to keep and drop rates. Windows with a little hard artefact are neither clean nor hard."""
    table = {channel.name: Rates() for channel in CHANNELS}
    for window in windows:
        row = table[window.channel]
        kept = window.reason == Reason.KEPT
        if window.hard == 0:
            row.clean += 1
            row.clean_kept += kept
            row.clean_quality.append(window.quality)
        elif window.hard >= HARD_SHARE - 1e-9:
            row.hard += 1
            row.hard_dropped += not kept
            counts = row.by_kind.setdefault(window.kind, [0, 0])
            counts[0] += 1
            counts[1] += not kept
            if window.kind == "motion":
                row.motion_quality.append(window.quality)
    return table


def synthetic_table(table: dict[str, Rates], title: str) -> Table:
    shown = Table("channel", "clean", "kept", "hard", "dropped", "by kind", "quality", title=title)
    for name, row in table.items():
        kinds = ", ".join(f"{kind} {out}/{all_}" for kind, (all_, out) in sorted(row.by_kind.items()))
        low = f"clean, 0.1 %: {np.quantile(row.clean_quality, 0.001):.2f}"
        high = f"; motion, 99 %: {np.quantile(row.motion_quality, 0.99):.2f}" if row.motion_quality else ""
        shown.add_row(
            name,
            str(row.clean),
            f"{row.clean_kept / row.clean:.2%}",
            str(row.hard),
            f"{row.hard_dropped / row.hard:.2%}",
            kinds,
            low + high,
        )
    return shown


# ---------------------------------------------------------------- BIDMC


@dataclass(frozen=True, kw_only=True)
class Seen:
    """A window of BIDMC with its recorded and filtered signal, to be drawn."""

    case_id: str
    index: int
    quality: float
    reason: Reason
    raw: NDArray[np.float32]
    filtered: NDArray[np.float32]


def look_at_bidmc(source: Source) -> dict[str, list[Seen]]:
    """Channel to all windows of all records, in order."""
    seen: dict[str, list[Seen]] = {"PPG": [], "ECG": []}
    channels = CHANNELS[:2]
    for case in source.cases(channels):
        recording = source.read(case.case_id, channels)
        conditioned = conditioned_by_default(recording, channels)
        results = gate(recording, conditioned, channels)
        for row, (channel, result) in enumerate(zip(channels, results, strict=True)):
            raw = recording.signals[channel.name].samples
            for index in range(len(result.reason)):
                span = slice(index * WINDOW, (index + 1) * WINDOW)
                seen[channel.name].append(
                    Seen(
                        case_id=case.case_id,
                        index=index,
                        quality=float(result.quality[index]),
                        reason=Reason(result.reason[index]),
                        raw=raw[span] - np.nanmean(raw[span]),
                        filtered=conditioned.samples[row, span],
                    )
                )
    return seen


def bidmc_table(seen: dict[str, list[Seen]]) -> Table:
    shown = Table("channel", "windows", "kept", "dropped by reason", "records under 90 %", title="BIDMC")
    for name, windows in seen.items():
        kept = np.mean([window.reason == Reason.KEPT for window in windows])
        reasons = Counter(window.reason.name.lower() for window in windows if window.reason)
        records: dict[str, list[bool]] = {}
        for window in windows:
            records.setdefault(window.case_id, []).append(window.reason == Reason.KEPT)
        poor = [f"{case} {np.mean(keeps):.0%}" for case, keeps in records.items() if np.mean(keeps) < 0.9]
        shown.add_row(
            name,
            str(len(windows)),
            f"{kept:.1%}",
            ", ".join(f"{reason} {count}" for reason, count in reasons.most_common()),
            ", ".join(poor),
        )
    both = [
        a.reason == Reason.KEPT and b.reason == Reason.KEPT
        for a, b in zip(seen["PPG"], seen["ECG"], strict=True)
    ]
    shown.add_row("both", str(len(both)), f"{np.mean(both):.1%}", "", "")
    return shown


def draw(windows: Sequence[Seen], path: Path, *, name: str, unit: str, threshold: float) -> None:
    """Draw best, borderline (nearest the threshold) and rejected windows of one channel, as PNG."""
    rng = np.random.default_rng(0)
    kept = [window for window in windows if window.reason == Reason.KEPT]
    near = sorted(windows, key=lambda window: abs(window.quality - threshold))
    just_in = [window for window in near if window.reason == Reason.KEPT][:3]
    just_out = [window for window in near if window.reason != Reason.KEPT][:3]
    best = [window for window in kept if window.quality >= 0.999]
    dropped = [window for window in windows if window.reason != Reason.KEPT and window not in just_out]
    columns = {
        "best": [best[i] for i in rng.permutation(len(best))[:6]],
        "borderline": sorted(just_in + just_out, key=lambda window: -window.quality),
        "rejected": _one_a_record(dropped, rng, 6),
    }
    _draw_columns(columns, path, title=f"{name} ({unit}), threshold {threshold:g}")


def draw_rejected(windows: Sequence[Seen], path: Path, *, name: str, unit: str) -> None:
    """Draw twenty random rejected windows, at most three of one record."""
    rng = np.random.default_rng(1)
    dropped = [window for window in windows if window.reason != Reason.KEPT]
    chosen: list[Seen] = []
    for i in rng.permutation(len(dropped)):
        if sum(dropped[i].case_id == window.case_id for window in chosen) < 3 and len(chosen) < LOOKED_AT:
            chosen.append(dropped[i])
    chosen.sort(key=lambda window: (window.case_id, window.index))
    half = (len(chosen) + 1) // 2
    _draw_columns({"rejected": chosen[:half], "rejected, too": chosen[half:]}, path, title=f"{name} ({unit})")


def _one_a_record(windows: Sequence[Seen], rng: np.random.Generator, count: int) -> list[Seen]:
    first: dict[tuple[str, Reason], Seen] = {}
    for i in rng.permutation(len(windows)):
        first.setdefault((windows[i].case_id, windows[i].reason), windows[i])
    return list(first.values())[:count]


def _draw_columns(columns: dict[str, list[Seen]], path: Path, *, title: str) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    rows = max(len(windows) for windows in columns.values())
    figure, axes = plt.subplots(
        rows, len(columns), figsize=(4.6 * len(columns), 1.15 * rows + 0.5), squeeze=False
    )
    time_s = np.arange(WINDOW) / SFREQ
    for column, (heading, windows) in enumerate(columns.items()):
        for row in range(rows):
            axis = axes[row, column]
            axis.tick_params(labelsize=5, length=2)
            if row >= len(windows):
                axis.axis("off")
                continue
            window = windows[row]
            axis.plot(time_s, window.raw, color="0.7", linewidth=0.6)
            axis.plot(time_s, window.filtered, color="C0" if window.reason == Reason.KEPT else "C3", lw=0.7)
            axis.set_xlim(0, WINDOW_S)
            label = f"{window.quality:.2f} {window.reason.name.lower()}"
            lead = f"{heading}: " if row == 0 else ""
            axis.set_title(
                f"{lead}{window.case_id}, {window.index * WINDOW_S:.0f} s, {label}", fontsize=6, pad=2
            )
    figure.suptitle(
        f"{title}; recorded (grey) and filtered. From BIDMC, Pimentel et al. 2016, ODC-By.", fontsize=7
    )
    figure.tight_layout(h_pad=0.2, w_pad=0.4, rect=(0, 0, 1, 0.985))
    drawn = BytesIO()
    figure.savefig(drawn, format="png", dpi=90)
    plt.close(figure)
    # 32 colours: a third of the bytes
    Image.open(drawn).convert("RGB").quantize(32).save(path, optimize=True)


# ---------------------------------------------------------------- cost


def cost_table(hours: float) -> Table:
    """CPU seconds of each step on one synthetic case at 500 Hz; the best of three runs each."""
    source = SyntheticSource(seed=HELD_BACK_SEED, subjects=1, minutes=60 * hours)
    channels = CHANNELS[:2]
    recording = source.read("syn0001_1", channels)
    conditioned = conditioned_by_default(recording, channels)

    def loop() -> None:
        for channel in channels:
            judge_by_loop(recording.signals[channel.name], channel, sfreq=SFREQ, window_seconds=WINDOW_S)

    conditioning = _cpu_seconds(lambda: conditioned_by_default(recording, channels), times=3)
    gating = _cpu_seconds(lambda: gate(recording, conditioned, channels), times=3)
    looping = _cpu_seconds(loop, times=1)
    shown = Table("step", "CPU s", title=f"{hours:g} h of PPG and ECG at 500 Hz")
    shown.add_row("conditioning", f"{conditioning:.3f}")
    shown.add_row("quality", f"{gating:.3f}")
    shown.add_row("both, window by window (tests/benchmarks/per_window.py)", f"{looping:.2f}")
    shown.add_row("times as much as conditioning and quality", f"{looping / (conditioning + gating):.0f}")
    shown.add_row("times as much as quality", f"{looping / gating:.0f}")
    return shown


def _cpu_seconds(work: Callable[[], object], *, times: int) -> float:
    best = float("inf")
    for _ in range(times):
        before = time.process_time()
        work()
        best = min(best, time.process_time() - before)
    return best


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Measure the quality gate.")
    parser.add_argument("--bidmc", type=Path, help="directory of the BIDMC records (WFDB)")
    parser.add_argument("--pictures", type=Path, help="directory for the pictures; needs --bidmc")
    parser.add_argument("--hours", type=float, default=3.0, help="length of the case that is timed")
    options = parser.parse_args(arguments)
    if options.pictures and not options.bidmc:
        parser.error("--pictures needs --bidmc")
    console = Console(width=150)
    cohort = judge_cohort(seed=HELD_BACK_SEED, subjects=60, minutes=20.0)
    console.print(synthetic_table(rates(cohort), f"embedded cohort, held-back seed {HELD_BACK_SEED}"))
    console.print(cost_table(options.hours))
    if not options.bidmc:
        return
    seen = look_at_bidmc(WfdbSource(root=options.bidmc))
    console.print(bidmc_table(seen))
    if options.pictures:
        options.pictures.mkdir(parents=True, exist_ok=True)
        for channel in CHANNELS[:2]:
            name, windows = channel.name, seen[channel.name]
            path = options.pictures / f"quality_{name.lower()}.png"
            draw(windows, path, name=name, unit=channel.unit, threshold=channel.quality_threshold)
            rejected = options.pictures / f"quality_{name.lower()}_rejected.png"
            draw_rejected(windows, rejected, name=name, unit=channel.unit)


if __name__ == "__main__":
    main()
