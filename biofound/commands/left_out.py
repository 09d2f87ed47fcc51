"""Recordings that a command leaves out, each with the reason."""

from collections.abc import Mapping, Sequence

from biofound import console
from biofound.data.sources import SHOWN


def show_left_out(lacking: Mapping[str, Sequence[str]], refused: Mapping[str, str]) -> None:
    """List them, if there are any.

    Args:
        lacking: the channels that a recording lacks, by its id.
        refused: why a recording cannot be used, by its id.
    """
    rows = [(case_id, f"no {', '.join(absent)}") for case_id, absent in lacking.items()]
    rows += [(case_id, reason.removeprefix(f"case {case_id}: ")) for case_id, reason in refused.items()]
    if rows:
        console.table(f"left out: {len(rows)} recordings", ("recording", "reason"), rows[:SHOWN])
    if len(rows) > SHOWN:
        console.note(f"and {len(rows) - SHOWN} more, which --json lists")


def show_repaired(repaired: Mapping[str, str]) -> None:
    """Say which records had headers with signals and samples transposed, if any had."""
    if repaired:
        more = f" and {len(repaired) - SHOWN} more, which --json lists" if len(repaired) > SHOWN else ""
        console.warning(
            f"{len(repaired)} recordings have headers with signals and samples transposed, and are read with "
            f"the two exchanged: {', '.join(list(repaired)[:SHOWN])}{more}"
        )
