"""The HTTP side over real sockets: pages, limits, and an end that no client can delay."""

from __future__ import annotations

import errno
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import Any

import pytest
import trio
from prometheus_client.parser import text_string_to_metric_families

from router_trio import telemetry as telemetry_module
from router_trio.errors import ListenError
from router_trio.events import Event, RouterDraining
from router_trio.protocol.framing import publish
from router_trio.router import Router
from router_trio.settings import Settings
from router_trio.states import CONNECTED, PAUSED, RECONNECTING, RUNNING
from router_trio.telemetry import PAGES_WITHIN, Telemetry
from router_trio.telemetry.http import server
from router_trio.testing import FakeBroker
from tests.support.telemetry_views import View, make_view

Address = tuple[str, int]
DRAINING = RouterDraining(at=0.0, pending_count=1, timeout_seconds=1.0)


def settings(listen: str = "127.0.0.1:0", **telemetry: Any) -> Settings:
    connections = {"main": {"servers": ["nats://bob:s3cret@127.0.0.1:4222"]}}
    return Settings(telemetry={"listen": listen, **telemetry}, connections=connections)


@pytest.fixture
def view() -> View:
    view = make_view(["main", "edge"], ["eu"])
    for connection in view.connections.values():
        connection.state.enter(CONNECTED, server="nats://127.0.0.1:4222")
        # Far ahead on any clock: fresh for as long as a test lasts.
        connection.state.fenced_at, connection.state.fence_bound = 1e12, 1000.0
    view.routes[0].enter(RUNNING)
    return view


@asynccontextmanager
async def served(view: View, **telemetry: Any) -> AsyncIterator[Address]:
    async with Telemetry(settings(**telemetry), logs=False).serve(view) as address:
        assert address is not None
        yield address


@contextmanager
def no_descriptor_left() -> Iterator[None]:
    before = len(os.listdir("/proc/self/fd"))
    yield
    assert len(os.listdir("/proc/self/fd")) == before


async def exchange(address: Address, request: bytes) -> tuple[int, dict[str, str], bytes]:
    async with await trio.open_tcp_stream(*address) as stream:
        await stream.send_all(request)
        return split(await read_all(stream))


async def read_all(stream: trio.SocketStream) -> bytes:
    received = b""
    with trio.fail_after(10):
        async for data in stream:
            received += data
    return received


def split(answer: bytes) -> tuple[int, dict[str, str], bytes]:
    head, _, body = answer.partition(b"\r\n\r\n")
    first, *lines = head.decode().split("\r\n")
    headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
    return int(first.split(" ")[1]), headers, body


async def get(address: Address, path: str, method: str = "GET") -> tuple[int, dict[str, str], bytes]:
    return await exchange(address, f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())


async def get_json(address: Address, path: str) -> tuple[int, dict[str, Any]]:
    code, headers, body = await get(address, path)
    assert headers["content-type"] == "application/json"
    return code, json.loads(body)


# --- pages ---


async def test_metrics(view: View) -> None:
    view.routes[0].received = 42
    async with served(view) as address:
        code, headers, body = await get(address, "/metrics")
    assert code == 200
    assert headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    assert headers["cache-control"] == "no-store"
    families = {family.name: family for family in text_string_to_metric_families(body.decode())}
    [sample] = families["router_messages_received"].samples
    assert (sample.labels, sample.value) == ({"connection": "main", "route": "eu"}, 42)


async def test_healthz(view: View) -> None:
    view.connections["main"].state.enter(RECONNECTING)
    async with served(view) as address:
        assert await get_json(address, "/healthz") == (200, {"status": "ok", "reasons": []})
        view.fatal = "connection main used up its attempts"
        code, body = await get_json(address, "/healthz")
    assert code == 503
    assert body["reasons"] == [{"router": "test-router", "reason": "connection main used up its attempts"}]


async def test_readyz_when_everything_would_route(view: View) -> None:
    async with served(view) as address:
        assert await get_json(address, "/readyz") == (200, {"status": "ok", "reasons": []})


async def test_readyz_names_each_reason(view: View) -> None:
    main, edge = view.connections["main"].state, view.connections["edge"].state
    main.enter(RECONNECTING)
    main.last_error = "refused by nats://bob:s3cret@127.0.0.1:4222"
    edge.fenced_at, edge.fence_bound = -1e12, 10.0
    view.routes[0].enter(PAUSED, "waits for connection main")
    async with served(view) as address:
        code, body = await get_json(address, "/readyz")
    assert code == 503
    assert body == {
        "status": "unavailable",
        "reasons": [
            {"connection": "main", "reason": "reconnecting: refused by nats://127.0.0.1:4222"},
            {"connection": "edge", "reason": "no fence was answered for more than 10 s"},
            {"route": "eu", "reason": "waits for connection main"},
        ],
    }


async def test_readyz_of_a_router_that_is_being_built() -> None:
    async with served(View()) as address:
        code, body = await get_json(address, "/readyz")
    assert (code, body["reasons"]) == (503, [{"router": "test-router", "reason": "starting"}])


async def test_status(view: View) -> None:
    main, route = view.connections["main"], view.routes[0]
    main.state.since = 0.0
    main.state.server = "nats://bob:s3cret@127.0.0.1:4222"
    main.outbox.offer(publish(b"a", b"x"))
    route.received, route.dead_lettered = 5, 1
    route.delivered["copy"] = 3
    route.failed["mapping"] = 1
    async with served(view) as address:
        code, body = await get_json(address, "/status")
    assert code == 200
    assert body["name"] == "test-router"
    assert body["version"]
    assert 0 <= body["uptime_seconds"] < 60
    assert body["connections"]["main"] == {
        "state": "connected",
        "since": "1970-01-01T00:00:00Z",
        "server": "nats://127.0.0.1:4222",
        "attempts": 0,
        "pending": 1,
        "in_flight": 0,
        "last_error": None,
    }
    assert body["routes"] == {"eu": {"state": "running", "received": 5, "routed": 3, "failed": 1, "dead_lettered": 1}}
    assert body["ledger"]["main"] == {
        "accepted": 1,
        "pending": 1,
        "in_flight": 0,
        "settled": {"fenced": 0, "acked": 0, "dropped": 0, "failed": 0, "failed_open": 0},
    }
    assert "s3cret" not in json.dumps(body)


@pytest.mark.parametrize(
    ("method", "path", "code"),
    [
        ("GET", "/nothing", 404),
        ("POST", "/", 405),
        ("HEAD", "/", 200),
        ("HEAD", "/events", 200),
        ("POST", "/metrics", 405),
        ("HEAD", "/healthz", 200),
    ],
)
async def test_other_requests(view: View, method: str, path: str, code: int) -> None:
    async with served(view) as address:
        assert (await get(address, path, method))[0] == code


async def test_two_requests_on_one_connection(view: View) -> None:
    async with served(view) as address, await trio.open_tcp_stream(*address) as stream:
        for _ in range(2):
            await stream.send_all(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
            answer = b""
            with trio.fail_after(5):
                while not answer.endswith(b"}"):
                    answer += await stream.receive_some()
            assert split(answer)[0] == 200


# --- listening ---


async def test_port_0_is_a_free_port_and_is_told(view: View) -> None:
    telemetry = Telemetry(settings(), logs=False)
    assert telemetry.http_address is None
    async with telemetry.serve(view) as address:
        assert telemetry.http_address == address
        assert address is not None
        assert address[0] == "127.0.0.1"
        assert address[1] != 0
    assert telemetry.address is None


async def test_a_name_of_several_addresses_has_one_port(view: View) -> None:
    async with served(view, listen="localhost:0") as (_, port):
        assert (await get(("localhost", port), "/healthz"))[0] == 200


async def test_a_busy_port_is_named_with_its_cure(view: View) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, no_descriptor_left():
        port = taken.getsockname()[1]
        with pytest.raises(ListenError, match=rf"127\.0\.0\.1:{port}.*telemetry\.listen") as caught:
            async with Telemetry(settings(f"127.0.0.1:{port}"), logs=False).serve(view):
                pytest.fail("entered")
    assert isinstance(caught.value.__cause__, OSError)
    assert caught.value.__cause__.errno == errno.EADDRINUSE


@pytest.mark.parametrize("listen", ["192.0.2.1:9001", "host.invalid:9001"])
async def test_an_address_that_is_not_ours(view: View, listen: str) -> None:
    with pytest.raises(ListenError, match=r"telemetry\.listen"):
        async with Telemetry(settings(listen), logs=False).serve(view):
            pytest.fail("entered")


async def test_the_port_is_free_again_afterwards(view: View) -> None:
    async with served(view) as (host, port):
        await get((host, port), "/healthz")
    async with served(view, listen=f"{host}:{port}") as address:
        assert (await get(address, "/healthz"))[0] == 200


# --- what goes first ---


async def test_who_asks_before_the_pages_are_there_is_answered_when_they_are(view: View) -> None:
    first = trio.Event()
    answered: list[int] = []
    telemetry = Telemetry(settings(), logs=False)
    async with telemetry.serve(view, first=first.wait) as address, trio.open_nursery() as nursery:
        assert address is not None

        async def ask() -> None:
            answered.append((await get(address, "/healthz"))[0])

        nursery.start_soon(ask)
        await trio.sleep(PAGES_WITHIN / 5)
        assert answered == []
        first.set()
    assert answered == [200]


async def test_what_goes_first_holds_up_the_pages_for_a_moment_only(view: View) -> None:
    async with Telemetry(settings(), logs=False).serve(view, first=trio.sleep_forever) as address:
        assert address is not None
        assert (await get(address, "/healthz"))[0] == 200


async def test_pages_that_can_not_be_imported_end_the_router_and_say_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "router_trio.telemetry.http.site", None)
    broker = FakeBroker()
    router = Router(settings(), connect=lambda name, _: broker.connect)
    with no_descriptor_left(), pytest.raises(ImportError, match=r"router_trio\.telemetry\.http\.site"):
        async with router.open():
            await trio.sleep_forever()


async def test_cancelled_while_the_pages_are_imported_nothing_is_left_behind(
    view: View, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, over = threading.Event(), threading.Event()

    def import_slowly(name: str) -> None:
        begun.set()
        time.sleep(0.2)
        over.set()

    monkeypatch.setattr(telemetry_module, "import_module", import_slowly)
    with trio.CancelScope() as scope:
        async with served(view):
            while not begun.is_set():
                await trio.sleep(0.001)
            scope.cancel()
    assert scope.cancelled_caught
    assert over.is_set()


# --- limits and the end ---


async def test_headers_are_bounded(view: View) -> None:
    async with served(view) as address:
        async with await trio.open_tcp_stream(*address) as stream:
            received = b""
            # It may answer, or cut the connection off while we still write.
            with suppress(trio.BrokenResourceError):
                await stream.send_all(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nX: " + b"x" * 100_000 + b"\r\n\r\n")
            with suppress(trio.BrokenResourceError):
                received = await read_all(stream)
            assert not received or split(received)[0] == 431
        assert (await get(address, "/healthz"))[0] == 200


@pytest.mark.parametrize(
    "nonsense",
    [
        b"\x00\xff\r\n\r\n",
        b"G\xc3\x89T / HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\nx" * 9,
    ],
    ids=["no HTTP", "no method", "HTTP/2"],
)
async def test_nonsense_does_not_reach_the_router(view: View, nonsense: bytes) -> None:
    async with served(view) as address:
        async with await trio.open_tcp_stream(*address) as stream:
            await stream.send_all(nonsense)
            await stream.send_eof()
            received = b""
            with suppress(trio.BrokenResourceError):
                received = await read_all(stream)
            assert b" 200 " not in received
        assert (await get(address, "/healthz"))[0] == 200


async def test_a_large_body_is_neither_needed_nor_kept(view: View) -> None:
    async with served(view) as address:
        async with await trio.open_tcp_stream(*address) as stream:
            await stream.send_all(b"POST /metrics HTTP/1.1\r\nHost: localhost\r\nContent-Length: 50000000\r\n\r\n")
            assert b" 405 " in await stream.receive_some()
            with trio.move_on_after(1), suppress(trio.BrokenResourceError):
                while True:
                    await stream.send_all(b"x" * 65536)
        assert (await get(address, "/healthz"))[0] == 200
        leaving_at = time.perf_counter()
    assert time.perf_counter() - leaving_at < 1.5


async def test_connections_are_bounded(view: View, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "MAX_CONNECTIONS", 2)
    async with (
        served(view) as address,
        await trio.open_tcp_stream(*address) as first,
        await trio.open_tcp_stream(*address) as second,
    ):
        for stream in (first, second):
            await stream.send_all(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert b" 200 " in await stream.receive_some()
        # The one that has waited longest for its next request makes room.
        assert (await get(address, "/healthz"))[0] == 200
        with trio.fail_after(1):
            assert await first.receive_some() == b""
        await second.send_all(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert b" 200 " in await second.receive_some()


async def test_the_life_of_a_connection_is_bounded(view: View, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "CONNECTION_SECONDS", 0.2)
    async with served(view) as address, await trio.open_tcp_stream(*address) as stream:
        await stream.send_all(b"GET /heal")
        with trio.fail_after(3):
            assert await stream.receive_some() == b""


async def test_idle_clients_do_not_delay_the_end(view: View) -> None:
    with no_descriptor_left():
        async with served(view) as address:
            silent = await trio.open_tcp_stream(*address)
            kept = await trio.open_tcp_stream(*address)
            half = await trio.open_tcp_stream(*address)
            await kept.send_all(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
            await half.send_all(b"GET /healthz HT")
            assert b" 200 " in await kept.receive_some()
            leaving_at = time.perf_counter()
        assert time.perf_counter() - leaving_at < 1.5
        for stream in (silent, kept, half):
            await stream.aclose()


async def open_that_does_not_read(address: Address) -> trio.SocketStream:
    client = trio.socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
    await client.connect(address)
    stream = trio.SocketStream(client)
    await stream.send_all(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n")
    return stream


def make_page_large(view: View) -> None:
    """More than the buffers of the kernel hold: the write of an answer to a client that does not read hangs."""
    view.routes[0].delivered.update({f"destination.{number}.{'x' * 100_000}": 1 for number in range(150)})


@pytest.mark.parametrize("how", ["left", "cancelled"])
async def test_a_client_that_does_not_read_does_not_delay_the_end(view: View, how: str) -> None:
    make_page_large(view)
    with no_descriptor_left():
        with trio.CancelScope() as scope:
            async with served(view) as address:
                stream = await open_that_does_not_read(address)
                with trio.fail_after(30):
                    assert b" 200 " in await stream.receive_some(20)
                leaving_at = time.perf_counter()
                if how == "cancelled":
                    scope.cancel()
        assert 0.9 < time.perf_counter() - leaving_at < 2
        await stream.aclose()


async def test_a_client_that_does_not_read_is_cut_off(view: View, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "CONNECTION_SECONDS", 1.0)
    make_page_large(view)
    async with served(view) as address:
        stream = await open_that_does_not_read(address)
        assert (await get(address, "/healthz"))[0] == 200
        await trio.sleep(1.5)  # the pace of this client: it begins to read when the server has given it up
        received = b""
        with suppress(trio.BrokenResourceError):
            received = await read_all(stream)
        assert len(received) < 15_000_000
        leaving_at = time.perf_counter()
        await stream.aclose()
    assert time.perf_counter() - leaving_at < 0.5


# --- the facade ---


async def test_what_the_program_inside_raises_leaves_as_it_was(view: View) -> None:
    with pytest.raises(ZeroDivisionError):
        async with served(view):
            raise ZeroDivisionError
    with pytest.raises(ExceptionGroup) as caught:
        async with served(view):
            raise ExceptionGroup("of the router", [KeyError()])
    assert caught.value.message == "of the router"


async def test_a_listener_that_raises_hurts_nobody(view: View, capfd: pytest.CaptureFixture[str]) -> None:
    heard: list[Event] = []

    def broken(event: Event) -> None:
        raise RuntimeError("listener")

    telemetry = Telemetry(settings(), listeners=[broken, heard.append])
    async with telemetry.serve(view) as address:
        assert address is not None
        for _ in range(3):
            telemetry.emit(DRAINING)
        body = (await get(address, "/metrics"))[2].decode()
    assert heard == [DRAINING] * 3
    assert "router_listener_errors_total 3.0" in body
    lines = [json.loads(line) for line in capfd.readouterr().err.splitlines()]
    assert [line["error_code"] for line in lines].count("ROUTER_DRAINING") == 3
    [failure] = [line for line in lines if line["error_code"] == "LIBRARY"]
    assert failure["error_type"] == "RuntimeError"


async def test_lines_from_before_serving_are_not_lost(view: View, capfd: pytest.CaptureFixture[str]) -> None:
    telemetry = Telemetry(settings(listen=""))
    telemetry.emit(DRAINING)
    assert capfd.readouterr().err == ""
    async with telemetry.serve(view) as address:
        assert address is None
    assert json.loads(capfd.readouterr().err)["error_code"] == "ROUTER_DRAINING"


def test_what_is_switched_off_is_not_imported() -> None:
    program = """
import sys, trio
from router_trio.settings import Settings
from router_trio.telemetry import Telemetry
from router_trio.telemetry.view import RouterView
class View: name, connections, routes, fatal = "r", {}, [], None
settings = Settings(telemetry={"listen": ""}, connections={"main": {"servers": ["nats://127.0.0.1:4222"]}})
async def main():
    async with Telemetry(settings, logs=False).serve(View()):
        pass
trio.run(main)
heavy = {"opentelemetry", "prometheus_client", "starlette", "h11", "structlog", "requests"}
print(sorted(heavy & sys.modules.keys()))
"""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("OTEL_")}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment, check=False)
    assert done.stderr == ""
    assert done.stdout == "[]\n"


def test_a_whole_process_says_its_last_line_on_a_stalled_stderr() -> None:
    program = """
import trio
from router_trio.events import RouterDraining
from router_trio.settings import Settings
from router_trio.telemetry import Telemetry
class View: name, connections, routes, fatal = "r", {}, [], None
settings = Settings(telemetry={"listen": ""}, connections={"main": {"servers": ["nats://127.0.0.1:4222"]}})
async def main():
    telemetry = Telemetry(settings)
    async with telemetry.serve(View()):
        for _ in range(3000):
            telemetry.emit(RouterDraining(at=0.0, pending_count=1, timeout_seconds=1.0))
    print(telemetry.log_lines_dropped, flush=True)
trio.run(main)
"""
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    with process:
        # Nobody reads stderr until the process has ended: it must end all the same.
        assert process.stdout is not None
        assert process.stderr is not None
        dropped = int(process.stdout.readline())
        assert process.wait(10) == 0
        # The write that hangs has put into the pipe what the pipe holds; the last line may be cut.
        written = process.stderr.read().splitlines()
    assert dropped > 0
    assert json.loads(written[0])["error_code"] == "ROUTER_DRAINING"
    assert len(written) < 3000
