"""Every `console` block of the documentation prints what the page shows.

Its commands run in a directory whose router.toml is the one that the page has by then. A file shown by `cat` is there
as well.
"""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from tests.docs.pages import Block, blocks
from tests.support.command import command

pytestmark = pytest.mark.slow

CONSOLES = blocks("console")
_STEP = re.compile(r"^\$ (router-trio|cat) (.+)\n((?:(?!\$ ).*\n)*)", re.MULTILINE)


@pytest.mark.parametrize("block", CONSOLES, ids=str)
def test_a_console_prints_what_the_page_shows(block: Block, tmp_path: Path) -> None:
    (tmp_path / "router.toml").write_text(block.router_toml)
    steps = _STEP.findall(block.text)
    assert "".join(f"$ {name} {arguments}\n{shown}" for name, arguments, shown in steps) == block.text
    for name, arguments, shown in steps:
        if name == "cat":
            (tmp_path / arguments).write_text(shown)
        else:
            done = command(*shlex.split(arguments), cwd=tmp_path)
            assert done.stdout + done.stderr == shown, f"{block}: router-trio {arguments}"


def test_console_blocks_are_found() -> None:
    assert len(CONSOLES) >= 8
