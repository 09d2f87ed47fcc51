"""The benchmarks are run by hand: that they can be is tested here."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def bench(*arguments):
    command = [sys.executable, "-m", "tests.benchmarks", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)


def test_the_table_comes_out_with_every_benchmark_imported():
    done = bench("--only", "gpu")
    assert done.returncode == 0, done.stderr
    assert "| gpu | " in done.stdout
    assert done.stdout.count("\n| ") == 3  # the head, its rule, and the row


def test_a_row_that_there_is_not_is_refused_by_name():
    done = bench("--only", "d,zz")
    assert done.returncode == 1
    assert "--only zz: the rows are a, a2, b, b2" in done.stderr
