"""The NATS client protocol, without I/O: frames out of bytes, bytes out of frames.

Follows the client protocol of the NATS documentation. The parser is one pass over the receive buffer and makes no
object a message but one tuple; whatever a handler may want of it is sliced out later. It treats subjects as bytes: a
server relays subjects that are no UTF-8, and header blocks that are none.

The part of a MSG or HMSG frame behind the subscription id is, to the letter, what a PUB or HPUB frame has behind its
subject: `[reply] [header size] size CRLF headers payload CRLF`. That is the *tail* of a raw message, and forwarding is
a new subject before an old tail.
"""

from __future__ import annotations

from collections.abc import Sequence
from operator import itemgetter
from typing import Any, Protocol

from router_trio.errors import ProtocolError

RawMessage = tuple[bytes, bytes, int, int, bytes]
"""A received message: subject, reply (`b""` for none), header size, total size, tail."""

MAX_INFO = 1024 * 1024
"""Bytes of an INFO. That of a large cluster is long; more than this is no NATS server."""

MAX_CONTROL_LINE = 64 * 1024
"""Bytes of any other line. A sender's server takes 4,096 of subject and reply, unless it is set to more."""

DEFAULT_CONTROL_LINE = 4096
"""Bytes of a client's control line that a server takes, unless it says otherwise (`max_control_line`)."""

LAST_SEQUENCE = 2**64 - 1
"""The highest number of a message in a stream, and of a delivery."""

MAX_MESSAGE = 64 * 1024 * 1024
"""The server's own upper bound of `max_payload`."""

MAX_SIZE_DIGITS = 9
"""Digits of a size, as many as nats-server reads."""

MAX_SIZES = 8192
"""Sizes that are remembered as they are written, those below 4,096 from the start."""

ZERO = 0x30


class _Sizes(dict[bytes, int]):
    """Sizes as they are written: to look one up costs less than to read it."""

    def __missing__(self, text: bytes) -> int:
        """Read a size as a server writes it. Raises `ValueError` for anything else that `int` would take.

        A tail repeats it as it came, and the server that it is sent to would end the connection over `+5` or `1_0`.
        """
        if text.isdigit() and len(text) <= MAX_SIZE_DIGITS and (text[0] != ZERO or len(text) == 1):
            size = int(text)
            if len(self) < MAX_SIZES:
                self[text] = size
            return size
        raise ValueError


SIZES = _Sizes((b"%d" % size, size) for size in range(4096))


class MessageBuffer(Protocol):
    """A list of the messages of one subscription."""

    @property
    def group(self) -> list[Any]:
        """The list of those buffers with messages that it is to be in when it has some."""
        ...

    def append(self, raw: RawMessage, /) -> None:
        """A message came."""

    def clear(self) -> None:
        """Empty it."""

    def __len__(self) -> int:
        """The number of messages in it."""
        ...


class FrameParser:
    """Turns received bytes into messages for known subscriptions, foreign frames and control lines.

    After each `feed`: `buffers[sid]` holds the messages that came for a subscription registered there, its group has
    all buffers that got some, and `touched` the groups (whoever registers empties all three); `foreign` has whole
    frames of other subscriptions as bytes, `control` the other lines (PING, PONG, INFO, -ERR, +OK) without CRLF, in
    order.
    """

    __slots__ = ("_buffer", "_line", "_needed", "buffers", "control", "foreign", "touched")

    def __init__(self) -> None:
        self.buffers: dict[bytes, MessageBuffer] = {}
        self.touched: list[list[Any]] = []
        self.foreign: list[bytes] = []
        self.control: list[bytes] = []
        self._buffer: list[bytes] = []
        self._line = 0
        self._needed = 0

    def feed(self, data: bytes) -> None:
        """Parse what came. Raises `ProtocolError` for what is no frame; what was parsed before it stays."""
        if self._buffer:
            data = self._joined(data)
            if not data:
                return
        buffers = self.buffers
        find = data.find
        sizes = SIZES
        length = len(data)
        position = 0
        self._needed = self._line = 0
        sid_of_run: bytes | None = None
        while True:
            line_end = find(b"\r\n", position)
            if line_end < 0:
                limit = MAX_INFO if data[position : position + 4].upper() == b"INFO" else MAX_CONTROL_LINE
                self._line = limit - (length - position)
                if self._line < 0:
                    raise ProtocolError(f"a line of more than {limit} bytes")
                break
            words = data[position:line_end].split(b" ")
            kind = words[0]
            try:
                if kind == b"MSG":
                    if len(words) == 4:
                        _, subject, sid, size_text = words
                        reply = b""
                        start = line_end - len(size_text)
                    else:
                        _, subject, sid, reply, size_text = words
                        start = line_end - len(size_text) - len(reply) - 1
                    size = sizes[size_text]
                    header_size = 0
                elif kind == b"HMSG":
                    if len(words) == 5:
                        words.insert(3, b"")
                    _, subject, sid, reply, header_text, size_text = words
                    start = line_end - len(size_text) - len(header_text) - 1
                    if reply:
                        start -= len(reply) + 1
                    size, header_size = sizes[size_text], sizes[header_text]
                    if not 0 < header_size <= size:
                        raise ProtocolError(f"header size {header_size} of a message of {size} bytes")
                else:
                    self._control_line(data[position:line_end])
                    position = line_end + 2
                    continue
            except ValueError:
                raise ProtocolError(f"malformed frame {data[position:line_end][:80]!r}") from None
            end = line_end + 4 + size
            if end > length:
                if size > MAX_MESSAGE:
                    raise ProtocolError(f"a message of {size} bytes")
                self._needed = end - length
                break
            if data[end - 2 : end] != b"\r\n":
                raise ProtocolError("a message that does not end where its size says")
            if sid != sid_of_run:
                try:
                    buffer = buffers[sid]
                except KeyError:
                    self.foreign.append(data[position:end])
                    position = end
                    continue
                sid_of_run = sid
                if not buffer:
                    group = buffer.group
                    if not group:
                        self.touched.append(group)
                    group.append(buffer)
            # Bound by the frame that began the run, as `sid_of_run` was.
            buffer.append((subject, reply, header_size, size, data[start:end]))  # pyright: ignore[reportPossiblyUnboundVariable]
            position = end
        if position < length:
            self._buffer.append(data[position:] if position else data)

    def _joined(self, data: bytes) -> bytes:
        """Return what came so far with this piece, `b""` if it can't be whole yet."""
        self._buffer.append(data)
        # A large message comes in many pieces: they are joined when it is whole, not at each piece.
        self._needed -= len(data)
        if self._needed > 0:
            return b""
        # So is a line, which would otherwise be searched for its end again with each piece.
        self._line -= len(data)
        if self._line > 0 and b"\n" not in data:
            return b""
        data = b"".join(self._buffer)
        self._buffer.clear()
        return data

    def _control_line(self, line: bytes) -> None:
        word = line[:4].upper()
        if word in (b"PING", b"PONG", b"INFO", b"-ERR") or word[:3] == b"+OK":
            self.control.append(line)
        else:
            raise ProtocolError(f"unknown frame {line[:80]!r}")


# --- reading a raw message ---


def header_block(raw: RawMessage) -> bytes:
    """The raw header block, `b""` for none."""
    _, _, header_size, size, tail = raw
    end = len(tail) - 2 - size
    return tail[end : end + header_size]


def payload(raw: RawMessage) -> bytes:
    """The payload."""
    _, _, header_size, size, tail = raw
    return tail[len(tail) - 2 - size + header_size : -2]


def text(subject: bytes) -> str:
    """A subject as a string; bytes that are no UTF-8 survive as surrogates, and `wire` gives them back."""
    return subject.decode("utf-8", "surrogateescape")


def wire(subject: str) -> bytes:
    """A subject as bytes."""
    return subject.encode("utf-8", "surrogateescape")


_subject, _reply, _total_size = itemgetter(0), itemgetter(1), itemgetter(3)


def delivered_size(batch: Sequence[RawMessage]) -> int:
    """Return the bytes of messages as a server counts them for a pull request: subject, reply, headers and payload."""
    bodies: int = sum(map(_total_size, batch))
    return bodies + sum(map(len, map(_subject, batch))) + sum(map(len, map(_reply, batch)))


# --- frames to send ---


def publish_prefix(subject: bytes) -> bytes:
    """The start of a frame that a tail completes; of a tail with headers, with an `H` before it."""
    return b"PUB %b " % subject


def prefixed_subject(prefix: bytes) -> bytes:
    """The subject of such a start."""
    return prefix[len(b"PUB ") : -1]


def control_line_size(subject: bytes, reply: bytes, header_size: int, size: int) -> int:
    """Return how long the control line of a publish is for a server: what follows `PUB ` or `HPUB `, without CRLF."""
    sizes = b" %d %d" % (header_size, size) if header_size else b" %d" % size
    return len(subject) + (len(reply) + 1 if reply else 0) + len(sizes)


def publish(subject: bytes, body: bytes, reply: bytes = b"", headers: bytes = b"") -> bytes:
    """A PUB frame, or HPUB if there is a header block."""
    if reply:
        reply += b" "
    if headers:
        return b"HPUB %b %b%d %d\r\n%b%b\r\n" % (subject, reply, len(headers), len(headers) + len(body), headers, body)
    return b"PUB %b %b%d\r\n%b\r\n" % (subject, reply, len(body), body)


def readdressed(frame: bytes, reply: bytes) -> bytes:
    """A PUB or HPUB frame that has a reply subject, with another one."""
    word, subject, _, rest = frame.split(b" ", 3)
    return b" ".join((word, subject, reply, rest))


def published(frame: bytes) -> RawMessage:
    """Return what a subscriber receives of a PUB or HPUB frame."""
    words = frame[: frame.index(b"\r\n")].split(b" ")
    word, subject = words[0], words[1]
    header_size = int(words[-2]) if word == b"HPUB" else 0
    reply = words[2] if len(words) == (5 if header_size else 4) else b""
    return subject, reply, header_size, int(words[-1]), frame[len(word) + len(subject) + 2 :]


def addresses(frame: bytes) -> tuple[bytes, bytes]:
    """The subject and the reply subject of a PUB or HPUB frame, `b""` for none."""
    words = frame[: frame.index(b"\r\n")].split(b" ")
    return words[1], words[2] if len(words) == (5 if words[0] == b"HPUB" else 4) else b""


def published_size(frame: bytes) -> int:
    """Headers and payload of a PUB or HPUB frame in bytes: what a server's `max_payload` bounds."""
    return int(frame[: frame.index(b"\r\n")].rsplit(b" ", 1)[1])


def line_size(frame: bytes) -> int:
    """The `control_line_size` of a PUB or HPUB frame."""
    return frame.index(b"\r\n") - frame.index(b" ") - 1


def subscribe(subject: bytes, sid: bytes, queue: bytes = b"") -> bytes:
    """A SUB frame."""
    return b"SUB %b %b%b\r\n" % (subject, queue + b" " if queue else b"", sid)


def unsubscribe(sid: bytes) -> bytes:
    """An UNSUB frame."""
    return b"UNSUB %b\r\n" % sid


PING = b"PING\r\n"
PONG = b"PONG\r\n"
