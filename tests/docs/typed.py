"""The shell blocks of a page, typed by a reader who has installed router_trio into `venv`, as the page says."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

from tests.docs.pages import Block, Page
from tests.support.command import ENDS_WITHIN, ROOT, RunningCommand, environment, running

BASH = ["bash", "-e", "-c"]


def prepare(place: Path) -> Mapping[str, str]:
    """Make what installing makes: `venv`, with the command and Python of this tree. Returns variables that need it."""
    binaries = place / "venv" / "bin"
    binaries.mkdir(parents=True)
    for name, what in (("router-trio", f'"{sys.executable}" -m router_trio'), ("python", f'"{sys.executable}"')):
        script = binaries / name
        script.write_text(f'#!/bin/sh\nPYTHONPATH="{ROOT}" exec {what} "$@"\n')
        script.chmod(0o755)
    (binaries / "activate").write_text(f'PATH="{binaries}:$PATH"\nexport PATH\n')
    return {"PATH": f"{binaries}:{environment()['PATH']}", "PYTHONUNBUFFERED": "1"}


class Reader:
    """Types the shell blocks of a page, in their order, and replaces what differs from time to time."""

    def __init__(self, page: Page, place: Path) -> None:
        self.place = place
        self.env = dict(prepare(place))
        self.replacements: dict[str, str] = {}
        self._blocks = [block for block in page.blocks if block.language == "sh"]

    @property
    def left(self) -> list[Block]:
        """The blocks that were not typed so far."""
        return list(self._blocks)

    def skip(self, beginning: str) -> None:
        """Leave the next block out; it begins with this text."""
        assert self._blocks.pop(0).text.startswith(beginning)

    def types(self) -> subprocess.CompletedProcess[str]:
        """Type the next block, and return how it ended. Blocks until then."""
        return subprocess.run(
            [*BASH, self._next()],
            capture_output=True,
            text=True,
            check=False,
            timeout=ENDS_WITHIN,
            cwd=self.place,
            env=environment(self.env),
        )

    @asynccontextmanager
    async def starts(self) -> AsyncIterator[RunningCommand]:
        """Type the next block in a terminal of its own, where it stays."""
        async with running(self._next(), cwd=self.place, env=self.env, python=BASH, group=True) as command:
            yield command

    def _next(self) -> str:
        text = self._blocks.pop(0).text
        for old, new in self.replacements.items():
            text = text.replace(old, new)
        return text
