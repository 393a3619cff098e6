"""The NATS client protocol, without I/O: parse frames from bytes, and build frames.

Follows the client protocol of the NATS documentation. The parser makes one pass over the receive buffer and creates one
tuple per message; its parts are sliced out later, when they are needed. Subjects are bytes, because servers relay
subjects and header blocks that are not valid UTF-8.

The part of a MSG or HMSG frame after the subscription id is identical to the part of a PUB or HPUB frame after the
subject: `[reply] [header size] size CRLF headers payload CRLF`. This is called the *tail* of a raw message. Forwarding
a message puts a new subject before its tail.
"""

from __future__ import annotations

from collections.abc import Sequence
from operator import itemgetter
from typing import Any, Protocol

from router_trio.errors import ProtocolError

RawMessage = tuple[bytes, bytes, int, int, bytes]
"""A received message: subject, reply (`b""` for none), header size, total size, tail."""

MAX_INFO = 1024 * 1024
"""Maximum bytes of an INFO line. That of a large cluster is long, but no NATS server sends more than this."""

MAX_CONTROL_LINE = 64 * 1024
"""Maximum bytes of any other line. Servers accept 4,096 bytes of subject and reply unless configured otherwise."""

DEFAULT_CONTROL_LINE = 4096
"""Bytes of a client's control line that a server accepts by default (`max_control_line`)."""

LAST_SEQUENCE = 2**64 - 1
"""The highest sequence of a message in a stream, and of a delivery."""

MAX_MESSAGE = 64 * 1024 * 1024
"""The server's own upper limit of `max_payload`, in bytes."""

MAX_SIZE_DIGITS = 9
"""Maximum number of digits of a size, as in nats-server."""

MAX_SIZES = 8192
"""Maximum number of cached sizes. Those below 4,096 are cached from the start."""

ZERO = 0x30


class _Sizes(dict[bytes, int]):
    """Sizes by their text on the wire: a lookup costs less than parsing."""

    def __missing__(self, text: bytes) -> int:
        """Parse a size. Raises `ValueError` for anything but plain digits, even if `int` would accept it.

        A forwarded tail repeats the text, and the receiving server would close the connection over `+5` or `1_0`.
        """
        if text.isdigit() and len(text) <= MAX_SIZE_DIGITS and (text[0] != ZERO or len(text) == 1):
            size = int(text)
            if len(self) < MAX_SIZES:
                self[text] = size
            return size
        raise ValueError


SIZES = _Sizes((b"%d" % size, size) for size in range(4096))


class MessageBuffer(Protocol):
    """The received messages of one subscription."""

    @property
    def group(self) -> list[Any]:
        """The list to which the parser adds this buffer when it gets its first message."""
        ...

    def append(self, raw: RawMessage, /) -> None:
        """Add a received message."""

    def clear(self) -> None:
        """Remove all messages."""

    def __len__(self) -> int:
        """Return the number of messages."""
        ...


class FrameParser:
    """Parses received bytes into messages of known subscriptions and control lines.

    After each `feed`, `buffers[sid]` has the messages received for a subscription registered there, its group lists the
    buffers with messages, and `touched` lists the groups. The owner of the parser empties all three. `control` has the
    other lines (PING, PONG, INFO, -ERR, +OK) without CRLF, in order. Messages of other subscriptions are skipped: they
    were on their way when those ended.
    """

    __slots__ = ("_buffer", "_line", "_needed", "buffers", "control", "touched")

    def __init__(self) -> None:
        self.buffers: dict[bytes, MessageBuffer] = {}
        self.touched: list[list[Any]] = []
        self.control: list[bytes] = []
        self._buffer: list[bytes] = []
        self._line = 0
        self._needed = 0

    def feed(self, data: bytes) -> None:
        """Parse received bytes. Raises `ProtocolError` for a malformed frame; the frames before it stay parsed."""
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
                    raise ProtocolError(f"the server sent a line of more than {limit} bytes")
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
                        raise ProtocolError(
                            f"the server sent a message of {size} bytes with headers of {header_size} bytes"
                        )
                else:
                    self._control_line(data[position:line_end])
                    position = line_end + 2
                    continue
            except ValueError:
                raise ProtocolError(f"the server sent a malformed frame {data[position:line_end][:80]!r}") from None
            end = line_end + 4 + size
            if end > length:
                if size > MAX_MESSAGE:
                    raise ProtocolError(f"the server sent a message of {size} bytes, which is too large")
                self._needed = end - length
                break
            if data[end - 2 : end] != b"\r\n":
                raise ProtocolError("the server sent a message whose end does not match its size")
            if sid != sid_of_run:
                try:
                    buffer = buffers[sid]
                except KeyError:
                    if not sid.isdigit():
                        raise ProtocolError(
                            f"the server sent a message for an unknown subscription: {data[position:line_end][:80]!r}"
                        ) from None
                    position = end
                    continue
                sid_of_run = sid
                if not buffer:
                    group = buffer.group
                    if not group:
                        self.touched.append(group)
                    group.append(buffer)
            # `buffer` was bound together with `sid_of_run`, by the first frame of the run.
            buffer.append((subject, reply, header_size, size, data[start:end]))  # pyright: ignore[reportPossiblyUnboundVariable]
            position = end
        if position < length:
            self._buffer.append(data[position:] if position else data)

    def _joined(self, data: bytes) -> bytes:
        """Return the buffered bytes with this chunk appended, or `b""` if their first frame is still incomplete."""
        self._buffer.append(data)
        # The chunks of a large message are joined once, when it is complete, not at each chunk.
        self._needed -= len(data)
        if self._needed > 0:
            return b""
        # The same for a long line, which would otherwise be searched for its end at each chunk.
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
            raise ProtocolError(f"the server sent an unknown frame {line[:80]!r}")


# --- reading a raw message ---


def header_block(raw: RawMessage) -> bytes:
    """Return the raw header block, `b""` if there is none."""
    _, _, header_size, size, tail = raw
    end = len(tail) - 2 - size
    return tail[end : end + header_size]


def payload(raw: RawMessage) -> bytes:
    """Return the payload."""
    _, _, header_size, size, tail = raw
    return tail[len(tail) - 2 - size + header_size : -2]


def text(subject: bytes) -> str:
    """Return a subject as a string. Bytes that are not valid UTF-8 become surrogates, which `wire` converts back."""
    return subject.decode("utf-8", "surrogateescape")


def wire(subject: str) -> bytes:
    """Return a subject as bytes."""
    return subject.encode("utf-8", "surrogateescape")


_subject, _reply, _total_size = itemgetter(0), itemgetter(1), itemgetter(3)


def delivered_size(batch: Sequence[RawMessage]) -> int:
    """Return the size of messages as a server counts it for a pull request: subject, reply, headers and payload."""
    bodies: int = sum(map(_total_size, batch))
    return bodies + sum(map(len, map(_subject, batch))) + sum(map(len, map(_reply, batch)))


# --- frames to send ---


def publish_prefix(subject: bytes) -> bytes:
    """Return the start of a PUB frame, to be completed by a tail. Before a tail with headers it needs a leading `H`."""
    return b"PUB %b " % subject


def prefixed_subject(prefix: bytes) -> bytes:
    """Return the subject in a prefix made by `publish_prefix`."""
    return prefix[len(b"PUB ") : -1]


def control_line_size(subject: bytes, reply: bytes, header_size: int, size: int) -> int:
    """Return the length of a publish's control line as a server counts it: after `PUB ` or `HPUB `, without CRLF."""
    sizes = b" %d %d" % (header_size, size) if header_size else b" %d" % size
    return len(subject) + (len(reply) + 1 if reply else 0) + len(sizes)


def publish(subject: bytes, body: bytes, reply: bytes = b"", headers: bytes = b"") -> bytes:
    """Return a PUB frame, or an HPUB frame if there is a header block."""
    if reply:
        reply += b" "
    if headers:
        return b"HPUB %b %b%d %d\r\n%b%b\r\n" % (subject, reply, len(headers), len(headers) + len(body), headers, body)
    return b"PUB %b %b%d\r\n%b\r\n" % (subject, reply, len(body), body)


def readdressed(frame: bytes, reply: bytes) -> bytes:
    """Return a PUB or HPUB frame with its reply subject replaced. The frame must have one."""
    word, subject, _, rest = frame.split(b" ", 3)
    return b" ".join((word, subject, reply, rest))


def published(frame: bytes) -> RawMessage:
    """Return the message that a subscriber receives for a PUB or HPUB frame."""
    words = frame[: frame.index(b"\r\n")].split(b" ")
    word, subject = words[0], words[1]
    header_size = int(words[-2]) if word == b"HPUB" else 0
    reply = words[2] if len(words) == (5 if header_size else 4) else b""
    return subject, reply, header_size, int(words[-1]), frame[len(word) + len(subject) + 2 :]


def addresses(frame: bytes) -> tuple[bytes, bytes]:
    """Return the subject and the reply subject of a PUB or HPUB frame, `b""` for no reply subject."""
    words = frame[: frame.index(b"\r\n")].split(b" ")
    return words[1], words[2] if len(words) == (5 if words[0] == b"HPUB" else 4) else b""


def published_size(frame: bytes) -> int:
    """Return the size of headers and payload of a PUB or HPUB frame in bytes, which a server's `max_payload` limits."""
    return int(frame[: frame.index(b"\r\n")].rsplit(b" ", 1)[1])


def line_size(frame: bytes) -> int:
    """Return the `control_line_size` of a PUB or HPUB frame."""
    return frame.index(b"\r\n") - frame.index(b" ") - 1


def subscribe(subject: bytes, sid: bytes, queue: bytes = b"") -> bytes:
    """Return a SUB frame."""
    return b"SUB %b %b%b\r\n" % (subject, queue + b" " if queue else b"", sid)


def unsubscribe(sid: bytes) -> bytes:
    """Return an UNSUB frame."""
    return b"UNSUB %b\r\n" % sid


PING = b"PING\r\n"
PONG = b"PONG\r\n"
