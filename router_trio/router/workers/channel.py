"""The channel between supervisor and worker: whole objects over a pair of sockets that nobody else can reach.

Both ends run the same program, and the worker has inherited its end from the supervisor: so objects are pickled, which
would not do for anything that comes from outside. When one end is gone, `next_message` gives None at the other.
"""

from __future__ import annotations

import pickle
from collections import deque
from struct import Struct
from typing import Any

import trio

_SIZE = Struct("=q")


class Channel:
    """One end. `write` is to be run as a task; messages that are posted before wait for it."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self._stream = stream
        self._posted: deque[tuple[Any, ...]] = deque()
        self._something = trio.Event()
        self._all_written = trio.Event()
        self._all_written.set()
        self._received = bytearray()
        self._gone = False

    def post(self, *message: Any) -> None:
        """Send this, as soon as the other end takes it. Never blocks; does nothing if the other end is gone."""
        if self._gone:
            return
        self._posted.append(message)
        if self._all_written.is_set():  # else somebody may wait for it
            self._all_written = trio.Event()
        self._something.set()

    async def write(self) -> None:
        """Send what is posted, until cancelled or until the other end is gone."""
        try:
            while True:
                while self._posted:
                    body = pickle.dumps(self._posted.popleft(), pickle.HIGHEST_PROTOCOL)
                    await self._stream.send_all(_SIZE.pack(len(body)) + body)
                self._all_written.set()
                self._something = trio.Event()
                await self._something.wait()
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            self._gone = True
            self._all_written.set()

    async def written(self) -> None:
        """Wait until all that was posted is sent."""
        await self._all_written.wait()

    async def next_message(self) -> tuple[Any, ...] | None:
        """Return the next message; None if the other end is gone."""
        head = await self._read(_SIZE.size)
        body = None if head is None else await self._read(_SIZE.unpack(head)[0])
        if body is None:
            return None
        message: tuple[Any, ...] = pickle.loads(body)
        return message

    async def _read(self, size: int) -> bytes | None:
        while len(self._received) < size:
            try:
                data = await self._stream.receive_some(65536)
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                return None
            if not data:
                return None
            self._received += data
        found = bytes(self._received[:size])
        del self._received[:size]
        return found
