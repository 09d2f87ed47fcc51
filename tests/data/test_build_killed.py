"""A build that is killed at any moment and run again ends in the bytes of one that was left alone."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.data.cohort import SlowSource, build, bytes_of

ROOT = Path(__file__).parent.parent.parent
BUILD = """
import sys
from pathlib import Path
from tests.data.cohort import SlowSource, build
if __name__ == "__main__":
    outdir, subjects, minutes, workers = sys.argv[1:]
    source = SlowSource(seed=1, subjects=int(subjects), minutes=float(minutes), artefacts=3.0)
    print("started", flush=True)
    build(Path(outdir), source=source, workers=int(workers))
"""


def start(outdir: Path, subjects: int, minutes: float, workers: int) -> subprocess.Popen[bytes]:
    """A build in a process group of its own; returns once it is about to begin."""
    process = subprocess.Popen(
        [sys.executable, "-c", BUILD, str(outdir), str(subjects), str(minutes), str(workers)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"started\n"
    return process


def kill(process: subprocess.Popen[bytes], *, workers_too: bool) -> None:
    if workers_too:
        os.killpg(process.pid, signal.SIGKILL)
    else:
        process.kill()
    process.wait()
    assert process.stdout is not None
    process.stdout.close()


def cases_done(outdir: Path) -> int:
    return len(list((outdir / "train").glob("syn*.json")))


def test_a_build_killed_at_three_moments_and_run_again_ends_in_the_same_bytes(tmp_path):
    build(tmp_path / "undisturbed", source=SlowSource(seed=1, subjects=8, minutes=1.0, artefacts=3.0))
    outdir = tmp_path / "killed"
    moments = random.Random(0)
    for already in (0, 2, 4):
        process = start(outdir, 8, 1.0, workers=1)
        deadline = time.monotonic() + 60
        while cases_done(outdir) <= already and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.002)
        time.sleep(moments.random() * 0.05)
        assert process.poll() is None, "the build ended before it could be killed"
        kill(process, workers_too=True)
        assert not (outdir / "train" / "index.json").exists()
    done = cases_done(outdir)
    assert 0 < done < 8
    source = SlowSource(seed=1, subjects=8, minutes=1.0, artefacts=3.0)
    results = build(outdir, source=source)
    assert sum(result.status == "unchanged" for result in results) == done
    assert bytes_of(outdir) == bytes_of(tmp_path / "undisturbed")


@pytest.mark.slow
@pytest.mark.parametrize(("workers", "workers_too"), [(1, True), (2, True), (2, False)])
def test_twenty_cases_killed_at_ten_random_moments_end_in_the_same_bytes(tmp_path, workers, workers_too):
    source = SlowSource(seed=1, subjects=20, minutes=10.0, artefacts=3.0)
    build(tmp_path / "undisturbed", source=source)
    outdir = tmp_path / "killed"
    moments = random.Random(workers)
    killed = 0
    while killed < 10:
        process = start(outdir, 20, 10.0, workers)
        # a run that does two cases or so before it is killed leaves work for all ten
        before, deadline = cases_done(outdir), time.monotonic() + moments.random() * 0.3
        while process.poll() is None and (cases_done(outdir) <= before or time.monotonic() < deadline):
            if killed % 3 == 0 and time.monotonic() > deadline + 1.0:
                break
            time.sleep(0.001)
        assert process.poll() is None, f"the build ended after {killed} kills"
        kill(process, workers_too=workers_too)
        killed += 1
    results = build(outdir, source=source)
    assert len(results) == 20
    assert bytes_of(outdir) == bytes_of(tmp_path / "undisturbed")
