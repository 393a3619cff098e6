"""An OTLP collector that answers too much, too slowly, or from elsewhere costs spans at most."""

from __future__ import annotations

import gzip
from collections.abc import AsyncIterator
from contextlib import suppress
from itertools import repeat

import pytest
import trio

from router_trio.telemetry.traces import otlp
from tests.integration.test_otlp import route_one, telemetry
from tests.support.telemetry_views import make_view

PIECE = b"x" * 65_536
MANY = 32 * 1024
"""Pieces: 2 GB."""
READ_AT_MOST = 24 * 1024 * 1024
"""Bytes of an answer: what is read, and what the buffers of both sockets hold. A request that failed is sent again."""
OK = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n"
ANSWERS = {
    "2 GB": (OK + b"content-length: %d\r\n\r\n" % (MANY * len(PIECE)), PIECE),
    "without an end": (OK + b"connection: close\r\n\r\n", PIECE),
    "chunks without an end": (OK + b"transfer-encoding: chunked\r\n\r\n", b"10000\r\n" + PIECE + b"\r\n"),
    "tiny chunks": (OK + b"transfer-encoding: chunked\r\n\r\n", b"1\r\nx\r\n" * 10_000),
    "packed": (OK + b"content-encoding: gzip\r\ncontent-length: 2000000000\r\n\r\n", gzip.compress(bytes(10**8))),
    "headers without an end": (OK, b"x-header: " + b"y" * 60_000 + b"\r\n"),
    "a header without an end": (OK + b"x: ", PIECE),
}


class Collector:
    """Answers each request with a head, and pieces of a body until the client closes the connection."""

    def __init__(self, head: bytes, piece: bytes, pause: float = 0.0) -> None:
        self.head, self.piece, self.pause = head, piece, pause
        self.requests = self.sent = 0
        self.gone = trio.Event()

    async def serve(self, stream: trio.SocketStream) -> None:
        received = b""
        while b"\r\n\r\n" not in received:
            received += await stream.receive_some()
        self.requests += 1
        with suppress(trio.BrokenResourceError):
            await stream.send_all(self.head)
            for piece in repeat(self.piece, MANY):
                await stream.send_all(piece)
                self.sent += len(piece)
                await trio.sleep(self.pause)
        self.gone.set()


async def exported_to(collector: Collector) -> int:
    """Export spans to a collector. Return how many were dropped."""
    async with trio.open_nursery() as nursery:
        [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
        nursery.start_soon(trio.serve_listeners, collector.serve, [listener])
        telemetry_ = telemetry(f"http://127.0.0.1:{listener.socket.getsockname()[1]}")
        with trio.fail_after(30):
            async with telemetry_.serve(make_view()):
                route_one(telemetry_)
            await collector.gone.wait()
        nursery.cancel_scope.cancel()
    return telemetry_.spans_dropped


@pytest.mark.parametrize("what", ANSWERS)
async def test_an_answer_is_read_up_to_a_limit(what: str) -> None:
    collector = Collector(*ANSWERS[what])
    dropped = await exported_to(collector)
    assert collector.requests >= 1
    assert collector.sent < READ_AT_MOST * collector.requests
    if "header" not in what:
        assert dropped == 0, "the status says that the spans have arrived"


async def test_an_answer_that_drips_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(otlp, "ANSWER_WITHIN", 0.5)
    collector = Collector(OK + b"content-length: 1000\r\n\r\n", b"x", pause=0.1)
    assert await exported_to(collector) == 0
    assert collector.sent < 50


@pytest.fixture
async def elsewhere() -> AsyncIterator[tuple[str, list[trio.SocketStream]]]:
    """A server, and the connections that were made to it."""
    seen: list[trio.SocketStream] = []

    async def accept(stream: trio.SocketStream) -> None:
        seen.append(stream)

    async with trio.open_nursery() as nursery:
        [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
        nursery.start_soon(trio.serve_listeners, accept, [listener])
        yield f"http://127.0.0.1:{listener.socket.getsockname()[1]}/", seen
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_a_redirect_is_not_followed(status: int, elsewhere: tuple[str, list[trio.SocketStream]]) -> None:
    url, seen = elsewhere
    head = f"HTTP/1.1 {status} Moved\r\nlocation: {url}\r\ncontent-length: 99999999999\r\n\r\n".encode()
    collector = Collector(head, PIECE)
    assert await exported_to(collector) == 3
    assert not seen
    assert collector.sent < READ_AT_MOST


@pytest.mark.parametrize("what", ["down", "refuses"])
async def test_no_line_shows_a_key_in_the_path(what: str, capfd: pytest.CaptureFixture[str]) -> None:
    async def refuse(stream: trio.SocketStream) -> None:
        received = await stream.receive_some()
        target = received.split(b" ")[1]
        assert target == b"/SECRET/v1/traces"
        await stream.send_all(b"HTTP/1.1 400 %b\r\ncontent-length: 17\r\n\r\n%b" % (target, target))

    async with trio.open_nursery() as nursery:
        [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
        url = f"http://127.0.0.1:{listener.socket.getsockname()[1]}/SECRET"
        if what == "down":
            await listener.aclose()
        else:
            nursery.start_soon(trio.serve_listeners, refuse, [listener])
        telemetry_ = telemetry(url, logs=True)
        async with telemetry_.serve(make_view()):
            route_one(telemetry_)
        nursery.cancel_scope.cancel()
    lines = capfd.readouterr().err
    assert "SECRET" not in lines
    assert "LIBRARY" in lines
    assert telemetry_.spans_dropped == 3
