"""Serves the pages: HTTP/1.1 over listeners that are open already, within bounds of number, size and time.

What comes from outside can't hold the router up: whoever is slow, idle or too many is cut off, requests end a second
after the end was asked for, and no client's nonsense gets further than its own connection. However many there are, a
probe (`hosts.PROBES`) is answered at once: see `admission`.
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
"""How long open requests may take after the end was asked for."""

CONNECTION_SECONDS = 30.0
"""Longest life of one connection, however busy. Scrapers that keep theirs open connect again."""

HEADER_SECONDS = 3.0
"""How long the headers of a new connection's first request may take to arrive."""

IDLE_SECONDS = 5.0
"""How long the headers of a connection's next request may take to arrive."""

MAX_CONNECTIONS = 256
MAX_CONNECTIONS_PER_PEER = 128
"""Of one address. All clients of one machine, and all behind one proxy, share theirs."""

MAX_REQUESTS = 224
MAX_REQUESTS_PER_PEER = 112
"""Answered at a time. Less than the connections: among those that wait is always one to close for a new one."""

ACCEPTED_A_TURN = 4
"""Connections; well below those that always wait, so that each is heard before it is closed for another."""

_GONE = (trio.BrokenResourceError, trio.ClosedResourceError, ClientDisconnect)

_logger = logging.getLogger(__name__)


async def serve_http(
    listeners: Sequence[trio.SocketListener], app: ASGIApp, handed_over: HandedOver | None = None
) -> None:
    """Answer requests on `listeners` until cancelled; closes them.

    `handed_over` gives connections that were accepted while the loop was blocked.
    Cancelling stops intake at once and lets open requests end, for at most `GRACE_SECONDS`.
    """
    server = _Server(app)
    async with trio.open_nursery() as nursery:
        stopping = trio.Event()
        nursery.start_soon(server.keep_handlers, stopping)
        try:
            # `nursery.start`, cancelled, would wait for the handlers' nursery, which is shielded and waits for us.
            await server.opened.wait()
            if handed_over is not None:
                nursery.start_soon(server.serve_handed_over, handed_over)
            # Trio accepts one connection in each turn of the loop. When turns are long there should be more.
            more = [trio.SocketListener(one.socket.dup()) for one in listeners for _ in range(ACCEPTED_A_TURN - 1)]
            for listener in more:
                close_in_children(listener.socket)
            await trio.serve_listeners(server.handle, [*listeners, *more], handler_nursery=server.handlers)
        finally:
            stopping.set()


class _Client:
    """A connection, as far as it is admitted."""

    def __init__(self, peer: str) -> None:
        self.peer = peer
        self.evicted = False
        self._waiting = trio.CancelScope()

    def waiting(self, deadline: float = inf) -> trio.CancelScope:
        """Return a scope for what may be cut short, by `evict` or at the deadline."""
        self._waiting = trio.CancelScope(deadline=deadline)
        return self._waiting

    def evict(self) -> None:
        """Close it as soon as it is not being answered."""
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
        """Serve one connection. Never raises: what a client sends must not reach the router."""
        close_in_children(stream.socket)
        try:
            address = stream.socket.getpeername()[0]
        except OSError:
            return  # gone already
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
        """Hold the nursery of the handlers: shielded, so that cancelling the router leaves them their grace."""
        with trio.CancelScope(shield=True):
            async with trio.open_nursery() as handlers:
                self.handlers = handlers
                self.opened.set()
                await stopping.wait()
                handlers.cancel_scope.deadline = trio.current_time() + GRACE_SECONDS
                for client in self._clients:
                    client.evict()

    async def serve_handed_over(self, handed_over: HandedOver) -> None:
        """Serve connections that somebody else has accepted, until cancelled."""
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
        """Wait for a request and answer it; return True if the connection is good for another one.

        Raises `RequestRefused`.
        """
        request = None
        timeout = HEADER_SECONDS if first else IDLE_SECONDS
        with client.waiting(trio.current_time() + timeout) as scope:
            request = await connection.next_request()
        if scope.cancelled_caught and connection.begun and not client.evicted:
            raise RequestRefused(408, f"the headers must arrive within {timeout:g} s")
        if request is None:
            return False
        if not first:
            # Of the connections that ask again and again, one has its turn in each turn of the loop, which would be
            # long otherwise. Those that ask for the first time are few in each, see `ACCEPTED_A_TURN`.
            with client.waiting():
                async with self._next:
                    await trio.lowlevel.checkpoint()
            if client.evicted:
                return False
        if self._admission.may_answer(client):
            await answer(connection, request, self._app)
            return connection.start_next_request()
        if path_of(request) not in PROBES:
            raise RequestRefused(503, "too many requests at a time")
        connection.ends = True
        with client.waiting():
            await answer(connection, request, self._app)
        return False
