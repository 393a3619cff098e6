"""Decide whether the limits of the streams of a destination can have removed a copy that is not stored.

A copy is stored later than its message, so what a stream removed was stored before a certain time of its server. Times
of two servers are compared by the difference of their clocks, which is measured.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from time import time_ns
from typing import NamedTuple

import trio

from router_trio.audit.expectations import ExpectedCopy, hash64
from router_trio.nats.jetstream.api import StoredMessage, StreamInfo, nanoseconds
from router_trio.nats.stored import StoredMessages
from router_trio.protocol import framing, headers, message_ids
from router_trio.protocol.buckets import ROLLUP, time_to_live

SECOND = 10**9

EXPIRES_WITHIN = 10 * SECOND
"""Nanoseconds of the age of a copy by which a stream may remove it earlier or later than expected."""

UNKNOWN_CLOCKS = 10 * SECOND
"""Nanoseconds by which the clocks of servers may differ that do not report their time."""

NEVER = 2**63
"""A time after all others, in nanoseconds since 1970."""

MAX_PER_SUBJECT = 1024
"""Messages of one subject that are read to see which of them are newer than a copy."""

MAX_SUBJECTS = 1024
"""Subjects whose stored messages are remembered."""


async def ahead_by(stored: StoredMessages, other: StoredMessages) -> int:
    """Return by how many nanoseconds the clock of a stream is at least ahead of that of another one."""
    asked = trio.current_time()
    first, second = await other.clock(), await stored.clock()
    if first is None or second is None:
        return -UNKNOWN_CLOCKS
    return second - first - round((trio.current_time() - asked) * SECOND)


class _Newer(NamedTuple):
    """A stored message: when it, or the message that it is a copy of, was stored, by the clock of the source."""

    time_ns: int
    is_rollup: bool


class _Limits:
    """The limits of one stream, as they are now."""

    def __init__(self, stored: StoredMessages, info: StreamInfo, ahead: int, now: int) -> None:
        self.info = info
        self._stored = stored
        self._ahead = ahead
        self._now = now + EXPIRES_WITHIN
        self._subjects: dict[str, Sequence[_Newer]] = {}

    def older_than(self, age: int) -> int:
        """Return the time in the source before which messages have copies older than this, in nanoseconds."""
        return self._now - age - self._ahead

    async def before(self) -> int:
        """Return the time of messages of the source whose copies can have been removed, whatever their subject."""
        info = self.info
        if info.retention != "limits":
            return NEVER
        times = [0]
        if info.max_age:
            times.append(self.older_than(round(info.max_age * SECOND)))
        if info.discard == "old" and (info.max_messages > 0 or info.max_bytes > 0):
            times.append(nanoseconds(info.first_time) - self._ahead)
        if info.allow_rollup:
            first = await self._stored.next(max(info.first_sequence, 1))
            if first is not None and headers.find(first.headers, ROLLUP) == b"all":
                times.append(first.time_ns - self._ahead)
        return max(times)

    async def replaced_by(self, message: StoredMessage, subject: str) -> tuple[int, bool]:
        """Return how many newer messages with the subject there are, and True if one has removed all before it."""
        newer = [one for one in await self._with(subject) if one.time_ns > message.time_ns]
        return len(newer), any(one.is_rollup for one in newer)

    async def _with(self, subject: str) -> Sequence[_Newer]:
        if (known := self._subjects.get(subject)) is not None:
            return known
        found: list[_Newer] = []
        after, most = 1, self.info.max_messages_per_subject
        while len(found) < (min(most, MAX_PER_SUBJECT) if most > 0 else MAX_PER_SUBJECT):
            one = await self._stored.next(after, subject)
            if one is None:
                break
            origin = message_ids.origin(message_ids.find(one.headers))
            time = one.time_ns - self._ahead if origin is None else origin.time_ns
            found.append(_Newer(time, bool(headers.find(one.headers, ROLLUP))))
            after = one.sequence + 1
        if len(self._subjects) >= MAX_SUBJECTS:
            del self._subjects[next(iter(self._subjects))]
        self._subjects[subject] = found
        return found


class Removals:
    """The limits of all streams of one destination."""

    def __init__(self, limits: Sequence[_Limits], before: int) -> None:
        """`before` is a time in nanoseconds: the copy of any older message of the source can have been removed."""
        self.before: int = before
        self._limits = limits
        self._lost: Counter[int] = Counter()

    @classmethod
    async def of(cls, streams: Sequence[StoredMessages], source: StoredMessages) -> Removals:
        """Look up the limits of these streams."""
        limits = []
        for stored in streams:
            ahead, now = await ahead_by(stored, source), await stored.clock()
            limits.append(_Limits(stored, await stored.info(), ahead, time_ns() if now is None else now))
        return cls(limits, max([0, *[await one.before() for one in limits]]))

    async def removed(self, message: StoredMessage, expected: ExpectedCopy | None) -> bool:
        """Return True if a stream can have removed the copy of a message. Call it for the newest messages first."""
        if expected is None or expected.copy is None:
            return False
        subject, ttl = expected.copy.subject, time_to_live(expected.copy.headers)
        for one in self._limits:
            if ttl is not None and one.info.allow_message_ttl and message.time_ns < one.older_than(ttl):
                return True
            limit = one.info.max_messages_per_subject
            if limit <= 0 and not one.info.allow_rollup:
                continue
            newer, rolled_up = await one.replaced_by(message, subject)
            if rolled_up or 0 < limit <= newer + self._lost[hash64(framing.wire(subject))]:
                return True
            if limit > MAX_PER_SUBJECT <= newer:
                return True
        return False

    async def has_newest(self, message: StoredMessage, expected: ExpectedCopy) -> bool:
        """Return True if a stream with a limit per subject has a newer message with the subject of the copy."""
        for one in self._limits if expected.copy is not None else ():
            if one.info.max_messages_per_subject > 0:
                assert expected.copy is not None
                newer, _ = await one.replaced_by(message, expected.copy.subject)
                if newer:
                    return True
        return False

    def lost(self, expected: ExpectedCopy | None) -> None:
        """Take into account a lost copy, which can have replaced older ones of its subject."""
        limited = any(one.info.max_messages_per_subject > 0 for one in self._limits)
        if limited and expected is not None and expected.copy is not None:
            self._lost[hash64(framing.wire(expected.copy.subject))] += 1
