"""KV buckets as streams: their names and subjects, and the headers of their operations. Pure.

A bucket is a stream `KV_<bucket>` with the subjects `$KV.<bucket>.<key>`. A message with `KV-Operation: DEL` or `PURGE`
deletes its key, and so does a marker (`Nats-Marker-Reason`), which the server stores when the last value of a key
expires. A purge and a marker also remove all earlier values (`Nats-Rollup: sub`).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import NamedTuple

from router_trio.protocol import headers, message_ids
from router_trio.protocol.framing import RawMessage

NOT_IN_NAMES = re.compile(r"[^A-Za-z0-9_-]")
"""Any character that the name of a bucket can't have."""

_TOKENS_BEFORE_KEY = 2

NANOSECONDS = 10**9

OPERATION = b"KV-Operation"
MARKER = b"Nats-Marker-Reason"
ROLLUP = b"Nats-Rollup"
TTL = b"Nats-TTL"

CARRIED = ("Nats-Rollup", "Nats-TTL", "Nats-Marker-Reason")
"""The control headers of operations of a bucket, which a copy in another bucket keeps."""

LONGEST_TTL = 200
"""Maximum number of characters of a TTL. Others are passed on, and refused or ignored by the server."""

_ROLLUPS = headers.lines_of([ROLLUP.decode()])
_UNITS = {"h": 3600 * 10**9, "m": 60 * 10**9, "s": 10**9, "ms": 10**6, "us": 1000, "µs": 1000, "ns": 1}
_DURATION = re.compile(r"([0-9]{1,18}(?:\.[0-9]{0,18})?)(h|ms|m|s|us|µs|ns)")


def stream_of(bucket: str) -> str:
    """Return the name of the stream of a bucket."""
    return f"KV_{bucket}"


def bucket_of(stream: str) -> str:
    """Return the name of the bucket of a stream."""
    return stream.removeprefix("KV_")


def prefix_of(bucket: str) -> str:
    """Return the start of the subjects of a bucket, in front of the key."""
    return f"$KV.{bucket}."


def renamed(batch: Sequence[RawMessage], prefix: bytes) -> Sequence[RawMessage]:
    """Return the deliveries of the stream of a bucket with the subjects of that bucket, which begin with `prefix`.

    A bucket that is a mirror has the subjects of the bucket that it mirrors. Other messages, such as statuses, have no
    reply subject or no such subject, and are returned unchanged.
    """
    if all(raw[0].startswith(prefix) for raw in batch):
        return batch
    return [_renamed(raw, prefix) if raw[1] else raw for raw in batch]


def _renamed(raw: RawMessage, prefix: bytes) -> RawMessage:
    tokens = raw[0].split(b".", _TOKENS_BEFORE_KEY)
    if len(tokens) <= _TOKENS_BEFORE_KEY or tokens[0] != b"$KV":
        return raw
    return prefix + tokens[_TOKENS_BEFORE_KEY], raw[1], raw[2], raw[3], raw[4]


def deletes(block: bytes) -> bool:
    """Return True if a message with this header block deletes its key."""
    return headers.find(block, OPERATION) in (b"DEL", b"PURGE") or headers.find(block, MARKER) is not None


def carried(block: bytes, age: int) -> bytes:
    """Return the header block of a copy in another bucket, given that of a message stored `age` nanoseconds ago.

    The copy expires when the message does, or less than a second later, because a TTL has whole seconds. If the message
    has expired by now, the copy expires after a second. A roll-up of the entire stream is left out, since it would
    remove all other keys.
    """
    rollup = headers.find(block, ROLLUP)
    if rollup is not None and rollup != b"sub":
        block = headers.removed(block, _ROLLUPS)
    if (seconds := time_to_live(block)) is not None and age > 0:
        left = -(-(seconds - age) // NANOSECONDS)
        # Without a unit: servers take any number of seconds, but no duration of more than 292 years.
        block = headers.replace(block, TTL, b"%d" % max(left, 1))
    return block


def marker_as_purge(block: bytes, original: bytes) -> bytes:
    """Return the header block of a copy outside of buckets: that of a marker gets `KV-Operation: PURGE`.

    `block` is without control headers, and so without the marker's. `original` is the header block of the message.
    """
    return headers.replace(block, OPERATION, b"PURGE") if headers.find(original, MARKER) is not None else block


def time_to_live(block: bytes) -> int | None:
    """Return the TTL in a header block in nanoseconds; None if the message does not expire."""
    text = (headers.find(block, TTL) or b"").decode("utf-8", "replace").strip()
    if text.isdecimal() and len(text) < 19:
        return int(text) * NANOSECONDS or None
    parts = _DURATION.findall(text[:LONGEST_TTL])
    if not parts or "".join(number + unit for number, unit in parts) != text:
        return None
    return round(sum(float(number) * _UNITS[unit] for number, unit in parts)) or None


# --- which of two values is the newest ---

ORIGIN = b"Router-Bucket-Origin"
"""The header of a copy between buckets with several writers: the `Version` of the value."""

EXPECTED = b"Nats-Expected-Last-Subject-Sequence"
"""The header that makes a stream refuse a value if its key has changed since that sequence."""

LAST_NS = 10**19 - 1
"""The latest time of a version, in nanoseconds since 1970: 19 digits."""

_ORIGIN = re.compile(rb"([^ ]{1,255}) ([^ ]{1,40}) ([0-9]{1,19}) ([0-9]{1,19})")


class Newest(NamedTuple):
    """The newest message of a key: its sequence, the time it was stored (ns since 1970), headers and payload."""

    sequence: int
    time_ns: int
    headers: bytes
    payload: bytes


class Site(NamedTuple):
    """A bucket, identified by its stream and the creation time of that. Neither has spaces."""

    stream: str
    created: str


def site_of(stream: str, created: str) -> Site:
    """Return the site of a stream. `created` is empty if this user may not look it up."""
    return Site(stream, created.replace(" ", "_") or "unknown")


@dataclass(frozen=True, slots=True)
class Version:
    """Where and when a value was written, before it was copied."""

    site: Site
    sequence: int
    time_ns: int
    is_original: bool = field(default=True, compare=False)
    """True for the value itself, False if a copy of it names this version."""

    def is_newer_than(self, other: Version) -> bool:
        """Return True if this write is later than the other. At equal times the names of the sites decide.

        A value that was written here follows earlier ones of its stream, whatever the clock was. The versions that
        copies name are totally ordered: if each of three could replace the next one, copies would circulate for ever.
        """
        if self.is_original and self.site == other.site:
            return self.sequence > other.sequence
        return (self.time_ns, self.site, self.sequence) > (other.time_ns, other.site, other.sequence)

    def replacing(self, other: Version | None) -> Version:
        """Return the version for a copy that replaces `other`: with a later time, if the clock was set back in between.

        Otherwise a copy of the older one could replace it.
        """
        if other is None or self.time_ns > other.time_ns or self.site != other.site:
            return self
        return replace(self, time_ns=min(other.time_ns + 1, LAST_NS))

    def header(self) -> bytes:
        """Return the value of the header `ORIGIN`."""
        text = f"{self.site.stream} {self.site.created} {self.sequence} {self.time_ns}"
        return text.encode("utf-8", "surrogateescape")


def version_of(block: bytes, site: Site, sequence: int, time_ns: int) -> Version:
    """Return the version of a message in the bucket `site`: that of the original if the message is a copy."""
    return carried_version(block) or Version(site, sequence, time_ns)


def carried_version(block: bytes) -> Version | None:
    """Return the version of the original of a copy; None for a message that is not a copy."""
    found = _ORIGIN.fullmatch(headers.find(block, ORIGIN) or b"")
    if found is None:
        return None
    origin = Site(found[1].decode("utf-8", "surrogateescape"), found[2].decode("utf-8", "surrogateescape"))
    return Version(origin, int(found[3]), int(found[4]), is_original=False)


class Verdict(Enum):
    """How a copy compares with the value of its key in the destination."""

    REPLACES = "it is newer"
    ECHO = "it was written there, or is there already"
    OLDER = "a later value from the same bucket is there"
    CONFLICT = "a later value of another writer is there"


def judge(copy: Version, newest: Version | None, destination: Site) -> Verdict:
    """Compare a copy with the newest value of its key in a destination that has other writers."""
    if copy.site == destination or copy == newest:
        return Verdict.ECHO
    if newest is None or copy.is_newer_than(newest):
        return Verdict.REPLACES
    return Verdict.OLDER if copy.site == newest.site else Verdict.CONFLICT


def is_overtaken(stream: str, sequence: int, time_ns: int, newest: Newest) -> bool:
    """Return True if the newest value of a key is a copy of a later message of the same stream."""
    origin = message_ids.origin(message_ids.find(newest.headers))
    if origin is None or origin.is_dead or origin.stream != stream.encode():
        return False
    # A stream that was created again has lower sequences at later times.
    return origin.sequence > sequence and origin.time_ns >= time_ns
