"""Answer `/healthz` while the event loop is blocked: in the thread of the watchdog, on the router's own sockets.

A connection is accepted, and what it asks for is looked at without taking it: `GET /healthz` is answered with 503 and
what blocks the loop; any other connection is handed to the loop as it is, which answers when it turns. So a page that
is asked for between two slow calls of a handler is answered late, and never refused.
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
"""Connections that are held at a time while the loop is blocked; others wait in the listen queue."""

REQUEST_WITHIN = 1.0
"""Seconds that a connection has to say what it asks for, before it is handed to the loop."""

MAX_REQUEST = 2048
"""Bytes of a request that are looked at."""

_TICK = 0.05
"""Seconds between two looks at whether the loop turns."""

_PROBES = (b"GET /healthz ", b"GET /healthz?", b"HEAD /healthz ", b"HEAD /healthz?")


class HandedOver:
    """Connections that were accepted while the loop was blocked, and that it has not served yet."""

    def __init__(self) -> None:
        self._waiting: deque[socket.socket] = deque()
        self._some = trio.Event()
        self._closed = False

    def put(self, connection: socket.socket) -> None:
        """Queue one; close it if there are too many, or nothing is served any more."""
        if self._closed or len(self._waiting) >= MOST_CONNECTIONS:
            connection.close()
            return
        self._waiting.append(connection)
        self._some.set()

    async def take(self) -> trio.SocketStream:
        """Take out the oldest; wait for one."""
        while not self._waiting:
            self._some = trio.Event()
            await self._some.wait()
        return trio.SocketStream(trio.socket.from_stdlib_socket(self._waiting.popleft()))

    def close(self) -> None:
        """Close all that wait, and all that come."""
        self._closed = True
        while self._waiting:
            self._waiting.popleft().close()


class ProbesWhileBlocked:
    """Answer probes on the router's sockets while its loop is blocked.

    `hand_over` takes the connections that are for the loop, in the loop's own thread.
    """

    def __init__(
        self,
        name: str,
        listeners: Sequence[trio.SocketListener],
        token: trio.lowlevel.TrioToken,
        hand_over: Callable[[socket.socket], object],
    ) -> None:
        """`name` is that of the router."""
        self._name = name
        self._listeners = listeners
        self._token = token
        self._hand_over = hand_over

    def answer_while(self, blocked: Callable[[], str | None]) -> None:
        """Answer probes until `blocked` returns None, for as long as the loop is blocked. Never raises `OSError`."""
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
                    self._give(one)

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
            begun = _begun(connection)
            why = blocked()
            if why is None:
                return  # it turns, and answers for itself
            if b"\r\n\r\n" in begun and begun.startswith(_PROBES):
                del asking[connection]
                self._answer(connection, begun, why)
            elif b"\r\n\r\n" in begun or len(begun) == MAX_REQUEST or time.monotonic() >= deadline:
                del asking[connection]
                self._give(connection)

    def _answer(self, connection: socket.socket, request: bytes, why: str) -> None:
        body = json.dumps({"status": "unavailable", "reasons": [{"router": self._name, "reason": why}]}).encode()
        head = (
            b"HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/json\r\ncache-control: no-store\r\n"
            b"content-length: %d\r\nconnection: close\r\n\r\n" % len(body)
        )
        with suppress(OSError):
            connection.recv(MAX_REQUEST)  # what is left unread would reset the connection
            connection.send(head if request.startswith(b"HEAD") else head + body)
            connection.shutdown(socket.SHUT_WR)
        connection.close()

    def _give(self, connection: socket.socket) -> None:
        try:
            self._token.run_sync_soon(self._hand_over, connection)
        except trio.RunFinishedError:
            connection.close()


def _begun(connection: socket.socket) -> bytes:
    """Return what has arrived, without taking it; nothing if that can't be known."""
    try:
        return connection.recv(MAX_REQUEST, socket.MSG_PEEK)
    except OSError:
        return b""
