"""`router-trio top` beside a running router."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
from functools import partial
from pathlib import Path

import pytest
import trio

from tests.integration.workers import Workers, publish, settled, workers
from tests.support.command import COMMAND, command, environment
from tests.support.raw_nats import connect
from tests.support.servers import NatsServer

pytestmark = pytest.mark.slow

CONFIG = """
[telemetry]
listen = "127.0.0.1:0"

[connections.main]
servers = ["URL"]

[[routes]]
name = "passed"
from = { subject = "in.*", queue = "routers" }
to = [ { subject = "out.{{wildcard(1)}}" } ]

[[routes]]
name = "refused"
when = "body.total > 1"
from = { subject = "refused.*", queue = "routers" }
to = [ { subject = "out.{{wildcard(1)}}" } ]
"""


def url(one: Workers) -> str:
    return f"http://{one.address[0]}:{one.address[1]}"


async def test_it_shows_the_sum_of_all_workers_once(server: NatsServer, tmp_path: Path) -> None:
    async with connect(server.url) as client, workers(server, tmp_path, CONFIG, "--workers", "2") as one:
        await publish(client, "in", 0, 1000)
        await publish(client, "refused", 0, 10)
        await one.until(lambda status: settled(status, "passed")["routed"] == 1000)
        await one.until(lambda status: settled(status, "refused")["lost"] == 10)
        table = await trio.to_thread.run_sync(partial(command, "top", url(one), "--once", cwd=tmp_path))
        found = await trio.to_thread.run_sync(partial(command, "top", url(one), "--once", "--json", cwd=tmp_path))
    assert (table.returncode, found.returncode) == (0, 0)
    assert "\x1b" not in table.stdout, "not in a pipe"
    assert "2 of 2 workers" in table.stdout
    assert max(map(len, table.stdout.splitlines())) <= 80
    (passed,) = (line for line in table.stdout.splitlines() if line.startswith("passed"))
    assert passed.split() == ["passed", "running", "0", "0", "0", "-", "0"]
    shown = json.loads(found.stdout)
    assert shown["routes"]["passed"]["ledger"]["received"] == 1000
    assert shown["routes"]["refused"]["last_failure"]["reason"] == "expression"
    assert shown["connections"]["main"]["state"] == "connected"


@pytest.mark.parametrize("variables", [{"TERM": "xterm"}, {"TERM": "xterm", "NO_COLOR": "1"}])
async def test_it_draws_in_place_in_a_terminal_and_leaves_it_as_it_was(
    server: NatsServer, tmp_path: Path, variables: dict[str, str]
) -> None:
    async with workers(server, tmp_path, CONFIG) as one:
        ours, theirs = pty.openpty()
        try:
            process = await trio.lowlevel.open_process(
                [*COMMAND, "top", url(one)], stdout=theirs, cwd=tmp_path, env=environment(variables)
            )
            drawn = await _read_until(ours, b"refused")
            process.send_signal(signal.SIGTERM)
            drawn += await _read_until(ours, b"\x1b[?1049l")
            assert await process.wait() == 0
        finally:
            os.close(ours)
            os.close(theirs)
    assert drawn.startswith(b"\x1b[?1049h\x1b[?25l")
    assert drawn.endswith(b"\x1b[?25h\x1b[?1049l")
    assert (b"\x1b[32m" in drawn) == ("NO_COLOR" not in variables)


async def _read_until(terminal: int, text: bytes) -> bytes:
    found = b""
    with trio.fail_after(10):
        while text not in found:
            await trio.lowlevel.wait_readable(terminal)
            found += os.read(terminal, 65536)
    return found


def test_a_router_that_does_not_answer_is_named(tmp_path: Path) -> None:
    done = command("top", "http://127.0.0.1:1", "--once", cwd=tmp_path)
    assert done.returncode == 1
    assert "no router answers at http://127.0.0.1:1" in done.stderr


def test_another_program_is_not_taken_for_a_router(tmp_path: Path) -> None:
    (tmp_path / "status").write_text("hello")
    server = subprocess.Popen(
        [COMMAND[0], "-u", "-m", "http.server", "0", "--bind", "127.0.0.1"],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        assert server.stdout is not None
        port = server.stdout.readline().split(" port ")[1].split(" ")[0]
        done = command("top", f"127.0.0.1:{port}", "--once", cwd=tmp_path)
    finally:
        server.kill()
        server.wait()
    assert done.returncode == 1
    assert "is it a router?" in done.stderr
