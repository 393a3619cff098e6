"""Carry out an audit: read the source and the destinations of a route from the leaders of their streams."""

from __future__ import annotations

from array import array
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, aclosing
from dataclasses import dataclass
from itertools import chain
from time import time_ns

import trio

from router_trio.audit import comparison
from router_trio.audit.comparison import Comparison
from router_trio.audit.expectations import Expectations, ExpectedCopy
from router_trio.audit.report import MAX_FINDINGS, Finding, Report
from router_trio.errors import SourceError, reasons
from router_trio.nats.command_link import CommandLink
from router_trio.nats.jetstream.api import StoredMessage, StreamInfo, nanoseconds
from router_trio.nats.stored import StoredMessages
from router_trio.protocol import framing, headers, message_ids
from router_trio.routing.dead_letters import PREFIX
from router_trio.routing.rehearsal import Limits
from router_trio.settings import RouteSettings, Settings

CLOCKS_DIFFER_BY = 600
"""Seconds by which the clocks of the servers of source and destination may differ."""

EXPIRES_WITHIN = 10
"""Seconds of the age of a copy by which a stream may remove it earlier or later than expected."""

MAX_PER_SUBJECT = 64
"""Messages of one subject that are looked at to see whether a stream keeps no more of them."""

_NEVER = 2**63
"""A time after all others, in nanoseconds since 1970."""

_NAMES = {
    comparison.THERE: "there",
    comparison.DIFFERENT: "different",
    comparison.TWICE: "twice",
    comparison.MISSING: "missing",
    comparison.EXPIRED: "expired",
    comparison.DEAD_LETTERED: "dead_lettered",
    comparison.UNKNOWN: "unknown",
}

Progress = Callable[[int, int], None]
"""Called with the number of sequences of the source that were read, and their total."""


def connections_of(route: RouteSettings) -> list[str]:
    """Return the names of the connections that an audit of a route needs."""
    letter = [] if route.dead_letter is None else [route.dead_letter.connection]
    return list(dict.fromkeys([route.source.connection, *(to.connection for to in route.to), *letter]))


class Pace:
    """Limits how many messages are read in a second. A `rate` of 0 is no limit."""

    def __init__(self, rate: float) -> None:
        self._rate = rate
        self._due = trio.current_time()

    async def spend(self, count: int) -> None:
        """Wait until `count` more messages were allowed."""
        if self._rate:
            self._due = max(self._due, trio.current_time() - 1) + count / self._rate
            await trio.sleep_until(self._due)
        else:
            await trio.lowlevel.checkpoint()


@dataclass(frozen=True, slots=True)
class Range:
    """The messages to audit: by sequence, or by the time when they were stored, in nanoseconds since 1970."""

    first: int | None = None
    last: int | None = None
    since: int | None = None
    until: int | None = None


EVERYTHING = Range()


class _Reading:
    """The messages of one stream of a destination, from `first` to its last, read as far as they are needed."""

    def __init__(self, stored: StoredMessages, info: StreamInfo, first: int, pattern: str) -> None:
        self.stored = stored
        self.info = info
        self._first = first
        self._pattern = pattern
        self._batches = self.batches()
        self._batch: Sequence[StoredMessage] = ()
        self._next = 0

    def batches(self) -> AsyncGenerator[Sequence[StoredMessage], None]:
        """Read all of them."""
        return self.stored.batches(self._first, self.info.last_sequence, self._pattern)

    async def peek(self, pace: Pace) -> StoredMessage | None:
        """Return the next message without taking it; None behind the last one."""
        while self._next == len(self._batch):
            batch = await anext(self._batches, None)
            if batch is None:
                return None
            await pace.spend(len(batch))
            self._batch, self._next = batch, 0
        return self._batch[self._next]

    def take(self) -> None:
        """Go on to the next message."""
        self._next += 1

    async def aclose(self) -> None:
        """End the reading."""
        await self._batches.aclose()


class _Destination:
    """A destination, its streams, and the comparison."""

    def __init__(self, index: int, name: str, expectations: Expectations, compared: Comparison) -> None:
        self.index = index
        self.name = name
        self.compared = compared
        self.readings: list[_Reading] = []
        self.same_subject = True
        self._expectations = expectations

    async def catch_up(self, sequence: int, time: int, pace: Pace) -> None:
        """Read until a copy of a later message than the one with this sequence and time, or to the end."""
        for reading in self.readings:
            while (stored := await reading.peek(pace)) is not None:
                found = self._identify(reading, stored)
                if found is not None:
                    origin = found[0]
                    # Without a sequence only the time shows that the copy is of a message not read yet.
                    if sequence < origin if origin is not None else time < stored.time_ns:
                        break
                    self.compared.found(*found, stored.sequence)
                reading.take()

    async def read_again(self, pace: Pace) -> None:
        """Look for copies that were passed over before their messages were read, as clocks differ."""
        for reading in self.readings if not self._expectations.by_sequence else ():
            if next(self.compared.sequences(comparison.AWAITED), None) is None:
                return
            async with aclosing(reading.batches()) as batches:
                async for batch in batches:
                    await pace.spend(len(batch))
                    for stored in batch:
                        found = self._identify(reading, stored)
                        if found is not None and self.compared.awaits(found[1]):
                            self.compared.found(*found, stored.sequence)

    def _identify(self, reading: _Reading, stored: StoredMessage) -> tuple[int | None, int, int | None] | None:
        found = self._expectations.identify(self.index, stored, same_subject=self.same_subject)
        if found is None or not reading.info.allow_counter:
            return found
        return found[0], found[1], None  # the stream stores the sum instead of the payload


class Audit:
    """An audit of one route over links of its own."""

    def __init__(
        self,
        settings: Settings,
        route: RouteSettings,
        links: Mapping[str, CommandLink],
        *,
        rate: float = 0,
        progress: Progress = lambda done, total: None,
    ) -> None:
        """`links` are those of all connections that `connections_of` names. `rate` limits the messages in a second."""
        limits = {name: Limits(one.link.max_payload, one.link.max_control_line) for name, one in links.items()}
        self.expectations = Expectations(settings, route, limits)
        self._route = route
        self._links = links
        self._pace = Pace(rate)
        self._progress = progress
        consumer = route.source.kind.consumer(route.source)
        assert consumer is not None
        stream, self._durable = consumer
        self._messages = self._stored(route.source.connection, stream)
        self._judged: Sequence[Sequence[_Destination]] = ()
        self._given_up: array[int] = array("Q")

    async def run(self, wanted: Range) -> Report:
        """Compare, and return the report. Raises `SourceError` and `LinkError`; can be cancelled."""
        reader, name = self._messages, self._route.name
        durable = await reader.consumer(self._durable)
        if durable is None:
            detail = f"stream {reader.stream} has no consumer {self._durable}, so nothing is known to be settled"
            raise SourceError(detail, reason=reasons.CONSUMER_DELETED)
        # Copies of everything up to the ack floor are in the streams that are looked up from here on.
        floor, info = durable.ack_floor.sequence, await reader.info()
        first, last = await self._limits(wanted, info)
        report = Report(name, first, last)
        async with AsyncExitStack() as stack:
            destinations = await self._destinations(stack, report, min(last, floor))
            await self._compare(destinations, report, floor)
            dead = await self._dead_letters(report)
            for sequence in self._given_up:
                report.counts["dead_lettered" if dead[sequence - report.first] else "given_up"] += 1
            for destination in destinations:
                await self._confirm_repeated(destination)
            self._judged = self._groups(destinations)
            for group in self._judged:
                await self._explain(group, dead)
                await self._judge(group, report)
        report.gone = await self._gone(report, info)
        return report

    async def missing(self) -> AsyncGenerator[ExpectedCopy, None]:
        """Yield the copies that the last `run` has found to be missing, and whose messages the source still has."""
        for group in self._judged:
            for sequence in group[0].compared.sequences(comparison.MISSING):
                found = await self._expected_at(group[0], sequence)
                if found is not None and found[1].copy is not None:
                    yield found[1]

    # --- the range ---

    async def _limits(self, wanted: Range, info: StreamInfo) -> tuple[int, int]:
        first = wanted.first if wanted.first is not None else max(info.first_sequence, 1)
        last = min(wanted.last, info.last_sequence) if wanted.last is not None else info.last_sequence
        if wanted.since is not None:
            first = await self._messages.first_at(wanted.since, info)
        if wanted.until is not None:
            last = await self._messages.first_at(wanted.until + 1, info) - 1
        return first, last

    async def _gone(self, report: Report, info: StreamInfo) -> int:
        """Return how many sequences of the range the stream no longer has."""
        gone = max(0, min(report.last + 1, info.first_sequence) - report.first)
        first = max(report.first, info.first_sequence)
        if info.messages == info.last_sequence - info.first_sequence + 1 or first > report.last:
            return gone
        there = 0
        async with aclosing(self._messages.batches(first, report.last, ">")) as batches:
            async for batch in batches:
                await self._pace.spend(len(batch))
                there += len(batch)
        return gone + report.last - first + 1 - there

    # --- reading ---

    async def _destinations(self, stack: AsyncExitStack, report: Report, last: int) -> list[_Destination]:
        found = []
        message = await self._messages.next(report.first)
        since = 0 if message is None else message.time_ns - CLOCKS_DIFFER_BY * 10**9
        for index, one in enumerate(self.expectations.destinations):
            shown = f"{one.connection}:{one.template}"
            if not self.expectations.is_judged(index):
                why = "a mirror gets a share of the messages" if one.mirror is not None else "it is not stored"
                report.notes.append(f"not judged: {shown}: {why}")
                continue
            compared = Comparison(report.first, last, by_sequence=self.expectations.by_sequence)
            destination = _Destination(index, shown, self.expectations, compared)
            pattern = ">" if one.stream is not None else one.mapping.pattern
            names = (
                [one.stream] if one.stream is not None else await self._links[one.connection].link.find_streams(pattern)
            )
            if not names:
                report.notes.append(f"no stream takes {pattern}, the subjects of {shown}")
            for stream in names:
                stored = self._stored(one.connection, stream)
                info = await stored.info()
                if info.has_others or one.stream is not None:
                    pattern, destination.same_subject = ">", False
                if info.retention != "limits":
                    report.notes.append(f"stream {stream} deletes what its consumers have acked: counted as expired")
                start = await stored.first_at(since, info)
                reading = _Reading(stored, info, start, pattern)
                stack.push_async_callback(reading.aclose)
                destination.readings.append(reading)
            found.append(destination)
        if not found:
            detail = f"route {report.route} has no destination in a stream (jetstream = true), so no copy is stored"
            raise SourceError(detail, reason=reasons.NOT_FOUND)
        return found

    async def _compare(self, destinations: Sequence[_Destination], report: Report, floor: int) -> None:
        patterns = self._route.source.patterns
        pattern, total = patterns[0] if len(patterns) == 1 else ">", report.last - report.first + 1
        by_index = {one.index: one for one in destinations}
        async with aclosing(self._messages.batches(report.first, report.last, pattern)) as batches:
            async for batch in batches:
                await self._pace.spend(len(batch))
                for message in batch:
                    if not self.expectations.reads(message):
                        continue
                    report.messages += 1
                    if message.sequence > floor:
                        report.counts["pending"] += 1
                        continue
                    expected = await self.expectations.of(message)
                    if expected.outcome == "given_up":
                        self._given_up.append(message.sequence)
                    elif not expected.copies:
                        report.counts[expected.outcome] += 1
                    for copy in expected.copies:
                        by_index[copy.destination].compared.expect(message.sequence, copy.identity, copy.digest)
                for destination in destinations:
                    await destination.catch_up(batch[-1].sequence, batch[-1].time_ns, self._pace)
                self._progress(batch[-1].sequence - report.first + 1, total)
        for destination in destinations:
            await destination.catch_up(framing.LAST_SEQUENCE, _NEVER, self._pace)
            await destination.read_again(self._pace)

    async def _dead_letters(self, report: Report) -> bytearray:
        """Return for each message of the range 1 if the route has a dead letter of it, else 0."""
        dead = bytearray(max(0, report.last - report.first + 1))
        letter, source = self._route.dead_letter, self._route.source
        if letter is None or not letter.jetstream:
            return dead
        pattern = ">" if letter.stream is not None else source.mapping(letter.subject).pattern
        link = self._links[letter.connection].link
        names = [letter.stream] if letter.stream is not None else await link.find_streams(pattern)
        for name in names:
            stored = self._stored(letter.connection, name)
            info = await stored.info()
            async with aclosing(stored.batches(max(info.first_sequence, 1), info.last_sequence, pattern)) as batches:
                async for batch in batches:
                    await self._pace.spend(len(batch))
                    for message in batch:
                        sequence = self._of_dead_letter(message)
                        if sequence is not None and report.first <= sequence <= report.last:
                            dead[sequence - report.first] = 1
        return dead

    def _of_dead_letter(self, message: StoredMessage) -> int | None:
        """Return the sequence of the message in a dead letter of the route; None if it is not one."""
        origin = message_ids.origin(message_ids.find(message.headers))
        if origin is None or not origin.is_dead or origin.stream != framing.wire(self._messages.stream):
            return None
        route = headers.find(message.headers, f"{PREFIX}Route".encode())
        return origin.sequence if route == framing.wire(self._route.name) else None

    # --- judging ---

    async def _expected_at(self, destination: _Destination, sequence: int) -> tuple[StoredMessage, ExpectedCopy] | None:
        """Return a message of the source and its copy at a destination, computed again; None if there is none now."""
        message = await self._messages.get(sequence)
        if message is None:
            return None
        await self._pace.spend(1)
        expected = await self.expectations.of(message)
        return next(((message, one) for one in expected.copies if one.destination == destination.index), None)

    async def _confirm_repeated(self, destination: _Destination) -> None:
        for repeated in destination.compared.repeated:
            found = await self._expected_at(destination, repeated.sequence)
            if found is not None:
                destination.compared.confirm(repeated, found[1].identity)

    def _groups(self, destinations: Sequence[_Destination]) -> Sequence[Sequence[_Destination]]:
        """Return the destinations that each message has a copy at, together with those that could have it instead.

        The first of a group has its comparison.
        """
        if not self.expectations.one_of:
            return [[one] for one in destinations]
        for other in destinations[1:]:
            destinations[0].compared.merge(other.compared)
        return [destinations]

    async def _explain(self, group: Sequence[_Destination], dead: bytearray) -> None:
        compared = group[0].compared
        awaited = compared.sequences(comparison.AWAITED)
        if (first := next(awaited, None)) is None:
            return
        expired_before = max([await self._expired_before(one) for one in group])
        for sequence in chain((first,), awaited):
            if dead[sequence - compared.first]:
                compared.explain(sequence, comparison.DEAD_LETTERED)
            elif self.expectations.handled:
                compared.explain(sequence, comparison.UNKNOWN)
            elif sequence < expired_before or any([await self._was_replaced(one, sequence) for one in group]):
                compared.explain(sequence, comparison.EXPIRED)
            else:
                compared.explain(sequence, comparison.MISSING)

    async def _expired_before(self, destination: _Destination) -> int:
        """Return the first message of the source whose copy can't have been removed by limits of its stream."""
        settings = self.expectations.destinations[destination.index]
        newest = 0
        for reading in destination.readings:
            info = await reading.stored.info()
            if info.retention != "limits":
                return framing.LAST_SEQUENCE
            now = time_ns() + EXPIRES_WITHIN * 10**9
            if info.max_age:
                newest = max(newest, now - round(info.max_age * 10**9))
            if settings.ttl and info.allow_message_ttl:
                newest = max(newest, now - settings.ttl * 10**9)
            if info.discard == "old" and (info.max_messages > 0 or info.max_bytes > 0):
                newest = max(newest, nanoseconds(info.first_time))
        return await self._messages.first_at(newest, await self._messages.info()) if newest else 0

    async def _was_replaced(self, destination: _Destination, sequence: int) -> bool:
        """Return True if a stream has newer messages of the subject, and keeps no more of them."""
        limited = [reading for reading in destination.readings if reading.info.max_messages_per_subject > 0]
        found = await self._expected_at(destination, sequence) if limited else None
        if found is None or found[1].copy is None:
            return False
        message, subject = found[0], found[1].copy.subject
        for reading in limited:
            kept, after = 0, 1
            while kept < min(reading.info.max_messages_per_subject, MAX_PER_SUBJECT):
                newer = await reading.stored.next(after, subject)
                if newer is None or newer.time_ns + CLOCKS_DIFFER_BY * 10**9 < message.time_ns:
                    break
                kept, after = kept + 1, newer.sequence + 1
            else:
                return True
        return False

    async def _judge(self, group: Sequence[_Destination], report: Report) -> None:
        """Count the copies by class, and list what is wrong."""
        compared, name = group[0].compared, " or ".join(one.name for one in group)
        for state, one in _NAMES.items():
            report.counts[one] += compared.count(state)
        for state in (comparison.MISSING, comparison.TWICE, comparison.DIFFERENT):
            for sequence in compared.sequences(state):
                if len(report.findings) >= MAX_FINDINGS:
                    return
                message = await self._messages.get(sequence)
                subject = "" if message is None else message.subject
                report.findings.append(Finding(sequence, subject, _NAMES[state], name, ""))

    def _stored(self, connection: str, stream: str) -> StoredMessages:
        link = self._links[connection]
        return StoredMessages(stream, link.requests, link.link.api.prefix)
