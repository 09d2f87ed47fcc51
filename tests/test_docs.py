"""The generated pages and files say what the program does."""

import pytest
from typer.main import get_command

from biofound.cli import app
from biofound.settings.base import extra_of
from biofound.settings import COMMANDS
from biofound.settings.resolve import option_name
from tests.generated import ROOT, cli_page, stale

COMMANDS_REGISTERED = get_command(app).commands  # type: ignore[attr-defined]


def test_generated_files_are_up_to_date() -> None:
    assert [str(path.relative_to(ROOT)) for path in stale()] == [], "run `nox -s docs -- --write`"


@pytest.mark.parametrize("name", COMMANDS_REGISTERED)
def test_reference_has_every_command_and_option(name: str) -> None:
    page = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    section = page.split(f"## biofound {name}\n")[1].split("\n## ")[0]
    for param in COMMANDS_REGISTERED[name].params:
        for option in (*param.opts, *param.secondary_opts):
            assert f"{option} " in section or f"{option}\n" in section, option


def test_reference_is_plain_text_of_limited_width() -> None:
    page = cli_page()
    assert "\x1b" not in page
    in_help = [line for block in page.split("```")[1::2] for line in block.splitlines()]
    assert max(map(len, in_help)) <= 100


def test_every_command_has_its_settings_as_options() -> None:
    for model in COMMANDS:
        if model.command not in COMMANDS_REGISTERED:
            continue
        options = {o for p in COMMANDS_REGISTERED[model.command].params for o in (*p.opts, *p.secondary_opts)}
        for name, info in model.model_fields.items():
            assert option_name(name) in options
            if info.annotation is bool:
                assert option_name(extra_of(info, "off_name") or f"no_{name}") in options
