"""Attack a surface: damage its files again and again in a child process, and count what goes wrong.

Attack `index` of a `seed` follows from these two and the surface alone, so that a finding can be repeated.
"""

import contextlib
import gc
import hashlib
import itertools
import multiprocessing
import os
import resource
import shutil
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from fnmatch import fnmatch
from multiprocessing.connection import Connection
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest

from biofound.errors import BiofoundError
from tests.fuzz.mutator import damage
from tests.fuzz.surfaces import ROOT, Surface
from tests.offline import stay_offline

KINDS = ("exception", "silent", "time", "memory")
"""What is wrong: an exception that is not ours, a silent difference, too much time, too much memory."""

_MISPLACED_CHANCE = 1 / 50
_HANGS_BORNE = 5


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What reading a file may take."""

    seconds: float = 30.0
    memory: int = 2 << 30
    """Bytes beyond what the process has before."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of one attack: `kind` is one of `KINDS`, or refused, unchanged, different (and may be)."""

    kind: str
    what: str = ""
    """Where it went wrong; outcomes of the same `kind` and `what` are one finding."""
    details: str = ""


@dataclass(kw_only=True)
class Report:
    """The outcomes of many attacks; `first` is the first index of each finding, and its details."""

    surface: str
    seed: int
    seconds: float = 0.0
    outcomes: Counter[str] = field(default_factory=Counter)
    findings: Counter[tuple[str, str]] = field(default_factory=Counter)
    first: dict[tuple[str, str], tuple[int, str]] = field(default_factory=dict)

    def add(self, index: int, outcome: Outcome) -> None:
        """Count the outcome of attack `index`."""
        self.outcomes[outcome.kind] += 1
        if outcome.kind in KINDS:
            key = outcome.kind, outcome.what
            self.findings[key] += 1
            self.first.setdefault(key, (index, outcome.details))


class Attacks:
    """The attacks on one surface: its whole files, and what they are read as."""

    def __init__(self, surface: Surface, directory: Path, *, seed: int, limits: Limits) -> None:
        self.surface, self.seed, self.limits = surface, seed, limits
        self._whole, self._work = directory / "whole", directory / "work"
        self._whole.mkdir(parents=True)
        surface.make(self._whole)
        self._files = sorted(
            path.relative_to(self._whole) for path in self._whole.rglob("*") if path.is_file()
        )
        self.original = self.read_whole()

    def read_whole(self) -> dict[str, str]:
        """What the whole files are read as, flattened."""
        self._copy_whole()
        return flatten(self.surface.read(self._work))

    def _copy_whole(self) -> None:
        shutil.rmtree(self._work, ignore_errors=True)
        shutil.copytree(self._whole, self._work)

    def damage_files(self, index: int) -> tuple[str, bool]:
        """Damage the copy as attack `index` does: how, and whether any difference must be noticed."""
        random = Random(f"{self.surface.name}:{self.seed}:{index}")
        self._copy_whole()
        path = self._work / random.choice(self._files)
        name = path.relative_to(self._work).as_posix()
        guarded = any(fnmatch(name, pattern) for pattern in self.surface.guarded)
        if random.random() < _MISPLACED_CHANCE:
            return f"{name}: {_misplace(path, random)}", guarded
        if self.surface.rewrite and path.suffix in self.surface.rewritten and random.random() < 0.4:
            path.write_bytes(self.surface.rewrite(path.read_bytes(), random))
            return f"{name}: {self.surface.rewrite.__name__}", False
        done = damage(path.read_bytes(), path.suffix, random)
        path.write_bytes(done.content)
        return f"{name}: {done.how}", guarded and not done.forged

    def attack(self, index: int) -> Outcome:
        """Damage, read, and judge. A reader that reaches for another machine is stopped, and found."""
        how, guarded = self.damage_files(index)
        started = time.monotonic()
        try:
            with pytest.MonkeyPatch.context() as patch:
                stay_offline(patch)
                found = flatten(self.surface.read(self._work))
        except BiofoundError as error:
            outcome = Outcome(kind="refused", details=f"{how}\n{type(error).__name__}: {error}")
            if _memory_ended(error):
                outcome = Outcome(kind="memory", what=_place_of(error), details=how)
        except MemoryError as error:
            outcome = Outcome(kind="memory", what=_place_of(error), details=how)
        except BaseException as error:  # whatever else comes out is the finding
            text = "".join(traceback.format_exception(error, limit=-6))
            kind = "memory" if _memory_ended(error) else "exception"
            outcome = Outcome(
                kind=kind, what=f"{type(error).__name__}, {_place_of(error)}", details=f"{how}\n{text}"
            )
        else:
            changed = sorted(k for k in found.keys() | self.original if found.get(k) != self.original.get(k))
            kind = "unchanged" if not changed else "silent" if guarded else "different"
            details = f"{how}\nread differently: {', '.join(changed[:8])}"
            outcome = Outcome(
                kind=kind, what=how.partition(":")[0] if kind == "silent" else "", details=details
            )
        if time.monotonic() - started > self.limits.seconds:
            what = f"over {self.limits.seconds:g} s: {how.partition(':')[0]}"
            outcome = Outcome(kind="time", what=what, details=how)
        return outcome


def run(
    surface: Surface,
    *,
    seed: int,
    minutes: float = 0.0,
    first: int = 0,
    count: int | None = None,
    limits: Limits | None = None,
) -> Report:
    """Attack a surface for so many minutes, or `count` times, from attack `first` on."""
    limits, report = limits or Limits(), Report(surface=surface.name, seed=seed)
    with tempfile.TemporaryDirectory(prefix="biofound-fuzz-") as name:
        attacks = Attacks(surface, Path(name), seed=seed, limits=limits)
        started = time.monotonic()
        deadline = started + 60 * minutes if count is None else float("inf")
        last = float("inf") if count is None else first + count
        for index, outcome in _outcomes(attacks, first, last, deadline):
            report.add(index, outcome)
        report.seconds = time.monotonic() - started
    return report


def _outcomes(attacks: Attacks, first: int, last: float, deadline: float) -> Iterator[tuple[int, Outcome]]:
    """The outcomes of attacks in child processes; one that hangs or dies costs its attack, and no time."""
    index, hangs = first, 0
    while index < last and time.monotonic() < deadline and hangs < _HANGS_BORNE:
        with _child(attacks, index, last, deadline) as (process, connection):
            alive = True
            while alive:
                # A little longer than allowed: a reading that ends at last is timed by the child itself.
                before = time.monotonic()
                alive = connection.poll(attacks.limits.seconds + min(2, attacks.limits.seconds))
                try:
                    outcome = connection.recv() if alive else _hung(attacks, index)
                except EOFError:
                    process.join()
                    outcome = Outcome(kind="exception", what=f"died of signal {-(process.exitcode or 0)}")
                    alive = False
                if outcome is None:  # the child has come to its end
                    break
                if outcome.kind == "time":
                    hangs, deadline = hangs + 1, deadline + time.monotonic() - before
                yield index, outcome
                index += 1


def _hung(attacks: Attacks, index: int) -> Outcome:
    how, _ = attacks.damage_files(index)
    return Outcome(kind="time", what=f"never ends: {how.partition(':')[0]}", details=how)


@contextlib.contextmanager
def _child(attacks: Attacks, first: int, last: float, deadline: float) -> Iterator[tuple[Any, Connection]]:
    """A child process that attacks; it is forked, so that nothing is imported anew."""
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_attack_on, args=(attacks, theirs, first, last, deadline), daemon=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of forking beside threads, which wait
        process.start()
    theirs.close()
    try:
        yield process, ours
    finally:
        process.kill()
        process.join()
        ours.close()


def _attack_on(attacks: Attacks, connection: Connection, first: int, last: float, deadline: float) -> None:
    with Path(os.devnull).open("w") as nowhere:
        os.dup2(nowhere.fileno(), 1)
        os.dup2(nowhere.fileno(), 2)
    warnings.simplefilter("ignore")
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(1)  # the threads of OpenMP did not survive the fork, and would be waited for
    _limit_memory(attacks.limits.memory)
    for index in itertools.count(first):
        if index >= last or time.monotonic() > deadline:
            break
        outcome = attacks.attack(index)
        if outcome.kind == "memory":  # this reading's, or held by errors of the readings before?
            gc.collect()
            outcome = attacks.attack(index)
        connection.send(outcome)
    connection.send(None)


def _limit_memory(allowance: int) -> None:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + allowance, hard))


def _misplace(path: Path, random: Random) -> str:
    """Put something else in a file's place."""
    path.unlink()
    what = random.choice(("missing", "a directory", "a dangling link", "a link to itself"))
    if what == "a directory":
        path.mkdir()
    elif what == "a dangling link":
        path.symlink_to("nowhere")
    elif what == "a link to itself":
        path.symlink_to(path.name)
    return what


def _memory_ended(error: BaseException | None) -> bool:
    """Whether `error` came of an allocation that was refused."""
    while error is not None:
        if isinstance(error, MemoryError) or "can't allocate memory" in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False


def _place_of(error: BaseException) -> str:
    """The innermost function of ours that `error` came through."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if Path(frame.filename).is_relative_to(ROOT / "biofound")]
    if not own:
        return "outside biofound"
    return f"{Path(own[-1].filename).relative_to(ROOT)}, {own[-1].name}"


def flatten(value: Any, name: str = "") -> dict[str, str]:
    """Everything in `value` as text by its path; arrays and tensors by dtype, shape and digest."""
    if hasattr(value, "detach"):
        value = value.detach().cpu().numpy()
    if isinstance(value, np.ndarray) and value.dtype != object:
        digest = hashlib.sha256(np.ascontiguousarray(value).tobytes()).hexdigest()[:16]
        return {name: f"{value.dtype} {value.shape} {digest}"}
    items: Mapping[Any, Any]
    if isinstance(value, Mapping):
        items = value
    elif is_dataclass(value) and not isinstance(value, type):
        items = {part.name: getattr(value, part.name) for part in fields(value)}
    elif hasattr(type(value), "model_fields"):
        items = dict(value)
    elif isinstance(value, (list, tuple, np.ndarray)):
        items = dict(enumerate(value))
    else:
        return {name: f"{type(value).__name__} {value!r}"}
    parts = [flatten(item, f"{name}.{key}") for key, item in items.items()]
    return {
        name: f"{type(value).__name__} of {len(items)}",
        **{k: v for part in parts for k, v in part.items()},
    }
