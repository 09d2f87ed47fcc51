"""That the attacks find what a bad reader does, each kind of it, and a minute of attacks on every surface."""

import json
import os
import signal
import socket
import time

import pytest

from biofound.errors import DataError
from tests.fuzz.runner import KINDS, Attacks, Limits, run
from tests.fuzz.surfaces import SURFACES, Surface

LIMITS = Limits(seconds=0.1, memory=64 << 20)
UNHURRIED = Limits(seconds=10, memory=64 << 20)
"""For what a busy machine must not make slow: memory of a process forked from a large one takes its time."""


def make(directory):
    (directory / "numbers.json").write_text(json.dumps({"rates": [125.0, 62.5], "names": ["PPG", "ECG"]}))


def careful(directory):
    """Refuses all that differs from what `make` writes."""
    text = (directory / "numbers.json").read_bytes() if (directory / "numbers.json").is_file() else b""
    if text != b'{"rates": [125.0, 62.5], "names": ["PPG", "ECG"]}':
        raise DataError("damaged")
    return json.loads(text)


def careless(what):
    """Reads as `careful`, but where that refuses, it does something else."""

    def read(directory):
        try:
            return careful(directory)
        except DataError:
            return what()

    return read


def attacks_on(read, count=2, limits=LIMITS):
    surface = Surface(name="toy", make=make, read=read, guarded=("*.json",))
    return run(surface, seed=0, count=count, limits=limits)


@pytest.mark.parametrize(
    ("kind", "what", "does"),
    [
        ("exception", "ZeroDivisionError", lambda: 1 / 0),
        ("exception", "SystemExit", lambda: exit(3)),
        ("exception", "died of signal 9", lambda: os.kill(os.getpid(), signal.SIGKILL)),
        ("exception", "AssertionError", lambda: socket.create_connection(("192.0.2.1", 80))),
        ("silent", "numbers.json", lambda: {"rates": [125.0, 62.0]}),
        ("time", "over 0.1 s", lambda: time.sleep(0.11)),
        ("time", "never ends: numbers.json", lambda: time.sleep(60)),
        ("memory", "", lambda: bytes(100 << 20)),
    ],
)
def test_whatever_a_bad_reader_does_is_found_and_named(kind, what, does):
    report = attacks_on(careless(does), limits=LIMITS if kind == "time" else UNHURRIED)
    assert report.outcomes == {kind: 2}
    assert kind in KINDS
    [(found, where)] = report.findings
    assert found == kind
    assert what in where


def test_a_memory_error_stays_one_when_it_is_passed_off_as_damage():
    def allocate():
        try:
            return bytes(100 << 20)
        except MemoryError as error:
            raise DataError("damaged") from error

    assert attacks_on(careless(allocate), limits=UNHURRIED).outcomes == {"memory": 2}


def test_a_careful_reader_refuses_everything_and_nothing_is_found():
    report = attacks_on(careful, count=25, limits=UNHURRIED)
    assert report.outcomes == {"refused": 25}
    assert not report.findings


def test_seed_and_index_repeat_an_attack_and_others_differ(tmp_path):
    surface = Surface(name="toy", make=make, read=careful)

    def damaged(place, seed, index):
        attacks = Attacks(surface, tmp_path / place, seed=seed, limits=LIMITS)
        return attacks.damage_files(index), (tmp_path / place / "work" / "numbers.json").read_bytes()

    assert damaged("a", 0, 5) == damaged("b", 0, 5)
    assert damaged("a2", 0, 5) != damaged("b2", 0, 6)
    assert damaged("a3", 0, 5) != damaged("b3", 1, 5)


@pytest.mark.parametrize("name", SURFACES)
def test_every_surface_reads_its_own_whole_files_and_reads_them_alike(name, tmp_path, same_threads):
    attacks = Attacks(SURFACES[name], tmp_path, seed=0, limits=Limits())
    assert attacks.read_whole() == attacks.original


@pytest.mark.slow
@pytest.mark.parametrize("name", SURFACES)
def test_a_minute_of_damaged_files_finds_nothing(name):
    report = run(SURFACES[name], seed=0, minutes=1)
    found = "\n".join(
        f"{kind}: {what}, first at index {report.first[kind, what]}" for kind, what in report.findings
    )
    assert not found, f"python -m tests.fuzz --surface {name} --index N repeats them:\n{found}"
