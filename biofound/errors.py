"""The one exception family: what the core and data packages raise and the command line prints."""


class BiofoundError(Exception):
    """A failure whose message tells a user what was expected, what came and what to change.

    The command line prints it as one message and leaves with `exit_code`.
    """

    exit_code = 1


class SettingsError(BiofoundError):
    """A bad setting or option: the run cannot start as asked (exit 2)."""

    exit_code = 2


class DataError(BiofoundError):
    """Recordings, splits or windows that cannot be used as they are (exit 1)."""


class CheckpointError(BiofoundError):
    """A checkpoint that cannot be read, or does not fit what is asked of it (exit 1)."""


class TrainingError(BiofoundError):
    """A training run that had to stop, such as on a loss that is not finite (exit 1)."""
