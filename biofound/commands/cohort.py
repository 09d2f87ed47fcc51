"""The embedded cohort: what `biofound pretrain` trains on when there are no recordings."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from biofound.commands.common import lookup_channels
from biofound.files import refused_as_data_error
from biofound.settings import PrepareSettings, PretrainSettings, Resolved, WindowsSettings
from biofound.settings.models import DEFAULT_STORE

if TYPE_CHECKING:
    from biofound.data.build import CaseResult

EMBEDDED = "embedded_cohort"
FAST_SUBJECTS = 40
"""Subjects of the embedded cohort under `--fast`: fewer than the synthetic source's own, to take minutes."""


def wants_embedded_cohort(resolved: Resolved[PretrainSettings]) -> bool:
    """Whether nobody said where windows are, and the default place holds nothing."""
    if resolved.settings.data_dir is not None:
        return False
    return not (DEFAULT_STORE.is_dir() and any(DEFAULT_STORE.iterdir()))


def build_embedded_cohort(settings: PretrainSettings) -> Iterator[tuple[str, int, Iterator["CaseResult"]]]:
    """Build the embedded cohort's windows under the output directory, as `prepare` and `windows` would.

    Yields:
        For each split its name, its number of cases, and the results to take one by one.
    """
    from biofound.data.build import build_windows
    from biofound.data.sources.synthetic import SyntheticSource
    from biofound.data.splits import make_splits, save_splits

    channels = lookup_channels(settings.channels, settings.channels_yaml, "pretrain")
    windows = WindowsSettings()
    seed = PrepareSettings.model_fields["seed"].default  # --seed is the training's: the data stays the same
    source = SyntheticSource(seed=seed, **({"subjects": FAST_SUBJECTS} if settings.fast else {}))
    splits = make_splits(
        source.cases(channels),
        mode="full",
        seed=seed,
        source=source.describe(),
        dataset_version=source.version(),
        channels=[channel.name for channel in channels],
    )
    directory = settings.output_dir / EMBEDDED
    with refused_as_data_error(directory, choose="--output-dir"):
        save_splits(directory / "splits_full.json", splits)
    for split in ("train", "val"):
        entries = splits.of(split)
        results = build_windows(
            source=source,
            entries=entries,
            split=split,
            channels=channels,
            sfreq=windows.sfreq,
            window_seconds=settings.context_length / windows.sfreq,
            max_gap_seconds=windows.max_gap_seconds,
            dtype=windows.dtype,
            outdir=directory,
        )
        yield split, len(entries), results
