"""The pages of a router whose state tests set by hand, and a client that reads them."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import trio

from router_trio.settings import Settings
from router_trio.telemetry import Telemetry
from tests.support.telemetry_views import View

Address = tuple[str, int]


def telemetry_settings(listen: str = "127.0.0.1:0", **telemetry: Any) -> Settings:
    connections = {"main": {"servers": ["nats://bob:s3cret@127.0.0.1:4222"]}}
    return Settings(telemetry={"listen": listen, **telemetry}, connections=connections)


@asynccontextmanager
async def served(view: View, **telemetry: Any) -> AsyncIterator[Address]:
    async with Telemetry(telemetry_settings(**telemetry), logs=False).serve(view) as address:
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


def make_page_large(view: View) -> None:
    """Make a page larger than the buffers of the kernel: writing it to a client that does not read hangs."""
    view.routes[0].delivered.update({f"destination.{number}.{'x' * 100_000}": 1 for number in range(150)})
