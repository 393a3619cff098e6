"""The control plane: nats-py does the handshake and the JetStream management API, over a transport of ours.

nats-py never owns the socket. While it connects, it drives the stream through `BorrowedTransport`, each call crossing
from asyncio to Trio; from then on what it writes is appended to the wire, and what the wire leaves for it arrives in
`feed`. Its own pings and reconnects are off. One client lives in one trio-asyncio loop, and both die with the link.

Two private attributes are set (nats-py 2.16.0, the version that is pinned): `Client._transport`, because
`Client._connect_to_server` keeps a transport that is already there, and `Client._resp_sub_prefix`, see `forget_inbox`.
"""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

import nats.errors
import trio
from nats.aio.client import Client
from nats.aio.transport import Transport

from router_trio.errors import AuthorizationError, LinkError, ProtocolError
from router_trio.nats.asyncio_loop import aio_as_trio, open_loop, trio_as_aio
from router_trio.nats.credentials import login
from router_trio.nats.dial import abandon, refused_ours, tls_context, upgrade, wants_tls
from router_trio.settings import ConnectionSettings

MAX_LINE = 1024 * 1024
NEVER = 10 * 365 * 24 * 3600

PING = b"PING\r\n"

WHEN_NEEDED = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
"""Stands for a context that is made when a server asks for TLS. Reading the system's authorities takes some 20 ms in
which nothing else runs: too long for each of many connections that come back at once."""


class BorrowedTransport(Transport):
    """nats-py's view of a stream that it doesn't own. Its methods follow `nats.aio.transport.Transport`."""

    def __init__(self, stream: trio.SocketStream, settings: ConnectionSettings) -> None:
        self._settings = settings
        self.stream: trio.SocketStream | trio.SSLStream[trio.SocketStream] = stream
        self.buffer = bytearray()
        self._informed: list[bytes] = []
        self._plain = stream
        self._greeted = False
        self._out: list[bytes] = []
        self._send: Callable[[bytes], None] | None = None
        self._pinged: Callable[[], None] = lambda: None
        self._fed: asyncio.Queue[bytes] = asyncio.Queue()

    @property
    def secured(self) -> bool:
        """Whether TLS is on."""
        return self.stream is not self._plain

    def hand_over(self, send: Callable[[bytes], None], pinged: Callable[[], None]) -> bytes:
        """The handshake is over: `send` takes what is written from now on. Returns what was read beyond it."""
        self._send = send
        self._pinged = pinged
        rest = bytes(self.buffer)
        self.buffer.clear()
        return b"".join(self._informed) + rest

    def feed(self, data: bytes) -> None:
        """Give nats-py bytes to read."""
        self._fed.put_nowait(data)

    async def connect(self, uri: Any, buffer_size: int, connect_timeout: int) -> None:
        """The stream is connected already."""

    async def connect_tls(self, uri: Any, ssl_context: ssl.SSLContext, buffer_size: int, connect_timeout: int) -> None:
        hostname = uri if isinstance(uri, str) else uri.hostname
        if not self.secured:
            if ssl_context is WHEN_NEEDED:
                ssl_context = tls_context(self._settings)
            self.stream = await trio_as_aio(upgrade)(self._plain, ssl_context, hostname)

    def write(self, payload: bytes) -> None:
        if self._send is None:
            self._out.append(payload)
            return
        if payload == PING:
            self._pinged()
        self._send(bytes(payload))

    def writelines(self, payload: list[bytes]) -> None:
        for one in payload:
            self.write(one)

    async def drain(self) -> None:
        """What is written waits for `readline`: CONNECT and PING go together, before a server can hang up between."""

    async def readline(self) -> bytes:
        line: bytes = await trio_as_aio(self._exchange)()
        return line

    async def read(self, buffer_size: int) -> bytes:
        return await self._fed.get()

    async def wait_closed(self) -> None:
        """Closing is the link's business."""

    def close(self) -> None:
        """Closing is the link's business."""

    def at_eof(self) -> bool:
        return False

    def __bool__(self) -> bool:
        return True

    async def _exchange(self) -> bytes:
        if self._out:
            data = b"".join(self._out)
            self._out.clear()
            # A server that has hung up may have said why before: that is still to be read.
            with suppress(trio.BrokenResourceError):
                await self.stream.send_all(data)
        return await self._receive_line()

    async def _receive_line(self) -> bytes:
        while True:
            end = self.buffer.find(b"\n")
            if end >= 0:
                line = bytes(self.buffer[: end + 1])
                del self.buffer[: end + 1]
                # A server may send a second INFO before its PONG, which nats-py doesn't expect.
                if line.startswith(b"INFO") and self._greeted:
                    self._informed.append(line)
                    continue
                if not self._greeted:
                    _check_greeting(line)
                self._greeted = True
                return line
            if len(self.buffer) > MAX_LINE:
                raise LinkError("what answers there is no NATS server: an endless line", reason="protocol")
            try:
                data = await self.stream.receive_some(MAX_LINE)
            except trio.BrokenResourceError as error:
                raise refused_ours(error) or LinkError(
                    "the connection broke in the handshake", reason="closed"
                ) from error
            if not data:
                raise LinkError("the server closed the connection in the handshake", reason="closed")
            self.buffer += data


@asynccontextmanager
async def open_client(
    stream: trio.SocketStream, server: str, settings: ConnectionSettings, name: str
) -> AsyncIterator[tuple[Client, BorrowedTransport]]:
    """A nats-py client that has done the handshake on a stream of ours; both end with the context.

    Raises `LinkError`, `AuthorizationError` or `CertificateError`. Can be cancelled at any point. The caller bounds
    the time.
    """
    transport = BorrowedTransport(stream, settings)
    try:
        async with open_loop() as loop:
            loop.set_exception_handler(lambda _loop, context: None)  # its tasks are watched: see `client_died`
            client = Client()
            client._transport = transport
            try:
                await aio_as_trio(client.connect)(**_options(server, settings, name))
            except (nats.errors.Error, OSError) as error:
                raise _refused(error) from error
            except (ValueError, TypeError, AttributeError) as error:
                raise ProtocolError(f"what the server greets with can't be understood: {error}") from error
            if not client.is_connected:
                raise LinkError("the server ended the handshake without an answer", reason="closed")
            if wants_tls(server, settings) and not transport.secured:
                raise LinkError(
                    f"{server} does not offer TLS, which the configuration asks for; use nats:// and no tls_ca_file, "
                    "or switch TLS on at the server",
                    reason="tls",
                )
            try:
                yield client, transport
            finally:
                for task in (client._reading_task, client._flusher_task, client._ping_interval_task):
                    if task is not None:
                        task.cancel()
    finally:
        await abandon(transport.stream)


def _check_greeting(line: bytes) -> None:
    """Raise `ProtocolError`, or `LinkError` with what the server says, if it doesn't begin as a NATS server does."""
    if line.startswith(b"-ERR"):
        raise _refused(nats.errors.Error(line[4:].decode("utf-8", "replace").strip()))
    try:
        is_info = line.startswith(b"INFO ") and isinstance(json.loads(line[5:]), dict)
    except (ValueError, RecursionError):
        is_info = False
    if not is_info:
        raise ProtocolError(f"what answers there is no NATS server: it says {line[:40]!r}; check `servers`")


async def client_died(client: Client) -> None:
    """Returns, by raising `LinkError`, when one of nats-py's tasks has ended, which it does silently."""
    tasks = [task for task in (client._reading_task, client._flusher_task) if task is not None]
    died = trio.Event()
    for task in tasks:
        task.add_done_callback(lambda _task: died.set())
    await died.wait()
    raise LinkError("the control plane of the connection died", reason="control_plane")


def forget_inbox(client: Client) -> None:
    """Have nats-py subscribe to an inbox for its answers anew: the server refused the one that it thinks it has."""
    client._resp_sub_prefix = None


async def _ignore(error: Exception) -> None:
    """nats-py tells of errors by callback; the wire has seen them before it."""


def _options(server: str, settings: ConnectionSettings, name: str) -> dict[str, Any]:
    options: dict[str, Any] = {
        "servers": [server],
        "name": name,
        "inbox_prefix": settings.inbox_prefix.encode(),
        "error_cb": _ignore,
        "allow_reconnect": False,
        "max_reconnect_attempts": 1,
        "reconnect_time_wait": 0,
        "connect_timeout": settings.connect_timeout,
        "ping_interval": NEVER,
        "tls": tls_context(settings) if wants_tls(server, settings) or settings.tls_cert_file else WHEN_NEEDED,
        "tls_handshake_first": settings.tls_handshake_first,
        **login(settings),
    }
    if settings.tls_hostname is not None:
        options["tls_hostname"] = settings.tls_hostname
    return options


def _refused(error: BaseException) -> LinkError:
    told = str(error).removeprefix("nats: ").strip("'")
    words = told.lower()
    if isinstance(error, TimeoutError) or "timeout" in words:
        return LinkError("the server did not finish the handshake in time", reason="timeout")
    if "auth" in words or "credential" in words:
        return AuthorizationError(
            f"the server refused the credentials: {told}; check user and password, token, nkey_seed_file or "
            "credentials_file of this connection"
        )
    if "maximum connections" in words:
        return LinkError(f"the server is full: {told}", reason="max_connections")
    return LinkError(f"the handshake failed: {told or type(error).__name__}", reason="handshake")
