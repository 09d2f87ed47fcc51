"""Write files atomically: temporary name, fsync, rename; nothing half-written is ever left."""

import hashlib
import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

TEMPORARY_SUFFIX = ".partial"


def write_atomically(path: Path, write: Callable[[BinaryIO], None]) -> None:
    """Write `path` so that it holds either its old or its new content, even after a power cut.

    The order is: write a temporary file beside it, fsync, rename over it, fsync the directory.

    Args:
        path: where the file goes; its directory is made if missing.
        write: called once with the open temporary file.

    Raises:
        OSError: when the disk refuses; the temporary file is removed and `path` is untouched.
    """
    try:
        _write_atomically(path, write)
    except OSError as error:
        if error.errno is None:
            raise
        # The user knows `path`, and not the temporary name that the system complains of.
        raise OSError(error.errno, error.strerror, str(path)) from error


def _write_atomically(path: Path, write: Callable[[BinaryIO], None]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=TEMPORARY_SUFFIX)
    temporary = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_directory(path.parent)


def sync_directory(directory: Path) -> None:
    """Make a rename inside `directory` survive a power cut (POSIX: fsync of the directory itself)."""
    handle = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON with sorted keys, atomically; NaN and infinity are refused."""
    text = json.dumps(value, indent=2, sort_keys=True, allow_nan=False, ensure_ascii=False) + "\n"

    def write(file: BinaryIO) -> None:
        file.write(text.encode())

    write_atomically(path, write)


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file's bytes, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sweep_temporary_files(directory: Path) -> int:
    """Remove what killed runs left of `write_atomically` in `directory`; the number of files removed."""
    leftovers = list(directory.glob(f".*{TEMPORARY_SUFFIX}")) if directory.is_dir() else []
    for path in leftovers:
        path.unlink(missing_ok=True)
    return len(leftovers)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
