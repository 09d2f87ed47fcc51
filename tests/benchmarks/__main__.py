"""Benchmarks of training and of building windows, in one table: `nox -s bench`, `python -m tests.benchmarks`.

Rows are ratios of medians, measured in turns. `--only a,d` measures single rows. In a file or pipe the table
is Markdown, as in docs/benchmarks.md.
"""

import argparse
import logging
import os
import tempfile
import time
import warnings
from pathlib import Path

from tests.benchmarks.timing import cores

KEYS = ("a", "a2", "b", "b2", "c", "c2", "d", "stft", "e", "f", "g", "gpu", "s", "sm", "em", "w", "q")
COLUMNS = ("", "what", "value", "quartiles", "measured", "target", "anonymous memory, MB")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    parser.add_argument("--only", default=",".join(KEYS), help="rows to measure (default: %(default)s)")
    parser.add_argument(
        "--threads", type=int, default=cores(), help="threads of rows a to c and f (default: one a core)"
    )
    parser.add_argument(
        "--rounds", type=int, default=7, help="turns of each contender (default: %(default)s)"
    )
    parser.add_argument(
        "--minutes",
        type=float,
        default=10.0,
        help="CPU minutes of a recipe in row q (default: %(default)s)",
    )
    parser.add_argument(
        "--picture",
        type=Path,
        help="row q goes on for its minutes and draws error over CPU minutes into this",
    )
    parser.add_argument("--precision", choices=("auto", "bf16", "fp32"), default="auto")
    return parser.parse_args()


def main() -> None:
    given = arguments()
    only = set(given.only.split(","))
    if unknown := only - set(KEYS):
        raise SystemExit(f"--only {','.join(sorted(unknown))}: the rows are {', '.join(KEYS)}")
    os.environ["OMP_NUM_THREADS"] = str(given.threads)
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)  # granite and transformers comment on their own defaults

    import torch

    torch.set_num_threads(given.threads)
    start = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="biofound-bench-") as name:
        rows, title = measure_rows(only, given, Path(name))
    show(rows, f"{title}; {(time.monotonic() - start) / 60:.1f} minutes")


def measure_rows(only: set[str], given: argparse.Namespace, directory: Path) -> tuple[list, str]:  # type: ignore[type-arg]
    from tests.benchmarks.bench_embed import embed_rows
    from tests.benchmarks.bench_feeding import feeding_rows
    from tests.benchmarks.bench_gpu import gpu_rows
    from tests.benchmarks.bench_memory import memory_rows, stream_memory_rows
    from tests.benchmarks.bench_processes import process_rows
    from tests.benchmarks.bench_quality import quality_rows
    from tests.benchmarks.bench_stream import stream_rows
    from tests.benchmarks.bench_training import training_rows
    from tests.benchmarks.bench_windows import windows_rows
    from tests.benchmarks.ours import machine_precision
    from tests.benchmarks.timing import machine

    fastest = machine_precision()
    precision = fastest if given.precision == "auto" else given.precision
    rows = training_rows(
        only,
        directory=directory / "training",
        precision=precision,
        threads=given.threads,
        rounds=given.rounds,
    )
    if "e" in only:
        rows += feeding_rows(directory=directory / "feeding", rounds=given.rounds)
    if "f" in only:
        rows += memory_rows(directory=directory / "memory", precision=precision, threads=given.threads)
    if "g" in only:
        rows += process_rows(directory=directory / "processes", precision=precision, rounds=3)
    if "gpu" in only:
        rows += gpu_rows(directory=directory / "gpu")
    if "s" in only:
        rows += stream_rows(rounds=given.rounds)
    if "sm" in only:
        rows += stream_memory_rows(directory=directory / "stream", precision=precision, threads=given.threads)
    if "em" in only:
        rows += embed_rows(directory=directory / "embed", rounds=given.rounds)
    if "w" in only:
        rows += windows_rows(directory=directory / "windows", rounds=min(given.rounds, 5))
    if "q" in only:
        rows += quality_rows(
            directory=directory / "quality",
            precision=precision,
            threads=given.threads,
            minutes=given.minutes,
            picture=given.picture,
        )
    bf16 = "" if fastest == "bf16" else " (this processor does not multiply bf16)"
    return rows, f"{machine()}; {precision}{bf16}, {given.threads} thread(s), batch 128"


def show(rows: list, title: str) -> None:  # type: ignore[type-arg]
    """Print the table, as Markdown unless on a terminal."""
    from rich.console import Console
    from rich.table import Table

    console = Console()
    lines = [
        (row.key, row.what, row.value, row.spread, row.measured, _target(row), row.memory) for row in rows
    ]
    if console.is_terminal:
        table = Table(*COLUMNS, title=title)
        for line in lines:
            table.add_row(*line)
        console.print(table)
        return
    console.file.write(f"{title}\n\n| {' | '.join(COLUMNS)} |\n|{' --- |' * len(COLUMNS)}\n")
    for line in lines:
        console.file.write(f"| {' | '.join(line)} |\n")


def _target(row) -> str:  # type: ignore[no-untyped-def]
    return row.target if row.met is None else f"{row.target}: {'met' if row.met else 'MISSED'}"


if __name__ == "__main__":
    main()
