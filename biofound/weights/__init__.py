"""Weights that biofound brings along, by name, and where the weights of a directory lie."""

from pathlib import Path

PLACE = Path(__file__).parent
SAFETENSORS_SUFFIX = ".safetensors"
WEIGHTS = f"model{SAFETENSORS_SUFFIX}"
"""The weights in a Hugging Face directory."""


def names() -> tuple[str, ...]:
    """The names of the weights in the package."""
    return tuple(sorted(path.parent.name for path in PLACE.glob(f"*/{WEIGHTS}")))


def find_weights(path: Path) -> Path:
    """The file of a checkpoint, named by its path, its directory, or the name of weights in the package.

    What exists outranks a name; what is neither is returned as it is.
    """
    if (path / WEIGHTS).is_file():
        return path / WEIGHTS
    if not path.exists() and str(path) in names():
        return PLACE / path / WEIGHTS
    return path


def name_of(path: Path) -> str:
    """How a checkpoint is called in tables: weights in the package by their name, others by their path."""
    return path.parent.name if path.is_relative_to(PLACE) else str(path)
