"""The scenario of the pictures: a router between two servers that are killed, one for a while, the other briefly.

The router runs as the command, in its own process, so that memory, CPU and event loop are those of a router alone. The
traffic comes from a second router, in this process. Every number of the dashboards changes: the queue towards `core`
fills, drops and drains; some messages are unusable and are given up after their second attempt.
"""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import trio

from router_trio import Router, Settings
from router_trio.client.live import Live
from router_trio.embedded import HOST, EmbeddedServer, open_embedded_server, reserve_port
from router_trio.nats.other_client import add_streams

ROOT = Path(__file__).parents[2]
READY_WITHIN = 15.0
ROUND = 0.1
"""Seconds between two rounds of traffic. A round is a few messages of each kind."""
UNUSABLE_EVERY, CANCELLED_EVERY = 40, 5
SHOPS = 8
"""Subjects of payments, which are divided among the partitions of their stream."""

CONFIGURATION = """
[router]
name = "pictures"
shutdown_timeout = "2s"
[telemetry]
listen = "{listen}"

[connections.edge]
servers = ["{edge}"]
reconnect_delay = "300ms"
max_reconnect_delay = "1s"
[connections.core]
servers = ["{core}"]
reconnect_attempts = 6
reconnect_delay = "500ms"
max_reconnect_delay = "2s"
max_pending_operations = 1000

[[routes]]
name = "orders"
from = {{ connection = "edge", subject = "orders.*" }}
limit = {{ rate = "10000/s" }}
to = [{{ connection = "core", subject = "archive.{{{{wildcard(1)}}}}", jetstream = true, breaker = {{}} }}]
[[routes]]
name = "readings"
from = {{ connection = "edge", subject = "readings.*" }}
to = [{{ connection = "core", subject = "eu.readings.{{{{wildcard(1)}}}}" }}]
[[routes]]
name = "payments"
from = {{ connection = "edge", stream = "PAYMENTS", durable = "router", partitions = 4 }}
to = [{{ connection = "core", subject = "audit.card", jetstream = true }}]
handler = "router_trio.demo.traffic:audit"
retry = {{ initial = "500ms", attempts = 2 }}
"""


@dataclass(frozen=True)
class Environment:
    """The address of the router's metrics, the two servers to kill and restart, and the client for the traffic."""

    metrics: str
    edge: EmbeddedServer
    core: EmbeddedServer
    live: Live


@asynccontextmanager
async def open_environment(directory: Path) -> AsyncIterator[Environment]:
    """Run the servers, the router and the client for the traffic; leaving ends all of them.

    Raises `RouterError` if a server does not come up, `trio.TooSlowError` if the router doesn't.
    """
    async with open_embedded_server() as edge, open_embedded_server() as core:
        await add_streams(edge.url, {"PAYMENTS": ["payments.*"]})
        await add_streams(core.url, {"ARCHIVE": ["archive.*"], "AUDIT": ["audit.*"]})
        with reserve_port() as port:
            listen = f"{HOST}:{port}"
            path = directory / "router.toml"
            path.write_text(CONFIGURATION.format(listen=listen, edge=edge.url, core=core.url), encoding="utf-8")
            async with _router(path, directory / "router.log"), _traffic_router(edge.url).open() as live:
                with trio.fail_after(READY_WITHIN):
                    await _answers(port)
                yield Environment(listen, edge, core, live)


async def play(environment: Environment, seconds: float) -> None:
    """Publish for `seconds`, during which `core` is down for a sixth of the time and `edge` for a twentieth."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_publish, environment.live)
        await trio.sleep(seconds * 0.3)
        await _outage(environment.core, seconds / 6)
        await trio.sleep(seconds * 0.25)
        await _outage(environment.edge, seconds / 20)
        await trio.sleep(seconds * (1 - 0.3 - 1 / 6 - 0.25 - 1 / 20))
        nursery.cancel_scope.cancel()


async def _outage(server: EmbeddedServer, seconds: float) -> None:
    await server.kill()
    await trio.sleep(seconds)
    await server.restart()


async def _publish(live: Live) -> None:
    for number in itertools.count(1):
        for region in ("africa", "america", "asia", "europe"):
            await live.publish(f"orders.{region}", json.dumps({"n": number}).encode())
        for sensor in ("door", "gate", "roof", "yard", "hall", "lift"):
            await live.publish(f"readings.{sensor}", json.dumps({"n": number}).encode())
        payment = {"n": number, "cancelled": number % CANCELLED_EVERY == 0}
        unusable = number % UNUSABLE_EVERY == 0
        await live.publish(f"payments.{number % SHOPS}", b"unusable" if unusable else json.dumps(payment).encode())
        await trio.sleep(ROUND)


def _traffic_router(url: str) -> Router:
    connection = {"servers": [url], "reconnect_delay": "300ms", "max_reconnect_delay": "1s"}
    return Router(Settings(telemetry={"listen": ""}, connections={"edge": connection}, routes=[]))


@asynccontextmanager
async def _router(configuration: Path, log: Path) -> AsyncIterator[None]:
    command = [sys.executable, "-m", "router_trio", "run", str(configuration)]
    with log.open("wb") as stderr:
        process = await trio.lowlevel.open_process(command, stdin=subprocess.DEVNULL, stderr=stderr, cwd=ROOT)
        try:
            yield
        finally:
            with trio.CancelScope(shield=True):  # bounded by the router's own shutdown_timeout
                process.terminate()
                await process.wait()


async def _answers(port: int) -> None:
    while True:
        try:
            async with await trio.open_tcp_stream(HOST, port):
                return
        except OSError:
            await trio.sleep(0.05)
