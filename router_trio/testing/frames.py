"""Parse publish frames as a server does, independently of the code that writes them, so that its mistakes are found.

Follows the client protocol of the NATS documentation for PUB and HPUB.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from router_trio.protocol.framing import RawMessage

_SUBJECT = re.compile(rb"[^ \t\r\n]+")  # a server accepts any other byte, even those that no client should send


class Publish(NamedTuple):
    """A publish as the broker received it: subject, reply (`b""` for none), raw header block, payload."""

    subject: bytes
    reply: bytes
    header: bytes
    payload: bytes


class FrameError(ValueError):
    """The bytes are not a valid publish frame."""


def parse(frame: bytes) -> Publish:
    """Parse exactly one PUB or HPUB frame. Raises `FrameError` with the mistake."""
    line, line_break, body = frame.partition(b"\r\n")
    verb, *words = line.split(b" ")
    sizes = {b"PUB": 1, b"HPUB": 2}.get(verb)
    if not line_break or sizes is None or len(words) - sizes not in (1, 2):
        raise FrameError(f"not a PUB or HPUB frame: {line[:80]!r}")
    subject, *rest = words
    reply = rest[0] if len(rest) > sizes else b""
    for name, value in (("subject", subject), ("reply", reply or b"none")):
        if not _SUBJECT.fullmatch(value):
            raise FrameError(f"the {name} {value!r} is empty or contains whitespace")
    if not all(size.isdigit() for size in rest[-sizes:]):
        raise FrameError(f"a size is not a number: {line[:80]!r}")
    header_size = int(rest[-2]) if sizes == 2 else 0
    size = int(rest[-1])
    if len(body) != size + 2 or not body.endswith(b"\r\n"):
        raise FrameError(f"{line[:80]!r} announces {size} bytes and CRLF, but {len(body)} bytes follow")
    if header_size > size:
        raise FrameError(f"{line[:80]!r} announces more headers than bytes")
    return Publish(subject, reply, body[:header_size], body[header_size:-2])


def raw(subject: bytes, reply: bytes, header: bytes, payload: bytes) -> RawMessage:
    """Return a message as the reader of a link delivers it."""
    size = len(header) + len(payload)
    words = [reply] if reply else []
    words += [b"%d" % len(header)] if header else []
    words += [b"%d" % size]
    return subject, reply, len(header), size, b"%b\r\n%b%b\r\n" % (b" ".join(words), header, payload)


def status(subject: bytes, line: str, fields: str = "") -> RawMessage:
    """Return a status message. `line` is code and description, `fields` are header lines, each with CRLF at its end."""
    return raw(subject, b"", f"NATS/1.0 {line}\r\n{fields}\r\n".encode(), b"")
