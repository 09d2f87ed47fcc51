"""Atomic writes (temporary name, fsync, rename), locked directories, and JSON files of a known kind."""

import fcntl
import glob
import hashlib
import json
import os
import reprlib
import socket
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any, BinaryIO, Self, TypeVar
from urllib.parse import unquote_to_bytes

from pydantic import BaseModel, ConfigDict, ValidationError

from biofound.errors import CheckpointError, DataError

TEMPORARY_SUFFIX = ".partial"
LOCK_NAME = ".lock"
_PROBLEMS_SHOWN = 3
_FILE_URI = "file://"


class StrictModel(BaseModel):
    """A part of a JSON file: a key that is missing, unknown or of another type is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class JsonFile(StrictModel):
    """A JSON file of a known kind; a subclass declares both as a literal and its default."""

    kind: str
    format_version: int


class SealedFile(JsonFile):
    """A JSON file with the SHA-256 of its own content: one that was changed or damaged is not read.

    Attributes:
        content_sha256: the SHA-256 of `json.dumps(content, sort_keys=True)`, where `content` is the rest.
    """

    content_sha256: str

    @classmethod
    def seal(cls, **values: Any) -> Self:
        """The file with these values and their digest."""
        unsealed = cls(**values, content_sha256="")
        return unsealed.model_copy(update={"content_sha256": unsealed.digest()})

    def digest(self) -> str:
        """What `content_sha256` must be."""
        content = self.model_dump(mode="json", exclude={"content_sha256"})
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


File = TypeVar("File", bound=JsonFile)


def write_atomically(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Write `path` so that it holds either its old or its new content, whenever the power goes.

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


def _write_atomically(path: Path, write: Callable[[BinaryIO], object]) -> None:
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


def append_line(path: Path, line: str) -> None:
    """Append a line to `path`, whole or not at all.

    Raises:
        OSError: when the disk refuses; what was there before stays as it was.
    """
    with path.open("ab", buffering=0) as file:
        before, left = file.tell(), f"{line}\n".encode()
        try:
            while left:
                left = left[file.write(left) :]
        except OSError:
            file.truncate(before)
            raise


def sync_directory(directory: Path) -> None:
    """Make a rename inside `directory` survive a power cut (POSIX: fsync of the directory itself)."""
    handle = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def hold_directory(directory: Path, *, option: str) -> Iterator[None]:
    """Lock `directory` against a second process that would write into it; it is made if missing.

    The lock is the system's own, on the file `.lock` in it, so it ends with the process however that ends,
    and NFS passes it on between hosts. The file says who holds it. Both are gone afterwards, as is a
    directory that was made and stayed empty.

    Args:
        directory: what to lock.
        option: the option by which another directory is chosen.

    Raises:
        DataError: when another process holds it.
        OSError: when it cannot be made or written.
    """
    made = [path for path in (directory, *directory.parents) if not path.exists()]
    handle = _locked(directory, option)
    try:
        since = datetime.now().astimezone().isoformat(sep=" ", timespec="seconds")
        os.ftruncate(handle, 0)
        os.write(handle, f"process {os.getpid()} on {socket.gethostname()}, since {since}\n".encode())
        yield
    finally:
        (directory / LOCK_NAME).unlink(missing_ok=True)  # before the lock ends: the next one makes its own
        os.close(handle)
        with suppress(OSError):
            for path in made:
                path.rmdir()


def _locked(directory: Path, option: str) -> int:
    """A descriptor of the directory's lock file, locked."""
    path = directory / LOCK_NAME
    while True:
        directory.mkdir(parents=True, exist_ok=True)
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError) as error:
            holder = os.pread(handle, 1000, 0).decode(errors="replace").strip()
            os.close(handle)
            raise DataError(
                f"{directory}: another run writes into it: {holder or 'a process that just started'}; wait "
                f"for it, or choose another place with {option}"
            ) from error
        except OSError as error:
            warnings.warn(
                f"{directory}: this file system has no locks ({error.strerror}), so nothing keeps a second "
                "run out of it",
                stacklevel=4,
            )
            return handle
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(handle), path.stat()):
                return handle
        os.close(handle)  # the file of one who has just left


def lock_holder(directory: Path) -> str | None:
    """Who holds `directory` (`hold_directory`), in the words of the lock file; None where nobody does.

    On a file system without locks a lock file that is there counts as held.
    """
    try:
        handle = os.open(directory / LOCK_NAME, os.O_RDONLY)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return os.pread(handle, 1000, 0).decode(errors="replace").strip() or "a process that just started"
    finally:
        os.close(handle)
    return None  # left by a process that was killed


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON with sorted keys, atomically; NaN and infinity are refused."""
    plain = value.model_dump(mode="json") if isinstance(value, BaseModel) else value
    text = json.dumps(plain, indent=2, sort_keys=True, allow_nan=False, ensure_ascii=False) + "\n"
    # Lone surrogates, which stand for bytes that are not UTF-8, become the escapes that JSON has for them.
    write_atomically(path, lambda file: file.write(text.encode(errors="backslashreplace")))


def printable_name(name: str) -> str:
    r"""A file's name in UTF-8; bytes that are not UTF-8 become escapes such as `\xe9`."""
    return os.fsencode(name).decode(errors="backslashreplace")


def path_to_text(path: str | Path) -> str:
    """A path as UTF-8 text that `path_from_text` reads; a `file://` URI where its bytes are not UTF-8."""
    try:
        return os.fsencode(path).decode()
    except UnicodeDecodeError:
        return Path(path).absolute().as_uri()


def path_from_text(text: str | Path) -> Path:
    """The path that `path_to_text` wrote, whatever the locale is."""
    if not isinstance(text, str):
        return text
    is_uri = text.startswith(_FILE_URI)
    # `errors`: what the system itself gave is not UTF-8 either
    name = unquote_to_bytes(text.removeprefix(_FILE_URI)) if is_uri else text.encode(errors="surrogateescape")
    return Path(os.fsdecode(name))


def read_json_as(path: Path, model: type[File], *, hint: str) -> File:
    """Read a JSON file as `model`; `hint` says in messages what to do about a file that is no such file.

    Raises:
        DataError: when it is missing, not JSON, of another kind or format version, or a key is wrong; or
            its content does not have the SHA-256 that a `SealedFile` says.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file; {hint}") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); {hint}") from error
    try:
        found = model.model_validate_json(content)
    except ValidationError as error:
        problems = {".".join(map(str, detail["loc"])): _expectation(detail) for detail in error.errors()}
        raise DataError(f"{path}: {_named(problems)}; {hint}") from error
    unsaid = {name: "missing" for name in model.model_fields if name not in found.model_fields_set}
    if unsaid:
        raise DataError(f"{path}: {_named(unsaid)}; {hint}")
    if isinstance(found, SealedFile) and found.content_sha256 != found.digest():
        raise DataError(
            f"{path}: its content does not have the SHA-256 in it (content_sha256), so it was changed or "
            f"damaged; {hint}"
        )
    return found


def _expectation(detail: Any) -> str:
    message = detail["msg"].removeprefix("Value error, ")
    if detail["type"] in ("missing", "extra_forbidden"):
        return "missing" if detail["type"] == "missing" else "not a known key"
    if detail["type"] in ("json_invalid", "value_error"):
        return str(message)
    return f"expected {message.removeprefix('Input should be ')}, got {reprlib.repr(detail['input'])}"


def _named(problems: dict[str, str]) -> str:
    """The first problems by key; another kind or version explains all others."""
    wrong_file = [key for key in problems if key in ("kind", "format_version")]
    keys = sorted(wrong_file, reverse=True)[:1] or list(problems)
    return "; ".join(f"{key}: {problems[key]}" if key else problems[key] for key in keys[:_PROBLEMS_SHOWN])


def require_checkpoint_file(path: Path) -> None:
    """Refuse a checkpoint that is not there, or may not be read.

    Raises:
        CheckpointError: when there is no such file.
        OSError: when the system refuses to open it.
    """
    if not path.is_file():
        found = "a directory without model.safetensors" if path.is_dir() else "no such file"
        raise CheckpointError(
            f"{path}: {found}; expected a checkpoint such as the best_model.pt of a pretraining run, what "
            "`biofound export` wrote, or the name of weights that biofound brings along"
        )
    path.open("rb").close()


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file's bytes, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sweep_temporary_files(directory: Path, *, name: str = "") -> int:
    """Remove what killed runs left of `write_atomically` in `directory`; the number of files removed.

    With `name` only what is left of that file.
    """
    pattern = f".{glob.escape(name)}.*{TEMPORARY_SUFFIX}" if name else f".*{TEMPORARY_SUFFIX}"
    leftovers = list(directory.glob(pattern)) if directory.is_dir() else []
    for path in leftovers:
        path.unlink(missing_ok=True)
    return len(leftovers)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
