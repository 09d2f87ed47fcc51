"""`biofound embed`: one vector a window, of a window store or of recordings."""

from biofound import __version__, console
from biofound.commands.inputs import TableInputs
from biofound.commands.probe_data import absent_channels, check_fit
from biofound.commands.table_writing import write_window_table
from biofound.core.checkpoint import Checkpoint, load_checkpoint
from biofound.core.devices import resolve_device
from biofound.core.embed import WindowEmbedder
from biofound.data.window_table import VectorsHeader, VectorsOrigin, WindowVectors
from biofound.errors import checkpoint_error_context
from biofound.options import Invocation
from biofound.settings import EmbedSettings


def execute(invocation: Invocation[EmbedSettings], inputs: TableInputs, origin: VectorsOrigin) -> None:
    """Write the vectors, and say of how many windows and cases they are.

    Args:
        invocation: the command's settings.
        inputs: the windows or recordings.
        origin: what the file says of itself.

    Raises:
        CheckpointError: when the checkpoint cannot be read.
        SettingsError: when the channel table contradicts the checkpoint.
        DataError: when windows or recordings do not fit or cannot be read, none is left, or the file cannot
            be written.
    """
    settings = invocation.settings
    checkpoint = load_checkpoint(settings.checkpoint)
    if inputs.windows is not None:
        check_fit(str(settings.checkpoint), checkpoint, inputs.windows)
    available = _available(settings, checkpoint, inputs)
    with checkpoint_error_context(settings.checkpoint):
        embedder = WindowEmbedder(
            checkpoint,
            readout=settings.readout,
            available=available,
            gate=settings.gate,
            batch_size=settings.batch_size,
            device=resolve_device(settings.device),
        )
    header = VectorsHeader(
        biofound_version=__version__,
        origin=origin,
        channels=checkpoint.model.channels,
        present_channels=tuple(channel.name for channel in embedder.input.channels),
        sfreq=checkpoint.data.sfreq,
        window_samples=checkpoint.model.context_length,
    )
    length = 0

    def measure(piece: WindowVectors) -> None:
        nonlocal length
        length = piece.vectors.shape[1]

    counts = write_window_table(
        settings, inputs, embedder.input, embedder.rows, header, verb="embedded", on_rows=measure
    )
    if invocation.json:
        told = {**counts.as_json(), "vector_length": length, "output": str(settings.output)}
        console.print_json({**told, "channels": list(header.present_channels)})
    else:
        kind = "synthetic" if checkpoint.data.synthetic else "recorded"
        title = f"vectors of {settings.checkpoint}, trained on {kind} data, read-out {settings.readout}"
        counts.show(title, settings, **{"vector length": length})


def _available(settings: EmbedSettings, checkpoint: Checkpoint, inputs: TableInputs) -> tuple[str, ...]:
    """The channels that there are: of all windows, or of the channel table; it is said which are absent.

    Raises:
        DataError: when the checkpoint does not serve them alone.
    """
    if inputs.windows is not None:
        place, first = str(settings.data_dir), inputs.windows[0]
        found = tuple(name for name in first.channels if all(name in w.channels for w in inputs.windows))
    else:
        place, found = inputs.table.origin, tuple(channel.name for channel in inputs.table.channels)
    absent = absent_channels(f"{settings.checkpoint}: {place}", checkpoint, found)
    if absent:
        console.warning(f"{place} has no {', '.join(absent)}: absent in every window, as in channel dropout")
    return found
