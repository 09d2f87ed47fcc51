"""The one exception family: what the core and data packages raise and the command line prints."""

import difflib
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

_FEW = 8
"""Names that can be listed in a message."""

_LONGEST_REASON = 300
"""Characters of another package's message that are passed on."""


class BiofoundError(Exception):
    """A failure whose message says what was expected, what came and what to change."""


class SettingsError(BiofoundError):
    """A bad setting or option."""


class DataError(BiofoundError):
    """Recordings, splits or windows that cannot be used as they are, or files that cannot be written."""


class CheckpointError(BiofoundError):
    """A checkpoint that cannot be read, or does not fit what is asked of it."""


class TrainingError(BiofoundError):
    """A training run that had to stop, such as on a loss that is not finite."""


class VerificationError(BiofoundError):
    """Checks of `biofound verify` that failed."""


@contextmanager
def checkpoint_error_context(path: Path | None) -> Iterator[None]:
    """Prefix the messages of the `CheckpointError`s raised inside with the file's path."""
    try:
        yield
    except CheckpointError as problem:
        raise CheckpointError(f"{path}: {problem}") from problem


@contextmanager
def damage_error_context(what: str) -> Iterator[None]:
    """Turn whatever another package's reader trips over inside into a `DataError` that begins with `what`.

    Errors of ours and lack of memory pass.
    """
    try:
        yield
    except (BiofoundError, MemoryError):
        raise
    except Exception as error:  # damaged bytes bring out exceptions of every kind
        reason = textwrap.shorten(str(error), _LONGEST_REASON) or type(error).__name__
        raise DataError(f"{what} ({reason}); copy it again, or leave it out") from error


@contextmanager
def write_error_context(path: Path, *, option: str) -> Iterator[None]:
    """Turn an `OSError` raised inside into a `DataError` that names `path`, and `option` to choose another.

    Args:
        path: what is being written, where the system does not say.
        option: the option by which another place is chosen.
    """
    try:
        yield
    except OSError as error:
        raise DataError(
            f"{error.filename or path}: cannot be written ({error.strerror or error}); make it writable, or "
            f"choose another place with {option}"
        ) from error


def did_you_mean(word: str, known: Sequence[str]) -> str:
    """`; did you mean X?`: the nearest known word, also in another case; else the choice, if it is small."""
    by_folded = {name.casefold(): name for name in reversed(known)}
    near = difflib.get_close_matches(word.casefold(), list(by_folded), n=1, cutoff=0.6)
    if near:
        return f"; did you mean {by_folded[near[0]]}?"
    return f"; expected one of {', '.join(known)}" if len(known) <= _FEW else ""
