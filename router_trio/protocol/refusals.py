"""Parse permission violations: `-ERR` lines of a server that name the refused subject.

nats-server formats subjects, queue names and subscription ids with Go's `%q`: in double quotes, with the escapes of
`strconv.Quote`. Nothing else in such a line is parsed. Pure.
"""

from __future__ import annotations

import re
from typing import NamedTuple

PUBLISH, REPLY, SUBSCRIPTION = "publish", "reply", "subscription"
"""The kinds of refusals: of the subject of a publish, of its reply subject, or of a subscription."""

_QUOTED = rb'"((?:[^"\\]|\\.)*)"'
_DENIED = re.compile(
    rb"permissions violation for (publish|publish with reply|subscription) (?:to|of) "
    + _QUOTED
    + rb"(?: using queue "
    + _QUOTED
    + rb")?(?: \(sid "
    + _QUOTED
    + rb"\))?",
    re.IGNORECASE,
)
_ESCAPE = re.compile(
    rb"\\(?:([abfnrtv\\\"'])|x([0-9a-fA-F]{2})|u([0-9a-fA-F]{4})|U([0-9a-fA-F]{8})|([0-7]{3})|(.?))", re.DOTALL
)
_SINGLE = {
    b"a": b"\a",
    b"b": b"\b",
    b"f": b"\f",
    b"n": b"\n",
    b"r": b"\r",
    b"t": b"\t",
    b"v": b"\v",
    b"\\": b"\\",
    b'"': b'"',
    b"'": b"'",
}
_KINDS = {b"publish": PUBLISH, b"publish with reply": REPLY, b"subscription": SUBSCRIPTION}


class Denied(NamedTuple):
    """A permission violation. `queue` and `sid` are those of a subscription, None if the server did not name them."""

    kind: str
    subject: bytes
    queue: bytes | None = None
    sid: bytes | None = None


def read_denied(words: bytes) -> Denied | None:
    """Parse the text of an `-ERR` line. Return None if it is not a permission violation that names a subject."""
    found = _DENIED.match(words)
    if found is None:
        return None
    kind, *quoted = found.groups()
    subject, queue, sid = (None if one is None else unquote(one) for one in quoted)
    if subject is None:
        return None
    return Denied(_KINDS[kind.lower()], subject, queue, sid)


def unquote(quoted: bytes) -> bytes | None:
    """Undo the escapes of Go's `strconv.Quote` in the text between the quotes; return None if an escape is invalid."""
    if b"\\" not in quoted:
        return quoted
    try:
        return _ESCAPE.sub(_unescaped, quoted)
    except ValueError:
        return None


def _unescaped(escape: re.Match[bytes]) -> bytes:
    single, octet, short, long, octal, other = escape.groups()
    if single is not None:
        return _SINGLE[single]
    if octet is not None:
        return bytes([int(octet, 16)])
    if octal is not None:
        return bytes([int(octal, 8)])
    if other is not None:
        raise ValueError("not an escape of Go")
    return chr(int(short or long, 16)).encode()
