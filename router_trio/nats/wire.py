"""The wire: the only owner of a connected socket. One task reads, one writes; others append, and may write meanwhile.

It parses frames in batches, delivers messages of its subscriptions, answers PING, and matches PONGs with its fences. It
ends by raising `LinkError` from `read` or `write`, and is never used again.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

import trio

from router_trio.errors import LinkError, ProtocolError, reasons
from router_trio.errors.quotes import text_of_error
from router_trio.nats.info import quote
from router_trio.nats.subscriptions import Subscriptions
from router_trio.nats.transport import NotedStream, TCPStream, unforeseen
from router_trio.nats.websocket import WebSocketStream, WebSocketTCPStream
from router_trio.protocol import framing
from router_trio.protocol.refusals import Denied, read_denied

READ_SIZE = 256 * 1024
"""Maximum number of bytes of one read."""

READ_SIZE_WITH_CONSUMERS = 64 * 1024
"""Bytes of one read with messages of streams: the server processes their acks and publishes while the next part is
routed. That makes streams some 5 % faster. Core messages, which cost a server little, are 3 to 10 % slower with it."""

MAX_PONGS_OWED = 1000
"""PINGs that may wait for their PONG. A peer that sends more, and reads nothing, would fill up the memory."""

_HARMLESS = (b"invalid subject", b"invalid publish subject")
"""Errors of a server about a frame that it accepts nevertheless."""

_REFUSED = (b"permissions violation", b"permission violation")
"""Errors of a server about a frame that it does not accept."""

_TOO_MANY_SUBSCRIPTIONS = b"maximum subscriptions exceeded"

ERROR_EXPLAINS_LOSS_FOR = 5.0
"""Seconds after an error of a server within which the end of the connection is attributed to it."""


class Wire:
    """Reads and writes one stream. `read` and `write` are to be run as tasks, once each."""

    def __init__(
        self,
        stream: trio.abc.Stream | TCPStream | NotedStream | WebSocketStream,
        *,
        on_info: Callable[[bytes], None],
        denied: Callable[[Denied | None, str], None],
        read_begins: Callable[[], None] = lambda: None,
        read_done: Callable[[], None],
        hide: Callable[[str], str] = str,
    ) -> None:
        """`on_info` gets the JSON of an INFO, `denied` what the server denied (None if that can't be parsed), and why.

        `read_begins` is called before the messages of each read are delivered, `read_done` after it. `hide` removes
        secrets from a text of the server.
        """
        self._stream = stream
        self._write_some = stream.write_some if isinstance(stream, TCPStream | WebSocketTCPStream) else None
        if isinstance(stream, WebSocketStream):
            stream.write_pongs_by(lambda: self.send(b""))
        self.clear: bool = self._write_some is not None
        """True if bytes appended during the turn of a read can be written in that turn."""
        self.read_size = READ_SIZE
        self.unread: bytes | bytearray = b""
        """Bytes that were read from the stream behind the handshake."""
        self._on_info = on_info
        self._denied = denied
        self._hide = hide
        self._read_begins = read_begins
        self._read_done = read_done
        self._last_words: tuple[float, str] | None = None
        self._parser = framing.FrameParser()
        self.subscriptions: Subscriptions = Subscriptions(self._parser, self.send, self.fence)
        self._out: list[bytes] = []
        self._queued = 0
        self._written = 0
        self._writing = self._half_written = self._reading = False
        self._broken: LinkError | None = None
        self._work = trio.Event()
        self._progress = trio.lowlevel.ParkingLot()
        self._pongs: deque[trio.Event] = deque()
        self._pongs_owed = 0
        self._fence = trio.Event()
        self._fence_ends = -1

    # --- appending and waiting ---

    def send(self, data: bytes) -> None:
        """Append bytes for the writer; during a read, for its end."""
        if not self._out and not self._reading:
            self._work.set()
        self._out.append(data)
        self._queued += len(data)

    async def send_now(self, data: bytes, *, fenced: bool = False) -> None:
        """Append bytes; returns when the socket has accepted them. Raises `LinkError`.

        The caller writes to the socket itself, unless another task is doing that, which saves two task switches per
        write. If it is cancelled in the middle of a write, the link ends.

        With `fenced`, the PING of a fence is sent along if none is on its way, and the next call of `fence` waits for
        that one. This saves one write and one read for a lone message.
        """
        if not data:
            return  # the bytes in `_out` already have a task to write them
        self._out.append(data)
        self._queued += len(data)
        if fenced and not self._pongs:
            self._out.append(self._ping())
        target = self._queued
        try:
            while self._written < target:
                if self._writing:
                    await self._progress.park()
                else:
                    await self._write_out()
        except BaseException:
            self._work.set()
            raise

    def send_in_this_turn(self, data: bytes, *, fenced: bool = False) -> None:
        """Append bytes, and write everything appended in this turn. Only while `clear`. `fenced` as in `send_now`."""
        self.send(data)
        if fenced and not self._pongs:
            self._out.append(self._ping())
        self._flush()

    def _flush(self) -> None:
        """Write what is appended in this turn; what the socket does not accept is left to the writer.

        If the socket is broken, the writer raises the error: the current task may have nothing to do with this link.
        """
        assert self._write_some is not None
        data = self._take_out()
        try:
            written = self._write_some(data)
        except trio.BrokenResourceError as error:
            self._broken = self._ended(f"the connection broke while writing: {_cause(error)}")
            self._broken.__cause__ = error
            self.clear = False
            self._work.set()
            return
        self._written += written
        if written < len(data):
            self.clear = False
            self._out.append(data[written:])
            self._work.set()

    def _take_out(self) -> bytes:
        """Take everything that is appended: the caller writes it, and the writer need not be woken for it any more."""
        data = b"".join(self._out)
        self._out.clear()
        self._pongs_owed = 0
        if self._work.is_set():  # the writer may be waiting for it
            self._work = trio.Event()
        return data

    async def fence(self) -> None:
        """Wait until the server has processed everything that was appended before this call. Can be cancelled.

        Sends nothing if the PONG of a PING behind all of it is expected or has arrived.
        """
        if self._queued != self._fence_ends:
            self._send_ping()
        await self._fence.wait()

    async def ping(self) -> None:
        """Wait until the server has answered a PING, a new one or that of a fence on its way. Can be cancelled."""
        if self._queued != self._fence_ends or self._fence.is_set():
            self._send_ping()
        await self._fence.wait()

    def _send_ping(self) -> None:
        if not self._out:
            self._work.set()
        self._out.append(self._ping())

    def _ping(self) -> bytes:
        """Return the bytes of a fence. They have to be appended now, behind everything appended so far."""
        self._fence = trio.Event()
        self._pongs.append(self._fence)
        self._queued += len(framing.PING)
        self._fence_ends = self._queued
        return framing.PING

    # --- the two tasks: writer and reader ---

    async def write(self) -> None:
        """Write what is appended, joined, for as long as the link lasts. Raises `LinkError`."""
        while True:
            await self._work.wait()
            if self._broken is not None:
                raise self._broken
            if self._half_written:
                raise LinkError("writing was cancelled in the middle of a frame", reason=reasons.CLOSED)
            if self._writing:
                await self._progress.park()
            elif self._out:
                await self._write_out()

    async def _write_out(self) -> None:
        data = self._take_out()
        self._writing = True
        self.clear = False
        try:
            await self._stream.send_all(data)
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            raise self._ended(f"the connection broke while writing: {_cause(error)}") from error
        except BaseException:
            self._half_written = True
            raise
        finally:
            self._writing = False
            self._progress.unpark_all()
        self._written += len(data)
        self.clear = self._write_some is not None

    async def read(self) -> None:
        """Read and deliver, for as long as the link lasts. Raises only `LinkError`: this is the last line of defence.

        An exception raised by a callback is caused by what the peer sent. It must not end more than its link, and it is
        reported too: see `events.UnexpectedLinkError`. Garbage raises a `ProtocolError`.
        """
        data, self.unread = self.unread, b""
        try:
            while True:
                if data:
                    self._parser.feed(bytes(data))
                    self._deliver()
                try:
                    data = await self._stream.receive_some(self.read_size)
                except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
                    raise self._ended(f"the connection broke while reading: {_cause(error)}") from error
                if not data:
                    raise self._closed()
        except LinkError:
            raise
        except Exception as error:
            raise unforeseen(error) from error

    def _deliver(self) -> None:
        """Deliver what was read. Write what is sent meanwhile in the same turn, if the socket accepts it.

        A lone message is not worth a turn of the writer's own task.
        """
        parser = self._parser
        self._reading = True
        if parser.touched:
            self._read_begins()
            for group in parser.touched:
                group.deliver(group)  # type: ignore[attr-defined]
                deque(map(list.clear, group), maxlen=0)  # without a turn of the interpreter for each of many routes
                group.clear()
            parser.touched.clear()
            self._read_done()
        if parser.control:
            lines = parser.control.copy()
            parser.control.clear()
            for line in lines:
                self._control(line)
        self._reading = False
        if self._out:
            if self.clear:
                self._flush()
            else:
                self._work.set()

    def _control(self, line: bytes) -> None:
        word = line[:4].upper()
        if word == b"PONG":
            if self._pongs:  # else no PING was sent
                self._pongs.popleft().set()
        elif word == b"PING":
            self._pongs_owed += 1
            if self._pongs_owed > MAX_PONGS_OWED:
                raise ProtocolError(f"the server sent more than {MAX_PONGS_OWED} PINGs before it took the PONGs")
            self.send(framing.PONG)
        elif word == b"INFO":
            self._on_info(line[5:])
        elif word == b"-ERR":
            self._error(line[5:].strip().strip(b"'"))

    def _error(self, words: bytes) -> None:
        text = self._hide(quote(words))
        if words.lower().startswith(_REFUSED):
            self._denied(read_denied(words), text)
        elif words.lower().startswith(_TOO_MANY_SUBSCRIPTIONS):
            self.subscriptions.had_too_many(text)
        elif not words.lower().startswith(_HARMLESS):
            reason = _reason(words.lower())
            if reason != reasons.SERVER_ERROR:
                raise LinkError(f"the server ended the connection: {text}", reason=reason)
            # Only the server knows whether this error ends the connection. If so, it closes it.
            self._last_words = (trio.current_time(), text)

    def _closed(self) -> LinkError:
        """Return the error of a link that the server has closed, with the status of its WebSocket."""
        close = self._stream.close if isinstance(self._stream, WebSocketStream) else None
        if close is None:
            return self._ended("the server closed the connection")
        reason = _reason(close.text.lower().encode())
        error = self._ended(f"the server closed the connection: {close}")
        if error.reason != reasons.CLOSED:
            return LinkError(f"{error}; {close}", reason=error.reason)
        return error if reason == reasons.SERVER_ERROR else LinkError(str(error), reason=reason)

    def _ended(self, how: str) -> LinkError:
        """Return the error of a link that has ended, with the server's last error if that was just before."""
        if self._last_words is None or trio.current_time() - self._last_words[0] > ERROR_EXPLAINS_LOSS_FOR:
            return LinkError(how, reason=reasons.CLOSED)
        return LinkError(f"the server ended the connection: {self._last_words[1]}", reason=reasons.SERVER_ERROR)


def _reason(words: bytes) -> str:
    for known, reason in (
        (b"stale connection", reasons.STALE),
        (b"slow consumer", reasons.SLOW_CONSUMER),
        (b"maximum payload", reasons.TOO_LARGE),
        (b"maximum connections", reasons.MAX_CONNECTIONS),
        (b"auth", reasons.AUTHORIZATION),
        (b"server shutdown", reasons.SERVER_SHUTDOWN),
    ):
        if known in words:
            return reason
    return reasons.SERVER_ERROR


def _cause(error: BaseException) -> str:
    return text_of_error(error.__cause__ or error)
