import errno
import io
import json
import os
import socket
import stat
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest

from biofound import console, files
from biofound.errors import DataError
from biofound.files import (
    append_line,
    hold_directory,
    path_from_text,
    path_to_text,
    printable_name,
    sha256_of,
    sweep_temporary_files,
    write_atomically,
    write_json,
)
from tests.chain import files_end_at


def write(path, content=b"new"):
    write_atomically(path, lambda file: file.write(content))


def test_content_reaches_the_disk_before_its_name_and_the_name_before_the_return(tmp_path, monkeypatch):
    calls = []
    fsync, replace = os.fsync, Path.replace

    def spy_fsync(handle):
        about = os.fstat(handle)
        calls.append(("fsync", about.st_ino, about.st_size if stat.S_ISREG(about.st_mode) else "directory"))
        fsync(handle)

    def spy_replace(self, target):
        calls.append(("replace", self.stat().st_ino, Path(target).name))
        return replace(self, target)

    monkeypatch.setattr(os, "fsync", spy_fsync)
    monkeypatch.setattr(Path, "replace", spy_replace)
    write(tmp_path / "model.pt", b"x" * 1000)
    file = (tmp_path / "model.pt").stat().st_ino
    assert calls == [
        ("fsync", file, 1000),  # whole before it is named
        ("replace", file, "model.pt"),
        ("fsync", tmp_path.stat().st_ino, "directory"),
    ]


@pytest.mark.parametrize("moment", ["write", "fsync", "replace"])
def test_whatever_fails_the_old_file_stays_and_nothing_beside_it(tmp_path, monkeypatch, moment):
    path = tmp_path / "model.pt"
    write(path, b"old")

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    def half(file):
        file.write(b"ne")
        full()

    if moment == "fsync":
        monkeypatch.setattr(os, "fsync", full)
    if moment == "replace":
        monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(OSError, match="No space left"):
        write_atomically(path, half if moment == "write" else lambda file: file.write(b"new"))
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["model.pt"]


def test_a_line_is_appended_whole_or_not_at_all(tmp_path):
    path = tmp_path / "metrics.jsonl"
    append_line(path, "first")
    with files_end_at(8), pytest.raises(OSError, match=os.strerror(errno.EFBIG)):
        append_line(path, "second")
    append_line(path, "third")
    assert path.read_text() == "first\nthird\n"


def test_a_file_gets_the_permissions_that_the_umask_allows(tmp_path):
    before = os.umask(0o027)
    try:
        write(tmp_path / "shared")
    finally:
        os.umask(before)
    assert (tmp_path / "shared").stat().st_mode & 0o777 == 0o640


def test_json_refuses_what_is_not_json_and_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, {"b": 1, "a": [1.5, None]})
    assert json.loads(path.read_text()) == {"a": [1.5, None], "b": 1}
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(path, {"a": float("nan")})
    assert json.loads(path.read_text())["b"] == 1


def test_paths_that_are_not_utf8_are_stored_and_found_again(tmp_path):
    for name in (b"caf\xe9", "café".encode(), b"100%"):
        path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + name))
        text = path_to_text(path)
        assert path_from_text(text.encode().decode()) == path == path_from_text(str(path))
        assert printable_name(path.name).encode()
    assert path_to_text(Path("data/café")) == "data/café"
    surrogate = os.fsdecode(b"caf\xe9")
    write_json(tmp_path / "a.json", {"said": surrogate, "name": "café"})
    assert json.loads((tmp_path / "a.json").read_text()) == {"said": surrogate, "name": "café"}


def test_json_is_printed_in_every_locale(monkeypatch):
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", stream)
    said = {"path": "café", "bytes": os.fsdecode(b"caf\xe9")}
    console.print_json(said)
    assert json.loads(stream.buffer.getvalue()) == said


def test_leftovers_of_killed_runs_are_swept_and_nothing_else(tmp_path):
    (tmp_path / f".model.pt.abc{files.TEMPORARY_SUFFIX}").write_bytes(b"half")
    (tmp_path / "model.pt").write_bytes(b"whole")
    (tmp_path / "notes.partial").write_bytes(b"a user's own")
    assert sweep_temporary_files(tmp_path) == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model.pt", "notes.partial"]
    assert sweep_temporary_files(tmp_path / "missing") == 0


def test_sha256_is_that_of_the_standard(tmp_path):
    (tmp_path / "abc").write_bytes(b"abc")
    assert sha256_of(tmp_path / "abc").startswith("ba7816bf8f01cfea")


def test_a_directory_is_held_by_one_and_the_other_is_told_by_whom(tmp_path):
    made = tmp_path / "a" / "b"
    who = rf"a/b: another run .*process {os.getpid()} on {socket.gethostname()}, since 20.* with --output-dir"
    hold = partial(hold_directory, made, option="--output-dir")
    with hold(), pytest.raises(DataError, match=who), hold():
        pass
    assert list(tmp_path.iterdir()) == []  # it was made for nothing
    with hold():
        (made / "model.pt").touch()
    assert [path.name for path in made.iterdir()] == ["model.pt"]


def test_the_lock_of_a_killed_process_holds_nobody_up(tmp_path):
    program = (
        "import sys, time, pathlib; from biofound.files import hold_directory\n"
        "with hold_directory(pathlib.Path(sys.argv[1]), option='x'):\n"
        "    print('held', flush=True); time.sleep(60)"
    )
    command = [sys.executable, "-c", program, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(DataError, match=f"process {holder.pid} "), hold_directory(tmp_path, option="x"):
            pass
        holder.kill()
    assert (tmp_path / ".lock").exists()
    with hold_directory(tmp_path, option="x"):
        assert f"process {os.getpid()} " in (tmp_path / ".lock").read_text()
    assert list(tmp_path.iterdir()) == []


def test_a_file_system_without_locks_is_said(tmp_path, monkeypatch):
    def no_locks(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(files.fcntl, "flock", no_locks)
    with pytest.warns(UserWarning, match="no locks"), hold_directory(tmp_path, option="x"):
        pass
