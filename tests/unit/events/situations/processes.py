"""Situations of pages, workers and the embedded server: where a person or another process has a part in it."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast
from unittest.mock import patch

import trio
from starlette.requests import Request
from starlette.routing import BaseRoute, Route

from router_trio import events
from router_trio.cli.run.fault_pages import fault_pages
from router_trio.embedded import EmbeddedServer
from router_trio.events import Event
from router_trio.faults import Faults
from router_trio.router.workers import slot
from router_trio.router.workers.channel import Channel
from router_trio.router.workers.counts.block import Block, Place, new_block
from router_trio.router.workers.counts.copying import Counting
from router_trio.router.workers.messages import Started, ToSupervisor, ToWorker
from router_trio.router.workers.process import WorkerProcess
from router_trio.router.workers.restarts import Restarts
from router_trio.router.workers.supervisor import Supervisor
from router_trio.settings import Settings, TelemetrySettings
from router_trio.telemetry.http.tap_pages import OwnTaps, TapPages
from router_trio.telemetry.metrics.metric import Sources
from router_trio.telemetry.tap.taps import Taps
from tests.support.eventually import eventually
from tests.support.world import core, stream, world
from tests.unit.events.situations.situation import about
from tests.unit.router.workers import counted

# --- pages ---


async def ask(pages: Sequence[BaseRoute], method: str, path: str, body: object = None, **parts: str) -> Any:
    """Request one of these pages, and return its answer."""
    (page,) = [one for one in pages if isinstance(one, Route) and one.path == path and method in (one.methods or ())]
    sent = json.dumps(body).encode()

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": sent, "more_body": False}

    headers = [(b"content-type", b"application/json")]
    scope = {"type": "http", "method": method, "headers": headers, "client": ("192.0.2.7", 1), "path_params": parts}
    answer = await cast(Callable[[Request], Awaitable[Any]], page.endpoint)(Request(scope, receive))
    return json.loads(answer.body or b"{}")


@about(events.TapOpened, events.TapClosed)
async def taps() -> list[Event]:
    """A tap on all messages shows two and is closed, and another one shows none and is not read any more"""
    found: list[Event] = []
    on = Taps(TelemetrySettings(tap=True, tap_payloads=True))
    with patch("router_trio.telemetry.Taps", lambda _: on):
        async with world([core("in.*", "out.x")]) as w, trio.open_nursery() as nursery:
            pages = TapPages(OwnTaps(on, w.live), found.append)
            nursery.start_soon(pages.keep)
            request: dict[str, Any] = {"route": "route", "user": "ann"}
            opened = await ask(pages.pages(), "POST", "/tap", request)
            for _ in range(2):
                w.broker.publish("in.x", b"")
            await trio.sleep(1)
            await ask(pages.pages(), "GET", "/tap/{name}", name=opened["tap"])
            await ask(pages.pages(), "DELETE", "/tap/{name}", name=opened["tap"])
            request = {"route": "route", "user": "", "fate": "lost", "where": "size > 0", "payloads": True}
            await ask(pages.pages(), "POST", "/tap", request)
            await trio.sleep(200)
            nursery.cancel_scope.cancel()
    return found


@about(events.FaultInjectionEnabled, events.FaultInjected, events.FaultsCleared)
async def faults() -> list[Event]:
    """Faults are injected until they are cleared, once and three times; one is cleared, and then all"""
    found: list[Event] = []
    pages = fault_pages(Faults(), found.append)
    error = {"operation": "publish", "fault": "error", "reason": "overloaded"}
    for more in ({}, {"times": 1}, {"times": 3, "probability": 0.1}, {"fault": "delay", "duration": "500ms"}):
        fields = error | more
        if fields["fault"] == "delay":
            del fields["reason"]
        await ask(pages, "POST", "/faults", fields)
    await ask(pages, "DELETE", "/faults/{operation}", operation="publish")
    await ask(pages, "DELETE", "/faults")
    return found


# --- workers ---

ENDS = ["false"]
"""A command that exits with 1."""

SETTINGS = Settings(
    router={"workers": 1},
    connections={"main": {"servers": ["nats://127.0.0.1:1"]}},
    routes=[
        stream("IN", "out.x", route="stored"),
        core("in.*", "out.x", name="passed", queue="routers"),
    ],
)


@about(events.WorkerStarted, events.WorkerLost, events.WorkerLostInHandler, real_time=True)
async def lost_workers() -> list[Event]:
    """Workers end: one by itself, others with publishes, with a message in a handler, and with two

    The supervisor, its slots and the shared memory are real; each process is one that only sleeps or exits.
    """
    found: list[Event] = []
    ends = iter(
        [
            (ENDS, (), (0, 0)),
            (["sleep", "60"], (), (1, 1)),
            (["sleep", "60"], (("stored", 7),), (3, 4)),
            (["sleep", "60"], (("stored", 7),), (0, 0)),
            (["sleep", "60"], (("passed", -1),), (0, 0)),
            (["sleep", "60"], (("stored", 8), ("stored", 9)), (0, 0)),
        ]
    )

    @asynccontextmanager
    async def open_worker(number: int, lock: int) -> AsyncIterator[WorkerProcess]:
        command, in_handlers, (pending, messages) = next(ends, (["sleep", "60"], (), (0, 0)))
        block = new_block()
        ours, theirs = (trio.SocketStream(trio.socket.from_stdlib_socket(one)) for one in socket.socketpair())
        channel: Channel[ToSupervisor, ToWorker] = Channel(theirs)
        with subprocess.Popen(command) as process:  # noqa: ASYNC220 - at once
            async with trio.open_nursery() as nursery:
                nursery.start_soon(channel.write)
                nursery.start_soon(live, process, channel, block, in_handlers, pending, messages)
                try:
                    yield WorkerProcess(process, Channel(ours), block)
                finally:
                    nursery.cancel_scope.cancel()
                    process.kill()
        await ours.aclose()
        await theirs.aclose()
        os.close(block)

    async def live(
        process: subprocess.Popen[bytes],
        channel: Channel[ToSupervisor, ToWorker],
        block: int,
        in_handlers: Sequence[tuple[str, int]],
        pending: int,
        messages: int,
    ) -> None:
        """Do what a worker does until it is killed."""
        memory = Block(block)
        router = counted.router()
        counting = Counting(memory)
        counting.watch(Sources(router))
        router.connections["main"].outbox.ledger.accepted += pending
        for route in router.routes:
            route.received += messages
        counting.write_all()
        for number, (route_name, sequence) in enumerate(in_handlers):
            Place(memory, route_name, number).enter(sequence, "in.x", 1.0)
        channel.post(Started())
        await trio.sleep(0.1)
        if process.args != ENDS:
            process.kill()

    supervisor = Supervisor(SETTINGS, emit=found.append, recent=None, lock=0, uniform=lambda low, high: low)
    with (
        patch.object(slot, "open_worker", open_worker),
        patch.object(Restarts, "next_delay", lambda *_, **__: 0.1),
    ):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(supervisor.run)
            await eventually(lambda: sum(type(one) is events.WorkerLost for one in found) == 6)
            nursery.cancel_scope.cancel()
    return found


# --- the embedded server ---


class Sleeping(EmbeddedServer):
    """An embedded server whose process is another program, the next of `commands`."""

    commands: tuple[list[str], ...] = (["sleep", "60"], ["sh", "-c", "exit 2"], ["sleep", "60"])

    async def _launch(self) -> None:
        self._process = subprocess.Popen(self.commands[0])  # noqa: ASYNC220 - at once
        self.commands = self.commands[1:]
        if len(self.commands) == 1:
            self._log_path.write_text("the last line but one\nthe last line\n")


@about(events.EmbeddedServerLost, events.EmbeddedServerRestarted, real_time=True)
async def lost_servers() -> list[Event]:
    """The embedded server is killed, and ends by itself

    It is supervised by the real code; its process is one that only sleeps or exits.
    """
    found: list[Event] = []
    with tempfile.TemporaryDirectory() as folder:
        async with Sleeping(Path(folder), 1) as server, trio.open_nursery() as nursery:
            nursery.start_soon(server.keep_running, found.append)
            assert server._process is not None
            server._process.kill()
            await eventually(lambda: sum(type(one) is events.EmbeddedServerRestarted for one in found) == 2)
            nursery.cancel_scope.cancel()
    return found
