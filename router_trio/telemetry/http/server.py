"""Serve the pages: HTTP/1.1 on open listeners, with limits of number, size and time.

Clients can't block the router: slow, idle and excess clients are disconnected, open requests end within a second of
cancellation, and malformed input affects only its own connection. A probe (`hosts.PROBES`) is answered at once however
many clients there are: see `admission`.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from math import inf

import trio
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp

from router_trio.forked import close_in_children
from router_trio.telemetry.http.admission import Admission, Limits
from router_trio.telemetry.http.asgi import answer, path_of
from router_trio.telemetry.http.blocked import HandedOver
from router_trio.telemetry.http.connection import HTTPConnection, RequestRefused
from router_trio.telemetry.http.hosts import PROBES, peer_of

GRACE_SECONDS = 1.0
"""Maximum seconds for open requests to complete after cancellation."""

CONNECTION_SECONDS = 30.0
"""Maximum seconds for one connection, however busy. Scrapers that keep their connection open have to reconnect."""

HEADER_SECONDS = 3.0
"""Maximum seconds for the headers of the first request on a connection to arrive."""

IDLE_SECONDS = 5.0
"""Maximum seconds for the headers of each further request on a connection to arrive."""

MAX_CONNECTIONS = 256
MAX_CONNECTIONS_PER_PEER = 128
"""Maximum number of connections from one address. All clients on one machine, or behind one proxy, share it."""

MAX_REQUESTS = 224
MAX_REQUESTS_PER_PEER = 112
"""Maximum number of requests answered at a time. Lower than the connections, so that one of them is always waiting and
can be closed for a new one."""

ACCEPTED_A_TURN = 4
"""Connections accepted in each turn of the event loop. Far fewer than can wait (`MAX_CONNECTIONS` - `MAX_REQUESTS`), so
that each is read before it may be closed for another."""

_GONE = (trio.BrokenResourceError, trio.ClosedResourceError, ClientDisconnect)

_logger = logging.getLogger(__name__)


async def serve_http(
    listeners: Sequence[trio.SocketListener], app: ASGIApp, handed_over: HandedOver | None = None
) -> None:
    """Answer requests on `listeners` until cancelled, and close the listeners.

    `handed_over` has the connections that were accepted while the loop was blocked. Cancelling stops accepting at once
    and lets open requests complete, for at most `GRACE_SECONDS`.
    """
    server = _Server(app)
    async with trio.open_nursery() as nursery:
        stopping = trio.Event()
        nursery.start_soon(server.keep_handlers, stopping)
        try:
            # Not `nursery.start`: when cancelled it would wait for the handlers' nursery, which is shielded and waits
            # for `stopping`.
            await server.opened.wait()
            if handed_over is not None:
                nursery.start_soon(server.serve_handed_over, handed_over)
            # Trio accepts one connection per listener in each turn of the loop, which is too few when turns are long.
            more = [trio.SocketListener(one.socket.dup()) for one in listeners for _ in range(ACCEPTED_A_TURN - 1)]
            for listener in more:
                close_in_children(listener.socket)
            await trio.serve_listeners(server.handle, [*listeners, *more], handler_nursery=server.handlers)
        finally:
            stopping.set()


class _Client:
    """The state of a connection in `Admission`."""

    def __init__(self, peer: str) -> None:
        self.peer = peer
        self.evicted = False
        self._waiting = trio.CancelScope()

    def waiting(self, deadline: float = inf) -> trio.CancelScope:
        """Return a scope for a wait that `evict` or the deadline may cancel."""
        self._waiting = trio.CancelScope(deadline=deadline)
        return self._waiting

    def evict(self) -> None:
        """Close the connection as soon as it is not being answered."""
        self.evicted = True
        self._waiting.cancel()


class _Server:
    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._admission: Admission[_Client] = Admission(
            Limits(MAX_CONNECTIONS, MAX_CONNECTIONS_PER_PEER, MAX_REQUESTS, MAX_REQUESTS_PER_PEER)
        )
        self._clients: set[_Client] = set()
        self._next = trio.Lock()
        self.handlers: trio.Nursery | None = None
        self.opened = trio.Event()

    async def handle(self, stream: trio.SocketStream) -> None:
        """Serve one connection. Never raises: a client's input must not affect the router."""
        close_in_children(stream.socket)
        try:
            address = stream.socket.getpeername()[0]
        except OSError:
            return  # disconnected already
        client = _Client(peer_of(address))
        evicted = self._admission.arrive(client)
        if evicted is not None:
            evicted.evict()
        if evicted is client:
            return
        self._clients.add(client)
        try:
            with trio.move_on_after(CONNECTION_SECONDS):
                await self._serve(HTTPConnection(stream, client.peer), client)
        except* _GONE:
            pass
        except* Exception as errors:
            _logger.warning("a request failed: %s", errors.exceptions[0], exc_info=errors.exceptions[0])
        finally:
            self._clients.discard(client)
            self._admission.leave(client)

    async def keep_handlers(self, stopping: trio.Event) -> None:
        """Hold the nursery of the handlers, shielded so that they get `GRACE_SECONDS` when the router is cancelled."""
        with trio.CancelScope(shield=True):
            async with trio.open_nursery() as handlers:
                self.handlers = handlers
                self.opened.set()
                await stopping.wait()
                handlers.cancel_scope.deadline = trio.current_time() + GRACE_SECONDS
                for client in self._clients:
                    client.evict()

    async def serve_handed_over(self, handed_over: HandedOver) -> None:
        """Serve connections that another thread has accepted, until cancelled."""
        while True:
            connection = await handed_over.take()
            assert self.handlers is not None
            self.handlers.start_soon(self.handle, connection)

    # --- inside ---

    async def _serve(self, connection: HTTPConnection, client: _Client) -> None:
        refused: RequestRefused | None = None
        first = True
        try:
            while await self._serve_request(connection, client, first=first) and not client.evicted:
                self._admission.wait(client)
                first = False
        except RequestRefused as why:
            refused = why
        if client.evicted:
            return
        self._admission.wait(client)
        with client.waiting():
            if refused is not None:
                await connection.refuse(refused)
            await connection.linger()

    async def _serve_request(self, connection: HTTPConnection, client: _Client, *, first: bool) -> bool:
        """Wait for a request and answer it; return True if the connection can have another one.

        Raises `RequestRefused`.
        """
        request = None
        timeout = HEADER_SECONDS if first else IDLE_SECONDS
        with client.waiting(trio.current_time() + timeout) as scope:
            request = await connection.next_request()
        if scope.cancelled_caught and connection.request_begun and not client.evicted:
            raise RequestRefused(408, f"the headers must arrive within {timeout:g} s")
        if request is None:
            return False
        if not first:
            # Only one connection with a repeated request is served in each turn of the loop, which would otherwise
            # become long. First requests are limited by `ACCEPTED_A_TURN`.
            with client.waiting():
                async with self._next:
                    await trio.lowlevel.checkpoint()
            if client.evicted:
                return False
        if self._admission.may_answer(client):
            await answer(connection, request, self._app)
            return connection.start_next_request()
        if path_of(request) not in PROBES:
            raise RequestRefused(503, "too many concurrent requests")
        connection.close_after_answer = True
        with client.waiting():
            await answer(connection, request, self._app)
        return False
