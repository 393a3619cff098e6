"""Limits of HTTP: requests that are too large, too slow or too many, without delaying the end."""

from __future__ import annotations

import socket
import time
from contextlib import suppress

import pytest
import trio

from router_trio.telemetry.http import server
from tests.integration.pages import Address, get, make_page_large, no_descriptor_left, read_all, served, split
from tests.support.telemetry_views import View


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


async def test_a_large_body_is_neither_read_nor_kept(view: View) -> None:
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
        # The connection that has waited longest for its next request makes room.
        assert (await get(address, "/healthz"))[0] == 200
        with trio.fail_after(1):
            assert await first.receive_some() == b""
        await second.send_all(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert b" 200 " in await second.receive_some()


async def test_the_lifetime_of_a_connection_is_bounded(view: View, monkeypatch: pytest.MonkeyPatch) -> None:
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
        await trio.sleep(1.5)  # the pace of this client: it begins to read when the server has cut it off
        received = b""
        with suppress(trio.BrokenResourceError):
            received = await read_all(stream)
        assert len(received) < 15_000_000
        leaving_at = time.perf_counter()
        await stream.aclose()
    assert time.perf_counter() - leaving_at < 0.5
