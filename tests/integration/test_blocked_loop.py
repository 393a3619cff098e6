"""A handler that blocks the event loop: it is named, probes are answered, and the router can be terminated."""

from __future__ import annotations

import json
import re
import signal
import time
import urllib.request
from functools import partial
from pathlib import Path
from typing import Any
from urllib.error import HTTPError

import pytest
import trio

from tests.support.command import RunningCommand, running
from tests.support.raw_nats import connect
from tests.support.servers import NatsServer

HANDLERS = """
import time

def blocks(message):
    time.sleep(float(message.payload))
    return message

async def never_awaits(message):
    time.sleep(float(message.payload))
    return message

def in_c(message):
    # No signal interrupts it, and no bytecode runs meanwhile: no handler of a signal is called.
    import hashlib
    hashlib.pbkdf2_hmac("sha256", b"", b"", 2**31 - 1)
    return message
"""

CONFIG = """
[router]
shutdown_timeout = "2s"
[telemetry]
listen = "127.0.0.1:0"
log_format = "json"
[connections.main]
servers = ["URL"]
[[routes]]
name = "orders"
handler = "blocking:HANDLER"
from = { subject = "orders.*" }
to = [ { subject = "eu.{{wildcard(1)}}" } ]
"""


def configuration(tmp_path: Path, url: str, handler: str) -> Path:
    (tmp_path / "blocking.py").write_text(HANDLERS)
    path = tmp_path / "router.toml"
    path.write_text(CONFIG.replace("URL", url).replace("HANDLER", handler))
    return path


def ask(url: str, within: float) -> tuple[int, Any]:
    try:
        with urllib.request.urlopen(url, timeout=within) as answer:
            return answer.status, json.load(answer)
    except HTTPError as error:
        return error.code, json.load(error)


async def get(url: str, within: float = 15.0) -> tuple[int, Any]:
    return await trio.to_thread.run_sync(partial(ask, url, within))


async def started(run: RunningCommand) -> str:
    await run.has_logged("ROUTER_STARTED")
    page: str = run.logged("ROUTER_STATUS_PAGE")[0]["url"]
    return page.rstrip("/")


async def publish(server: NatsServer, *payloads: bytes) -> None:
    async with connect(server.url) as client:
        for payload in payloads:
            await client.publish("orders.7", payload)
        await client.ping()


@pytest.mark.parametrize("handler", ["blocks", "never_awaits"])
async def test_a_handler_that_blocks_is_named_in_the_log_and_by_healthz(
    server: NatsServer, tmp_path: Path, handler: str
) -> None:
    async with running("run", configuration(tmp_path, server.url, handler), cwd=tmp_path) as run:
        page = await started(run)
        assert (await get(f"{page}/healthz"))[0] == 200
        await publish(server, b"6")
        line = await run.has_logged("ROUTER_LOOP_BLOCKED")
        where = rf"{re.escape(str(tmp_path))}/blocking\.py:\d+ in {handler}"
        assert (line["level"], line["route"], line["subject"]) == ("ERROR", "orders", "orders.7")
        assert re.fullmatch(where, line["place"])
        assert "`thread = true`" in line["message"], "the log does not say what to do"
        code, body = await get(f"{page}/healthz", within=2.0)
        assert code == 503
        assert "orders" in body["reasons"][0]["reason"]
        assert re.search(where, body["reasons"][0]["reason"])
        # Requested during the block, and answered when the loop turns.
        assert (await get(f"{page}/status"))[0] == 200
        assert (await get(f"{page}/healthz"))[0] == 200
        run.send(signal.SIGTERM)
        assert await run.ended() == 0


async def test_the_supervisor_reports_which_worker_is_blocked_and_by_what(server: NatsServer, tmp_path: Path) -> None:
    path = configuration(tmp_path, server.url, "blocks")
    path.write_text(path.read_text().replace('"orders.*" }', '"orders.*", queue = "routers" }'))
    async with running("run", "--workers", "2", path, cwd=tmp_path) as run:
        page = await started(run)
        while (await get(f"{page}/readyz"))[0] != 200:
            await trio.sleep(0.05)
        assert (await get(f"{page}/healthz"))[0] == 200
        await publish(server, b"8")
        line = await run.has_logged("ROUTER_LOOP_BLOCKED")
        for name in ("healthz", "readyz"):
            # The worker logs before it writes to the block that the supervisor reads.
            with trio.fail_after(4):
                while (answer := await get(f"{page}/{name}", within=2.0))[0] != 503:
                    await trio.sleep(0.01)
            (reason,) = answer[1]["reasons"]
            assert reason["worker"] == line["worker"]
            assert re.search(r"blocked for \d+ s by the handler of route orders, at .*blocking\.py:", reason["reason"])
        with trio.fail_after(20):
            for name in ("healthz", "readyz"):
                while (await get(f"{page}/{name}"))[0] != 200:
                    await trio.sleep(0.05)
        not_ready = [line for line in run.logged("ROUTER_NOT_READY") if "worker" not in line]
        assert "by the handler of route orders" in not_ready[-1]["reasons"][0]
        run.send(signal.SIGTERM)
        assert await run.ended() == 0


async def test_pages_are_answered_and_a_signal_is_handled_between_two_calls(server: NatsServer, tmp_path: Path) -> None:
    async with running("run", configuration(tmp_path, server.url, "blocks"), cwd=tmp_path) as run:
        page = await started(run)
        await publish(server, *[b"0.5"] * 200)
        await trio.sleep(0.5)
        for path in ("/status", "/readyz"):
            began = time.monotonic()
            await get(f"{page}{path}")
            assert time.monotonic() - began < 4
        began = time.monotonic()
        run.send(signal.SIGTERM)
        await run.ended()
        assert time.monotonic() - began < 6, "shutdown_timeout is 2 s"
        assert run.logged("ROUTER_STOPPED")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("handler", ["blocks", "in_c"])
async def test_a_second_signal_ends_the_process_while_the_loop_is_blocked(
    server: NatsServer, tmp_path: Path, handler: str, number: signal.Signals
) -> None:
    async with running("run", configuration(tmp_path, server.url, handler), cwd=tmp_path) as run:
        await started(run)
        await publish(server, b"60")
        await run.has_logged("ROUTER_LOOP_BLOCKED")
        run.send(number)
        await trio.sleep(0.3)
        run.send(number)
        began = time.monotonic()
        assert await run.ended() == 1
        assert time.monotonic() - began < 3
        assert "second signal" in run.errors


ON_ASYNCIO = """
import asyncio, time

async def blocks(message):
    await asyncio.sleep(0)
    time.sleep(float(message.payload))
    return message

async def in_a_task(message):
    async def work():
        time.sleep(float(message.payload))
    await asyncio.create_task(work())
    return message
"""


@pytest.mark.parametrize(("handler", "route"), [("blocks", "orders"), ("in_a_task", None)])
async def test_a_handler_that_blocks_its_asyncio_loop_is_named_and_the_router_goes_on(
    server: NatsServer, tmp_path: Path, handler: str, route: str | None
) -> None:
    path = configuration(tmp_path, server.url, handler)
    (tmp_path / "blocking.py").write_text(ON_ASYNCIO)
    path.write_text(path.read_text().replace("[router]", '[router]\nloop = "asyncio"'))
    async with running("run", path, cwd=tmp_path) as run:
        page = await started(run)
        await publish(server, b"5")
        line = await run.has_logged("ROUTER_ASYNCIO_BLOCKED")
        inner = "work" if handler == "in_a_task" else handler
        assert re.fullmatch(rf"{re.escape(str(tmp_path))}/blocking\.py:\d+ in {inner}", line["place"])
        assert (line["level"], line.get("route"), line["subject"]) == ("ERROR", route, "orders.7")
        assert (await get(f"{page}/healthz", within=2.0))[0] == 200
        assert not run.logged("ROUTER_LOOP_BLOCKED")
        run.send(signal.SIGTERM)
        await run.ended()
