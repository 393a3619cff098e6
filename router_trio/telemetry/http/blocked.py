"""Answer `/healthz` while the event loop is blocked, in the thread of the watchdog and on the router's own sockets.

A connection is accepted and its request is peeked at. `GET /healthz` is answered with 503 and the reason why the loop
is blocked. Any other connection is handed to the event loop with its request unread, and is served when the loop runs.
So a page requested between two slow calls of a handler is answered late, but never refused.
"""

from __future__ import annotations

import json
import os
import select
import socket
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress

import trio

from router_trio.forked import close_in_children

MOST_CONNECTIONS = 64
"""Maximum number of connections held while the loop is blocked; others wait in the listen queue."""

REQUEST_WITHIN = 1.0
"""Seconds for a request's headers to arrive before its connection is handed to the loop."""

MAX_REQUEST = 2048
"""Maximum number of bytes of a request that are peeked at."""

_TICK = 0.05
"""Seconds between two checks whether the loop runs again."""

_PROBES = (b"GET /healthz ", b"GET /healthz?", b"HEAD /healthz ", b"HEAD /healthz?")


class HandedOver:
    """Connections accepted while the event loop was blocked and not yet served."""

    def __init__(self) -> None:
        self._waiting: deque[socket.socket] = deque()
        self._not_empty = trio.Event()
        self._closed = False

    def put(self, connection: socket.socket) -> None:
        """Queue a connection. Closes it if `MOST_CONNECTIONS` are queued, or after `close`."""
        if self._closed or len(self._waiting) >= MOST_CONNECTIONS:
            connection.close()
            return
        self._waiting.append(connection)
        self._not_empty.set()

    async def take(self) -> trio.SocketStream:
        """Remove and return the oldest connection; wait for one if there is none."""
        while not self._waiting:
            self._not_empty = trio.Event()
            await self._not_empty.wait()
        return trio.SocketStream(trio.socket.from_stdlib_socket(self._waiting.popleft()))

    def close(self) -> None:
        """Close all queued connections, and all that are put later."""
        self._closed = True
        while self._waiting:
            self._waiting.popleft().close()


class ProbesWhileBlocked:
    """Answer probes on the router's sockets while its loop is blocked.

    `hand_over` is called in the thread of the event loop with each connection that the loop is to serve.
    """

    def __init__(
        self,
        name: str,
        listeners: Sequence[trio.SocketListener],
        token: trio.lowlevel.TrioToken,
        hand_over: Callable[[socket.socket], object],
    ) -> None:
        """`name` is the router's name; `token` belongs to its event loop."""
        self._name = name
        self._listeners = listeners
        self._token = token
        self._hand_over = hand_over

    def answer_while(self, blocked: Callable[[], str | None]) -> None:
        """Answer probes until `blocked`, which returns why the loop is blocked, gives None. Never raises `OSError`."""
        with suppress(OSError):
            listening = [socket.socket(fileno=os.dup(one.socket.fileno())) for one in self._listeners]
            for one in listening:
                close_in_children(one)
            asking: dict[socket.socket, float] = {}
            try:
                while blocked() is not None:
                    self._turn(listening if len(asking) < MOST_CONNECTIONS else [], asking, blocked)
            finally:
                for one in listening:
                    one.close()
                for one in asking:
                    self._pass_to_loop(one)

    def _turn(
        self, listening: list[socket.socket], asking: dict[socket.socket, float], blocked: Callable[[], str | None]
    ) -> None:
        ready = select.select([*listening], [], [], _TICK)[0] if listening else []
        for listener in ready:
            with suppress(OSError):
                connection, _ = listener.accept()
                close_in_children(connection)
                connection.setblocking(False)
                asking[connection] = time.monotonic() + REQUEST_WITHIN
        if not listening:
            time.sleep(_TICK)
        for connection, deadline in [*asking.items()]:
            received = _received(connection)
            why = blocked()
            if why is None:
                return  # the loop runs again and serves the connections itself
            if b"\r\n\r\n" in received and received.startswith(_PROBES):
                del asking[connection]
                self._answer(connection, received, why)
            elif b"\r\n\r\n" in received or len(received) == MAX_REQUEST or time.monotonic() >= deadline:
                del asking[connection]
                self._pass_to_loop(connection)

    def _answer(self, connection: socket.socket, request: bytes, why: str) -> None:
        body = (
            json.dumps({"status": "unavailable", "reasons": [{"router": self._name, "reason": why}]}).encode() + b"\n"
        )
        head = (
            b"HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/json\r\ncache-control: no-store\r\n"
            b"content-length: %d\r\nconnection: close\r\n\r\n" % len(body)
        )
        with suppress(OSError):
            connection.recv(MAX_REQUEST)  # closing a socket with unread data would reset the connection
            connection.send(head if request.startswith(b"HEAD") else head + body)
            connection.shutdown(socket.SHUT_WR)
        connection.close()

    def _pass_to_loop(self, connection: socket.socket) -> None:
        try:
            self._token.run_sync_soon(self._hand_over, connection)
        except trio.RunFinishedError:
            connection.close()


def _received(connection: socket.socket) -> bytes:
    """Peek at the bytes received so far; `b""` if there are none or the connection failed."""
    try:
        return connection.recv(MAX_REQUEST, socket.MSG_PEEK)
    except OSError:
        return b""
