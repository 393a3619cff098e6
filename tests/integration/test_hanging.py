"""Handlers in threads and file systems that hang: a reload continues, and the router can be terminated."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest
import trio

from tests.integration.test_blocked_loop import get, started
from tests.support.command import RunningCommand, running
from tests.support.raw_nats import connect
from tests.support.servers import NatsServer

HANDLER = """
import threading

def hangs(message):
    if message.payload == b"hang" and message.deliveries == 1:
        threading.Event().wait()
    return message
"""

CONFIG = """
[router]
shutdown_timeout = "1s"
[telemetry]
listen = "127.0.0.1:0"
[connections.main]
servers = ["URL"]
reconnect_delay = "100ms"
MORE
[[routes]]
name = "orders"
handler = "hanging:hangs"
thread = true
from = { SOURCE }
to = [ { subject = "TO.{{wildcard(1)}}", jetstream = false } ]
"""

CORE = 'subject = "orders.*"'
STREAM = 'stream = "ORDERS", durable = "router", filter = "orders.*"'


def configuration(tmp_path: Path, url: str, *, source: str = CORE, to: str = "eu", more: str = "") -> Path:
    (tmp_path / "hanging.py").write_text(HANDLER)
    path = tmp_path / "router.toml"
    text = CONFIG.replace("URL", url).replace("SOURCE", source).replace("TO", to).replace("MORE", more)
    path.write_text(text)
    return path


@pytest.mark.parametrize("source", [CORE, STREAM], ids=["core", "stream"])
async def test_a_reload_abandons_and_names_a_call_that_hangs_in_a_thread(
    server: NatsServer, tmp_path: Path, source: str
) -> None:
    async with connect(server.url) as client:
        if source == STREAM:
            made = b'{"name":"ORDERS","subjects":["orders.*"],"storage":"memory"}'
            await client.request("$JS.API.STREAM.CREATE.ORDERS", made)
        path = configuration(tmp_path, server.url, source=source)
        async with running("run", path, cwd=tmp_path) as run:
            page = await started(run)
            await client.publish("orders.7", b"hang")
            await client.ping()
            await trio.sleep(0.5)
            configuration(tmp_path, server.url, source=source, to="us")
            run.send(signal.SIGHUP)
            await run.has_logged("ROUTER_RELOADED")
            assert (await run.has_logged("ROUTE_HANDLER_LEFT_BEHIND"))["route"] == "orders"
            code, body = await get(f"{page}/readyz")
            assert code == 503
            assert any("was abandoned" in one["reason"] for one in body["reasons"])
            # A later call begins, and messages pass.
            configuration(tmp_path, server.url, source=source, to="asia")
            run.send(signal.SIGHUP)
            with trio.fail_after(20):
                while len(run.logged("ROUTER_RELOADED")) < 2:
                    await trio.sleep(0.1)
            arrived = await client.subscribe("asia.*")
            await client.ping()
            await client.publish("orders.8", b"on")
            with trio.fail_after(10):
                assert (await arrived.next()).payload == b"on"
            began = time.monotonic()
            run.send(signal.SIGTERM)
            await run.ended()
            assert time.monotonic() - began < 9


def hang(path: Path) -> None:
    """Put a named pipe in the place of a file: a reader waits forever."""
    path.unlink()
    os.mkfifo(path)


async def ends_by(run: RunningCommand, number: signal.Signals) -> None:
    began = time.monotonic()
    run.send(number)
    await run.ended()
    assert time.monotonic() - began < 9


@pytest.mark.parametrize("workers", ["1", "2"])
@pytest.mark.parametrize("watch", [False, True], ids=["SIGHUP", "--watch"])
async def test_a_signal_ends_the_router_while_its_configuration_hangs(
    server: NatsServer, tmp_path: Path, watch: bool, workers: str
) -> None:
    source = 'subject = "orders.*", queue = "routers"'
    path = configuration(tmp_path, server.url, source=source)
    options = ["--watch"] * watch + ["--workers", workers]
    async with running("run", *options, path, cwd=tmp_path) as run:
        page = await started(run)
        hang(path)
        run.send(signal.SIGHUP)
        await trio.sleep(2)
        assert (await get(f"{page}/healthz"))[0] == 200
        await ends_by(run, signal.SIGTERM)


async def test_a_credentials_file_that_hangs_at_a_reconnect_stops_nothing_else(
    server: NatsServer, tmp_path: Path
) -> None:
    seed = tmp_path / "seed.nk"
    seed.write_text("SUAMK2FG4MI6UE3ACF3FK3OIQBCEIEZV7NSWFFEW63UXMRLFM2XLAXK4GY\n")
    more = f'nkey_seed_file = "{seed}"\nconnect_timeout = "1s"'
    async with running("run", configuration(tmp_path, server.url, more=more), cwd=tmp_path) as run:
        page = await started(run)
        hang(seed)
        await server.kill()
        await run.has_logged("NATS_CONNECTION_LOST")
        await server.restart()
        line = await run.has_logged("NATS_CONNECTION_FAILED", reason="timeout")
        assert "nkey_seed_file" in line["detail"]
        for _ in range(3):
            began = time.monotonic()
            assert (await get(f"{page}/healthz"))[0] == 200
            assert time.monotonic() - began < 1
            await trio.sleep(0.5)
        assert not run.logged("ROUTER_LOOP_BLOCKED")
        await ends_by(run, signal.SIGTERM)
