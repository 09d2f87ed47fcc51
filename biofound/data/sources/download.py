"""Download files into a cache: retried, complete, and once for all processes that want the same file.

`requests` transfers (certificates verified, proxies from the environment) and urllib3's `Retry` counts
attempts and computes waits. Added here: a limit on slow servers, and a check that a file is complete before
it gets its name.
"""

import contextlib
import os
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO
from urllib.parse import urljoin, urlsplit

import requests
import urllib3
from filelock import FileLock, Timeout
from urllib3.exceptions import HTTPError, InvalidHeader, MaxRetryError

from biofound import __version__
from biofound.errors import DataError
from biofound.files import TEMPORARY_SUFFIX, sync_directory

LOCKS = ".locks"
"""Directory in the cache for the lock files by which processes agree who downloads what."""

RETRY_STATUSES = frozenset({408, 425, 429, *range(500, 600)})
"""HTTP statuses that are retried; any other than 200 is final."""

SLOWEST_BYTES_PER_SECOND = 1000
"""A transfer that stays below it for longer than the time-out counts as stalled."""

LARGEST_BYTES = 1 << 32
"""Longest answer that is taken, so that a server cannot fill the disk."""

MAX_REDIRECTS = 10

GZIP_MAGIC = b"\x1f\x8b"
"""First bytes of a gzip body, which has an end marker and a CRC of its own."""

_CHUNK_BYTES = 1 << 18
_PER_FILE_LOCKS = 256
_SLOT_POLL_SECONDS = 0.1


class _Retryable(requests.RequestException):
    """A failure of an attempt that may pass: an incomplete body, or a status of `RETRY_STATUSES`."""


def fetch(
    url: str,
    path: Path,
    *,
    cache_dir: Path,
    what: str,
    check: Callable[[Path], None],
    retry: urllib3.Retry,
    timeout_s: float,
    at_once: int,
    accept_gzip: bool = False,
    already_checked: Callable[[Path], bool] = Path.exists,
    on_retry: Callable[[str], None] | None = None,
) -> None:
    """Download `url` to `path` unless it is there already.

    Processes and threads that want the same file wait for one download. The bytes go to a temporary name
    beside `path`; only when the length is what the server said, the body's end was seen and `check`
    agrees are they synced and renamed. `RETRY_STATUSES`, broken connections, time-outs and incomplete bodies
    are retried. No credentials are sent, and no redirect from https to http is followed.

    Args:
        url: http or https.
        path: where the file goes, inside `cache_dir`.
        cache_dir: holds the locks.
        what: for messages, as `case 12` or `the clinical table`.
        check: raises `DataError` when the file at the path it gets is incomplete.
        retry: number of retries (`total`) and back-off; no wait is longer than its `backoff_max`, whatever
            the server's `Retry-After` asks for.
        timeout_s: seconds without an answer, or of a transfer that crawls, until an attempt is given up.
        at_once: downloads at a time, over all processes that share the cache.
        accept_gzip: allow the server to compress the body; it is stored as it comes.
        already_checked: whether the file at `path` needs no check. Otherwise one that is there is checked,
            and downloaded again if it is incomplete.
        on_retry: told after the first failure why, and until when the download is tried again.

    Raises:
        DataError: the server refuses (404 and other 4xx), its certificate is not valid, every attempt
            failed, or the cache cannot be written; the message has the last reason.
    """
    if already_checked(path):
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _lock_for(path, cache_dir):
            if already_checked(path) or _passes(path, check):
                return
            path.unlink(missing_ok=True)
            _remove_leftovers(path)
            with _slot(cache_dir, at_once):
                _retrying(
                    lambda: _attempt(url, path, what, check, timeout_s, accept_gzip),
                    retry,
                    url,
                    what,
                    timeout_s,
                    on_retry,
                )
    except OSError as error:  # network errors are DataErrors by now: this is the disk
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


def _retrying(
    attempt: Callable[[], None],
    retry: urllib3.Retry,
    url: str,
    what: str,
    timeout_s: float,
    on_retry: Callable[[str], None] | None,
) -> None:
    """Call `attempt` until it succeeds or `retry` is exhausted, waiting in between."""
    while True:
        try:
            return attempt()
        except (requests.RequestException, HTTPError) as failure:
            reason = next((arg.reason for arg in failure.args if isinstance(arg, MaxRetryError)), failure)
            # The ValueErrors of requests are addresses that cannot be used.
            if isinstance(failure, ValueError) or "CERTIFICATE_VERIFY_FAILED" in str(reason):
                raise DataError(
                    f"{what}: {url} cannot be downloaded ({reason}). Check the address, the clock and the"
                    " certificates of this machine."
                ) from failure
            try:
                retry = retry.increment("GET", url, error=failure)
            except MaxRetryError:
                raise DataError(
                    f"{what}: {url} could not be downloaded in {len(retry.history) + 1} attempts; the last:"
                    f" {reason}. Check the network and the address, then rerun the same command: what is"
                    " already in the cache is kept."
                ) from failure
            if on_retry is not None and len(retry.history) == 1:
                until = time.localtime(time.time() + _longest_s(retry, timeout_s))
                on_retry(
                    f"{what}: {url} could not be downloaded ({reason}); trying again up to"
                    f" {1 + (retry.total or 0)} times, until {time.strftime('%H:%M:%S', until)} at the latest"
                    " if nothing comes"
                )
            time.sleep(_wait_s(retry, failure.response if isinstance(failure, _Retryable) else None))


def _longest_s(retry: urllib3.Retry, timeout_s: float) -> float:
    """Seconds until the last attempt is given up, where a server keeps silent."""
    seconds = 0.0
    with contextlib.suppress(MaxRetryError):
        while True:
            seconds += retry.get_backoff_time() + timeout_s
            retry = retry.increment("GET", "")
    return seconds


def _wait_s(retry: urllib3.Retry, response: requests.Response | None) -> float:
    """Seconds until the next attempt: the back-off, or what `Retry-After` asks for if that is longer."""
    try:
        asked = None if response is None else retry.get_retry_after(response.raw)
    except (InvalidHeader, ValueError, OverflowError):
        asked = None
    return min(max(asked or 0.0, retry.get_backoff_time()), retry.backoff_max)


def _attempt(
    url: str, path: Path, what: str, check: Callable[[Path], None], timeout_s: float, accept_gzip: bool
) -> None:
    """Request once; afterwards the file is at `path`, or nothing is."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}{TEMPORARY_SUFFIX}")
    try:
        with temporary.open("wb") as file, _answer(url, what, timeout_s, accept_gzip) as response:
            status = response.status_code
            if status in RETRY_STATUSES:
                raise _Retryable(f"the server answered {status}", response=response)
            if status != requests.codes.ok:
                raise DataError(
                    f"{what}: {url} answered {status} ({response.reason}). Leave it out or check the address."
                )
            _copy(response, file, what, timeout_s)
            file.flush()
            os.fsync(file.fileno())
        try:
            check(temporary)
        except DataError as error:
            raise _Retryable(str(error)) from error
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    sync_directory(path.parent)


def _answer(url: str, what: str, timeout_s: float, accept_gzip: bool) -> requests.Response:
    """The server's answer, its body not yet read, after at most `MAX_REDIRECTS` redirects."""
    headers = {
        "User-Agent": f"biofound/{__version__}",
        "Accept-Encoding": "gzip" if accept_gzip else "identity",
    }
    target = url
    for _ in range(MAX_REDIRECTS + 1):
        # An `auth` that adds nothing keeps requests from sending passwords of ~/.netrc.
        response = requests.get(
            target,
            headers=headers,
            timeout=timeout_s,
            stream=True,
            allow_redirects=False,
            auth=lambda request: request,
        )
        if not response.is_redirect:
            return response
        response.close()
        source, target = target, urljoin(target, response.headers["Location"])
        if urlsplit(source).scheme == "https" != urlsplit(target).scheme:
            raise DataError(f"{what}: {url} redirects to {target}, which is not encrypted; it was not asked.")
    raise DataError(f"{what}: {url} redirects more than {MAX_REDIRECTS} times. Check the address.")


def _copy(response: requests.Response, file: BinaryIO, what: str, timeout_s: float) -> None:
    """Copy a body as it was sent; a lost connection raises, as urllib3 counts bytes and chunks."""
    body = response.raw
    countable = body.length_remaining is not None or body.chunked
    received, started = 0, time.monotonic()
    while chunk := body.read1(_CHUNK_BYTES, decode_content=False):
        if received == 0 and not countable and not chunk.startswith(GZIP_MAGIC):
            raise DataError(
                f"{what}: {response.url} does not say how long its answer is, so that nobody could tell"
                " whether it is complete. Ask the administrator of the server to send Content-Length."
            )
        received += len(chunk)
        if received > LARGEST_BYTES:
            raise DataError(f"{what}: {response.url} sends more than {LARGEST_BYTES} bytes; it was given up.")
        file.write(chunk)
        elapsed = time.monotonic() - started
        if elapsed > timeout_s and received < SLOWEST_BYTES_PER_SECOND * elapsed:
            raise _Retryable(f"the transfer crawls ({received} bytes in {elapsed:.1f} s)")


def _remove_leftovers(path: Path) -> None:
    """Remove temporary files that a killed download left of this file, or `check` of a file beside it.

    The caller holds the file's lock.
    """
    for leftover in path.parent.glob(f".{path.stem}.*{TEMPORARY_SUFFIX}"):
        leftover.unlink(missing_ok=True)


def _lock_for(path: Path, cache_dir: Path) -> FileLock:
    """The lock of one file. Files share 256 locks, so that a big cache does not fill up with lock files."""
    number = zlib.crc32(path.relative_to(cache_dir).as_posix().encode()) % _PER_FILE_LOCKS
    return FileLock(_locks(cache_dir) / f"file-{number:03d}.lock")


@contextlib.contextmanager
def _slot(cache_dir: Path, slots: int) -> Iterator[None]:
    """Wait for one of `slots` download slots, shared by all processes that use this cache."""
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
