"""A WebSocket as a stream: its bytes are the payload of frames, over a stream of TCP or TLS.

The handshake and the wire use it as they use the stream below it. It answers pings by itself. As with any stream, one
task may read at a time, and one may write.
"""

from __future__ import annotations

from collections.abc import Callable

import trio

from router_trio.nats.transport import BeforeWrite, NotedStream, TCPStream, stream_for_wire
from router_trio.protocol.websocket import Close, FrameReader, FrameWriter


class WebSocketStream(trio.abc.AsyncResource):
    """A WebSocket after its opening handshake. `unread` are bytes that were received after the answer to that."""

    def __init__(
        self,
        below: trio.abc.Stream | TCPStream | NotedStream,
        reader: FrameReader,
        writer: FrameWriter,
        unread: bytes = b"",
    ) -> None:
        self._below = below
        self._reader = reader
        self._writer = writer
        self._unread: bytes | bytearray = unread
        self._write_soon: Callable[[], None] | None = None

    @property
    def close(self) -> Close | None:
        """The close frame of the server; None if it has sent none."""
        return self._reader.close

    async def receive_some(self, max_bytes: int) -> bytes:
        """Return received payload; `b""` at the end of the connection or after a close frame.

        Reads at most `max_bytes` at a time. Raises what the stream below raises, or `ProtocolError`.
        """
        while self._reader.close is None:
            data, self._unread = self._unread, b""
            data = data or await self._below.receive_some(max_bytes)
            if not data:
                return b""
            payload = self._reader.feed(bytes(data))
            if self._reader.ping is not None:
                self._writer.answer(self._reader.take_ping())
                if self._write_soon is not None:
                    self._write_soon()
            if payload:
                return payload
        return b""

    async def send_all(self, data: bytes) -> None:
        """Send payload as a frame, and a pong if one is due; with `b""` only the pong.

        Raises what the stream below raises.
        """
        await self._below.send_all(self._writer.frame(data))

    def write_pongs_by(self, write_soon: Callable[[], None]) -> None:
        """Call `write_soon` whenever a pong is due: it has to arrange a call of `send_all` or `write_some`.

        Without it a pong is sent with the next payload.
        """
        self._write_soon = write_soon

    def for_wire(self, before_write: BeforeWrite | None) -> WebSocketStream:
        """Return the stream for a wire to read and write, in place of this one, which must not be used afterwards."""
        assert not isinstance(self._below, TCPStream | NotedStream), "it is called once"
        below = stream_for_wire(self._below, before_write)
        kind = WebSocketTCPStream if isinstance(below, TCPStream) else WebSocketStream
        return kind(below, self._reader, self._writer, bytes(self._unread))

    async def aclose(self) -> None:
        """Close the stream below, without a close frame."""
        assert not isinstance(self._below, TCPStream | NotedStream), "the stream of the handshake owns the socket"
        await self._below.aclose()


class WebSocketTCPStream(WebSocketStream):
    """A WebSocket that can also be written without waiting, as a `TCPStream` can."""

    _below: TCPStream

    def write_some(self, data: bytes) -> int:
        """Write the part of `data` that the socket accepts now, and return its length in bytes.

        Raises `trio.BrokenResourceError`.
        """
        return self._writer.write_some(data, self._below.write_some)
