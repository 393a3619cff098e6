"""The shell blocks of a page, typed by a reader who has installed router_trio into `venv`, as the page says."""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

from tests.docs.pages import Page
from tests.support.command import ENDS_WITHIN, ROOT, RunningCommand, environment, running

BASH = ["bash", "-e", "-c"]


_FENCED = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_INDENTED = re.compile(r"(?<=\n\n)(?: {4}.*\n)+")


def shell_blocks(page: Page) -> list[str]:
    """Return the shell commands of a page: its blocks with the language `sh`, and those by indentation."""
    found = {match.start(): match[2] for match in _FENCED.finditer(page.text) if match[1] == "sh"}
    prose = _FENCED.sub(lambda fenced: "`" * len(fenced[0]), page.text)
    found |= {match.start(): re.sub("^ {4}", "", match[0], flags=re.MULTILINE) for match in _INDENTED.finditer(prose)}
    return [found[start] for start in sorted(found)]


def prepare(place: Path) -> Mapping[str, str]:
    """Imitate the installation: `venv`, with the command and Python of this tree. Return variables for it."""
    binaries = place / "venv" / "bin"
    binaries.mkdir(parents=True)
    for name, what in (("router-trio", f'"{sys.executable}" -m router_trio'), ("python", f'"{sys.executable}"')):
        script = binaries / name
        script.write_text(f'#!/bin/sh\nPYTHONPATH="{ROOT}" exec {what} "$@"\n')
        script.chmod(0o755)
    (binaries / "activate").write_text(f'PATH="{binaries}:$PATH"\nexport PATH\n')
    return {"PATH": f"{binaries}:{environment()['PATH']}", "PYTHONUNBUFFERED": "1"}


class Reader:
    """Types the shell blocks of a page, in their order, and replaces what differs between runs.

    If a block changes the directory with `cd`, the next one is typed there.
    """

    def __init__(self, page: Page, place: Path, env: Mapping[str, str] | None = None) -> None:
        self.place = place
        self.env = dict(prepare(place) if env is None else env)
        self.replacements: dict[str, str] = {}
        self._blocks = shell_blocks(page)

    @property
    def left(self) -> list[str]:
        """The blocks that were not typed so far."""
        return list(self._blocks)

    def skip(self, beginning: str) -> None:
        """Skip the next block, which begins with this text."""
        assert self._blocks.pop(0).startswith(beginning)

    def types(self, within: float = ENDS_WITHIN) -> subprocess.CompletedProcess[str]:
        """Type the next block, and return how it ended. Blocks until then."""
        with tempfile.NamedTemporaryFile() as there:
            done = subprocess.run(
                [*BASH, f"trap 'pwd > {there.name}' EXIT\n{self._next()}"],
                capture_output=True,
                text=True,
                check=False,
                timeout=within,
                cwd=self.place,
                env=environment(self.env),
            )
            self.place = Path(there.read().decode().strip())
        return done

    @asynccontextmanager
    async def starts(self) -> AsyncIterator[RunningCommand]:
        """Type the next block in a terminal of its own, and leave it running."""
        async with running(self._next(), cwd=self.place, env=self.env, python=BASH, group=True) as command:
            yield command

    def _next(self) -> str:
        text = self._blocks.pop(0)
        for old, new in self.replacements.items():
            text = text.replace(old, new)
        return text
