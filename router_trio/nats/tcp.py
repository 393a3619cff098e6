"""A TCP stream that is read and written with as few turns of the scheduler as can be.

Trio tries to read before it waits, and yields after each write that did not block. For a lone message that is a system
call and a turn too many: here a read waits first, and whoever has something to write may do so in its own turn.
Streams with TLS are read and written as Trio does it.
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable

import trio

BeforeWrite = Callable[[], None]
"""Called each time before bytes leave. Must not raise."""


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


class NotedTCPStream(TCPStream):
    """The same, for who has to note something before bytes leave."""

    def __init__(self, stream: trio.SocketStream, before_write: BeforeWrite) -> None:
        super().__init__(stream)
        self._before_write = before_write
        self.send_all: Callable[[bytes], Awaitable[None]] = NotedStream(stream, before_write).send_all

    def write_some(self, data: bytes) -> int:
        """See `TCPStream`."""
        self._before_write()
        return super().write_some(data)


class NotedStream:
    """The same of any stream, as of one with TLS."""

    def __init__(self, stream: trio.abc.Stream, before_write: BeforeWrite) -> None:
        self._stream = stream
        self._before_write = before_write
        self.receive_some: Callable[[int], Awaitable[bytes | bytearray]] = stream.receive_some

    async def send_all(self, data: bytes) -> None:
        """Send as the stream does."""
        self._before_write()
        await self._stream.send_all(data)


def stream_for_wire(
    stream: trio.abc.Stream, before_write: BeforeWrite | None
) -> trio.abc.Stream | TCPStream | NotedStream:
    """Return how a wire reads and writes this stream."""
    if isinstance(stream, trio.SocketStream):
        return TCPStream(stream) if before_write is None else NotedTCPStream(stream, before_write)
    return stream if before_write is None else NotedStream(stream, before_write)
