"""Broken copies of the program, and the test that has to fail on each: `nox -s mutants`.

`--only mask` runs those with the word in their description or file. First the named tests run on the program
as it is. Ends with 1 where a mutant survives, or does not apply any more.
"""

import argparse
import sys
import tempfile
from pathlib import Path

from tests.mutants.mutants import MUTANTS
from tests.mutants.runner import copy_program, import_heavy, run_mutant, run_tests


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.mutants", description=__doc__)
    parser.add_argument("--only", default="", help="a word in the description, the file or the test")
    only = parser.parse_args().only
    chosen = [m for m in MUTANTS if only in m.what or only in m.file or only in m.test]
    if not chosen:
        raise SystemExit(f"--only {only}: no such mutant")
    import_heavy()
    with tempfile.TemporaryDirectory(prefix="biofound-mutants-") as name:
        copy = copy_program(Path(name) / "whole")
        code, output = run_tests(copy, sorted({mutant.test for mutant in chosen}), seconds=3600)
        if code != 0:
            raise SystemExit(f"the named tests do not pass on the program as it is:\n{output}")
        results = []
        print("| broken copy | file | result | by | s |\n| --- | --- | --- | --- | --- |")
        for number, mutant in enumerate(chosen):
            result = run_mutant(mutant, Path(name) / str(number))
            results.append(result)
            file, test = mutant.file.removeprefix("biofound/"), mutant.test.removeprefix("tests/")
            print(
                f"| {mutant.what} | `{file}` | {result.fate} | `{test}` | {result.seconds:.0f} |", flush=True
            )
            if not result.fate.startswith("killed"):
                print(f"  {result.seen}", file=sys.stderr, flush=True)
    killed = sum(result.fate.startswith("killed") for result in results)
    minutes = sum(result.seconds for result in results) / 60
    print(f"\n{killed} of {len(results)} killed, in {minutes:.0f} minutes")
    sys.exit(killed < len(results))


if __name__ == "__main__":
    main()
