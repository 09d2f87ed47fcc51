"""Read EDF, EDF+ and BDF files: signals, units, and the gaps of discontinuous recordings.

Formats: https://www.edfplus.info/specs/ and https://www.biosemi.com/faq/file_format.htm. The `edfio` package
(extra `biofound[edf]`) decodes them, and is imported only when a file is opened. Checked here is what it
accepts with a warning or silently: files that are cut short, signals without a scale, and EDF+D, whose
records it joins as if nothing were missing between them.
"""

import re
import warnings
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from biofound.data.channels import Channel
from biofound.data.sources import AbsentChannelError, ListedTrack, Recording, Signal, present_channels
from biofound.data.sources.packets import align_packets, check_span, place_packets
from biofound.data.sources.recording_files import FilesSource
from biofound.data.sources.units import conversion
from biofound.errors import DataError, SettingsError, damage_error_context

_LARGEST_VALUE = 1e30
_ONSET = re.compile(rb"[+-]\d+(?:\.\d*)?(?=\x14)")


class EdfSource(FilesSource):
    """A directory of EDF, EDF+ and BDF files; see `FilesSource`."""

    name = "edf"
    suffixes = (".edf", ".bdf")

    def list_file(self, path: Path, *, what: str) -> tuple[ListedTrack, ...]:
        """The signals of a file by its header."""
        header = _read_header(path, what)
        with _damage_refused(path, what):
            seconds = header.num_data_records * header.data_record_duration
            return tuple(
                ListedTrack(
                    name=signal.label,
                    sfreq=signal.sampling_frequency,
                    unit=signal.physical_dimension,
                    duration_s=seconds,
                )
                for signal in header.signals
            )

    def read(self, case_id: str, channels: Sequence[Channel]) -> Recording:
        """The samples of one file in the channels' units, at their native rates, NaN in the gaps of EDF+D.

        Raises:
            DataError: the file is damaged or cut short, or a channel is absent or without scale, or its unit
                cannot be converted.
        """
        what, path = f"case {case_id}", self.path_of(case_id)
        header = _read_header(path, what)
        with _damage_refused(path, what):
            starts = _record_starts(header, f"{what}: {path}")
            labels = [signal.label for signal in header.signals]

        def signal_of(channel: Channel) -> Signal:
            of_channel = f"{what}, channel {channel.name}"
            label = self.find_track(channel, labels, what=of_channel)
            if label is None:
                raise AbsentChannelError(
                    f"{of_channel}: expected a signal named {' or '.join(channel.tracks)}; {path} has "
                    f"{', '.join(labels) or 'none'}. Name it in the channel's tracks."
                )
            with _damage_refused(path, of_channel):
                return _signal(header.signals[labels.index(label)], starts, channel, of_channel)

        return Recording(case_id=case_id, signals=present_channels(channels, signal_of))


def _edfio() -> Any:
    try:
        import edfio
    except ImportError as error:
        raise SettingsError("source edf needs the package edfio: pip install 'biofound[edf]'") from error
    return edfio


def _read_header(path: Path, what: str) -> Any:
    """An opened file, whose samples are read when they are asked for (of BDF now)."""
    edfio = _edfio()
    path.open("rb").close()  # the system's own words where it may not be read
    read = edfio.read_bdf if path.suffix == ".bdf" else edfio.read_edf
    with _damage_refused(path, what), warnings.catch_warnings():
        warnings.simplefilter("error")  # a cut file is a warning to the package
        # Latin-1 reads every byte; the standard's ASCII has no µ, and recorders write it.
        header = read(path, header_encoding="latin-1")
        _ = header.num_data_records, [signal.sampling_frequency for signal in header.signals]
    return header


def _damage_refused(path: Path, what: str) -> AbstractContextManager[None]:
    """For all that the package reads: it lets out whatever its conversions of damaged fields trip over."""
    return damage_error_context(f"{what}: {path} is no whole {path.suffix[1:].upper()} file")


def _record_starts(header: Any, what: str) -> NDArray[np.float64]:
    """The start of each data record in seconds: its own stamp in EDF+D, else one record after the other."""
    count, duration = header.num_data_records, header.data_record_duration
    if not header.reserved.startswith(("EDF+D", "BDF+D")):
        return np.arange(count, dtype=np.float64) * float(duration)
    stamps = next((signal for signal in header._signals if signal._is_annotation_signal), None)
    if stamps is None:
        raise DataError(f"{what}: it is discontinuous ({header.reserved}) but does not say when: damaged")
    records = np.frombuffer(stamps.digital.tobytes(), np.uint8).reshape(count, -1)
    onsets = [_ONSET.match(record.tobytes()) for record in records]
    missing = [number for number, onset in enumerate(onsets, start=1) if onset is None]
    if missing:
        raise DataError(f"{what}: data record {missing[0]} of {count} has no time: the file is damaged")
    starts = np.array([float(onset[0]) for onset in onsets if onset is not None])
    if (np.diff(starts) < duration * 0.999).any():
        number = int(np.argmax(np.diff(starts) < duration * 0.999)) + 2
        raise DataError(
            f"{what}: data record {number} starts at {starts[number - 1]:g} s, before the one before it "
            "ends: the file is damaged"
        )
    return starts


def _signal(signal: Any, starts: NDArray[np.float64], channel: Channel, what: str) -> Signal:
    ends = signal.physical_min, signal.physical_max
    if signal.digital_min == signal.digital_max or ends[0] == ends[1]:
        raise DataError(
            f"{what}: signal {signal.label} has no scale: its smallest and largest value are the same. "
            "Correct the header or leave the file out."
        )
    if not max(map(abs, ends)) < _LARGEST_VALUE:
        raise DataError(
            f"{what}: signal {signal.label} has no scale: its values go from {ends[0]:g} to {ends[1]:g}. "
            "Correct the header or leave the file out."
        )
    factor, unit = conversion(signal.physical_dimension, channel, what=what)
    values = (signal.data * factor).astype(np.float32)
    sfreq, counts = signal.sampling_frequency, np.full(len(starts), signal.samples_per_data_record)
    origin = float(starts[0])
    check_span(starts, sfreq=sfreq, origin=origin, what=what)
    samples, _ = place_packets(values, align_packets(starts, counts, sfreq=sfreq, origin=origin), counts)
    return Signal(samples=samples, sfreq=sfreq, unit=unit, track=signal.label)
