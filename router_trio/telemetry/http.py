"""Serves the pages: Hypercorn's HTTP on Trio, behind listeners and limits of our own.

Hypercorn's own `serve` shields every write from cancellation, so one client that stops reading would keep the router
from ever ending. Here the streams are known: whatever is open a second after the end was asked for is closed under the
handler that hangs on it. The same goes for a client that is slow all along, or that does not take what it asked for,
and for too many of them.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any, cast

import trio
from hypercorn.config import Config
from hypercorn.trio.tcp_server import TCPServer
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.typing import ASGIFramework, ConnectionState
from hypercorn.utils import wrap_app

GRACE_SECONDS = 1.0
"""How long open requests may take after the end was asked for."""

CONNECTION_SECONDS = 30.0
"""Longest life of one connection, however busy. Scrapers that keep theirs open connect again."""

IDLE_SECONDS = 5.0
"""How long a connection may wait for its next request. Hypercorn keeps one that was closed by its client as long."""

SEND_SECONDS = 5.0
"""How long a client may take for what is written to it at once."""

MAX_CONNECTIONS = 128
MAX_HEADER_BYTES = 16 * 1024

# Named, since Hypercorn would otherwise install a handler of its own that writes to stderr.
_logger = logging.getLogger("hypercorn.error")


async def serve_http(listeners: Sequence[trio.SocketListener], app: ASGIFramework) -> None:
    """Answer requests on `listeners` until cancelled; closes them.

    Cancelling stops intake at once and lets open requests end, for at most a second.
    """
    server = _Server(app)
    async with trio.open_nursery() as nursery:
        stopping = trio.Event()
        nursery.start_soon(server.keep_handlers, stopping)
        try:
            # `nursery.start`, cancelled, would wait for the handlers' nursery, which is shielded and waits for us.
            await server.opened.wait()
            await trio.serve_listeners(server.handle, list(listeners), handler_nursery=server.handlers)
        finally:
            stopping.set()


class _Server:
    def __init__(self, app: ASGIFramework) -> None:
        config = Config()
        config.accesslog = None
        config.errorlog = _logger
        config.include_server_header = False
        config.keep_alive_timeout = IDLE_SECONDS
        config.h11_max_incomplete_size = MAX_HEADER_BYTES
        config.h2_max_header_list_size = MAX_HEADER_BYTES
        self._config = config
        self._app = wrap_app(app, MAX_HEADER_BYTES, "asgi")
        self._context = WorkerContext(None)
        self._streams: set[trio.SocketStream] = set()
        self._one_left = trio.Event()
        self.handlers: trio.Nursery | None = None
        self.opened = trio.Event()

    async def handle(self, stream: trio.SocketStream) -> None:
        """Serve one connection. Never raises: what a client sends must not reach the router."""
        if len(self._streams) >= MAX_CONNECTIONS or self._context.terminated.is_set():
            return
        self._streams.add(stream)
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_close_late, stream)
                impatient = cast("Any", _Impatient(stream))
                await TCPServer(self._app, self._config, self._context, ConnectionState({}), impatient)
                nursery.cancel_scope.cancel()
        except* Exception as errors:
            _logger.warning("a request failed: %s", errors.exceptions[0], exc_info=errors.exceptions[0])
        finally:
            self._streams.discard(stream)
            self._one_left.set()

    async def keep_handlers(self, stopping: trio.Event) -> None:
        """Hold the nursery of the handlers: shielded, so that cancelling the router leaves them their grace."""
        with trio.CancelScope(shield=True):
            async with trio.open_nursery() as handlers:
                self.handlers = handlers
                self.opened.set()
                await stopping.wait()
                await self._context.terminated.set()
                handlers.cancel_scope.deadline = trio.current_time() + GRACE_SECONDS
                handlers.start_soon(self._close_streams_at_the_end)

    async def _close_streams_at_the_end(self) -> None:
        try:
            while self._streams:
                self._one_left = trio.Event()
                await self._one_left.wait()
        finally:
            for stream in self._streams:
                stream.socket.close()


class _Impatient:
    """A stream, as far as Hypercorn uses one, that is closed when its client doesn't take what is sent."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self._stream = stream
        self.socket = stream.socket
        self.receive_some = stream.receive_some
        self.send_eof = stream.send_eof
        self.aclose = stream.aclose

    async def send_all(self, data: bytes) -> None:
        with trio.move_on_after(SEND_SECONDS) as scope:
            await self._stream.send_all(data)
        if scope.cancelled_caught:
            await trio.aclose_forcefully(self._stream)
            raise trio.BrokenResourceError("the client was too slow")


async def _close_late(stream: trio.SocketStream) -> None:
    await trio.sleep(CONNECTION_SECONDS)
    await trio.aclose_forcefully(stream)
