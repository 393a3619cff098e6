"""nats-py on the wire of a link, for requests to the JetStream management API.

nats-py never owns the socket, and sees only a made-up handshake: the link has done the real one. What nats-py writes is
appended to the wire, and frames that the wire does not deliver itself arrive in `feed`. Its own pings and reconnects
are off. One client runs in one trio-asyncio loop, and both end with the link.

Importing this module imports nats-py, asyncio and trio-asyncio, which takes as long as a third of a router's start: see
`control_plane`.

Two private attributes are set (nats-py 2.16.0, the version that is pinned): `Client._transport`, because
`Client._connect_to_server` keeps a transport that is already there, and `Client._resp_sub_prefix`, see `forget_inbox`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

import nats.errors
import trio
from nats.aio.client import Client
from nats.aio.transport import Transport

from router_trio.errors import LinkError, reasons
from router_trio.nats.control_plane.asyncio_loop import aio_as_trio, open_loop
from router_trio.nats.info import ServerInfo, quote
from router_trio.protocol.framing import PING, PONG

NEVER = 10 * 365 * 24 * 3600


class WireTransport(Transport):
    """nats-py's view of a wire. Its methods follow `nats.aio.transport.Transport`."""

    def __init__(self, info: ServerInfo, send: Callable[[bytes], None], pinged: Callable[[], None]) -> None:
        """`send` gets what nats-py writes; `pinged` is called before each PING."""
        self._handshake = [info.for_client(), PONG]
        self._send = send
        self._pinged = pinged
        self._fed: asyncio.Queue[bytes] = asyncio.Queue()

    def feed(self, data: bytes) -> None:
        """Pass bytes to nats-py to read."""
        self._fed.put_nowait(data)

    async def connect(self, uri: Any, buffer_size: int, connect_timeout: int) -> None:
        """Do nothing: the wire is connected already."""

    async def connect_tls(self, uri: Any, ssl_context: Any, buffer_size: int, connect_timeout: int) -> None:
        """Do nothing: the wire has TLS already, if any."""

    def write(self, payload: bytes) -> None:
        """Send bytes of nats-py, except for its handshake."""
        if self._handshake:
            return
        if payload == PING:
            self._pinged()
        self._send(bytes(payload))

    def writelines(self, payload: list[bytes]) -> None:
        """Send each item as `write` does."""
        for one in payload:
            self.write(one)

    async def drain(self) -> None:
        """Do nothing: the wire sends by itself."""

    async def readline(self) -> bytes:
        """Return the next line of the handshake."""
        return self._handshake.pop(0)

    async def read(self, buffer_size: int) -> bytes:
        """Return bytes fed by the wire. Waits until there are some."""
        return await self._fed.get()

    async def wait_closed(self) -> None:
        """Do nothing: the link closes its socket."""

    def close(self) -> None:
        """Do nothing: the link closes its socket."""

    def at_eof(self) -> bool:
        """Return False: the wire itself notices the end of the stream."""
        return False

    # The base class is annotated to return None.
    def __bool__(self) -> bool:  # pyright: ignore[reportIncompatibleMethodOverride]
        return True


class RunningClient:
    """A nats-py client and the loop that it runs in."""

    def __init__(self, client: Client, loop: Any) -> None:
        self.client: Client = client
        self._loop = loop

    async def request(
        self, subject: str, body: bytes, within: float, headers: Mapping[str, str] | None = None
    ) -> bytes:
        """Return the answer to a request. Can be cancelled.

        Raises `TimeoutError` if there is none within `within` seconds, `nats.errors.Error`, and `LinkError` if the
        client is closed meanwhile.
        """
        given = dict(headers) if headers else None
        try:
            answer = await aio_as_trio(self.client.request, loop=self._loop)(subject, body, within, headers=given)
        except asyncio.CancelledError:
            # By its loop, which is closed. Cancelled by Trio, it would be `trio.Cancelled`.
            raise LinkError("the link ended before the answer", reason=reasons.NOT_CONNECTED) from None
        return bytes(answer.data)

    async def died(self) -> None:
        """Wait until one of nats-py's tasks has ended, which it does silently. Then raises `LinkError`."""
        died = trio.Event()
        for task in (self.client._reading_task, self.client._flusher_task):
            if task is not None:
                task.add_done_callback(lambda _task: died.set())
        await died.wait()
        raise LinkError("the control plane of the connection ended", reason=reasons.CONTROL_PLANE)

    def forget_inbox(self) -> None:
        """Let nats-py subscribe to an inbox for its answers again, because the server refused its last subscription."""
        self.client._resp_sub_prefix = None


@asynccontextmanager
async def open_client(transport: WireTransport, inbox_prefix: str) -> AsyncIterator[RunningClient]:
    """Open a nats-py client on a wire, which is closed with the context. Raises `LinkError`."""
    try:
        async with _client_in_loop(transport, inbox_prefix) as running:
            yield running
    except* nats.errors.Error:
        pass  # of requests whose answers arrived while the loop was closed: it raises them as well as their callers get


@asynccontextmanager
async def _client_in_loop(transport: WireTransport, inbox_prefix: str) -> AsyncIterator[RunningClient]:
    async with open_loop() as loop:
        loop.set_exception_handler(lambda _loop, context: None)  # `RunningClient.died` watches its tasks
        client = Client()
        client._transport = transport
        try:
            await aio_as_trio(client.connect)(
                servers=["nats://wire"],
                inbox_prefix=inbox_prefix.encode(),
                error_cb=_ignore,
                allow_reconnect=False,
                max_reconnect_attempts=1,
                reconnect_time_wait=0,
                ping_interval=NEVER,
            )
        except (nats.errors.Error, OSError) as error:
            detail = quote(str(error)) or type(error).__name__
            raise LinkError(
                f"the control plane of the connection failed: {detail}", reason=reasons.CONTROL_PLANE
            ) from error
        try:
            yield RunningClient(client, loop)
        finally:
            for task in (client._reading_task, client._flusher_task, client._ping_interval_task):
                if task is not None:
                    task.cancel()


async def _ignore(error: Exception) -> None:
    """Ignore errors that nats-py reports by callback: the wire has already seen them."""
