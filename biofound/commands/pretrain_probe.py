"""Probe of `biofound pretrain`: the validation windows that have a label, opened and checked."""

from collections.abc import Sequence
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from biofound.commands.probe_data import JoinedWindows, LabelRequest, read_labels
from biofound.core.scores import ScoredTask
from biofound.core.validation_probe import ValidationProbe
from biofound.data.labels import WindowLabels, labels_from_truth
from biofound.data.mixture import Part
from biofound.data.stream import SyntheticStream
from biofound.errors import DataError, SettingsError
from biofound.settings import PretrainSettings, ProbeSettings
from biofound.settings.pretrain import TRUTH
from biofound.settings.probe import ANNOTATIONS, NUMERICS

FOLDS: int = ProbeSettings.model_fields["folds"].default
SEED: int = ProbeSettings.model_fields["seed"].default
"""Of the folds: the same for every run, so that runs with other seeds can be compared."""


def open_probe(settings: PretrainSettings, val: Sequence[Part]) -> ValidationProbe:
    """The probe that the settings ask for, on the parts of the validation windows.

    Raises:
        SettingsError: when the labels asked for are not to be had from these windows.
        DataError: when labels cannot be used, or the windows that have one are of too few subjects.
    """
    windows = [part.windows for part in val]
    try:
        labels, subjects = _truth(settings, val) if settings.probe_labels == TRUTH else _read(settings, val)
        known = np.flatnonzero(labels.known)
        return ValidationProbe(
            windows=JoinedWindows(parts=windows, rows=known),
            task=ScoredTask(
                target=settings.probe_target, values=labels.values[known], subjects=subjects[known]
            ),
            folds=FOLDS,
            interval=settings.probe_interval,
            seed=SEED,
            chooses_best=settings.best_by == "probe",
        )
    except DataError as problem:
        raise DataError(f"--probe-labels {settings.probe_labels}: validation windows: {problem}") from problem


def summarize_probe(probe: ValidationProbe, val: Sequence[Part]) -> dict[str, str]:
    """Rows about the probe for the user."""
    labelled, windows = len(probe.windows), sum(len(part.windows) for part in val)
    return {
        "probe": f"{probe.task.target} of {probe.subjects} subjects, {labelled} validation windows, every "
        f"{probe.interval} epochs" + (f"; {windows - labelled} have no label" if labelled < windows else ""),
        **({"best checkpoint": "by the probe"} if probe.chooses_best else {}),
    }


def _truth(settings: PretrainSettings, val: Sequence[Part]) -> tuple[WindowLabels, NDArray[np.str_]]:
    """The truth of the windows of streams, and whose they are (N,)."""
    labels, subjects = [], []
    for part in val:
        if not isinstance(part.windows, SyntheticStream):
            raise SettingsError(
                f"--probe-labels {TRUTH}: validation is on {part.name}, whose truth is not known; give "
                f"{NUMERICS}, {ANNOTATIONS} or a CSV, or only synthetic streams as --data-dir"
            )
        index = np.arange(len(part.windows))
        labels.append(labels_from_truth(part.windows.truth(index), settings.probe_target).values)
        subjects.append(part.windows.info(index).subject_id)
    target = settings.probe_target
    return WindowLabels(target=target, values=np.concatenate(labels)), np.concatenate(subjects)


def _read(settings: PretrainSettings, val: Sequence[Part]) -> tuple[WindowLabels, NDArray[np.str_]]:
    """The labels of a CSV or of recordings, and whose they are (N,)."""
    assert settings.probe_labels is not None
    wanted = LabelRequest(
        labels=settings.probe_labels,
        target=settings.probe_target,
        root=settings.probe_labels_root,
        option="--probe-labels",
    )
    if settings.probe_labels not in (NUMERICS, ANNOTATIONS):
        _refuse_shared_cases(val)
    names = ", ".join(part.name for part in val)
    return read_labels(wanted, [part.windows for part in val], where=names)


def _refuse_shared_cases(val: Sequence[Part]) -> None:
    """Refuse a case id that two parts have: a CSV's rows would be those of both."""
    cases = {part.name: set(part.windows.info(np.arange(len(part.windows))).case_id.tolist()) for part in val}
    for (ours, one), (theirs, other) in combinations(cases.items(), 2):
        if shared := sorted(one & other):
            raise DataError(
                f"{ours} and {theirs} both have cases {', '.join(shared[:5])}, which a CSV cannot tell apart"
            )
