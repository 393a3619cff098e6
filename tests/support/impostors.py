"""Raw TCP servers that send what a test wants and record every byte that they receive.

They are no NATS servers: each test plays one, by a coroutine that is run for every connection.
"""

from __future__ import annotations

import json
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import Any

import trio

from router_trio.embedded import HOST
from tests.support.certificates import Certificates
from tests.support.proxy import background

GONE = (trio.BrokenResourceError, trio.ClosedResourceError)


class Caller:
    """A connection to an impostor, from its side. `clear` and `secured` are the data before and after TLS."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self.clear = bytearray()
        self.secured = bytearray()
        self.stream: trio.SocketStream | trio.SSLStream[trio.SocketStream] = stream

    async def say(self, data: bytes) -> None:
        """Send bytes; the other side may no longer receive them."""
        with suppress(*GONE):
            await self.stream.send_all(data)

    async def hear(self, until: bytes = b"") -> bytes:
        """Wait for any bytes, or for `until` among all that arrived; return all that arrived. Ends early with the
        connection.
        """
        heard = self.clear if isinstance(self.stream, trio.SocketStream) else self.secured
        data = b"x"
        seen = len(heard)
        while data and (until not in heard if until else len(heard) == seen):
            try:
                data = bytes(await self.stream.receive_some(65_536))
            except GONE:
                data = b""
            heard += data
        return bytes(heard)

    async def upgrade(self, certificates: Certificates) -> bool:
        """Do the TLS handshake as the server; return True if the caller completed it."""
        assert isinstance(self.stream, trio.SocketStream)
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(certificates.server.certificate, certificates.server.key)
        secured = trio.SSLStream(self.stream, context, server_side=True, https_compatible=True)
        try:
            await secured.do_handshake()
        except GONE:
            return False
        self.stream = secured
        return True

    async def close(self) -> None:
        """End the connection."""
        await trio.aclose_forcefully(self.stream)


class Impostor:
    """A running impostor: its address, and its callers."""

    def __init__(self, port: int) -> None:
        self.address = f"{HOST}:{port}"
        self.url = f"nats://{self.address}"
        self.callers: list[Caller] = []

    @property
    def heard_in_clear(self) -> bytes:
        """Everything received without TLS, over all connections."""
        return b"".join(bytes(caller.clear) for caller in self.callers)


Play = Callable[[Caller], Awaitable[None]]


@asynccontextmanager
async def impostor(play: Play, kind: type[Caller] = Caller) -> AsyncIterator[Impostor]:
    """Listen on a free port. A connection lives until the caller ends it, or `play` closes it."""
    listening = trio.Event()

    async def serve(stream: trio.SocketStream) -> None:
        await listening.wait()
        caller = kind(stream)
        running.callers.append(caller)
        try:
            await play(caller)
            while True:
                before = len(caller.clear), len(caller.secured)
                await caller.hear()
                if before == (len(caller.clear), len(caller.secured)):
                    return
        finally:
            await trio.aclose_forcefully(stream)

    async with background() as nursery:
        (listener,) = await nursery.start(partial(trio.serve_tcp, serve, 0, host=HOST))
        running = Impostor(listener.socket.getsockname()[1])
        listening.set()
        yield running


def info(**fields: Any) -> bytes:
    """Return an INFO line as nats-server writes it, with these fields added or replaced."""
    known = {"server_id": "x", "version": "2.15.1", "proto": 1, "headers": True, "max_payload": 1048576, "nonce": "abc"}
    return b"INFO %b\r\n" % json.dumps(known | fields).encode()


def saying(*lines: bytes, then_close: bool = False) -> Play:
    """Send the first line, and the next one after each read."""

    async def play(caller: Caller) -> None:
        for place, line in enumerate(lines):
            if place:
                await caller.hear()
            await caller.say(line)
        if then_close:
            await caller.close()

    return play
