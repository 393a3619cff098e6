"""Frames of WebSocket (RFC 6455) as a NATS client needs them, without I/O.

The payload of binary frames is a stream of bytes: the borders of frames have no meaning for NATS. So payload is passed
on as it arrives, and no frame is collected, however long it is. Compression is never offered: a lone message of 128
bytes gains nothing by it, and so a server can't send a small frame that becomes a large one.
"""

from __future__ import annotations

import hashlib
import os
from base64 import b64encode
from collections.abc import Callable
from dataclasses import dataclass

from router_trio.errors import ProtocolError
from router_trio.errors.quotes import excerpt, redact

MAX_FRAME = 1024 * 1024 * 1024
"""Maximum bytes of a frame. A server sends all that it has queued for a client as one frame, up to `max_pending`."""

MAX_CONTROL = 125
"""Maximum bytes of a ping, pong or close frame."""

MASK_PIECE = 16 * 1024
"""Bytes that are masked at a time, a multiple of 4: larger pieces leave the caches of the processor."""

_FINAL, _RESERVED, _OPCODE = 0x80, 0x70, 0x0F
_MASKED = 0x80
_CONTINUATION, _TEXT, _BINARY, _CLOSE, _PING, _PONG = 0x0, 0x1, 0x2, 0x8, 0x9, 0xA
_WHOLE_BINARY = _FINAL | _BINARY

_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"

_STATUS = {
    1000: "normal closure",
    1001: "going away",
    1002: "protocol error",
    1003: "unsupported data",
    1007: "invalid payload",
    1008: "policy violation",
    1009: "message too big",
    1010: "extension missing",
    1011: "internal error",
    1012: "service restart",
    1013: "try again later",
    1014: "bad gateway",
}


@dataclass(frozen=True, slots=True)
class Close:
    """A close frame: its status (None if it has none), and its text, which is printable and bounded."""

    status: int | None
    text: str

    def __str__(self) -> str:
        if self.status is None:
            return "WebSocket closed without a status"
        meaning = f" ({_STATUS[self.status]})" if self.status in _STATUS else ""
        return f"WebSocket closed with {self.status}{meaning}{': ' if self.text else ''}{self.text}"


def new_key() -> bytes:
    """Return a new `Sec-WebSocket-Key`."""
    return b64encode(os.urandom(16))


def accept_for(key: bytes) -> bytes:
    """Return the `Sec-WebSocket-Accept` with which a server answers a `Sec-WebSocket-Key`."""
    return b64encode(hashlib.sha1(key + _GUID, usedforsecurity=False).digest())


class FrameReader:
    """Reads the frames of a server. `close` is its close frame once it was received.

    `ping` is the body of the latest ping until `take_ping` is called. A client may answer only the latest of several
    pings (RFC 6455, 5.5.3), so a flood of them takes no memory.
    """

    __slots__ = ("_fragmented", "_head", "_remaining", "close", "ping")

    def __init__(self) -> None:
        self.close: Close | None = None
        self.ping: bytes | None = None
        self._head = b""
        """The beginning of a header, or of a control frame."""
        self._remaining = 0
        """Bytes of payload that the current frame still has."""
        self._fragmented = False

    def take_ping(self) -> bytes:
        """Return `ping`, which must not be None, and reset it."""
        ping, self.ping = self.ping, None
        assert ping is not None, "the caller has seen it"
        return ping

    def feed(self, data: bytes) -> bytes:
        """Return the payload among received bytes, `b""` if there is none. Ignores bytes after a close frame.

        Raises `ProtocolError` if the bytes violate RFC 6455, or are frames that no NATS server sends.
        """
        size = len(data)
        remaining = self._remaining
        if remaining >= size:  # in the middle of a large frame
            self._remaining = remaining - size
            return data
        parts = [data[:remaining]] if remaining else []
        position = remaining
        if self._head:
            data = self._head + data
            size = len(data)
            self._head = b""
        self._remaining = 0
        while size - position >= 2 and self.close is None:
            first, length = data[position], data[position + 1]
            begin = position + 2
            if first != _WHOLE_BINARY or length & _MASKED or self._fragmented:
                self._check(first, length)
            if length > MAX_CONTROL:
                begin += 2 if length == 126 else 8
                if begin > size:
                    break
                length = _long(data[position + 2 : begin])
            end = begin + length
            if first & 0x08:
                if end > size:
                    break
                self._control(first & _OPCODE, bytes(data[begin:end]))
            else:
                self._fragmented = not first & _FINAL
                parts.append(data[begin:end])
                if end > size:
                    self._remaining = end - size
                    end = size
            position = end
        if self.close is None and position < size:
            self._head = bytes(data[position:])
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _check(self, first: int, length: int) -> None:
        """Raise `ProtocolError` unless the first two bytes of a frame are valid."""
        opcode = first & _OPCODE
        if first & _RESERVED:
            raise _violation("a frame with reserved bits, as with compression, which was not agreed on")
        if length & _MASKED:
            raise _violation("a masked frame, which only clients send")
        if opcode in (_CLOSE, _PING, _PONG):
            if length > MAX_CONTROL or not first & _FINAL:
                raise _violation(f"a control frame that has fragments or more than {MAX_CONTROL} bytes")
        elif opcode == _TEXT:
            raise _violation("a text frame, where NATS is binary")
        elif opcode not in (_CONTINUATION, _BINARY):
            raise _violation(f"a frame of the unknown kind {opcode}")
        elif self._fragmented != (opcode == _CONTINUATION):
            raise _violation("a fragment that does not continue the one before it")

    def _control(self, opcode: int, body: bytes) -> None:
        if opcode == _PING:
            self.ping = body
        elif opcode == _CLOSE:
            if len(body) == 1:
                raise _violation("a close frame with half a status")
            status = int.from_bytes(body[:2], "big") if body else None
            self.close = Close(status, excerpt(redact(body[2:].decode("utf-8", "replace"))))


def _long(text: bytes) -> int:
    """Return the length in `text`, 2 or 8 bytes. Raises `ProtocolError` if it is too large or has a shorter form."""
    length = int.from_bytes(text, "big")
    if length > MAX_FRAME:
        raise _violation(f"a frame of {length} bytes, which is too large")
    if length <= (MAX_CONTROL if len(text) == 2 else 0xFFFF):
        raise _violation("a frame whose length is not in its shortest form")
    return length


def _violation(what: str) -> ProtocolError:
    return ProtocolError(f"the server sent {what}: a violation of the WebSocket protocol")


class FrameWriter:
    """Makes the frames of a client: masked, as RFC 6455 requires, unless the server has agreed to unmasked ones.

    A socket may take only part of a frame. The frame is then *open*, and the payload of the next call completes it
    first.
    """

    __slots__ = ("_before", "_key", "_new_key", "_open", "_pong")

    def __init__(self, *, masking: bool, new_key: Callable[[], bytes] = lambda: os.urandom(4)) -> None:
        self._new_key = new_key if masking else None
        self._before = b""
        """The rest of a header or of a pong that was written in part."""
        self._open = 0
        """Bytes of payload that the open frame still needs."""
        self._key = b""
        """The masking key of the open frame, rotated so that it begins with the key of the next byte."""
        self._pong = b""

    def answer(self, ping: bytes) -> None:
        """Send a pong with this body before the next frame. It replaces a pong that has not been sent."""
        key = b"" if self._new_key is None else self._new_key()
        self._pong = _header(_PONG, len(ping), key) + _masked(ping, key)

    def frame(self, data: bytes) -> bytes:
        """Return the bytes to write for this payload. The caller must write all of them before the next call."""
        before = self._before
        if self._open:
            rest = data[: self._open]
            self._open -= len(rest)
            data = data[len(rest) :]
            before += _masked(rest, self._key)
            if self._open:
                self._key = _rotated(self._key, len(rest))
        self._before = b""
        if self._open:
            return before
        before += self._pong
        self._pong = b""
        if not data:
            return before
        if self._new_key is None:
            return b"".join((before, _header(_BINARY, len(data), b""), data))
        key = self._new_key()
        return b"".join((before, _header(_BINARY, len(data), key), _masked(data, key)))

    def write_some(self, data: bytes, write: Callable[[bytes], int]) -> int:
        """Write a frame with this payload by one call of `write`, which returns the number of bytes written.

        Returns how many of these are payload. There must be no open frame.
        """
        assert not self._open, "the bytes of an open frame have been sent by `frame`"
        before = self._before + self._pong
        key = b"" if self._new_key is None else self._new_key()
        header = _header(_BINARY, len(data), key) if data else b""
        self._before = self._pong = b""
        frame = b"".join((before, header, _masked(data, key) if key else data))
        written = write(frame)
        if written == len(frame):
            return len(data)
        if written < len(before):  # the frame has not begun: the next call makes a new one
            self._before = before[written:]
            return 0
        written -= len(before)
        self._before = header[written:]
        sent = max(0, written - len(header))
        self._open = len(data) - sent
        self._key = _rotated(key, sent)
        return sent


def _header(opcode: int, size: int, key: bytes) -> bytes:
    masked = _MASKED if key else 0
    if size <= MAX_CONTROL:
        return bytes((_FINAL | opcode, masked | size)) + key
    if size <= 0xFFFF:
        return b"%c%c%b%b" % (_FINAL | opcode, masked | 126, size.to_bytes(2, "big"), key)
    return b"%c%c%b%b" % (_FINAL | opcode, masked | 127, size.to_bytes(8, "big"), key)


def _masked(data: bytes, key: bytes) -> bytes:
    """Return the bytes XORed with a key of four bytes; unchanged if the key is `b""`."""
    if not key or not data:
        return data
    if len(data) <= MASK_PIECE:
        return _xor(data, key)
    return b"".join([_xor(data[at : at + MASK_PIECE], key) for at in range(0, len(data), MASK_PIECE)])


def _xor(data: bytes, key: bytes) -> bytes:
    """XOR as two long integers, which takes a thousandth of the time of a loop."""
    size = len(data)
    mask = (key * (size // 4 + 1))[:size]
    return (int.from_bytes(data, "little") ^ int.from_bytes(mask, "little")).to_bytes(size, "little")


def _rotated(key: bytes, count: int) -> bytes:
    count %= 4
    return key[count:] + key[:count]
