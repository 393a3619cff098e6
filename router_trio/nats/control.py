"""The control plane: nats-py does the handshake and the JetStream management API, over a transport of ours.

nats-py never owns the socket. While it connects, it drives the stream through `BorrowedTransport`, each call crossing
from asyncio to Trio; from then on what it writes is appended to the wire, and what the wire leaves for it arrives in
`feed`. Its own pings and reconnects are off. One client lives in one trio-asyncio loop, and both die with the link.

The transport reads the handshake first, and gives nats-py only what it has understood: an INFO made anew from vetted
fields, and the PONG. It also holds nats-py to TLS: where the configuration asks for it, nothing is written in clear,
and nothing that was read in clear is still there after the upgrade.

Two private attributes are set (nats-py 2.16.0, the version that is pinned): `Client._transport`, because
`Client._connect_to_server` keeps a transport that is already there, and `Client._resp_sub_prefix`, see `forget_inbox`.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any, NoReturn

import nats.errors
import trio
from nats.aio.client import Client
from nats.aio.transport import Transport

from router_trio.errors import AuthorizationError, LinkError, ProtocolError, UnexpectedError
from router_trio.nats.asyncio_loop import aio_as_trio, open_loop, trio_as_aio
from router_trio.nats.credentials import login
from router_trio.nats.dial import abandon, refused_ours, tls_context, tls_demand, upgrade
from router_trio.nats.info import ServerInfo, parse_info, quote
from router_trio.protocol.framing import MAX_INFO, PING, PONG
from router_trio.settings import ConnectionSettings

MAX_LINES_BEFORE_PONG = 64
"""Lines between CONNECT and its PONG. A server sends one INFO there, or two, and perhaps a PING."""

NEVER = 10 * 365 * 24 * 3600

WHEN_NEEDED = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
"""Stands for a context that is made when a server asks for TLS. Reading the system's authorities takes some 20 ms in
which nothing else runs: too long for each of many connections that come back at once."""


class BorrowedTransport(Transport):
    """nats-py's view of a stream that it doesn't own. Its methods follow `nats.aio.transport.Transport`."""

    def __init__(self, stream: trio.SocketStream, server: str, settings: ConnectionSettings) -> None:
        self._server = server
        self._settings = settings
        self.demand: str | None = tls_demand(server, settings)
        """What of the configuration insists on TLS, or None."""
        self.stream: trio.SocketStream | trio.SSLStream[trio.SocketStream] = stream
        self.info: ServerInfo = ServerInfo()
        """What the server has said of itself, as far as that may be believed."""
        self.buffer: bytearray = bytearray()
        self._searched = 0
        self._plain = stream
        self._greeted = False
        self._out: list[bytes] = []
        self._send: Callable[[bytes], None] | None = None
        self._pinged: Callable[[], None] = lambda: None
        self._fed: asyncio.Queue[bytes] = asyncio.Queue()

    @property
    def secured(self) -> bool:
        """Return True if TLS is on."""
        return self.stream is not self._plain

    def hand_over(self, send: Callable[[bytes], None], pinged: Callable[[], None]) -> bytes:
        """End the handshake: `send` takes what is written from now on. Return what was read beyond it."""
        self._send = send
        self._pinged = pinged
        rest = bytes(self.buffer)
        self.buffer.clear()
        return rest

    def feed(self, data: bytes) -> None:
        """Give nats-py bytes to read."""
        self._fed.put_nowait(data)

    async def connect(self, uri: Any, buffer_size: int, connect_timeout: int) -> None:
        """The stream is connected already."""

    async def connect_tls(self, uri: Any, ssl_context: ssl.SSLContext, buffer_size: int, connect_timeout: int) -> None:
        """Upgrade the stream to TLS, as nats-py asks. Do nothing if it is TLS already."""
        hostname = uri if isinstance(uri, str) else uri.hostname
        if self.secured:
            return
        if self.buffer:
            self._refuse_to_upgrade()
        if ssl_context is WHEN_NEEDED:
            ssl_context = tls_context(self._settings)
        self.stream = await trio_as_aio(upgrade)(self._plain, ssl_context, hostname)
        self.info = self.info.without_announcements()

    def write(self, payload: bytes) -> None:
        """Send bytes of nats-py; until `hand_over` they wait for `readline`.

        Raise `LinkError` for what would leave in clear where TLS is a must.
        """
        if self._send is None:
            # The last word on what leaves in clear, whatever was read or understood before.
            if self.demand is not None and not self.secured:
                raise self._no_tls(self.demand)
            self._out.append(payload)
            return
        if payload == PING:
            self._pinged()
        self._send(bytes(payload))

    def writelines(self, payload: list[bytes]) -> None:
        """See `write`."""
        for one in payload:
            self.write(one)

    async def drain(self) -> None:
        """What is written waits for `readline`: CONNECT and PING go together, before a server can hang up between."""

    async def readline(self) -> bytes:
        """Send what was written, and return the next line of the handshake."""
        line: bytes = await trio_as_aio(self._exchange)()
        return line

    async def read(self, buffer_size: int) -> bytes:
        """Return what the wire has fed. Wait until there is something."""
        return await self._fed.get()

    async def wait_closed(self) -> None:
        """Closing is the link's business."""

    def close(self) -> None:
        """Closing is the link's business."""

    def at_eof(self) -> bool:
        """Return False: that the stream has ended is for the wire to find."""
        return False

    # The base class says that it returns None.
    def __bool__(self) -> bool:  # pyright: ignore[reportIncompatibleMethodOverride]
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
        """Return what nats-py waits for: once an INFO, then the PONG."""
        if not self._greeted:
            line = await self._read_line()
            self._greeted = True
            return self._vet_greeting(line)
        for _ in range(MAX_LINES_BEFORE_PONG):
            line = await self._read_line()
            word = line[:5].upper()
            if word == b"PONG":
                return PONG
            if word == b"INFO ":
                self.info = parse_info(line[5:], self.info)
            elif word == b"-ERR ":
                raise _refused(line[5:], logging_in=True)
            elif word == b"PING":
                with suppress(trio.BrokenResourceError):
                    await self.stream.send_all(PONG)
            elif word != b"+OK":
                raise ProtocolError(f"the server answered CONNECT with {quote(line)}")
        raise ProtocolError(f"the server sent {MAX_LINES_BEFORE_PONG} lines and did not answer CONNECT")

    def _vet_greeting(self, line: bytes) -> bytes:
        if line.startswith(b"-ERR"):
            raise _refused(line[4:], logging_in=False)
        if not line.startswith(b"INFO "):
            raise ProtocolError(f"this is not a NATS server: it sent {quote(line)}; check `servers`")
        self.info = info = parse_info(line[5:])
        offered = info.tls_required or info.tls_available
        if self.demand is not None and not self.secured and not offered:
            raise self._no_tls(self.demand)
        return info.for_client(upgrade=info.tls_required or (self.demand is not None and offered))

    def _no_tls(self, demand: str) -> LinkError:
        return LinkError(
            f"{self._server} does not offer TLS, which the configuration asks for ({demand}); nothing was sent to it. "
            "Switch TLS on at the server; or, to talk to it in clear, write nats:// and leave out every tls_ setting",
            reason="tls",
        )

    def _refuse_to_upgrade(self) -> NoReturn:
        """Raise for what follows INFO in clear: a server that is full says so there, and nothing else is its own."""
        if self.buffer.startswith(b"-ERR "):
            raise _refused(bytes(self.buffer[5:].partition(b"\n")[0]), logging_in=False)
        raise ProtocolError(
            f"more than an INFO came in clear before the upgrade to TLS: {quote(bytes(self.buffer))}; somebody between "
            "here and the server may have put it there"
        )

    async def _read_line(self) -> bytes:
        """Return the next line, without its end."""
        while True:
            end = self.buffer.find(b"\n", self._searched)
            if end >= 0:
                line = bytes(self.buffer[:end])
                del self.buffer[: end + 1]
                self._searched = 0
                return line.rstrip(b"\r")
            self._searched = len(self.buffer)
            if self._searched > MAX_INFO:
                raise ProtocolError("this is not a NATS server: it sent an endless line")
            try:
                data = await self.stream.receive_some(MAX_INFO)
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
    transport = BorrowedTransport(stream, server, settings)
    try:
        async with open_loop() as loop:
            loop.set_exception_handler(lambda _loop, context: None)  # its tasks are watched: see `client_died`
            client = Client()
            client._transport = transport
            options = _options(server, transport.demand, settings, name)
            try:
                await aio_as_trio(client.connect)(**options)
            except (nats.errors.Error, OSError) as error:
                raise _failed(error) from error
            except LinkError:
                raise
            except Exception as error:
                raise UnexpectedError(error) from error
            if not client.is_connected:
                raise LinkError("the server ended the handshake without an answer", reason="closed")
            try:
                yield client, transport
            finally:
                for task in (client._reading_task, client._flusher_task, client._ping_interval_task):
                    if task is not None:
                        task.cancel()
    finally:
        await abandon(transport.stream)


async def client_died(client: Client) -> None:
    """Returns, by raising `LinkError`, when one of nats-py's tasks has ended, which it does silently."""
    tasks = [task for task in (client._reading_task, client._flusher_task) if task is not None]
    died = trio.Event()
    for task in tasks:
        task.add_done_callback(lambda _task: died.set())
    await died.wait()
    raise LinkError("the control plane of the connection ended", reason="control_plane")


def forget_inbox(client: Client) -> None:
    """Have nats-py subscribe to an inbox for its answers anew: the server refused the one that it thinks it has."""
    client._resp_sub_prefix = None


async def _ignore(error: Exception) -> None:
    """nats-py tells of errors by callback; the wire has seen them before it."""


def _options(server: str, demand: str | None, settings: ConnectionSettings, name: str) -> dict[str, Any]:
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
        "tls": WHEN_NEEDED if demand is None else tls_context(settings),
        "tls_handshake_first": settings.tls_handshake_first,
        **login(settings),
    }
    if settings.tls_hostname is not None:
        options["tls_hostname"] = settings.tls_hostname
    return options


def _failed(error: Exception) -> LinkError:
    if isinstance(error, TimeoutError):
        return LinkError("the server did not finish the handshake in time", reason="timeout")
    return LinkError(f"the handshake failed: {quote(str(error)) or type(error).__name__}", reason="handshake")


def _refused(words: bytes, *, logging_in: bool) -> LinkError:
    """Return the error for an -ERR. Before we have tried to log in, none can be about our credentials."""
    told = quote(words.strip().strip(b"'"))
    known = told.lower()
    if "timeout" in known:
        return LinkError("the server did not finish the handshake in time", reason="timeout")
    if logging_in and ("auth" in known or "credential" in known):
        return AuthorizationError(
            f"the server refused the credentials: {told}; check user and password, token, nkey_seed_file or "
            "credentials_file of this connection"
        )
    if "maximum connections" in known:
        return LinkError(f"the server is full: {told}", reason="max_connections")
    return LinkError(f"the handshake failed: {told or 'the server says only -ERR'}", reason="handshake")
