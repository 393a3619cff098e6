"""A stream in memory: it numbers and stores messages, and drops duplicates, or copies another stream.

Callers pass the time.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from math import inf
from typing import NamedTuple

from router_trio.errors import codes, reasons
from router_trio.link import ConsumerSpec, PartitionedSpec, SchedulesCount, StreamState
from router_trio.protocol import headers, message_ids, schedules
from router_trio.protocol.buckets import Newest
from router_trio.protocol.copies import as_another, copied_from
from router_trio.protocol.framing import text, wire
from router_trio.protocol.headers import Headers, decode
from router_trio.protocol.headers import replace as replace_header
from router_trio.protocol.stream_config import StreamConfig, StreamSubjects
from router_trio.subjects.mapping import Mapping as SubjectMapping
from router_trio.subjects.partitions import Partitioning
from router_trio.subjects.patterns import matches, overlaps, validate_pattern
from router_trio.testing.frames import Publish

ANNOUNCED_FOR = 5.5
"""Seconds in which all processes learn that a stream was rolled back, before a copy goes on."""

EPOCH = 1_700_000_000
"""The Unix time, in seconds, at which Trio's clock is 0. Timestamps look real, but no real clock is read."""


FULL = {"code": 503, "err_code": codes.STORE_FAILED, "description": "maximum messages exceeded"}
"""The answer of a full stream with discard policy `new`."""

SEALED = {"code": 400, "err_code": codes.SEALED, "description": "invalid operation on sealed stream"}

WRONG_STREAM = {"code": 400, "err_code": codes.OTHER_STREAM_EXPECTED, "description": "expected stream does not match"}
WRONG_SEQUENCE = codes.WRONG_LAST_SEQUENCE


def refusal_of(error_code: int) -> str:
    """Return the reason of a publish that a stream refused with this error code."""
    if error_code == FULL["err_code"]:
        return reasons.LIMIT
    if error_code in codes.OF_EXPECTATIONS:
        return reasons.WRONG_EXPECTATION
    return reasons.of_code(error_code)


def sequence_of(copy: Stored) -> int:
    """Return the sequence of the original of a message that a stream has copied from another one."""
    return copied_from(copy.publish.header)


def _code(err_code: int, description: str) -> Mapping[str, object]:
    return {"code": 400, "err_code": err_code, "description": description}


NO_SCHEDULES = _code(codes.NO_SCHEDULES, "message schedules is disabled")
BAD_SCHEDULE = _code(codes.BAD_SCHEDULE, "message schedules pattern is invalid")
BAD_TARGET = _code(codes.BAD_SCHEDULE_TARGET, "message schedules target is invalid")
"""The answers to schedules: to a stream without the setting, with another time than `@at`, and to another stream."""

_NOT_PUBLISHED = re.compile(
    rb"(?<=\n)(?:Nats-Schedule|Nats-Expected-).*?\r\n|(?<=\r\n)(?:Nats-Msg-Id|Nats-TTL|Nats-Rollup):.*?\r\n", re.DOTALL
)
"""The headers of a schedule that the published message does not have. A server cuts prefixes behind any LF, with or
without a colon, and up to the next CRLF."""


class StoredMessage(NamedTuple):
    """A message in a stream, for assertions."""

    subject: str
    headers: Headers
    payload: bytes
    sequence: int


class Stored(NamedTuple):
    """A message in a stream, as published. `timestamp` is in nanoseconds since 1970."""

    publish: Publish
    subject: str
    sequence: int
    timestamp: int


class Schedule(NamedTuple):
    """A schedule in a stream: its sequence, when it is due, in nanoseconds since 1970, and what is published then."""

    sequence: int
    due_ns: int
    publish: Publish


class Copying:
    """The part of a stream that copies another one, `source`: messages of its partitions, from a sequence on.

    Until `stalled_until` nothing is copied. A source that was rolled back is copied again from `again` on, some time
    after `announced_at`.
    """

    def __init__(self, source: str, partitioning: Partitioning, first: int) -> None:
        self.source = source
        self.partitioning = partitioning
        self.next: int = first
        """The next sequence of the source to look at."""
        self.copied: int = first - 1
        """The last sequence of the source that was copied."""
        self.rolled_back: int = 0
        self.reused: tuple[int, ...] = ()
        """Up to which sequence the source may use some again since each rollback, the announced one included."""
        self.again: int = 0
        self.announced_at: float = inf
        self.recorded_at: int = 0
        """When the last rollback was announced, in nanoseconds since 1970."""
        self.copied_at: float = -inf
        self.stalled_until: float = -inf

    def behind(self, source: Stream) -> Sequence[Stored]:
        """Return the messages of the source that are not copied yet."""
        return [one for one in source.stored[self.next - 1 :] if self._takes(one.subject)]

    def copy_of(self, one: Stored) -> Publish | None:
        """Return the copy of a message, with its partition in front of its subject; None if it is not copied."""
        if not self._takes(one.subject):
            return None
        subject = f"{self.partitioning.partition_of(one.subject)}.{one.subject}"
        patterns = ",".join(self.partitioning.patterns)
        transform = as_another(self.partitioning.transforms[0][1], self.rolled_back)
        origin = f"{self.source} {one.sequence} {patterns} {transform} {one.subject}"
        header = replace_header(one.publish.header, b"Nats-Stream-Source", wire(origin))
        return Publish(wire(subject), b"", header, one.publish.payload)

    def look(self, source: Stream, copies: Sequence[Stored], wanted: PartitionedSpec, now: float) -> str:
        """Announce that a source that was rolled back is copied again, or have it copied again if all know that.

        Return the evidence that it was rolled back since the last look, which has left what is known in `wanted`; empty
        if there is none. `copies` are those made so far.
        """
        if self.announced_at < inf:
            if now >= self.announced_at + ANNOUNCED_FOR:
                self.next, self.announced_at = self.again, inf
                self.rolled_back += 1
            return ""
        stored, last, known, highest = source.stored, self.copied, wanted.known, wanted.highest
        if known is not None and not source.has(known.sequence, known.time):
            last, newer_than, at = known.sequence, known.time, known.at
        elif 0 < highest <= len(stored) and stored[highest - 1].timestamp > wanted.highest_at:
            last, newer_than, at = highest, wanted.highest_at, wanted.highest_at
        elif last > len(stored) and copies:
            newer_than = at = copies[-1].timestamp
        else:
            return ""
        if at <= self.recorded_at:
            return ""  # that was known when it was announced
        again = next((one.sequence for one in stored if one.timestamp > newer_than), len(stored) + 1)
        # What was copied since then has its sequences for the first time, unless they were used before the rollback.
        since = stored[again - 1].timestamp if again <= len(stored) else inf
        before = [one for one in copies if one.timestamp < since]
        reused = sequence_of(before[-1]) if before else 0
        if reused < again:
            return ""  # the copy has lost the same messages
        self.again, self.announced_at, self.reused = again, now, (*self.reused, reused)
        self.recorded_at = int((source.epoch + now) * 1e9)
        return f"its last sequence is {len(stored)}, but message {last} was copied"

    def went_back(self, copies: Sequence[Stored]) -> None:
        """Go on behind the newest of the copies that are left, as a server does that finds fewer than it has made."""
        self.copied = sequence_of(copies[-1]) if copies else 0
        self.next = self.copied + 1

    def _takes(self, subject: str) -> bool:
        return any(matches(pattern, subject) for pattern in self.partitioning.patterns)


class Stream:
    """A stream in memory. It keeps every message, so sequences start at 1 and have no gaps. A full stream refuses.

    `epoch` is the Unix time, in seconds, at which Trio's clock is 0 on its server. A PubAck takes `answers_after`
    seconds. Until `leaderless_until` the stream stores nothing, and if it is `sealed`, it refuses everything. A
    `fallback` stores messages that no other stream of the server takes. With `acks_before_writing` it reports
    `persist_mode` `async`. If it is `cut_off`, it reports that, and neither stores nor answers. `copying` is what it
    copies from another stream; None if publishers send to it.
    """

    def __init__(
        self,
        name: str,
        subjects: Iterable[str],
        *,
        created: str,
        duplicate_window: float,
        max_messages: int | None,
        epoch: float = EPOCH,
        fallback: bool = False,
        config: StreamConfig | None = None,
        copying: Copying | None = None,
    ) -> None:
        self.name = name
        self.copying: Copying | None = copying
        self._config = config
        self.created = created
        self.max_messages = max_messages
        self.answers_after: float = 0.0
        self.leaderless_until: float = -inf
        self.sealed = False
        self.acks_before_writing: bool = False
        self.cut_off: bool = False
        self.epoch = epoch
        self.fallback = fallback
        self.subjects: tuple[str, ...] = tuple(subjects)
        self.stored: list[Stored] = []
        for subject in self.subjects:
            validate_pattern(subject, what=f"stream {name!r}: subject")
        self.duplicate_window = duplicate_window
        transform = None if config is None else config.transform
        self._transform = None if transform is None else SubjectMapping.compile(*transform)
        self._seen: dict[bytes, tuple[float, int]] = {}
        self.schedules: dict[str, Schedule] = {}
        """The schedules that are not published yet, by their subjects."""
        self._scheduled = 0
        self._published = 0
        self._counted = False
        self._deleted: set[int] = set()
        """The sequences of schedules that were published, replaced or cancelled."""

    def takes(self, subject: str) -> bool:
        """Return True if a publish to this subject is stored here."""
        return any(matches(pattern, subject) for pattern in self.subjects)

    def overlaps(self, other: Stream) -> bool:
        """Return True if both streams take some subject."""
        return any(overlaps(ours, theirs) for ours in self.subjects for theirs in other.subjects)

    @property
    def config(self) -> StreamConfig:
        """The configuration, as created or edited."""
        created_as = self._config or StreamConfig(
            self.name, (), discard="old" if self.max_messages is None else "new", max_messages=self.max_messages or -1
        )
        return replace(created_as, subjects=self.subjects, duplicate_window=self.duplicate_window)

    @property
    def stores(self) -> StreamSubjects:
        """The subjects that it stores; none for a `fallback`, where they depend on the other streams."""
        taken = () if self.fallback or self.sealed else self.subjects
        return StreamSubjects(taken, self.config.transform, self.copying is not None)

    def state(self, now: float) -> StreamState:
        """Return the result of a lookup of the stream."""
        room = inf if self.max_messages is None else self.max_messages - len(self.stored)
        refuses = None
        if self.cut_off:
            refuses = "stream_cut_off", f"stream {self.name!r} is not available: its server is cut off"
        elif self.sealed:
            refuses = "stream_sealed", f"stream {self.name!r} is sealed"
        elif room <= 0:
            refuses = (
                "stream_full",
                f"stream {self.name!r} is full: it has its {self.max_messages} messages (max_messages)",
            )
        limits = (-1 if self.max_messages is None else self.max_messages,)
        return StreamState(
            self.name,
            self.subjects,
            refuses,
            (room, inf),
            len(self.stored),
            limits,
            self.duplicate_window,
            self.acks_before_writing,
            self.created,
            self.stores,
            self.config.loses_schedules,
            time=int((self.epoch + now) * 1e9),
        )

    def store(self, publish: Publish, now: float) -> bytes:
        """Store a publish, unless its `Nats-Msg-Id` is a duplicate within the window. Return the answer.

        Of the expectations of a publisher, only the name and the last sequences of stream and subject are checked.
        """
        if self.sealed:
            return self._refusal(SEALED)
        if headers.find(publish.header, b"Nats-Expected-Stream") not in (None, self.name.encode()):
            return self._refusal(WRONG_STREAM)
        expected = headers.find_number(publish.header, b"Nats-Expected-Last-Sequence")
        if expected not in (None, len(self.stored)):
            description = f"wrong last sequence: {len(self.stored)}"
            return self._refusal({"code": 400, "err_code": WRONG_SEQUENCE, "description": description})
        expected = headers.find_number(publish.header, b"Nats-Expected-Last-Subject-Sequence")
        if expected is not None and expected != (last := self._last_of(text(publish.subject))):
            description = f"wrong last sequence: {last}"
            return self._refusal({"code": 400, "err_code": WRONG_SEQUENCE, "description": description})
        message_id = message_ids.find(publish.header)
        if message_id:
            self._forget(now - self.duplicate_window)
            if message_id in self._seen:
                return self._pub_ack(self._seen[message_id][1], duplicate=True)
        if self.max_messages is not None and len(self.stored) >= self.max_messages:
            return self._refusal(FULL)
        schedule = self._schedule_of(publish)
        if schedule is not None and not isinstance(schedule, Schedule):
            return self._refusal(schedule)
        sequence = self._append(publish, now)
        if message_id:
            self._seen[message_id] = (now, sequence)
        if schedule is not None:
            if not self.cancel(text(publish.subject)):
                self._scheduled += 1
            self.schedules[text(publish.subject)] = schedule._replace(sequence=sequence)
        return self._pub_ack(sequence, duplicate=False)

    def newest(self, subject: str) -> Newest | None:
        """Return the newest message with this subject; None if there is none."""
        sequence = self._last_of(subject)
        if not sequence:
            return None
        one = self.stored[sequence - 1]
        return Newest(one.sequence, one.timestamp, one.publish.header, one.publish.payload)

    def _last_of(self, subject: str) -> int:
        """Return the last sequence of a subject; 0 if the stream has none of its messages."""
        found = (one.sequence for one in reversed(self.stored) if one.subject == subject)
        return next((sequence for sequence in found if sequence not in self._deleted), 0)

    def _schedule_of(self, publish: Publish) -> Schedule | Mapping[str, object] | None:
        """Return the schedule that a publish is, without its sequence; None if it is none; or the error."""
        value = headers.find(publish.header, schedules.SCHEDULE)
        if value is None:
            return None
        due_ns, target = schedules.due_ns(value), headers.find(publish.header, schedules.TARGET) or b""
        if not self.config.allow_message_schedules:
            return NO_SCHEDULES
        if due_ns is None:
            return BAD_SCHEDULE
        if target == publish.subject or not self.takes(text(target)):
            return BAD_TARGET
        block = _NOT_PUBLISHED.sub(b"", publish.header)
        added = [(schedules.SCHEDULER, publish.subject), (b"Nats-Schedule-Next", b"purge")]
        added.append((b"Nats-TTL", headers.find(publish.header, schedules.TTL) or b""))
        for name, value in added:
            block = headers.replace(block, name, value) if value else block
        return Schedule(0, due_ns, Publish(target, b"", block, publish.payload))

    def cancel(self, subject: str) -> bool:
        """Delete the schedule on a subject. Return False if there is none."""
        before = self.schedules.pop(subject, None)
        if before is not None:
            self._deleted.add(before.sequence)
        return before is not None

    def count_subjects(self, pattern: str) -> int:
        """Return on how many subjects of `pattern` there are messages."""
        found = {one.subject for one in self.stored if one.sequence not in self._deleted}
        return sum(matches(pattern, subject) for subject in found)

    def publish_schedule(self, subject: str, now: float) -> Stored:
        """Publish the message of the schedule on a subject, and delete the schedule. Return the message."""
        publish = self.schedules[subject].publish
        self.cancel(subject)
        self._published += 1
        self._append(publish, now)
        return self.stored[-1]

    def count_schedules(self) -> SchedulesCount:
        """Return what became of all schedules. Each lost one is reported once."""
        is_first, self._counted = not self._counted, True
        there, last = len(self.schedules), len(self.stored)
        count = SchedulesCount(
            self._scheduled, self._published, there, 0, is_first, last_sequence=last, created=self.created
        )
        self._scheduled -= count.lost
        return count

    def is_due(self, subject: str, now: float) -> bool:
        """Return True if the schedule on a subject is due."""
        return int((self.epoch + now) * 1e9) >= self.schedules[subject].due_ns

    def copy_from(self, source: Stream, now: float) -> list[Stored]:
        """Copy the new messages of the stream that this one copies. Return the copies."""
        copying, before = self.copying, len(self.stored)
        assert copying is not None
        if now < max(copying.stalled_until, self.leaderless_until, source.leaderless_until):
            return []
        for one in source.stored[copying.next - 1 :]:
            copying.next = one.sequence + 1
            if (copy := copying.copy_of(one)) is not None:
                copying.copied = one.sequence
                self._append(copy, now)
        copying.copied_at = now
        return self.stored[before:]

    def _append(self, publish: Publish, now: float) -> int:
        sequence, subject = len(self.stored) + 1, text(publish.subject)
        if self._transform is not None and matches(self._transform.source, subject):
            subject = self._transform.apply(subject)
            publish = publish._replace(subject=wire(subject))
        self.stored.append(Stored(publish, subject, sequence, int((self.epoch + now) * 1e9)))
        return sequence

    def first_since(self, start: str | int) -> int:
        """Return the first sequence that a consumer with this start delivers: see `link.ConsumerSpec.deliver`."""
        if isinstance(start, int):
            return start
        if start == "new":
            return len(self.stored) + 1
        if start in ("", "all"):
            return 1
        since = datetime.fromisoformat(start).timestamp() * 1e9
        return next((stored.sequence for stored in self.stored if stored.timestamp >= since), len(self.stored) + 1)

    def forget_after(self, sequence: int) -> None:
        """Delete all messages after this sequence, as if never written to disk. Sequences continue there."""
        published = sum(
            headers.find(one.publish.header, schedules.SCHEDULER) is not None for one in self.stored[sequence:]
        )
        waiting = sum(one.sequence > sequence for one in self.schedules.values())
        self._published -= published
        self._scheduled -= published + waiting  # the record of them was at the end as well
        del self.stored[sequence:]
        self.schedules = {subject: one for subject, one in self.schedules.items() if one.sequence <= sequence}
        self._seen = {message_id: seen for message_id, seen in self._seen.items() if seen[1] <= sequence}
        if self.copying is not None:
            self.copying.went_back(self.stored)

    def differs(self, spec: ConsumerSpec) -> str | None:
        """Return how the stream differs from the one that a spec describes; None if it does not, or if unknown."""
        last = spec.last_sequence
        if spec.stream_created is None:
            return None
        if spec.stream_created != self.created and not (spec.found_by_message and self.has(last, spec.last_time)):
            return f"it was created again: {self.created}"
        if last > len(self.stored):
            return f"its last sequence is {len(self.stored)}, but message {last} was already received"
        if spec.start_sequence is not None and len(self.stored) < spec.start_sequence - 1:
            return f"its last sequence is {len(self.stored)}, but the durable had passed {spec.start_sequence - 1}"
        for sequence, time in ((last, spec.last_time), (spec.passed_sequence, spec.passed_time)):
            if sequence and self.stored[sequence - 1].timestamp != time:
                return f"it has another message with sequence {sequence}"
        return None

    def has(self, sequence: int, time: int) -> bool:
        """Return True if it has a message with this sequence and timestamp."""
        return 0 < sequence <= len(self.stored) and self.stored[sequence - 1].timestamp == time

    def messages(self) -> list[StoredMessage]:
        """Return all messages, in order, without schedules that are over."""
        return [
            StoredMessage(stored.subject, decode(stored.publish.header), stored.publish.payload, stored.sequence)
            for stored in self.stored
            if stored.sequence not in self._deleted
        ]

    def _forget(self, before: float) -> None:
        # The oldest is first: a dictionary keeps the order of insertion, and nothing is inserted twice.
        while self._seen:
            oldest = next(iter(self._seen))
            if self._seen[oldest][0] > before:
                return
            del self._seen[oldest]

    def _refusal(self, error: Mapping[str, object]) -> bytes:
        return json.dumps({"error": error, "stream": self.name, "seq": 0}).encode()

    def _pub_ack(self, sequence: int, *, duplicate: bool) -> bytes:
        answer = {"stream": self.name, "seq": sequence} | ({"duplicate": True} if duplicate else {})
        return json.dumps(answer).encode()
