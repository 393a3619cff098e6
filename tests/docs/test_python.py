"""Every Python block of the documentation runs, against a real server, and prints the output on the page.

A block with tests is run by pytest; any other as a program, with the URL of a server as its argument and a
`router.toml` in its directory. A block marked as not run here is compiled, and names where it is run.
"""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

import pytest
import trio

from router_trio.embedded import HOST
from tests.docs.pages import ROOT, Block, blocks
from tests.support.command import environment
from tests.support.servers import NatsServer

PYTHON = blocks("python")
RUN_WITHIN = 30.0


@pytest.mark.parametrize("block", [block for block in PYTHON if block.runs], ids=str)
async def test_a_block_prints_the_output_on_the_page(block: Block, server: NatsServer, tmp_path: Path) -> None:
    place = tmp_path / "place"
    place.mkdir()
    (place / "router.toml").write_text(
        f'[telemetry]\nlisten = "{HOST}:0"\n\n[connections.main]\nservers = ["{server.url}"]\n'
    )
    tests = "def test_" in block.text
    program = place / ("test_block.py" if tests else "block.py")
    program.write_text(block.text)
    command = ["-m", "pytest", "-q", "-p", "no:cacheprovider", program.name] if tests else [program.name, server.url]
    run = partial(
        trio.run_process,
        [sys.executable, *command],
        cwd=place,
        env=environment(),
        capture_stdout=True,
        capture_stderr=True,
        check=False,
    )
    with trio.fail_after(RUN_WITHIN):
        done = await run()
    printed = done.stdout.decode()
    assert done.returncode == 0, f"{block} failed:\n{printed}\n{done.stderr.decode()}"
    if tests:
        assert f"{block.text.count('def test_')} passed" in printed
    if block.output is not None:
        assert printed == block.output


@pytest.mark.parametrize("block", [block for block in PYTHON if not block.runs], ids=str)
def test_a_block_that_is_not_run_here_compiles_and_is_run_elsewhere(block: Block) -> None:
    compile(block.text, str(block), "exec")
    before = block.path.read_text(encoding="utf-8").splitlines()[block.line - 3]
    named = [word for word in before.split() if word.startswith("tests/")]
    assert named, f"{block}: the mark must name the test that runs it"
    assert (ROOT / named[0].rstrip(",")).is_file()


def test_blocks_to_run_are_found() -> None:
    assert sum(block.runs for block in PYTHON) >= 6
    assert sum(block.output is not None for block in PYTHON) >= 3
