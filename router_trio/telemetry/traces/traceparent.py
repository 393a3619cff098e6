"""The `traceparent` header: parsed and written by hand, since it is looked at for every message.

Follows W3C Trace Context, https://www.w3.org/TR/trace-context/#traceparent-header: version, trace id, parent id and
flags in lower-case hexadecimal. The sampled flag is a bit: a tracer that marks its ids as random sends `03`.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from router_trio.protocol.headers import find

SAMPLED = 0x01

# A later version may append fields behind another dash; it must still be readable as this one.
_FORM = re.compile(rb"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")

_EVEN = frozenset(b"02468ace")


class TraceParent(NamedTuple):
    """The fields of a valid header."""

    trace_id: int
    span_id: int
    flags: int

    @property
    def sampled(self) -> bool:
        """Return True if the caller recorded its span."""
        return bool(self.flags & SAMPLED)

    @property
    def trace_flags(self) -> TraceParent:
        """The value that has `sampled`: the SDK asks its own contexts for it in this way."""
        return self


def lookup(block: bytes) -> bytes | None:
    """Return the header's value in a raw block. NATS tells case apart, and Go's carriers write a capital T."""
    return find(block, b"traceparent") or find(block, b"Traceparent")


def says_unsampled(value: bytes) -> bool:
    """Return True if the flags of a header of the known length have the sampled bit clear. Looks at nothing else."""
    return len(value) == 55 and value[54] in _EVEN


def parse(value: bytes) -> TraceParent | None:
    """Return the fields of a header's value; None if it is not valid and has to be ignored."""
    found = _FORM.fullmatch(value)
    if found is None:
        return None
    version, trace_id, span_id, flags, more = found.groups()
    if version == b"ff" or (version == b"00" and more):
        return None
    parent = TraceParent(int(trace_id, 16), int(span_id, 16), int(flags, 16))
    return parent if parent.trace_id and parent.span_id else None


def write(trace_id: int, span_id: int, flags: int) -> bytes:
    """Return a header's value, of version 00."""
    return b"00-%032x-%016x-%02x" % (trace_id, span_id, flags)
