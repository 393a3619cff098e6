"""The `traceparent` header. It has a parser of its own because it is looked up in every message.

Follows W3C Trace Context, https://www.w3.org/TR/trace-context/#traceparent-header: version, trace id, parent id and
flags in lower-case hexadecimal. The sampled flag is one bit of the flags: a tracer that marks its ids as random sends
`03`.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from router_trio.protocol.headers import find

SAMPLED = 0x01

# Later versions may append fields after another dash. The fields of this version must still be read.
_FORM = re.compile(rb"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")

_EVEN = frozenset(b"02468ace")


class TraceParent(NamedTuple):
    """The fields of a valid header."""

    trace_id: int
    span_id: int
    flags: int

    @property
    def sampled(self) -> bool:
        """Return True if the sender recorded its span."""
        return bool(self.flags & SAMPLED)

    @property
    def trace_flags(self) -> TraceParent:
        """Return itself. The SDK reads `context.trace_flags.sampled`, as of its own span contexts."""
        return self


def lookup(block: bytes) -> bytes | None:
    """Return the header's value in a raw block. NATS header names are case-sensitive, and Go clients write `T`."""
    return find(block, b"traceparent") or find(block, b"Traceparent")


def is_unsampled(value: bytes) -> bool:
    """Return True if the sampled bit of a header of version 00's length is clear. Does not validate the rest."""
    return len(value) == 55 and value[54] in _EVEN


def parse(value: bytes) -> TraceParent | None:
    """Return the fields of a header's value; None if it is invalid and must be ignored."""
    found = _FORM.fullmatch(value)
    if found is None:
        return None
    version, trace_id, span_id, flags, more = found.groups()
    if version == b"ff" or (version == b"00" and more):
        return None
    parent = TraceParent(int(trace_id, 16), int(span_id, 16), int(flags, 16))
    return parent if parent.trace_id and parent.span_id else None


def write(trace_id: int, span_id: int, flags: int) -> bytes:
    """Return the value of a header of version 00."""
    return b"00-%032x-%016x-%02x" % (trace_id, span_id, flags)
