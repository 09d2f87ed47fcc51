"""Attack every surface that reads with damaged files: `nox -s fuzz`, `python -m tests.fuzz`.

A minute each by default; `--minutes 60 --surface vital` for hours by hand. `--index` repeats one attack, and
`--keep` leaves its damaged files in a directory. Ends with 1 where anything was found.
"""

import argparse
import logging
import shutil
import sys
import tempfile
import warnings
from pathlib import Path

from tests.fuzz.runner import KINDS, Attacks, Limits, Report, run
from tests.fuzz.surfaces import SURFACES

COLUMNS = ("surface", "attacks", "refused", "unchanged", "different", *KINDS, "minutes")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument(
        "--surface", action="append", choices=tuple(SURFACES), help="default: every one in turn"
    )
    parser.add_argument(
        "--minutes", type=float, default=1.0, help="time for each surface (default: %(default)s)"
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="another seed, other attacks (default: %(default)s)"
    )
    parser.add_argument("--index", type=int, help="repeat this attack alone, in this process")
    parser.add_argument("--keep", type=Path, help="with --index: leave the damaged files in this directory")
    return parser.parse_args()


def main() -> None:
    given = arguments()
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    names = given.surface or list(SURFACES)
    if given.index is not None:
        if len(names) != 1:
            raise SystemExit("--index needs one --surface")
        repeat(names[0], given.seed, given.index, given.keep)
        return
    reports = []
    for name in names:
        reports.append(run(SURFACES[name], seed=given.seed, minutes=given.minutes))
        show_findings(reports[-1])
    show_table(reports)
    sys.exit(any(report.findings for report in reports))


def show_findings(report: Report) -> None:
    for (kind, what), count in report.findings.most_common():
        index, details = report.first[kind, what]
        print(f"{report.surface}: {kind}: {what} ({count} times); the first:")
        print(f"  python -m tests.fuzz --surface {report.surface} --seed {report.seed} --index {index}")
        print("".join(f"    {line}\n" for line in details.splitlines()), flush=True)


def show_table(reports: list[Report]) -> None:
    """Print the counts as Markdown, as in docs/reliability.md."""
    print(f"| {' | '.join(COLUMNS)} |\n|{' --- |' * len(COLUMNS)}")
    for report in reports:
        counts = [report.outcomes[kind] for kind in ("refused", "unchanged", "different", *KINDS)]
        cells = (report.surface, f"{report.outcomes.total():,}", *counts, f"{report.seconds / 60:.1f}")
        print(f"| {' | '.join(map(str, cells))} |")


def repeat(name: str, seed: int, index: int, keep: Path | None) -> None:
    with tempfile.TemporaryDirectory(prefix="biofound-fuzz-") as place:
        attacks = Attacks(SURFACES[name], Path(place), seed=seed, limits=Limits())
        outcome = attacks.attack(index)
        if keep is not None:
            attacks.damage_files(index)
            shutil.copytree(Path(place) / "work", keep, symlinks=True, dirs_exist_ok=True)
    print(f"{outcome.kind}: {outcome.what}\n{outcome.details}")


if __name__ == "__main__":
    main()
