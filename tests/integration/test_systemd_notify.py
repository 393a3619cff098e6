"""Notifications of the command to systemd: ready when its routes are, alive, stopping. None of them can block it."""

from __future__ import annotations

import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager, suppress
from pathlib import Path

import pytest
import trio
import trio.testing
from trio.testing import MockClock

from router_trio.cli.run.systemd import Systemd
from tests.support.command import running
from tests.support.raw_jetstream import JetStream
from tests.support.raw_nats import connect
from tests.support.servers import NatsServer

WITHIN = 20.0


class Manager:
    """The other end of NOTIFY_SOCKET."""

    def __init__(self, end: trio.socket.SocketType, address: str) -> None:
        self._end = end
        self.address = address
        self.received: list[str] = []

    async def until(self, start: str) -> None:
        """Wait for a notification that begins like this. Raises `trio.TooSlowError`."""
        with trio.fail_after(WITHIN):
            while not any(one.startswith(start) for one in self.received):
                self.received += (await self._end.recv(65536)).decode().split("\n")


@asynccontextmanager
async def manager(address: str) -> AsyncIterator[Manager]:
    """Listen at an address, as NOTIFY_SOCKET has it."""
    with trio.socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as end:
        await end.bind(address.replace("@", "\0", 1) if address.startswith("@") else address)
        yield Manager(end, address)


def configuration(folder: Path, url: str, stream: str = "") -> Path:
    path = folder / "router.toml"
    source = f'stream = "{stream}", durable = "router"' if stream else 'subject = "in.*"'
    path.write_text(
        f'[telemetry]\nlisten = ""\n[connections.main]\nservers = ["{url}"]\nreconnect_delay = "20ms"\n'
        f'max_reconnect_delay = "50ms"\n[[routes]]\nname = "orders"\nfrom = {{ {source} }}\n'
        'to = [ { subject = "out" } ]\n'
    )
    return path


@pytest.fixture(params=["path", "abstract"])
def address(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "path":
        return str(tmp_path / "notify")
    if sys.platform != "linux":
        pytest.skip("abstract addresses are of Linux")
    return f"@router-trio-test-{os.getpid()}"


async def test_it_is_ready_with_its_routes_and_notifies_when_it_stops(
    server: NatsServer, address: str, tmp_path: Path
) -> None:
    config = configuration(tmp_path, server.url, stream="ORDERS")
    env = {"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "200000"}
    async with manager(address) as systemd, running("run", config, cwd=tmp_path, env=env) as run:
        await run.has_logged("ROUTER_STARTED")
        await systemd.until("STATUS=waiting: route orders: ")
        assert "READY=1" not in systemd.received, "its stream is missing"
        async with connect(server.url) as client:
            await JetStream(client).create_stream("ORDERS", ["in.*"])
        await systemd.until("READY=1")
        assert "STATUS=routing: 1 of 1 routes" in systemd.received
        for _ in range(3):
            systemd.received.clear()
            await systemd.until("WATCHDOG=1")
        run.send(signal.SIGTERM)
        await systemd.until("STOPPING=1")
        assert await run.ended() == 0


async def test_it_is_not_ready_while_its_server_is_away(core_server: NatsServer, tmp_path: Path) -> None:
    address = str(tmp_path / "notify")
    config = configuration(tmp_path, core_server.url)
    await core_server.kill()
    async with manager(address) as systemd, running("run", config, cwd=tmp_path, env={"NOTIFY_SOCKET": address}) as run:
        await run.has_logged("NATS_CONNECTION_FAILED", attempt=3)
        await systemd.until("STATUS=waiting: connection main: ")
        assert "READY=1" not in systemd.received
        await core_server.restart()
        await systemd.until("READY=1")
        assert "WATCHDOG=1" not in systemd.received, "they were not requested"


@contextmanager
def full(address: str) -> Iterator[socket.socket]:
    """Yield a socket that accepts nothing more, from any sender: data under way of one sender is bounded as well."""
    with ExitStack() as stack:
        end = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM))
        end.bind(address)
        sent = 1
        while sent:
            us = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM))
            us.setblocking(False)
            sent = 0
            with suppress(BlockingIOError):
                while True:
                    us.sendto(b"x", address)
                    sent += 1
        yield end


def test_no_state_of_the_other_end_blocks_or_fails_a_notification(tmp_path: Path) -> None:
    address = str(tmp_path / "notify")
    with full(address):
        Systemd({"NOTIFY_SOCKET": address}).notify("READY=1")
    for gone in (address, str(tmp_path / "nowhere"), "/", "x" * 500, "\0", ""):
        Systemd({"NOTIFY_SOCKET": gone}).notify("READY=1")


async def test_ready_is_sent_as_soon_as_there_is_room_for_it(tmp_path: Path, autojump_clock: MockClock) -> None:
    address = str(tmp_path / "notify")
    systemd = Systemd({"NOTIFY_SOCKET": address})
    with full(address) as end:
        async with systemd.serving(lambda: None, lambda: 1, lambda: True):
            await trio.sleep(1)
            end.setblocking(False)
            received = []
            with suppress(BlockingIOError):
                while True:
                    received.append(end.recv(64))
            assert set(received) == {b"x"}
            await trio.sleep(1)
            assert end.recv(64) == b"READY=1\nSTATUS=routing: 1 of 1 routes"


async def test_each_cause_of_waiting_is_sent_once(tmp_path: Path) -> None:
    address = str(tmp_path / "notify")
    systemd = Systemd({"NOTIFY_SOCKET": address})
    async with manager(address) as end, systemd.serving(lambda: "route r", lambda: 1, lambda: True):
        for _ in range(3):
            await trio.testing.wait_all_tasks_blocked()
            systemd.state_changed()
        systemd.notify("STOPPING=1")
        await end.until("STOPPING=1")
    assert end.received == ["STATUS=waiting: route r", "STOPPING=1"]


@pytest.mark.parametrize(
    ("environ", "seconds"),
    [
        ({"WATCHDOG_USEC": "3000000"}, 3.0),
        ({"WATCHDOG_USEC": "3000000", "WATCHDOG_PID": str(os.getpid())}, 3.0),
        ({"WATCHDOG_USEC": "3000000", "WATCHDOG_PID": "1"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({}, None),
    ],
)
def test_watchdog_notifications_are_sent_only_if_requested(environ: dict[str, str], seconds: float | None) -> None:
    assert Systemd({"NOTIFY_SOCKET": "/x", **environ})._watchdog == seconds
