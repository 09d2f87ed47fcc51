"""The generated pages and files say what the program does."""

import runpy
from pathlib import Path

import pytest
from typer.main import get_command

from biofound.cli import app
from biofound.settings import COMMANDS
from biofound.settings.base import Settings, extra_of
from biofound.settings.resolve import option_name

ROOT = Path(__file__).parent.parent
GENERATE = runpy.run_path(str(ROOT / "docs" / "generate.py"))
REGISTERED = get_command(app).commands  # type: ignore[attr-defined]


def test_generated_files_are_up_to_date() -> None:
    assert [path.name for path in GENERATE["stale"]()] == [], "run `nox -s docs -- --write`"


@pytest.mark.parametrize("name", REGISTERED)
def test_reference_has_every_command_and_option(name: str) -> None:
    page = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    section = page.split(f"## biofound {name}\n")[1].split("\n## ")[0]
    for param in REGISTERED[name].params:
        for option in (*param.opts, *param.secondary_opts):
            assert f"{option} " in section or f"{option}\n" in section, option


def test_reference_is_plain_text_of_limited_width() -> None:
    page = GENERATE["cli_page"]()
    assert "\x1b" not in page
    in_help = [line for block in page.split("```")[1::2] for line in block.splitlines()]
    assert max(map(len, in_help)) <= 100


@pytest.mark.parametrize("model", COMMANDS)
def test_every_command_has_its_settings_as_options(model: type[Settings]) -> None:
    options = {o for param in REGISTERED[model.command].params for o in (*param.opts, *param.secondary_opts)}
    for name, info in model.model_fields.items():
        assert option_name(name) in options
        if info.annotation is bool:
            assert option_name(extra_of(info, "off_name") or f"no_{name}") in options
