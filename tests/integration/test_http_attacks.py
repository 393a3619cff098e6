"""The HTTP side under attack: other protocols, too much, too slow, from other sites, and nonsense.

Under each attack the event loop continues and a probe is answered.
"""

from __future__ import annotations

import socket
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from functools import partial

import pytest
import trio
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from router_trio import Router, Settings
from router_trio.cli.run.fault_pages import fault_pages
from router_trio.faults import Faults
from router_trio.telemetry.http import application, asgi, connection, event_stream, server
from router_trio.testing import FakeBroker
from tests.integration.pages import Address, exchange, get, make_page_large, read_all, served, split
from tests.support.drawn import examples
from tests.support.eventually import eventually
from tests.support.telemetry_views import View

PROBE_WITHIN = 0.5
"""Seconds. It takes a few milliseconds; the rest is for a busy machine."""

ELSEWHERE = "127.0.0.2"


async def connect(address: Address, source: str = "127.0.0.1") -> trio.SocketStream:
    client = trio.socket.socket()
    await client.bind((source, 0))
    await client.connect(address)
    return trio.SocketStream(client)


async def probe(address: Address, path: str = "/healthz", source: str = "127.0.0.1") -> int:
    """Probe on a connection of its own; return the status. Raises `trio.TooSlowError`."""
    with trio.fail_after(PROBE_WITHIN):
        async with await connect(address, source) as stream:
            await stream.send_all(f"GET {path} HTTP/1.1\r\nHost: 10.0.0.7:9001\r\nConnection: close\r\n\r\n".encode())
            return split(b"".join([data async for data in stream]))[0]


async def say(address: Address, request: bytes) -> bytes:
    """Send bytes and the end, and return the entire answer."""
    async with await trio.open_tcp_stream(*address) as stream:
        received = b""
        with suppress(trio.BrokenResourceError):
            await stream.send_all(request)
            await stream.send_eof()
        with suppress(trio.BrokenResourceError), trio.fail_after(10):
            async for data in stream:
                received += data
        return received


@asynccontextmanager
async def held(address: Address, count: int, request: bytes, *sources: str) -> AsyncIterator[list[trio.SocketStream]]:
    """Hold connections open that have sent this, from each source."""
    async with AsyncExitStack() as stack:
        streams = []
        for source in sources or ("127.0.0.1",):
            for _ in range(count):
                stream = await connect(address, source)
                stack.push_async_callback(trio.aclose_forcefully, stream)
                with suppress(trio.BrokenResourceError):
                    await stream.send_all(request)
                streams.append(stream)
        yield streams


# --- protocols ---


@pytest.mark.parametrize(
    "request_",
    [
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00",
        b"GET /healthz HTTP/2.0\r\nHost: localhost\r\n\r\n",
        b"GET /healthz HTTP/3.0\r\nHost: localhost\r\n\r\n",
        b"GET /healthz HTTP/0.9\r\nHost: localhost\r\n\r\n",
    ],
)
async def test_other_versions_of_http_are_refused(view: View, request_: bytes) -> None:
    async with served(view) as address:
        answer = await say(address, request_)
        assert answer.startswith(b"HTTP/1.1 505 ")
        assert b"\x00\x00\x00" not in answer  # no frame of HTTP/2
        assert await probe(address) == 200


@pytest.mark.parametrize(
    "upgrade",
    [
        "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n",
        "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
        "Sec-WebSocket-Key: MDEyMzQ1Njc4OWFiY2RlZg==\r\n",
    ],
    ids=["h2c", "websocket"],
)
async def test_a_request_for_an_upgrade_is_answered_without_one(view: View, upgrade: str) -> None:
    async with served(view) as address, await trio.open_tcp_stream(*address) as stream:
        for _ in range(2):  # and the connection goes on
            await stream.send_all(f"GET /healthz HTTP/1.1\r\nHost: localhost\r\n{upgrade}\r\n".encode())
            with trio.fail_after(5):
                assert (await stream.receive_some()).startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize("target", ["http://localhost/healthz", "localhost:9001", "*", "healthz"])
async def test_only_a_path_is_accepted_as_a_target(view: View, target: str) -> None:
    async with served(view) as address:
        for method in ("GET", "CONNECT", "OPTIONS"):
            answer = await say(address, f"{method} {target} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
            assert answer.startswith(b"HTTP/1.1 400 ")


async def test_pipelined_requests_are_answered_one_after_the_other(view: View) -> None:
    async with served(view) as address:
        one = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"
        answer = await say(address, one * 500)
        assert answer.count(b"HTTP/1.1 200 OK") == 500


# --- size ---


@pytest.mark.parametrize(
    "request_",
    [
        b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nX: " + b"x" * 20_000 + b"\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n" + b"X: 1\r\n" * 4_000 + b"\r\n",
        b"GET /healthz?" + b"x" * 20_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"G" * 40_000,
    ],
    ids=["one header", "many headers", "target", "method"],
)
async def test_headers_that_are_too_large_are_refused(view: View, request_: bytes) -> None:
    async with served(view) as address:
        answer = await say(address, request_)
        assert answer.startswith(b"HTTP/1.1 4")  # 431, or 400 where a method can't be that long
        assert request_[:3] == b"GGG" or b" 431 " in answer
        assert await probe(address) == 200


@asynccontextmanager
async def with_faults(faults: Faults) -> AsyncIterator[Address]:
    config = Settings(telemetry={"listen": "127.0.0.1:0"}, connections={"main": {"servers": ["nats://fake:4222"]}})
    broker = FakeBroker()
    router = Router(config, connect=lambda name, _: broker.connect, pages=partial(fault_pages, faults))
    async with router.open() as live:
        assert live.http_address is not None
        yield live.http_address


JSON = b"POST /faults HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"


@pytest.mark.parametrize(
    "body",
    [
        b"Content-Length: 10000000\r\n\r\n{" + b" " * 300_000,
        b"Content-Length: 99999999999999999999\r\n\r\n{}",
        b"Transfer-Encoding: chunked\r\n\r\n" + b"1000\r\n" + b" " * 4096 + b"\r\n" + b"1000\r\n" + b" " * 300_000,
    ],
    ids=["declared", "declared without end", "chunked"],
)
async def test_a_body_that_is_too_large_is_refused(body: bytes) -> None:
    faults = Faults()
    async with with_faults(faults) as address, await trio.open_tcp_stream(*address) as stream:
        with suppress(trio.BrokenResourceError):
            await stream.send_all(JSON + body)
        assert split(await read_all(stream))[0] == 413
    assert faults.active() == ()


async def test_a_get_with_a_body_is_answered_without_reading_it(view: View) -> None:
    async with served(view) as address, await trio.open_tcp_stream(*address) as stream:
        await stream.send_all(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000000000\r\n\r\n")
        code, headers, _ = split(await read_all(stream))
        assert (code, headers["connection"]) == (200, "close")


# --- time ---


async def test_headers_must_arrive_in_time(view: View, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "HEADER_SECONDS", 0.3)
    async with served(view) as address, await trio.open_tcp_stream(*address) as stream:
        async with trio.open_nursery() as nursery:

            async def drip() -> None:
                for byte in b"GET /healthz HTTP/1.1\r\nX: " + b"x" * 1000:
                    await stream.send_all(bytes([byte]))
                    await trio.sleep(0.02)

            nursery.start_soon(drip)
            began_at = time.perf_counter()
            code, headers, _ = split(await read_all(stream))
            nursery.cancel_scope.cancel()
        assert (code, headers["connection"]) == (408, "close")
        assert time.perf_counter() - began_at < 2


async def test_a_silent_client_is_cut_off(view: View, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "HEADER_SECONDS", 0.2)
    monkeypatch.setattr(server, "IDLE_SECONDS", 0.2)
    async with served(view) as address, held(address, 1, b"") as [silent], held(address, 1, b"") as [idle]:
        await idle.send_all(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert b" 200 " in await idle.receive_some()
        for stream in (silent, idle):
            with trio.fail_after(2):
                assert await stream.receive_some() == b""


async def test_a_body_must_arrive_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asgi, "BODY_SECONDS", 0.2)
    async with with_faults(Faults()) as address, await trio.open_tcp_stream(*address) as stream:
        await stream.send_all(JSON + b"Content-Length: 100\r\n\r\n{")
        assert split(await read_all(stream))[0] == 408


async def test_a_scraper_that_reads_a_little_at_a_time_is_cut_off(view: View, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each part of the page is read in time, but not the page, which is in memory until then."""
    monkeypatch.setattr(application, "PAGE_SECONDS", 0.5)
    make_page_large(view)
    async with served(view) as address:
        length = int((await get(address, "/metrics", "HEAD"))[1]["content-length"])
        with trio.socket.socket() as slow:
            slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
            await slow.connect(address)
            await slow.send(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n")
            received, cut_off = 0, trio.current_time() + 5
            while part := await slow.recv(4096):
                received += len(part)
                await trio.sleep(0.001)
            assert received < length
            assert trio.current_time() < cut_off
        monkeypatch.undo()
        _, headers, body = await get(address, "/metrics")
        assert len(body) == int(headers["content-length"])


async def test_a_watcher_that_reads_nothing_is_cut_off(view: View, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "SEND_SECONDS", 0.2)
    monkeypatch.setattr(event_stream, "INTERVAL", 0.01)
    monkeypatch.setattr(event_stream, "MAX_CLIENTS", 1)
    make_page_large(view)
    async with served(view) as address:
        with trio.socket.socket() as deaf:
            deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
            await deaf.connect(address)
            await deaf.send(b"GET /events HTTP/1.1\r\nHost: localhost\r\n\r\n")
            await eventually(lambda: is_refused(address))
            await eventually(lambda: is_taken(address))


async def is_refused(address: Address) -> bool:
    return (await get(address, "/events", "HEAD"))[0] == 503


async def is_taken(address: Address) -> bool:
    return not await is_refused(address)


# --- other sites ---


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ("Host: localhost\r\n", 200),
        ("Host: evil.example\r\n", 403),
        ("Host: localhost\r\nOrigin: http://evil.example\r\n", 403),
        ("Host: localhost\r\nOrigin: null\r\n", 403),
        ("Host: localhost\r\nSec-Fetch-Site: cross-site\r\n", 403),
        ("Host: localhost\r\nSec-Fetch-Site: same-site\r\n", 403),
        ("Host: localhost\r\nHost: localhost\r\n", 400),
        ("", 400),
        ("Host: a b\r\n", 400),
    ],
)
async def test_a_request_meant_for_another_host_or_site_changes_nothing(lines: str, expected: int) -> None:
    body = b'{"operation": "publish", "fault": "error", "reason": "x"}'
    head = f"Content-Type: application/json\r\nConnection: close\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    faults = Faults()
    async with with_faults(faults) as address:
        for method, path in (
            ("POST", "/faults"),
            ("GET", "/faults"),
            ("GET", "/"),
            ("GET", "/status"),
            ("GET", "/metrics"),
            ("HEAD", "/events"),
            ("DELETE", "/faults"),
            ("DELETE", "/faults/publish"),
        ):
            before = faults.active()
            code, *_ = await exchange(address, f"{method} {path} HTTP/1.1\r\n{lines}".encode() + head + body)
            assert code == expected, (method, path)
            assert expected == 200 or faults.active() == before == ()


async def test_allowed_hosts(view: View) -> None:
    async with served(view, allowed_hosts=["Router.Example.com", "prometheus_target"]) as address:
        for host, expected in (
            ("router.example.com", 200),
            ("ROUTER.example.com.:9001", 200),
            ("prometheus_target:9001", 200),
            ("example.com", 403),
            ("x.router.example.com", 403),
        ):
            request = f"GET /status HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n"
            code, _, body = await exchange(address, request.encode())
            assert code == expected
            assert expected == 200 or b"telemetry.allowed_hosts" in body
            request = request.replace("/status", "/healthz")
            assert (await exchange(address, request.encode()))[0] == 200


# --- nonsense ---

PARTS = [
    *(b"GET ", b"POST ", b"HEAD ", b"PRI ", b"CONNECT ", b"/", b"/metrics", b"/events", b"/healthz", b"?", b"%00"),
    *(b" HTTP/1.1", b" HTTP/1.0", b" HTTP/2.0", b"\r\n", b"\n", b"\r\n\r\n", b"Host: localhost", b"Host: [", b"%ff"),
    *(b"Content-Length: 5", b"Content-Length: -1", b"Content-Length: 9" + b"9" * 30, b"Transfer-Encoding: chunked"),
    *(b"Transfer-Encoding: gzip", b"Expect: 100-continue", b"Upgrade: h2c", b"Connection: Upgrade"),
    *(b"Last-Event-ID: 9" + b"9" * 5000, b"Origin: ", b"Sec-Fetch-Site: ", b"0\r\n\r\n", b"fffffffffffffffff\r\n"),
    *(b"5\r\nhello\r\n", b"\x00", b"\xff\xfe", b":", b" ", b"\t", b"x" * 3000, b"*", b"//", b"Connection: close"),
]
TOKENS = st.sampled_from(PARTS)


@settings(max_examples=examples(150), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.one_of(st.binary(max_size=200), st.lists(TOKENS, max_size=25).map(b"".join)))
@example(b"GET /events HTTP/1.1\r\nHost: localhost\r\nLast-Event-ID: " + b"9" * 5000 + b"\r\n\r\n")
@example(b"GET /%ff%00/../..//?%zz HTTP/1.1\r\nHost: localhost\r\n\r\n")
@example(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n" * 3 + b"\x00")
@example(b"POST /faults HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n")
@example(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03")
def test_nonsense(sent: bytes) -> None:
    async def attack() -> None:
        with trio.fail_after(20):
            async with with_faults(Faults()) as address:
                answer = await say(address, sent)
                assert not answer or answer.startswith(b"HTTP/1.1 ")
                assert b" 500 " not in answer.partition(b"\r\n")[0]
                assert await probe(address) == 200

    trio.run(attack)


@pytest.mark.parametrize(
    "request_",
    [
        b"GET /healthz HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\ncontent-length: 0\r\n\r\n0\r\n\r\n",
        b"GET /healthz HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nxx",
        b"GET /healthz HTTP/1.1\r\nHost: a\r\nContent-Length: 1, 2\r\n\r\nxx",
        b"GET /healthz HTTP/1.1\r\nHost: a\r\nContent-Length: +1\r\n\r\nx",
        b"GET /healthz HTTP/1.1\r\nHost: a\r\nContent-Length : 1\r\n\r\nx",
    ],
)
async def test_a_request_whose_end_is_ambiguous_is_refused(request_: bytes, view: View) -> None:
    async with served(view) as address:
        answer = await say(address, request_ + b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert answer.count(b"HTTP/1.1 ") == 1
