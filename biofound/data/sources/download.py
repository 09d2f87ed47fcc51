"""How does a file get from a server into the cache: once, whole, a few at a time, or not at all.

Plain `urllib` (certificates verified, proxies from the environment) with what it lacks: retries, a limit
on how slow a server may be, and the certainty that the file is complete before it gets its name.
"""

import contextlib
import email.utils
import http.client
import os
import ssl
import time
import urllib.error
import urllib.request
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO

from filelock import FileLock, Timeout

from biofound import __version__
from biofound.errors import DataError
from biofound.files import TEMPORARY_SUFFIX, sync_directory

LOCKS = ".locks"
"""Directory in the cache for the lock files by which processes agree who downloads what."""

SLOWEST_BYTES_PER_SECOND = 1000
"""A transfer that stays below it for longer than the time-out counts as stalled."""

GZIP_MAGIC = b"\x1f\x8b"
"""How a gzip body starts; its own end marker and CRC then say whether it is complete."""

_CHUNK_BYTES = 1 << 18
_PER_FILE_LOCKS = 256
_SLOT_POLL_SECONDS = 0.1
_TRY_AGAIN = frozenset({408, 425, 429})


@dataclass(frozen=True, kw_only=True)
class RetryPolicy:
    """How patient a download is, and how hard it may press a server.

    `timeout_s`: seconds without an answer, or of a transfer that crawls, until an attempt is given up.
    `retries`: further attempts after the first. `backoff_s`: wait before the first of them, doubled for
    each next one. `longest_wait_s`: no wait is longer, whatever the server's `Retry-After` asks.
    `at_once`: downloads under way at a time, over all processes that share the cache.
    """

    timeout_s: float = 30.0
    retries: int = 5
    backoff_s: float = 1.0
    longest_wait_s: float = 60.0
    at_once: int = 4


def fetch(
    url: str,
    path: Path,
    *,
    cache_dir: Path,
    what: str,
    check: Callable[[Path], None],
    politeness: RetryPolicy,
    accept_gzip: bool = False,
    trusted: Callable[[Path], bool] = Path.exists,
) -> None:
    """Make sure that `path` is there, downloading it from `url` if it is not.

    Processes and threads that want the same file wait for one download. The bytes go to a temporary name
    beside `path`; only when the length is what the server said, the body's end was seen and `check`
    agrees are they synced and renamed. Answers 5xx, 408, 425, 429, broken connections, time-outs and
    incomplete bodies are tried again.

    Args:
        url: http or https.
        path: where the file goes, inside `cache_dir`.
        cache_dir: holds the locks.
        what: for messages, as `case 12` or `the clinical table`.
        check: raises `DataError` when the file at the path it gets is incomplete.
        politeness: time-outs, retries, limits.
        accept_gzip: allow the server to compress the body; it is stored as it comes.
        trusted: says that the file at `path` needs no check. One that is there but not trusted is checked,
            and downloaded again if it is incomplete.

    Raises:
        DataError: the server refuses (404 and other 4xx), its certificate is not valid, or every attempt
            failed, or the cache cannot be written; the message has the last reason.
    """
    if trusted(path):
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _lock_for(path, cache_dir):
            if trusted(path) or _passes(path, check):
                return
            path.unlink(missing_ok=True)
            _remove_leftovers(path)
            with _slot(cache_dir, politeness.at_once):
                _persist(url, path, what, check, politeness, accept_gzip)
    except OSError as error:  # what the network did is a DataError by now: this is the disk
        raise DataError(f"{what}: the download cache {cache_dir} cannot be written ({error}).") from error


def _passes(path: Path, check: Callable[[Path], None]) -> bool:
    """Whether a file that somebody else put into the cache, or changed there, is complete."""
    if not path.exists():
        return False
    try:
        check(path)
    except DataError:
        return False
    return True


class _WorthARetry(Exception):
    """An attempt that failed for a reason that may pass; `wait_s` is what the server asked for, if it did."""

    def __init__(self, reason: str, wait_s: float = 0.0) -> None:
        super().__init__(reason)
        self.wait_s = wait_s


def _persist(
    url: str, path: Path, what: str, check: Callable[[Path], None], politeness: RetryPolicy, accept_gzip: bool
) -> None:
    """Try, wait and try again until the file is there or the attempts are used up."""
    for attempt in range(politeness.retries + 1):
        try:
            _attempt(url, path, what, check, politeness.timeout_s, accept_gzip)
            return
        except _WorthARetry as failure:
            if attempt == politeness.retries:
                raise DataError(
                    f"{what}: {url} could not be downloaded in {attempt + 1} attempts; the last: {failure}."
                    " Check the network and the address, then run the same command again: what is already"
                    " in the cache is kept."
                ) from failure
            wait = max(failure.wait_s, politeness.backoff_s * 2**attempt)
            time.sleep(min(wait, politeness.longest_wait_s))


def _attempt(
    url: str, path: Path, what: str, check: Callable[[Path], None], timeout_s: float, accept_gzip: bool
) -> None:
    """One request; the file is at `path` afterwards, or nothing is."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}{TEMPORARY_SUFFIX}")
    try:
        with temporary.open("wb") as file:
            _receive(url, file, what, timeout_s, accept_gzip)
            file.flush()
            os.fsync(file.fileno())
        try:
            check(temporary)
        except DataError as error:
            raise _WorthARetry(str(error)) from error
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    sync_directory(path.parent)


def _receive(url: str, file: BinaryIO, what: str, timeout_s: float, accept_gzip: bool) -> None:
    """Copy the body of one answer to `file`, translating every way this can fail."""
    request = urllib.request.Request(
        url,
        headers={
            "User-Agent": f"biofound/{__version__}",
            "Accept-Encoding": "gzip" if accept_gzip else "identity",
        },
    )
    try:
        with urllib.request.urlopen(request, timeout=timeout_s) as response:
            _check_answer(url, response, what)
            _copy(response, file, what, timeout_s)
    except urllib.error.HTTPError as error:
        with error:
            _refuse_or_retry(url, error, what)
    except (OSError, http.client.HTTPException) as error:
        reason = error.reason if isinstance(error, urllib.error.URLError) else error
        if isinstance(reason, ssl.SSLCertVerificationError):
            raise DataError(
                f"{what}: the certificate of {url} is not valid ({reason.verify_message}). Nothing was"
                " downloaded; check the address, the clock and the certificates of this machine."
            ) from error
        raise _WorthARetry(f"{type(reason).__name__}: {reason}") from error


def _check_answer(url: str, response: http.client.HTTPResponse, what: str) -> None:
    if url.startswith("https:") and not response.geturl().startswith("https:"):
        raise DataError(
            f"{what}: {url} sends on to {response.geturl()}, which is not encrypted. Nothing was downloaded."
        )
    if response.status != http.HTTPStatus.OK:
        raise DataError(f"{what}: {url} answered {response.status}; expected 200. Check the address.")


def _copy(response: http.client.HTTPResponse, file: BinaryIO, what: str, timeout_s: float) -> None:
    """Copy a body, and insist that its end was seen: `read` alone takes a lost connection for the end."""
    promised = response.length
    received, started = 0, time.monotonic()
    while chunk := response.read1(_CHUNK_BYTES):
        if received == 0 and promised is None and not response.chunked and not chunk.startswith(GZIP_MAGIC):
            raise DataError(
                f"{what}: {response.geturl()} does not say how long its answer is, so that nobody could tell"
                " whether it is complete. Ask whoever runs the server to send Content-Length."
            )
        _write(file, chunk, what)
        received += len(chunk)
        elapsed = time.monotonic() - started
        if elapsed > timeout_s and received < SLOWEST_BYTES_PER_SECOND * elapsed:
            raise _WorthARetry(f"the transfer crawls ({received} bytes in {elapsed:.1f} s)")
    if promised is not None and received != promised:
        raise _WorthARetry(f"the body is cut short: {received} bytes of {promised}")


def _write(file: BinaryIO, chunk: bytes, what: str) -> None:
    """Write, telling a full disk from a broken connection: both are OSError, only one is worth a retry."""
    try:
        file.write(chunk)
    except OSError as error:
        raise DataError(f"{what}: the download cannot be written ({error}). Free some space.") from error


def _refuse_or_retry(url: str, error: urllib.error.HTTPError, what: str) -> None:
    """Turn an error answer into the right exception: final for most 4xx, else worth a retry."""
    if error.code >= 500 or error.code in _TRY_AGAIN:
        raise _WorthARetry(f"the server answered {error.code}", _retry_after(error)) from error
    if error.code == http.HTTPStatus.NOT_FOUND:
        raise DataError(
            f"{what}: the server has no {url} (404). Leave it out or check the address."
        ) from error
    raise DataError(f"{what}: {url} answered {error.code} ({error.reason}). Check the address.") from error


def _retry_after(error: urllib.error.HTTPError) -> float:
    """Seconds that `Retry-After` asks for (a number or a date); 0 without one, or with one not readable."""
    asked = (error.headers.get("Retry-After") or "").strip()
    if asked.isdigit():
        return float(asked)
    try:
        until = email.utils.parsedate_to_datetime(asked)
    except ValueError:
        return 0.0
    if until.tzinfo is None:
        until = until.replace(tzinfo=UTC)
    return max(0.0, (until - datetime.now(UTC)).total_seconds())


def _remove_leftovers(path: Path) -> None:
    """Remove what a killed download of this very file left; the caller holds its lock."""
    for leftover in path.parent.glob(f".{path.name}.*{TEMPORARY_SUFFIX}"):
        leftover.unlink(missing_ok=True)


def _lock_for(path: Path, cache_dir: Path) -> FileLock:
    """The lock of one file. Files share 256 locks, so that a big cache does not fill up with lock files."""
    number = zlib.crc32(path.relative_to(cache_dir).as_posix().encode()) % _PER_FILE_LOCKS
    return FileLock(_locks(cache_dir) / f"file-{number:03d}.lock")


@contextlib.contextmanager
def _slot(cache_dir: Path, slots: int) -> Iterator[None]:
    """Wait for one of `slots` places, shared by all processes that use this cache."""
    locks = [FileLock(_locks(cache_dir) / f"slot-{number}.lock") for number in range(slots)]
    while True:
        for lock in locks:
            try:
                lock.acquire(timeout=0)
            except Timeout:
                continue
            try:
                yield
                return
            finally:
                lock.release()
        time.sleep(_SLOT_POLL_SECONDS)


def _locks(cache_dir: Path) -> Path:
    directory = cache_dir / LOCKS
    directory.mkdir(parents=True, exist_ok=True)
    return directory
