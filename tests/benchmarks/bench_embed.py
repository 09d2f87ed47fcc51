"""Speed of `biofound embed` against the bare forward pass: `python -m tests.benchmarks --only em`."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from biofound.core.checkpoint import Checkpoint
from biofound.core.embed import WindowEmbedder
from biofound.core.models import ModelConfig, build_model
from biofound.core.readout_names import DEFAULT_BATCH_SIZE, DEFAULT_READOUT
from biofound.data.description import DataDescription
from biofound.data.sources import Recording
from biofound.data.sources.synthetic import SyntheticSource
from biofound.data.window_table import VectorsHeader, VectorsOrigin, WindowVectors, write_table
from biofound.settings import PretrainSettings, WindowsSettings, resolve_channels
from tests.benchmarks.bench_feeding import make_store
from tests.benchmarks.timing import Cost, Row, in_turns, median, ratio, seconds, spread, timed

CASES, WINDOWS = 3, 360  # an hour each
TARGET = 0.7


def embed_rows(*, directory: Path, rounds: int) -> Iterator[Row]:
    """Rows em (a window store) and em2 (recordings in memory: filtered, assessed and cut too), to Parquet."""
    directory.mkdir(parents=True)
    checkpoint, channels = untrained(), resolve_channels(None, "pretrain").channels
    store = make_store(directory, cases=CASES, windows=WINDOWS)
    x = torch.from_numpy(store.read(np.arange(len(store))))
    encoder = checkpoint.build().encoder
    embedder = WindowEmbedder(checkpoint, gate=False)
    source = SyntheticSource(seed=1, subjects=CASES, minutes=60.0)
    recordings = [source.read(case.case_id, channels) for case in source.cases(channels)[:CASES]]

    def forward() -> int:
        with torch.no_grad():
            for batch in x.split(DEFAULT_BATCH_SIZE):
                encoder(batch)
        return len(x)

    def written(pieces: Iterator[WindowVectors]) -> int:
        count = 0

        def counted() -> Iterator[WindowVectors]:
            nonlocal count
            for piece in pieces:
                count += len(piece.vectors)
                yield piece

        write_table(directory / "vectors.parquet", counted(), header_of(checkpoint))
        return count

    def of(recording: Recording) -> Iterator[WindowVectors]:
        return embedder.rows(embedder.input.extract(recording, channels=embedder.input.channels))

    costs = in_turns(
        {
            "forward": lambda: _a_window(forward),
            "store": lambda: _a_window(lambda: written(embedder.rows(store))),
            "recordings": lambda: _a_window(lambda: written(p for each in recordings for p in of(each))),
        },
        rounds=rounds,
    )
    bare = seconds(costs["forward"], clock="wall")
    for key, name, what in (
        ("em", "store", "a window store"),
        ("em2", "recordings", "recordings at 500 Hz, filtered and assessed too,"),
    ):
        ours = seconds(costs[name], clock="wall")
        hours = [store.window_samples / store.sfreq / 3600 / median(each) for each in (ours, bare)]
        value = ratio(bare, ours)
        yield Row(
            key=key,
            what=f"speed of embedding {what} to Parquet (fp32) / of the bare forward pass",
            value=f"{value:.2f}",
            spread=spread(bare, ours),
            measured=f"{hours[0]:.3g} against {hours[1]:.3g} hours of recording a second",
            target=f"≥ {TARGET}" if key == "em" else "",
            met=value >= TARGET if key == "em" else None,
        )


def untrained() -> Checkpoint:
    """The default model before its training: its speed is the same."""
    settings, windows = PretrainSettings(), WindowsSettings()
    model = build_model(settings.fill(ModelConfig), seed=0)
    channels = resolve_channels(None, "pretrain").channels
    return Checkpoint(
        model=model.config,
        encoder=model.encoder.state_dict(),
        decoder=model.decoder.state_dict(),
        data=DataDescription(
            sfreq=windows.sfreq,
            filters={channel.name: channel.band.as_json() for channel in channels},
            units={channel.name: channel.unit for channel in channels},
            quality_thresholds={channel.name: channel.quality_threshold for channel in channels},
            max_gap_seconds=windows.max_gap_seconds,
            fingerprint="",
            synthetic=True,
        ),
        settings={},
        epoch=0,
        step=0,
        best_val_loss=None,
        metrics={},
    )


def header_of(checkpoint: Checkpoint) -> VectorsHeader:
    origin = VectorsOrigin(checkpoint="", checkpoint_sha256="", readout=DEFAULT_READOUT, gate=False, data={})
    return VectorsHeader(
        biofound_version="",
        origin=origin,
        channels=checkpoint.model.channels,
        present_channels=checkpoint.model.channels,
        sfreq=checkpoint.data.sfreq,
        window_samples=checkpoint.model.context_length,
    )


def _a_window(work) -> Cost:  # type: ignore[no-untyped-def]
    counts = []
    cost = timed(lambda: counts.append(work()))
    return Cost(cost.wall / counts[0], cost.cpu / counts[0])
