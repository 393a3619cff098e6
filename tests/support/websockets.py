"""The server's side of a WebSocket, for tests: frames of its own making, valid or not, and what clients send."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import trio

from router_trio.embedded import HOST, reserve_port
from tests.support.certificates import Certificates
from tests.support.impostors import GONE, Caller, Impostor, Play, impostor
from tests.support.servers import NatsServer, nats_server

CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0x0, 0x1, 0x2, 0x8, 0x9, 0xA


def server_frame(opcode: int, body: bytes, *, final: bool = True) -> bytes:
    """Return a frame as servers send it."""
    if len(body) < 126:
        size = bytes([len(body)])
    elif len(body) < 0x10000:
        size = b"\x7e" + len(body).to_bytes(2, "big")
    else:
        size = b"\x7f" + len(body).to_bytes(8, "big")
    return bytes([opcode | 0x80 * final]) + size + body


class ClientFrame(NamedTuple):
    """A frame of a client, unmasked."""

    opcode: int
    body: bytes
    masked: bool
    size: int


def read_client_frames(data: bytes) -> list[ClientFrame]:
    """Return the complete frames of a client. Unmasks byte by byte, as the RFC describes it."""
    frames = []
    while len(data) >= 2:
        first, second = data[0], data[1]
        assert first & 0x80, "clients of these tests send no fragments"
        assert not first & 0x70
        size, start = second & 0x7F, 2
        if size >= 126:
            start = 4 if size == 126 else 10
            size = int.from_bytes(data[2:start], "big")
        masked = bool(second & 0x80)
        key = data[start : start + 4] if masked else b"\0\0\0\0"
        start += 4 * masked
        if len(data) < start + size:
            break
        body = data[start : start + size]
        if masked:
            body = bytes(byte ^ key[place % 4] for place, byte in enumerate(body))
        frames.append(ClientFrame(first & 0x0F, body, masked, start + size))
        data = data[start + size :]
    return frames


def switching(request: bytes, *more: bytes, accept: bytes = b"") -> bytes:
    """Return the 101 that answers a request, with these header lines in addition."""
    lines = dict(line.lower().partition(b": ")[::2] for line in request.split(b"\r\n") if b": " in line)
    values = dict(line.partition(b": ")[::2] for line in request.split(b"\r\n") if b": " in line)
    assert lines[b"upgrade"] == b"websocket"
    key = next(value for name, value in values.items() if name.lower() == b"sec-websocket-key")
    digest = hashlib.sha1(key + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest()
    right = accept or base64.b64encode(digest)
    head = (b"HTTP/1.1 101 Switching Protocols", b"Upgrade: websocket", b"Connection: Upgrade")
    return b"\r\n".join((*head, b"Sec-WebSocket-Accept: " + right, *more, b"", b""))


class WebSocketCaller(Caller):
    """A connection to an impostor by WebSocket. `clear` is the payload of the client, `request` its HTTP request."""

    def __init__(self, stream: trio.SocketStream) -> None:
        super().__init__(stream)
        self.request = b""
        self.control: list[ClientFrame] = []
        """The control frames of the client."""
        self._raw = b""

    async def open(self) -> None:
        """Answer the request for a WebSocket."""
        await self.hear_request()
        await super().say(switching(self.request, b"Nats-No-Masking: true"))

    async def hear_request(self) -> None:
        """Wait for the HTTP request."""
        while b"\r\n\r\n" not in self.request:
            with suppress(*GONE):
                data = bytes(await self.stream.receive_some(65_536))
                self.request += data
                if data:
                    continue
            return

    async def say(self, data: bytes) -> None:
        """Send payload in two fragments, with a ping between them."""
        middle = len(data) // 2
        first = server_frame(BINARY, data[:middle], final=False)
        await self.write(first + server_frame(PING, b"between") + server_frame(CONTINUATION, data[middle:]))

    async def write(self, data: bytes) -> None:
        """Send bytes as they are."""
        await super().say(data)

    async def hear(self, until: bytes = b"") -> bytes:
        """Wait for payload, or for `until` among all of it; return all of it. Ends early with the connection."""
        seen, data = len(self.clear), b"x"
        while data and (until not in self.clear if until else len(self.clear) == seen):
            try:
                data = bytes(await self.stream.receive_some(65_536))
            except GONE:
                data = b""
            self._raw += data
            for frame in read_client_frames(self._raw):
                self._raw = self._raw[frame.size :]
                if frame.opcode == BINARY:
                    self.clear += frame.body
                else:
                    self.control.append(frame)
        return bytes(self.clear)


@asynccontextmanager
async def websocket_impostor(play: Play, *, opens: bool = True) -> AsyncIterator[Impostor]:
    """Run an impostor that is reached by WebSocket, for which `play` is as for one that is reached by TCP.

    With `opens=False` it is `play` that answers the request.
    """

    async def opened(caller: Caller) -> None:
        assert isinstance(caller, WebSocketCaller)
        if opens:
            await caller.open()
        await play(caller)

    async with impostor(opened, WebSocketCaller) as running:
        running.url = f"ws://{running.address}"
        yield running


def websocket_config(port: int, certificates: Certificates | None = None) -> str:
    """Return the `websocket` block of a nats-server, with TLS if there are certificates."""
    secured = "no_tls: true" if certificates is None else certificates.server_config().replace("tls {", "tls: {")
    return f'websocket {{ listen: "{HOST}:{port}"\n{secured} }}\n'


@asynccontextmanager
async def websocket_server(
    tmp_path: Path, certificates: Certificates | None = None, *, config: str = "", jetstream: bool = True
) -> AsyncIterator[tuple[NatsServer, str]]:
    """Run a nats-server that also listens for WebSockets; yield it, and the URL of that."""
    with reserve_port() as port:
        config += websocket_config(port, certificates)
        async with nats_server(tmp_path, config=config, jetstream=jetstream) as server:
            yield server, f"{'ws' if certificates is None else 'wss'}://{HOST}:{port}"
