"""Run a mutant: copy the program, break the copy, and see whether the named test fails there.

Every run is a fork of one process that has imported the third-party packages, so that it costs seconds.
"""

import contextlib
import importlib
import io
import multiprocessing
import os
import shutil
import sys
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Literal

import pytest

from tests.mutants.mutants import Mutant

ROOT = Path(__file__).parent.parent.parent
TIMEOUT_SECONDS = 300.0
HEAVY = (
    "torch",
    "tsfm_public.models.tinytimemixer",
    "scipy.signal",
    "sklearn.linear_model",
    "wfdb",
    "vitaldb",
)
PYTEST = (
    *("-q", "-p", "no:cacheprovider", "-m", "", "--tb=short"),
    *("-W", "ignore::pytest.PytestAssertRewriteWarning"),  # of what is imported before pytest starts
)
COPIED = ("biofound", "configs", "docs", "tests", "pyproject.toml", "noxfile.py")

Fate = Literal["killed", "killed (hung)", "SURVIVED", "ERROR"]


@dataclass(frozen=True, kw_only=True)
class Result:
    """What the named test made of a mutant; `seen` is the line with which it failed, or what went wrong."""

    mutant: Mutant
    fate: Fate
    seconds: float
    seen: str


def import_heavy() -> None:
    """Import what all mutants share, and nothing of the program itself."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in HEAVY:
            importlib.import_module(name)
    assert not any(name.partition(".")[0] == "biofound" for name in sys.modules)


def copy_program(directory: Path) -> Path:
    """A copy of the program and its tests in `directory`."""
    for name in COPIED:
        path = ROOT / name
        if path.is_dir():
            shutil.copytree(path, directory / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(path, directory / name)
    return directory


def apply(mutant: Mutant, directory: Path) -> None:
    """Break the copy in `directory`.

    Raises:
        ValueError: when what is to be replaced does not stand there exactly once.
    """
    path = directory / mutant.file
    text = path.read_text()
    if text.count(mutant.old) != 1:
        raise ValueError(
            f"mutant '{mutant.what}' does not apply: expected once in {mutant.file}, found "
            f"{text.count(mutant.old)} times: {mutant.old}"
        )
    path.write_text(text.replace(mutant.old, mutant.new))


def run_mutant(mutant: Mutant, directory: Path) -> Result:
    """Break a new copy of the program in `directory`, and run the named test there."""
    apply(mutant, copy_program(directory))
    started = time.monotonic()
    code, output = run_tests(directory, ["-x", mutant.test])
    seconds = time.monotonic() - started
    failed = [line for line in output.splitlines() if line.startswith("E  ")]
    fates: dict[int | None, Fate] = {0: "SURVIVED", 1: "killed", None: "killed (hung)"}
    fate = fates.get(code, "ERROR")
    if fate == "killed" and not failed:
        fate = "ERROR"  # an error outside of any assertion, such as a fixture that is not there
    seen = failed[0].removeprefix("E").strip() if failed else " ".join(output.split()[-30:])
    return Result(mutant=mutant, fate=fate, seconds=seconds, seen=seen)


def run_tests(
    directory: Path, arguments: Sequence[str], *, seconds: float = TIMEOUT_SECONDS
) -> tuple[int | None, str]:
    """Run pytest in the copy in `directory`: its exit code (None after so many `seconds`) and output."""
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_pytest, args=(directory, list(arguments), theirs))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of forking beside threads, which wait
        process.start()
    theirs.close()
    try:
        code, output = ours.recv() if ours.poll(seconds) else (None, "")
    except EOFError:
        code, output = 255, "the test process died"
    process.kill()
    process.join()
    return code, output


def _pytest(directory: Path, arguments: list[str], connection: Connection) -> None:
    sys.dont_write_bytecode = True
    os.chdir(directory)
    # The copies of `tests` and `biofound` are those that are imported, here and in processes of tests.
    os.environ["PYTHONPATH"] = str(directory)
    sys.path[:] = [str(directory), *(place for place in sys.path if place not in ("", str(ROOT)))]
    for name in [name for name in sys.modules if name.partition(".")[0] == "tests"]:
        del sys.modules[name]
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        code = pytest.main([*PYTEST, *arguments])
    connection.send((int(code), said.getvalue()))
