"""Motion check of the PPG, measured on synthetic runners: the table of docs/signal_quality.md.

    python -m tests.benchmarks.motion_report [--seeds 201,202,203,204] [--subjects 60]

The constants were chosen on seeds 1 to 8 and 101 to 104; these must be others.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from sklearn.metrics import roc_auc_score

from biofound.data.channels import MotionGate
from biofound.data.conditioning import condition
from biofound.data.motion import assess_motion
from biofound.data.quality import assess, find_beats
from biofound.data.sources.synthetic import SyntheticSource
from biofound.settings import ChannelsSettings, WindowsSettings

SFREQ, SECONDS = 125.0, 10.0
CHANNELS = ChannelsSettings().section("finetune")
WAYS: dict[str, tuple[tuple[str, ...], MotionGate]] = {
    "no motion check": (("PPG",), "off"),
    "with acceleration": (("ACC_X", "ACC_Y", "ACC_Z", "PPG"), "auto"),
    "with acceleration and ECG": (("ACC_X", "ACC_Y", "ACC_Z", "PPG", "ECG"), "auto"),
    "with ECG": (("PPG", "ECG"), "on"),
    "PPG alone": (("PPG",), "on"),
}
"""What the check may look at."""

READABLE, UNREADABLE = 1.0, 0.3
"""Power of the pulse over that of all else in the PPG from which on it is readable, and below which not."""


@dataclass(frozen=True, kw_only=True)
class Judged:
    """All N windows of a cohort: `quality` (N,) of the PPG by each of `WAYS`, and what is true of them.

    `ratio` is the power of the pulse over that of all else in the PPG, `found` whether the beats found are
    the pulses, `motion` the share of the window in which the subject moves; NaN, False and 0 for `rest`.
    """

    quality: dict[str, NDArray[np.float32]]
    ratio: NDArray[np.float64]
    found: NDArray[np.bool_]
    motion: NDArray[np.float64]


def judge(*, seed: int, subjects: int, minutes: float = 2.0, population: str = "exercise") -> Judged:
    """Assess the windows of a synthetic cohort without artefacts but its own steps, movements and noise."""
    source = SyntheticSource(
        seed=seed, subjects=subjects, minutes=minutes, artefacts=0.0, population=population, sfreq=250.0
    )
    starts = np.arange(0.0, 60 * minutes - SECONDS + 1e-6, SECONDS)
    cases = [_judge_case(source, case.case_id, starts) for case in source.cases(CHANNELS)]
    return Judged(
        quality={way: np.concatenate([case.quality[way] for case in cases]) for way in WAYS},
        ratio=np.concatenate([case.ratio for case in cases]),
        found=np.concatenate([case.found for case in cases]),
        motion=np.concatenate([case.motion for case in cases]),
    )


def _judge_case(source: SyntheticSource, case_id: str, starts: NDArray[np.float64]) -> Judged:
    recording = source.read(case_id, CHANNELS)
    gap = WindowsSettings().max_gap_seconds
    conditioned = condition(recording, CHANNELS, sfreq=SFREQ, max_gap_seconds=gap)
    settings = {"sfreq": SFREQ, "window_samples": round(SECONDS * SFREQ)}
    rows = {channel.name: row for row, channel in enumerate(CHANNELS)}
    assessed = {
        channel.name: assess(
            recording.signals[channel.name],
            conditioned.samples[rows[channel.name]],
            conditioned.invalid[rows[channel.name]],
            channel=channel,
            **settings,
        )
        for channel in CHANNELS
    }
    quality = {}
    for way, (names, gate) in WAYS.items():
        chosen = [rows[name] for name in names]
        found = assess_motion(
            conditioned.samples[chosen],
            conditioned.invalid[chosen],
            [CHANNELS[row] for row in chosen],
            [assessed[name] for name in names],
            gate=gate,
            **settings,
        )
        quality[way] = found[names.index("PPG")].quality
    if source.population == "rest":
        nothing = np.zeros(len(starts))
        return Judged(quality=quality, ratio=nothing + np.nan, found=nothing > 0, motion=nothing)
    truth = source.truth(case_id, starts, seconds=SECONDS)
    ppg = rows["PPG"]
    beats = find_beats(conditioned.samples[ppg], conditioned.invalid[ppg], "PPG", sfreq=SFREQ) / SFREQ
    return Judged(
        quality=quality,
        ratio=source.pulse_to_disturbance(case_id, starts, seconds=SECONDS),
        found=np.array(
            [_are_pulses(beats - s, feet) for s, feet in zip(starts, truth.pulse_feet, strict=True)]
        ),
        motion=truth.motion,
    )


def _are_pulses(beats: NDArray[np.float64], feet: NDArray[np.float64]) -> bool:
    """Whether beats and pulses are the same to 90 % (F1) and 80 ms, at some constant delay."""
    beats, feet = beats[(beats >= 0) & (beats < SECONDS)], feet[np.isfinite(feet)]
    if len(beats) < 2 or len(feet) < 2:
        return False
    delays = np.arange(0.0, 0.25, 0.02)
    near = np.abs(beats[:, None] - feet - delays[:, None, None]) < 0.08  # (delays, beats, feet)
    matched = np.minimum(near.any(axis=1).sum(axis=1), near.any(axis=2).sum(axis=1))
    return bool(2 * matched.max() / (len(beats) + len(feet)) >= 0.9)


def auc(judged: Judged, way: str) -> tuple[float, float]:
    """Of moving windows: AUC of the quality for `ratio` from 1 on, and for beats that are the pulses."""
    moving = judged.motion > 0.5
    quality = judged.quality[way][moving]
    return (
        float(roc_auc_score(judged.ratio[moving] >= READABLE, quality)),
        float(roc_auc_score(judged.found[moving], quality)),
    )


def kept(judged: Judged, way: str, among: NDArray[np.bool_]) -> float:
    """Share of the windows `among` (N,) that are kept."""
    return float((judged.quality[way][among] >= 0.5).mean())


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Measure the motion check of the PPG.")
    parser.add_argument("--seeds", default="201,202,203,204", help="seeds of the cohorts")
    parser.add_argument("--subjects", type=int, default=60, help="subjects of a cohort, two minutes each")
    options = parser.parse_args(arguments)
    seeds = [int(seed) for seed in options.seeds.split(",")]
    cohorts = [judge(seed=seed, subjects=options.subjects) for seed in seeds]
    resting = judge(seed=seeds[0], subjects=options.subjects, population="rest")
    table = Table("check", "AUC, ratio >= 1", "AUC, beats found", "readable", "unreadable", "still", "rest")
    for way in WAYS:
        scores = np.array([auc(cohort, way) for cohort in cohorts])
        shares = [f"{scores[:, k].mean():.2f} ({scores[:, k].min():.2f})" for k in (0, 1)]
        moving = [cohort.motion > 0.5 for cohort in cohorts]
        among = (
            [m & c.found & (c.ratio >= READABLE) for m, c in zip(moving, cohorts, strict=True)],
            [m & (c.ratio < UNREADABLE) for m, c in zip(moving, cohorts, strict=True)],
            [(c.motion == 0) & (c.quality["no motion check"] >= 0.5) for c in cohorts],
        )
        for chosen in among:
            total = [kept(c, way, some) for c, some in zip(cohorts, chosen, strict=True)]
            shares.append(f"{100 * np.mean(total):.1f} %")
        all_kept = resting.quality["no motion check"] >= 0.5
        table.add_row(way, *shares, f"{100 * kept(resting, way, all_kept):.1f} %")
    moving_share = np.mean([(c.motion > 0.5).mean() for c in cohorts])
    readable = np.mean([(c.ratio[c.motion > 0.5] >= READABLE).mean() for c in cohorts])
    console = Console(width=140)
    console.print(table)
    console.print(
        f"{sum(len(c.ratio) for c in cohorts)} windows, {moving_share:.0%} moving, {readable:.0%} of these "
        "with at least as much pulse as all else"
    )


if __name__ == "__main__":
    main()
