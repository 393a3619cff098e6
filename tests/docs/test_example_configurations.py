"""The `[[tests]]` of the documentation pass, and `router-trio test` prints the output on the page."""

from __future__ import annotations

from pathlib import Path

import pytest

from router_trio.cli import main
from router_trio.cli.command_line import DONE
from tests.docs.pages import ROOT, page

HOW_TO = page(ROOT / "docs" / "how-to" / "test-your-routes.md")


def test_the_command_prints_the_output_on_the_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    [configuration] = [one for one in HOW_TO.blocks if one.language == "toml"]
    [typed] = [one for one in HOW_TO.blocks if one.text == "router-trio test router.toml\n"]
    (tmp_path / "router.toml").write_text(configuration.text)
    assert main(["test", str(tmp_path / "router.toml")]) == DONE
    assert capsys.readouterr().out == typed.output
