"""Sphinx settings of the documentation site: `nox -s docs` builds it into build/site."""

import re
import tomllib
from pathlib import Path
from typing import Any

from pygments.lexers.special import TextLexer

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]

project = PROJECT["name"]
version = release = PROJECT["version"]
language = "en"
html_title = f"{project} {version}"
html_theme = "furo"
html_copy_source = False
extensions = ["myst_parser", "sphinx.ext.napoleon", "autoapi.extension", "sphinx_copybutton"]

# Pages: Markdown with GitHub's anchors. `:::{toctree}` and its like, with colons, are for the site alone.
myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 4

# Python reference: the package is read as text, so neither torch nor granite is imported or installed.
autoapi_dirs = [str(ROOT / "biofound")]
autoapi_generate_api_docs = False  # docs/python_api.md says what is in it
autoapi_python_class_content = "both"
autoapi_member_order = "bysource"
napoleon_numpy_docstring = False
napoleon_use_ivar = True  # else `Attributes:` describes an attribute a second time
suppress_warnings = ["autoapi.python_import_resolution"]  # of constants that are not in the reference


def escape_docstring(_app: Any, _what: str, _name: str, _obj: Any, _options: Any, lines: list[str]) -> None:
    """Make reStructuredText of a plain docstring: `code` is literal, and *, | and _ mean themselves."""
    for at, line in enumerate(lines):
        pieces = re.split(r"`([^`]+)`", line)
        pieces[::2] = (re.sub(r"([*|]|_(?=\W|$))", r"\\\1", piece) for piece in pieces[::2])
        pieces[1::2] = (f"``{piece}``" for piece in pieces[1::2])
        lines[at] = "".join(pieces)


def setup(app: Any) -> None:
    """Escape docstrings before napoleon reads their sections; show `csv` blocks as they are."""
    app.add_lexer("csv", TextLexer)
    app.connect("autodoc-process-docstring", escape_docstring, priority=100)
