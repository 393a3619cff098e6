"""The channel between supervisor and worker: `messages` over a pair of sockets that no other process can reach.

Both ends run the same program, and the worker inherits its end from the supervisor. So objects are pickled, which would
not be safe for anything from outside. When one end is closed, `next_message` returns None at the other. A forked child
closes its copy of an end (see `forked`). When the other process is known to have ended, read the `rest`.
"""

from __future__ import annotations

import os
import pickle
from collections import deque
from collections.abc import Iterator
from struct import Struct
from typing import Generic, TypeVar

import trio

from router_trio.forked import close_in_children

_SIZE = Struct("=q")
_READ = 65536

S = TypeVar("S")
R = TypeVar("R")


class Channel(Generic[S, R]):
    """An end of the channel, which sends messages of type `S` and receives those of type `R`.

    Run `write` as a task; messages posted before wait for it.
    """

    def __init__(self, stream: trio.SocketStream) -> None:
        self._stream = stream
        close_in_children(stream.socket)
        self._posted: deque[S] = deque()
        self._some_posted = trio.Event()
        self._all_written = trio.Event()
        self._all_written.set()
        self._received = bytearray()
        self._closed = False

    def post(self, message: S) -> None:
        """Send a message as soon as the other end takes it. Never blocks; does nothing if the other end is closed."""
        if self._closed:
            return
        self._posted.append(message)
        if self._all_written.is_set():  # otherwise a task may be waiting for it
            self._all_written = trio.Event()
        self._some_posted.set()

    async def write(self) -> None:
        """Send posted messages, until cancelled or until the other end is closed."""
        try:
            while True:
                while self._posted:
                    body = pickle.dumps(self._posted.popleft(), pickle.HIGHEST_PROTOCOL)
                    await self._stream.send_all(_SIZE.pack(len(body)) + body)
                self._all_written.set()
                self._some_posted = trio.Event()
                await self._some_posted.wait()
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            self._closed = True
            self._all_written.set()

    async def written(self) -> None:
        """Wait until everything posted is sent."""
        await self._all_written.wait()

    async def next_message(self) -> R | None:
        """Return the next message; None if the other end is closed."""
        while (message := self._take_first()) is None:
            try:
                data = await self._stream.receive_some(_READ)
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                return None
            if not data:
                return None
            self._received += data
        return message

    def rest(self) -> Iterator[R]:
        """Yield messages that have arrived and were not read. Never blocks, even if the other end is still open."""
        while True:
            while (message := self._take_first()) is not None:
                yield message
            try:
                data = os.read(self._stream.socket.fileno(), _READ)
            except OSError:
                return
            if not data:
                return
            self._received += data

    def _take_first(self) -> R | None:
        """Take the first message out of the received bytes; None if it is incomplete."""
        received = self._received
        if len(received) < _SIZE.size:
            return None
        end = _SIZE.size + _SIZE.unpack_from(received)[0]
        if len(received) < end:
            return None
        message: R = pickle.loads(received[_SIZE.size : end])
        del received[:end]
        return message
