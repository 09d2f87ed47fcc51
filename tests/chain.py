"""The whole chain through the real command line, on a small cohort with a small model, run once a session."""

import functools
import json
import multiprocessing
import os
import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import CodeType
from typing import Any

import numpy as np
from typer.testing import CliRunner

from biofound.cli import app, main
from biofound.data.windows import open_windows

SMALL_MODEL = ("--d-model", 16, "--num-layers", 1, "--expansion-factor", 2)
SMALL_RUN = (*SMALL_MODEL, "--epochs", 2, "--batch-size", 8, "--threads", 1, "--device", "cpu")
"""`--device cpu`, so that two runs give the same numbers also where there is a GPU."""


@dataclass(frozen=True, kw_only=True)
class Chain:
    """Where the files of one run of all commands are, and what the commands said on standard error."""

    splits: Path
    store: Path
    output: Path
    inflated: Path
    said: dict[str, str]


def run(*arguments: object) -> Any:
    """`biofound ARGUMENTS` in this process."""
    return CliRunner().invoke(app, [str(argument) for argument in arguments], prog_name="biofound")


def done(*arguments: object) -> Any:
    """`biofound ARGUMENTS`, which must end well."""
    result = run(*arguments)
    assert result.exit_code == 0, result.output
    return result


def answer(*arguments: object) -> dict:
    """What `biofound ARGUMENTS --json` answers."""
    return json.loads(done(*arguments, "--json").stdout)


@contextmanager
def files_end_at(size: int) -> Iterator[None]:
    """No file can grow beyond so many bytes: a full disk, with the system's own error at the real write."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


HARDLY_TRAINED = "better than a constant guess"
"""The check that the model of `SMALL_RUN` fails, after so few steps."""


def verify(*arguments: object) -> dict[str, Any]:
    """The checks of `biofound verify ARGUMENTS` by name; its exit code and message agree with them."""
    result = run("verify", *arguments, "--json")
    told = json.loads(result.stdout)
    found = {check["name"]: check for check in told["checks"]}
    assert told["passed"] == all(check["passed"] for check in found.values())
    assert result.exit_code == (0 if told["passed"] else 1)
    assert all(name in result.stderr for name, check in found.items() if not check["passed"])
    return found


TRAINS = (
    "trainer",
    "learning rate is applied",
    "every window is used",
    "masks do not repeat",
    "random crops",
    "gradient clipping",
    "what is absent has no influence",
)
"""Checks that train a new model, which takes most of the time of `biofound verify`."""


def failed(checks: dict[str, Any]) -> list[str]:
    """The names of the checks that failed."""
    return [name for name, check in checks.items() if not check["passed"]]


@functools.cache
def chain(base: Path) -> Chain:
    """`prepare`, `windows`, `pretrain` and `inflate`, under `base` (`tmp_path_factory.getbasetemp()`)."""
    root = base / "chain"
    splits, store, output = root / "splits_full.json", root / "windows", root / "output"
    inflated = output / "best_model_5ch.pt"
    source = ("--source", "synthetic", "--subjects", 12, "--minutes", 0.6, "--seed", 1)
    commands = {
        "prepare": (*source, "--mode", "full", "--output", root),
        "windows": ("--split-file", splits, "--outdir", store, "--workers", 1),
        "pretrain": ("--data-dir", store, "--output-dir", output, *SMALL_RUN),
        "inflate": ("--checkpoint", output / "best_model.pt", "--to", 5),
    }
    said = {name: done(name, *arguments).stderr for name, arguments in commands.items()}
    return Chain(splits=splits, store=store, output=output, inflated=inflated, said=said)


def write_plain(directory: Path, store: Path, **changes: object) -> Path:
    """The windows of a store in the plain form: one npz a split; `changes` replace keys, None drops them."""
    directory.mkdir(parents=True)
    for split in ("train", "val"):
        windows = open_windows(store, split)
        arrays = {"x": windows.read(np.arange(len(windows))), "channels": windows.channels}
        arrays = {name: value for name, value in {**arrays, **changes}.items() if value is not None}
        np.savez(directory / f"{split}_windows.npz", **arrays)
    return directory


def code_of(page: str, having: str) -> CodeType:
    """The first block of Python of a page below docs/ that holds `having`."""
    text = (Path(__file__).parent.parent / "docs" / page).read_text(encoding="utf-8")
    block = next(block for block in text.split("```python\n")[1:] if having in block).split("```")[0]
    return compile(block, page, "exec")


def tree(directory: Path) -> dict[str, bytes | None]:
    """Every file below `directory` with its bytes, and every directory with None."""
    return {
        str(path.relative_to(directory)): path.read_bytes() if path.is_file() else None
        for path in sorted(directory.rglob("*"))
    }


def start(*arguments: object, stderr: Path) -> multiprocessing.Process:
    """`biofound ARGUMENTS` as a process of its own, which need not import torch anew."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.core.small_run"])  # one server for all tests
    process = context.Process(target=_enter, args=([str(argument) for argument in arguments], stderr))
    process.start()
    return process


def _enter(arguments: list[str], stderr: Path) -> None:
    handle = os.open(stderr, os.O_WRONLY | os.O_CREAT)
    os.dup2(handle, 2)
    sys.stderr = os.fdopen(2, "w", buffering=1)
    sys.argv = ["biofound", *arguments]
    main()
