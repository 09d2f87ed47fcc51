"""The benchmarks are run by hand: that they can be is tested here."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.benchmarks import bench_quality
from tests.benchmarks.__main__ import arguments, measure_rows, show

ROOT = Path(__file__).parent.parent


def bench(*arguments):
    command = [sys.executable, "-m", "tests.benchmarks", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)


def test_the_table_comes_out_with_every_benchmark_imported(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(sys, "argv", ["tests.benchmarks"])
    show(*measure_rows({"gpu"}, arguments(), tmp_path))
    out = capsys.readouterr().out
    assert "| gpu | " in out
    assert out.count("\n| ") == 3  # the head, its rule, and the row


def test_a_row_that_there_is_not_is_refused_by_name():
    done = bench("--only", "d,zz")
    assert done.returncode == 1
    assert "--only zz: the rows are a, a2, b, b2" in done.stderr


def test_time_to_quality_says_which_recordings_are_missing(tmp_path, monkeypatch):
    monkeypatch.setattr(bench_quality, "RECORDS", {"train": tmp_path / "a", "probe": tmp_path / "b"})
    rows = bench_quality.quality_rows(directory=tmp_path, precision="fp32", threads=1, minutes=1.0)
    assert [row.value for row in rows] == [
        f"no recordings in {tmp_path / 'a'}, {tmp_path / 'b'}: not measured"
    ]


@pytest.mark.parametrize(
    ("plain", "default", "value", "met"),
    [
        ((8.0, 3.0), (2.0, 2.9), "4.0 ×", True),
        ((4.0, 3.0), (2.0, 2.9), "2.0 ×", False),
        ((9.0, 3.1), (2.0, 2.9), "> 4.5 ×", True),
        ((6.0, 3.1), (2.0, 2.9), "> 3.0 ×", None),  # more than that: the target may be met
        ((6.0, 2.9), (9.0, 3.1), "the default recipe did not get there", False),
    ],
)
def test_time_to_quality_is_a_lower_bound_where_the_plain_recipe_does_not_get_there(
    plain, default, value, met
):
    def run(minutes, error):
        return bench_quality.Run(minutes=(0.0, minutes), errors=(9.0, error), steps=25)

    row = bench_quality.compare("q", "", plain=run(*plain), default=run(*default))
    assert (row.value, row.met) == (value, met)


def test_time_to_quality_is_when_the_error_is_first_small_enough_also_where_a_run_goes_on(tmp_path):
    run = bench_quality.Run(minutes=(0.0, 1.0, 2.0, 3.0), errors=(4.0, 3.1, 2.9, 3.2), steps=75)
    assert (run.first_good, run.time) == (2, 2.0)
    bench_quality.draw_errors(tmp_path / "errors.png", {"plain": run}, levels={"classical features": 2.8})
    assert (tmp_path / "errors.png").read_bytes().startswith(b"\x89PNG")
