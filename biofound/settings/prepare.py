"""Settings of `biofound prepare`."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import BeforeValidator

from biofound.data.sources.registry import SourceName
from biofound.data.splits import FRACTIONS, Fractions, Mode, problem_of_fractions
from biofound.settings.base import REQUIRED, Conflict, Derived, setting, split_commas
from biofound.settings.source import SourceSettings


class PrepareSettings(SourceSettings):
    """List the cases of a source and split them by patient."""

    command: ClassVar[str] = "prepare"

    source: SourceName = setting(REQUIRED, "Where recordings come from.", panel="Source")
    list_tracks: bool = setting(
        False,
        "List the recordings with their tracks, rates and hours, to write channels.yaml from, and make no "
        "splits (wfdb, vitaldb, vital, table, edf, butppg).",
        panel="Source",
    )
    mode: Mode = setting(
        "fasttrack",
        "fasttrack: 50/10/10 cases; full: every eligible case, about 80/10/10 %.",
        panel="Split",
    )
    seed: int = setting(
        42, "Seed of the split, and of the synthetic cohort (synthetic).", panel="Split", ge=0, lt=2**32
    )
    fractions: Annotated[Fractions, BeforeValidator(split_commas)] = setting(
        FRACTIONS,
        "Shares of the patients in train, val and test, separated by commas; 1,0,0 makes a pure pretraining "
        "corpus, also of recordings whose patients are unknown, 0,0,1 a test set. Given shares imply "
        "mode full.",
        panel="Split",
    )
    output: Path = setting(Path("data"), "Directory for splits_<mode>.json.", panel="Output")
    overwrite: bool = setting(
        False, "Replace splits that were made of another source or with other settings.", panel="Output"
    )

    def conflicts(self) -> Iterator[Conflict]:
        """Yields what does not fit the source, and shares of the patients that cannot be."""
        yield from super().conflicts()
        if problem := problem_of_fractions(self.fractions):
            yield Conflict(("fractions",), f"fractions: {problem}")
        if self.mode == "fasttrack" and self.fractions != FRACTIONS:
            message = "mode fasttrack has 50, 10 and 10 cases: leave out mode or fractions"
            yield Conflict(("mode", "fractions"), message)

    @classmethod
    def derived_defaults(cls, given: Mapping[str, Any]) -> dict[str, Derived]:
        """Those of the source, and the mode that takes every case where fractions are given."""
        derived = super().derived_defaults(given)
        if "fractions" in given and "mode" not in given:
            derived["mode"] = Derived("full", "default with fractions")
        return derived
