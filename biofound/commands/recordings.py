"""Open the recordings that a command reads."""

from typing import Any

from biofound import console
from biofound.data.sources import RetryingSource, Source
from biofound.data.sources.registry import open_source


def open_recordings(description: dict[str, Any]) -> Source:
    """Open a source by its description; one that downloads says on standard error when it tries again.

    Raises:
        DataError: when the recordings are not there.
        SettingsError: for a description that cannot be.
    """
    source = open_source(**description)
    if isinstance(source, RetryingSource):
        source.on_retry = console.note
    return source
