"""CPU time and memory of building windows, against gunzip of the file and against loops over windows.

The case is three hours of PPG and ECG at 500 Hz
of the embedded cohort in a `.vital` file. Loops over windows are timed on every ninth window and scaled up;
reading the record, by our reader, is added to their time as it is part of ours.
"""

import functools
import gzip
import importlib.util
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from biofound.data.build import build_windows
from biofound.data.channels import Channel
from biofound.data.sources import Recording, Signal
from biofound.data.sources.synthetic import SyntheticSource
from biofound.data.sources.vitaldb import VitalDBSource
from biofound.data.splits import SplitCase
from biofound.settings import resolve_channels
from tests.benchmarks.per_window import judge_by_loop
from tests.benchmarks.timing import (
    Cost,
    Row,
    busy_cores,
    cores,
    in_turns,
    median,
    ratio,
    seconds,
    spread,
    timed,
)
from tests.data.sources.vitaldb_server import Wave, write_vital

HOURS = 3.0
EVERY = 9
"""A loop is timed on one window in this many."""
CASES = 8
BUSY = 0.2
"""Cores that other processes may use on a machine that counts as idle."""
MIB = 2**20
TRACKS = ("SNUADC/PLETH", "SNUADC/ECG_II")
CHANNELS = resolve_channels(None, "pretrain").channels
Judge = Callable[[NDArray[np.float32], Channel], object]


def windows_rows(*, directory: Path, hours: float = HOURS, rounds: int = 5) -> Iterator[Row]:
    """Rows wa (gunzip), wb (loops), wm (memory), ww and ws (workers)."""
    packed = write_case(directory / "packed", hours=hours)
    packets = write_case(directory / "packets", hours=hours, packed=False)
    yield from cost_rows(packed, packets, directory=directory, hours=hours, rounds=rounds)
    yield memory_row(packed, directory=directory)
    yield from worker_rows(packed, directory=directory, rounds=rounds)


# ---------------------------------------------------------------------------------------------------------
# The case


def write_case(cache: Path, *, hours: float, packed: bool = True) -> VitalDBSource:
    """A VitalDB cache with one case, 1, as after its download."""
    made = SyntheticSource(seed=3, subjects=1, minutes=60 * hours).read("syn0001_1", CHANNELS)
    pleth, ecg = (made.signals[name].samples.astype(np.float64) for name in ("PPG", "ECG"))
    waves = [
        Wave(name=TRACKS[0], samples=pleth * 50, unit="", gain=0.0026, offset=-20.0),
        Wave(name=TRACKS[1], samples=ecg, gain=0.0003, offset=-10.0),
    ]
    source = VitalDBSource(cache_dir=cache, base_url="http://127.0.0.1:9", retries=0)
    write_vital(file_of(source, "1"), waves, packed=packed)
    write_tables(cache, ["1"])
    source.fetch("1")
    return source


def write_tables(cache: Path, case_ids: list[str]) -> None:
    """The clinical table and the track list."""
    rows = "".join(f"{case},{case}\n" for case in case_ids)
    (cache / "cases.csv").write_text(f"caseid,subjectid\n{rows}")
    rows = "".join(f"{case},{track},0\n" for case in case_ids for track in TRACKS)
    (cache / "trks.csv").write_text(f"caseid,tname,tid\n{rows}")


def file_of(source: VitalDBSource, case_id: str) -> Path:
    return source.cache_dir / source.dataset_version / f"{case_id}.vital"


def build(source: VitalDBSource, outdir: Path, *, case_ids: list[str], workers: int = 1) -> int:
    """Build a store from nothing, as `biofound windows` does; the number of windows kept."""
    shutil.rmtree(outdir, ignore_errors=True)
    results = build_windows(
        source=source,
        entries=[SplitCase(case_id=case_id, subject_id=case_id) for case_id in case_ids],
        split="train",
        channels=CHANNELS,
        sfreq=125.0,
        window_seconds=10.0,
        max_gap_seconds=0.1,
        dtype="float16",
        outdir=outdir,
        workers=workers,
    )
    return sum(result.windows for result in results)


# ---------------------------------------------------------------------------------------------------------
# CPU time


def cost_rows(
    packed: VitalDBSource, packets: VitalDBSource, *, directory: Path, hours: float, rounds: int
) -> Iterator[Row]:
    """Rows wa and wb: our CPU time against gunzip and loops, measured in turns."""
    recording = packed.read("1", CHANNELS)
    loops = {"lean": judge_lean, **({"neurokit2": neurokit_judge()} if has_neurokit() else {})}

    def gunzip(source: VitalDBSource) -> Cost:
        return timed(lambda: gzip.decompress(file_of(source, "1").read_bytes()))

    def ours(source: VitalDBSource) -> Cost:
        return timed(lambda: build(source, directory / "store", case_ids=["1"]))

    costs = in_turns(
        {
            "gunzip": functools.partial(gunzip, packed),
            "ours": functools.partial(ours, packed),
            "gunzip packets": functools.partial(gunzip, packets),
            "ours packets": functools.partial(ours, packets),
            "reading": lambda: timed(lambda: packed.read("1", CHANNELS)),
            **{name: functools.partial(loop_cost, recording, judge) for name, judge in loops.items()},
        },
        rounds=rounds,
    )
    cpu = {name: seconds(list_, clock="cpu") for name, list_ in costs.items()}
    first = f"CPU time from {hours:g} h of recording to windows / gunzip of the same bytes"
    for key, what, form in (("a", first, ""), ("a2", "the same, unpacked in packets of 1 s", " packets")):
        of, against = f"ours{form}", f"gunzip{form}"
        found = ratio(cpu[of], cpu[against])
        yield Row(
            key=f"w{key}",
            what=what,
            value=f"{found:.2f}",
            spread=spread(cpu[of], cpu[against]),
            measured=f"{median(cpu[of]):.3f} / {median(cpu[against]):.3f} CPU s",
            target="at most 5" if key == "a" else "",
            met=found <= 5 if key == "a" else None,
        )
    for key, name, what in (
        ("b", "neurokit2", "neurokit2's clean, peaks and quality, window by window / ours"),
        ("b2", "lean", "a lean scipy loop over windows (per_window.py) / ours"),
    ):
        if name not in cpu:
            yield Row(key=f"w{key}", what=what, value="not measured: neurokit2 is not installed")
            continue
        loop = [a + b for a, b in zip(cpu["reading"], cpu[name], strict=True)]
        found = ratio(loop, cpu["ours"])
        yield Row(
            key=f"w{key}",
            what=what,
            value=f"{found:.1f}",
            spread=spread(loop, cpu["ours"], "{:.1f}"),
            measured=f"{median(loop):.1f} / {median(cpu['ours']):.3f} CPU s",
            target="at least 50" if key == "b" else "",
            met=found >= 50 if key == "b" else None,
        )


def loop_cost(recording: Recording, judge: Judge) -> Cost:
    """CPU time to judge every window of every channel, scaled up from every ninth."""

    def loop() -> None:
        for channel in CHANNELS:
            signal = recording.signals[channel.name]
            length = round(10.0 * signal.sfreq)
            for start in range(0, len(signal.samples) - length + 1, length * EVERY):
                window = signal.samples[start : start + length]
                if np.isfinite(window).all():
                    judge(window, channel)

    cost = timed(loop)
    return Cost(cost.wall * EVERY, cost.cpu * EVERY)


def judge_lean(window: NDArray[np.float32], channel: Channel) -> object:
    """Resample, filter, find peaks and match a template with plain scipy."""
    signal = Signal(samples=window, sfreq=500.0, unit=channel.unit)
    return judge_by_loop(signal, channel, sfreq=125.0, window_seconds=10.0)


def has_neurokit() -> bool:
    return importlib.util.find_spec("neurokit2") is not None


def neurokit_judge() -> Judge:
    """A loop over windows with neurokit2 and its defaults: clean, find peaks, match a template."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import neurokit2

    def judge(window: NDArray[np.float32], channel: Channel) -> object:
        if channel.modality == "ECG":
            clean = neurokit2.ecg_clean(window, sampling_rate=500)
            peaks = neurokit2.ecg_peaks(clean, sampling_rate=500)[1]["ECG_R_Peaks"]
            return neurokit2.ecg_quality(clean, rpeaks=peaks, sampling_rate=500)
        clean = neurokit2.ppg_clean(window, sampling_rate=500)
        peaks = neurokit2.ppg_findpeaks(clean, sampling_rate=500)["PPG_Peaks"]
        return neurokit2.ppg_quality(clean, peaks=peaks, sampling_rate=500)

    def quiet(window: NDArray[np.float32], channel: Channel) -> None:
        # neurokit2 fails on windows without beats
        with warnings.catch_warnings(), suppress(ValueError, IndexError, ZeroDivisionError):
            warnings.simplefilter("ignore")
            judge(window, channel)

    return quiet


# ---------------------------------------------------------------------------------------------------------
# Memory and workers

_CHILD = """
import sys
from pathlib import Path
from biofound.data.sources.vitaldb import VitalDBSource
from tests.benchmarks.bench_windows import build
source = VitalDBSource(cache_dir=sys.argv[1], base_url="http://127.0.0.1:9", retries=0)
build(source, Path(sys.argv[2]), case_ids=["1"])
status = Path("/proc/self/status").read_text()  # getrusage also counts the process that started this one
print(status.split("VmHWM:")[1].split()[0])
"""


def memory_row(source: VitalDBSource, *, directory: Path) -> Row:
    """Row wm: peak resident memory of a process that checks the download and builds the case."""
    file_of(source, "1").with_suffix(".json").unlink()
    arguments = [sys.executable, "-c", _CHILD, str(source.cache_dir), str(directory / "store")]
    said = subprocess.run(arguments, check=True, capture_output=True, text=True).stdout
    peak = int(said.split()[-1]) * 1024
    return Row(
        key="wm",
        what="peak resident memory of a worker, program included",
        value=f"{peak / MIB:.0f} MiB",
        target="below 1024 MiB",
        met=peak < 1024 * MIB,
    )


def worker_rows(source: VitalDBSource, *, directory: Path, rounds: int) -> Iterator[Row]:
    """Rows ww and ws: wall time of eight cases with one worker and two, and of starting two."""
    case_ids = [str(number) for number in range(1, CASES + 1)]
    for case_id in case_ids[1:]:
        shutil.copy(file_of(source, "1"), file_of(source, case_id))
        source.fetch(case_id)
    write_tables(source.cache_dir, case_ids)

    def turn(workers: int) -> Cost:
        return timed(lambda: build(source, directory / "store", case_ids=case_ids, workers=workers))

    busy = busy_cores() > BUSY
    start = turn(2)
    costs = in_turns({"one": lambda: turn(1), "two": lambda: turn(2)}, rounds=rounds)
    wall = {name: seconds(list_, clock="wall") for name, list_ in costs.items()}
    found = ratio(wall["one"], wall["two"])
    machine = f"{cores()} cores, {'BUSY' if busy else 'idle'} before"
    yield Row(
        key="ww",
        what=f"{CASES} cases, wall time of one worker / two ({machine})",
        value=f"{found:.2f}",
        spread=spread(wall["one"], wall["two"]),
        measured=f"{median(wall['one']):.2f} / {median(wall['two']):.2f} s",
        target="at least 1.6 on an idle machine",
        met=None if busy else found >= 1.6,
    )
    yield Row(
        key="ws",
        what="start of two workers, once per command",
        value=f"{max(0.0, start.wall - median(wall['two'])):.1f} s",
    )
