"""The tutorial, step by step, as a reader does it: its files, its commands, its outage."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
import trio

from router_trio.embedded import HOST, reserve_port
from tests.docs.pages import DOCS, page
from tests.support.command import command, running

TUTORIAL = page(DOCS / "tutorial.md")
SECOND = "await trio.sleep(1)"
ORDERS = 60

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="finds the server's process in /proc")


async def test_the_tutorial_from_the_first_route_to_the_first_outage(tmp_path: Path) -> None:
    (toml,) = [block.text for block in TUTORIAL.blocks if block.language == "toml"]
    (program,) = [block.text for block in TUTORIAL.blocks if block.language == "python"]
    # Twenty orders a second instead of one: a reader needs the time, a test does not.
    assert program.count(SECOND) == 1
    (tmp_path / "orders.py").write_text(program.replace(SECOND, "await trio.sleep(0.05)"))
    (tmp_path / "router.toml").write_text(toml)

    assert command("check", "router.toml", cwd=tmp_path).returncode == 0
    assert "eu.7" in command("explain", "router.toml", "orders.7.created", cwd=tmp_path).stdout

    with reserve_port() as port:
        listen = {"ROUTER_TRIO_TELEMETRY__LISTEN": f"{HOST}:{port}"}
    async with running("run", "router.toml", "--embedded-nats", cwd=tmp_path, env=listen) as router:
        url = (await router.has_printed(r"nats://\S+"))[0]
        await router.has_logged("NATS_STREAM_CREATED")
        await router.has_logged("ROUTE_READY")
        python = [sys.executable, "-u"]
        async with running("orders.py", url, cwd=tmp_path, python=python) as orders:
            await orders.has_printed(r"order 2: acked\n(.*\n)*    arrived: order 2\n")
            server = _process_of_server(url)
            os.kill(server, signal.SIGSTOP)
            try:
                await router.has_logged("NATS_CONNECTION_LOST", reason="liveness")
                await router.has_logged("NATS_RECONNECT_ATTEMPT")
                await orders.has_printed("order [0-9]+: queued")
                unready, reasons = await _ask(port, "/readyz")
                assert unready == 503
                assert reasons["reasons"]
            finally:
                os.kill(server, signal.SIGCONT)
            await router.has_logged("NATS_CONNECTION_RESTORED")
            assert await orders.ended() == 0
            arrived = re.findall(r"arrived: order (\d+)\n", orders.output)
        router.send(signal.SIGINT)
        assert await router.ended() == 0
        (end,) = router.logged("ROUTER_STOPPED")
    assert arrived == [str(number) for number in range(1, ORDERS + 1)]
    ledger = end["ledger"]["main"]
    assert (ledger["accepted"], ledger["pending"], ledger["in_flight"]) == (ORDERS, 0, 0)
    assert ledger["settled"]["acked"] == ORDERS


def _process_of_server(url: str) -> int:
    """The pid of the nats-server that listens there."""
    port = url.rpartition(":")[2].encode()
    for line in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):  # it ended meanwhile
            name, *arguments = line.read_bytes().split(b"\0")
            if name.endswith(b"nats-server") and port in arguments:
                return int(line.parent.name)
    raise AssertionError(f"no nats-server listens on {url}")


async def _ask(port: int, path: str) -> tuple[int, Any]:
    async with await trio.open_tcp_stream(HOST, port) as stream:
        await stream.send_all(f"GET {path} HTTP/1.1\r\nHost: {HOST}\r\nConnection: close\r\n\r\n".encode())
        head, _, body = b"".join([part async for part in stream]).partition(b"\r\n\r\n")
    return int(head.split()[1]), json.loads(body)
