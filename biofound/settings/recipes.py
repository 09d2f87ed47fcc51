"""Recipes that biofound brings along: settings of `pretrain --config`, by name."""

from pathlib import Path

_PACKAGE = Path(__file__).parent.parent
PLACES = (_PACKAGE / "recipes", _PACKAGE.parent / "configs")
"""Where they lie: in an installed wheel, which copies them there, and in a clone."""
RECIPES = ("ssl_pretrain", "small_data", "seed_card")


def find_recipe(path: Path) -> Path:
    """The file of settings, named by its path or as a recipe; what is neither is returned as it is.

    A file that is there outranks a name.
    """
    if str(path) not in RECIPES or path.exists():
        return path
    found = [place / f"{path}.yaml" for place in PLACES if (place / f"{path}.yaml").is_file()]
    return found[0] if found else path
