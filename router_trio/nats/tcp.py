"""A TCP stream that is read and written with as few turns of the scheduler as can be.

Trio tries to read before it waits, and yields after each write that did not block. For a lone message that is a system
call and a turn too many: here a read waits first, and whoever has something to write may do so in its own turn.
Streams with TLS are read and written as Trio does it.
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable

import trio


class TCPStream:
    """A connected stream of Trio's, which still owns the socket."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self._socket = stream.socket
        self.send_all: Callable[[bytes], Awaitable[None]] = stream.send_all

    async def receive_some(self, max_bytes: int) -> bytes:
        """Return bytes that came, `b""` at the end. Blocks until there are some: others always have a turn before.

        Raises `trio.BrokenResourceError`, or `trio.ClosedResourceError` if somebody has closed the stream.
        """
        while True:
            number = self._socket.fileno()
            if number < 0:
                raise trio.ClosedResourceError("the stream is closed")
            await trio.lowlevel.wait_readable(number)
            try:
                return os.read(number, max_bytes)
            except BlockingIOError:
                continue
            except OSError as error:
                raise trio.BrokenResourceError(str(error)) from error

    def write_some(self, data: bytes) -> int:
        """Write what the socket takes now. Return how many bytes that is. Raises `trio.BrokenResourceError`."""
        try:
            return os.write(self._socket.fileno(), data)
        except BlockingIOError:
            return 0
        except OSError as error:
            raise trio.BrokenResourceError(str(error)) from error
