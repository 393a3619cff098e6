"""Carry out an audit: read the source and the destinations of a route from the leaders of their streams."""

from __future__ import annotations

from array import array
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, aclosing
from dataclasses import dataclass
from itertools import islice

import trio

from router_trio.audit import comparison
from router_trio.audit.comparison import Comparison, Repeated
from router_trio.audit.expectations import Expectations, ExpectedCopy, Identified, size_limits
from router_trio.audit.extra import ExtraKey, ExtraKeys
from router_trio.audit.letter import is_letter_of
from router_trio.audit.removals import NEVER, Removals, ahead_by
from router_trio.audit.report import MAX_FINDINGS, Finding, Report
from router_trio.audit.start import Start, start_of
from router_trio.audit.waiting import RetryStream
from router_trio.errors import SourceError, reasons
from router_trio.nats.command_link import CommandLink
from router_trio.nats.jetstream.api import StoredMessage, StreamInfo
from router_trio.nats.range_reader import MOST_PULLED, StreamRange
from router_trio.nats.stored import StoredMessages
from router_trio.protocol import framing, message_ids
from router_trio.protocol.message_ids import Origin
from router_trio.settings import RouteSettings, Settings

CLOCKS_DIFFER_BY = 600
"""Seconds by which the clocks of the servers of source and destination may differ."""

TOGETHER = 64
"""Messages that are requested at a time to judge their copies."""

OWNER = "audit"
"""The beginning of the names of the consumers by which streams are read."""

MAX_SPAN = 2**30
"""Sequences of one audit, which needs a byte for each of them and each destination."""

EARLIER = "it was not to deliver earlier ones, so a copy that they lack is unknown, and no repair publishes it"
"""The note on a range that begins before the start of the route."""

_NAMES = {
    comparison.THERE: "there",
    comparison.OVERRULED: "overruled",
    comparison.DIFFERENT: "different",
    comparison.TWICE: "twice",
    comparison.MISSING: "missing",
    comparison.EXPIRED: "expired",
    comparison.DEAD_LETTERED: "dead_lettered",
    comparison.UNKNOWN: "unknown",
    comparison.WAITING: "pending",
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
        self.most: int = max(1, min(int(rate), MOST_PULLED)) if rate else MOST_PULLED
        """Messages to request at a time: not those of more than a second."""
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

    def has(self, origin: Origin) -> bool:
        """Return True if the message of a copy is in the range, whether it is still stored or not."""
        return (
            (self.first is None or self.first <= origin.sequence)
            and (self.last is None or origin.sequence <= self.last)
            and (self.since is None or self.since <= origin.time_ns)
            and (self.until is None or origin.time_ns <= self.until)
        )


EVERYTHING = Range()


class RangeError(ValueError):
    """The range has too many messages for one audit."""


async def limits_of(messages: StoredMessages, wanted: Range, info: StreamInfo) -> tuple[int, int]:
    """Return the first and the last sequence of a range in a stream. Raises `SourceError`."""
    first, last = max(info.first_sequence, 1), info.last_sequence
    if wanted.first is not None:
        first = wanted.first
    elif wanted.since is not None:
        first = await messages.first_at(wanted.since, info)
    if wanted.last is not None:
        last = min(last, wanted.last)
    elif wanted.until is not None:
        last = await messages.first_at(wanted.until + 1, info) - 1
    return first, last


class _Reading:
    """A range of one stream of a destination, read as far as it is needed."""

    def __init__(self, link: CommandLink, info: StreamInfo, wanted: StreamRange, ahead: int) -> None:
        self.stored = link.stored(info.name)
        self.info = info
        self.ahead = ahead
        self._link = link
        self._wanted = wanted
        self._batches = self.batches()
        self._batch: Sequence[StoredMessage] = ()
        self._next = 0

    def batches(self) -> AsyncGenerator[Sequence[StoredMessage], None]:
        """Read all of them."""
        return self._link.read(self.info, self._wanted)

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

    async def catch_up(self, sequence: int, time: int, pace: Pace, confirm: Confirm) -> None:
        """Read until a copy of a later message than the one with this sequence and time, or to the end."""
        for reading in self.readings:
            latest = time + reading.ahead
            while (stored := await reading.peek(pace)) is not None:
                found = self._identify(reading, stored)
                if found is not None:
                    origin = found[0]
                    # Without a sequence only the time shows that the copy is of a message not read yet.
                    if sequence < origin if origin is not None else latest < stored.time_ns:
                        break
                    self.compared.found(*found)
                    if self.compared.is_full:
                        await confirm(self)
                reading.take()

    async def read_again(self, pace: Pace) -> None:
        """Look for copies that were passed over before their messages were read, or that several messages share."""
        if self._expectations.by_sequence or next(self.compared.sequences(comparison.AWAITED), None) is None:
            return
        self.compared.begin_again()
        for reading in self.readings:
            async with aclosing(reading.batches()) as batches:
                async for batch in batches:
                    await pace.spend(len(batch))
                    for stored in batch:
                        found = self._identify(reading, stored)
                        if found is not None:
                            self.compared.found(*found)
        self.compared.end_again()

    def _identify(self, reading: _Reading, stored: StoredMessage) -> Identified | None:
        found = self._expectations.identify(self.index, stored, same_subject=self.same_subject)
        if found is None or not reading.info.allow_counter:
            return found
        return found[0], found[1], None, found[3]  # the stream stores the sum instead of the payload


Confirm = Callable[[_Destination], Awaitable[None]]
"""Looks at the repeated copies of a destination, and records which are its own."""


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
        limits = size_limits(links)
        self.expectations: Expectations = Expectations(settings, route, limits)
        self.overtaken: int = 0
        self.deliveries: int = 0
        """Deliveries that the durable of the route has ever made: no more messages were routed by it."""
        self.compared_to: int = 0
        """The last message of the source that was read."""
        self._route = route
        self._links = links
        self._pace = Pace(rate)
        self._progress = progress
        consumer = route.source.kind.consumer(route.source)
        assert consumer is not None
        stream, self._durable = consumer
        self._messages = self._links[route.source.connection].stored(stream)
        self._judged: Sequence[Sequence[_Destination]] = ()
        self._destinations: Sequence[_Destination] = ()
        self._given_up: array[int] = array("Q")
        self._retries: Mapping[int, int] = {}
        """Messages that wait for their next attempt, and when the source stored them."""
        self._all_compared = False
        self._start = Start(0)
        self._removals: dict[int, Removals] = {}
        self._gone_since: set[int] = set()
        self._extra = ExtraKeys(route, links, self.expectations, self._read_all)
        self._wanted = EVERYTHING
        self._with_extra: Sequence[int] = ()

    async def run(self, wanted: Range) -> Report:
        """Compare, and return the report.

        Raises `RangeError` for a range of more than `MAX_SPAN` sequences, `SourceError` and `LinkError`; can be
        cancelled.
        """
        reader, name = self._messages, self._route.name
        self._wanted = wanted
        durable = await reader.consumer(self._durable)
        if durable is None:
            detail = f"stream {reader.stream} has no consumer {self._durable}, so nothing is known to be settled; "
            detail += "a router that runs creates it"
            raise SourceError(detail, reason=reasons.CONSUMER_DELETED)
        # Copies of everything up to the ack floor are in the streams that are looked up from here on.
        floor, info = durable.ack_floor.sequence, await reader.info()
        report = Report(name, *await limits_of(reader, wanted, info))
        self.deliveries = durable.delivered.delivery
        self.expectations.set_clock(await reader.clock() or 0, trio.current_time())
        self._start = start = await start_of(durable, self._route.source.deliver, reader, info)
        if start.sequence > report.first:
            report.notes.append(f"durable {self._durable} starts at message {start.sequence:,}: {EARLIER}")
            if wanted.first is None and wanted.since is None:
                report.first = start.sequence
        first = max(report.first, info.first_sequence, 1)
        if report.last - first >= MAX_SPAN:
            detail = f"{report.last - first + 1:,} sequences are too many for one audit; give a range of {MAX_SPAN:,}"
            raise RangeError(detail)
        await self._find_retries(report, first, min(report.last, floor))
        async with AsyncExitStack() as stack:
            self._destinations = await self._find_destinations(stack, report, first, min(report.last, floor))
            if first <= report.last:
                await self._compare(report, info, floor)
            self._all_compared = True
            dead = await self._dead_letters(report, first)
            for sequence in self._given_up:
                waits = "pending" if sequence in self._retries else "given_up"
                waits = "unknown" if sequence < start.sequence else waits
                report.counts["dead_lettered" if sequence in dead else waits] += 1
            self._judged = self._groups()
            for group in self._judged:
                await self._explain(group, dead)
                await self._judge(group, report)
        await self._find_extra(report)
        report.gone = await self._gone(report, info)
        for group in self._judged:
            self._gone_since.update(group[0].compared.sequences(comparison.GONE))
        report.messages -= len(self._gone_since)
        report.gone += len(self._gone_since)
        return report

    async def missing(self) -> AsyncGenerator[ExpectedCopy, None]:
        """Yield the copies that the last `run` has found to be missing, and whose messages the source still has.

        A stream with a limit per subject, such as a bucket, keeps the newest values: a copy that would replace a newer
        one is only counted in `overtaken`.
        """
        self.overtaken = 0
        for group in self._judged:
            async with aclosing(self._messages_at(group[0].compared.sequences(comparison.MISSING))) as found:
                async for _, message, copies in found:
                    expected = copies.get(group[0].index)
                    if message is None or expected is None or expected.copy is None:
                        continue
                    if await self._removals[group[0].index].has_newest(message, expected):
                        self.overtaken += 1
                    else:
                        yield expected

    async def extra(self) -> AsyncGenerator[ExtraKey, None]:
        """Yield the keys of copies that the source of the route lacks, compared again with the keys that it has now."""
        for index in self._with_extra:
            for one in await self._extra.find(index, self._wanted.has):
                yield one

    def lacking(self) -> int:
        """Return how many messages the last `run` has found to lack the copy of one destination, the most of any."""
        return max((group[0].compared.count(comparison.MISSING) for group in self._judged), default=0)

    def how_far(self) -> str:
        """Describe how far `run` has come, and where to continue, for an audit that was ended early."""
        if not self.compared_to:
            return "ended before any message was compared"
        waiting = sum(one.compared.count(comparison.AWAITED) for one in self._destinations)
        if self._all_compared:
            return f"ended after all messages were compared, before {waiting:,} copies that were not found were judged"
        waiting = sum(one.compared.count(comparison.AWAITED, self.compared_to) for one in self._destinations)
        text = f"ended after message {self.compared_to:,}; continue with --from {self.compared_to + 1}"
        if waiting:
            first = min(next(one.compared.sequences(comparison.AWAITED), NEVER) for one in self._destinations)
            copies = "1 earlier copy was" if waiting == 1 else f"{waiting:,} earlier copies were"
            text += f", but {copies} not found yet, the first one of message {first:,}"
        return text

    # --- the range ---

    async def _gone(self, report: Report, info: StreamInfo) -> int:
        """Return how many sequences of the range the stream no longer has."""
        gone = max(0, min(report.last + 1, info.first_sequence) - report.first)
        first = max(report.first, info.first_sequence)
        if info.messages == info.last_sequence - info.first_sequence + 1 or first > report.last:
            return gone
        if first == info.first_sequence and report.last == info.last_sequence:
            return gone + report.last - first + 1 - info.messages
        there = 0
        async with aclosing(self._read(info, first, report.last, [">"], headers_only=True)) as batches:
            async for batch in batches:
                await self._pace.spend(len(batch))
                there += len(batch)
        return gone + report.last - first + 1 - there

    # --- reading ---

    async def _find_retries(self, report: Report, first: int, last: int) -> None:
        """Find the settled messages that wait for their next attempts: before the streams of the destinations are read.

        What does not wait any more by then has its copies there.
        """
        retries = await RetryStream.of(self._links[self._route.source.connection], self._route)
        if retries is not None:
            self._retries = await retries.all(first, last, self._pace.spend, self._pace.most)
        elif self._route.retry is not None and (schedule := self._route.retry.schedule) is not None:
            report.notes.append(f"there is no stream {schedule.stream}, so no message waits for its next attempt")

    async def _find_destinations(
        self, stack: AsyncExitStack, report: Report, first: int, last: int
    ) -> Sequence[_Destination]:
        found = []
        message = await self._messages.next(first) if first <= last else None
        since = 0 if message is None else message.time_ns - CLOCKS_DIFFER_BY * 10**9
        for index, one in enumerate(self.expectations.destinations):
            shown = f"{one.connection}:{one.template}"
            if not self.expectations.is_judged(index):
                why = "a mirror gets a share of the messages" if one.mirror is not None else "it is not stored"
                report.notes.append(f"not judged: {shown}: {why}")
                continue
            by_sequence, several = self.expectations.by_sequence, self.expectations.handled
            compared = Comparison(first, last, by_sequence=by_sequence, several=several)
            destination = _Destination(index, shown, self.expectations, compared)
            pattern = ">" if one.stream is not None else one.mapping.pattern
            names = (
                [one.stream] if one.stream is not None else await self._links[one.connection].link.find_streams(pattern)
            )
            if not names:
                report.notes.append(f"no stream takes {pattern}, the subjects of {shown}")
            for stream in names:
                link = self._links[one.connection]
                stored = link.stored(stream)
                info = await stored.info()
                if info.has_others or one.stream is not None:
                    pattern, destination.same_subject = ">", False
                if info.retention != "limits":
                    report.notes.append(f"stream {stream} deletes what its consumers have acked: counted as expired")
                if info.allow_counter:
                    report.notes.append(f"stream {stream} stores sums (allow_msg_counter): payloads are not compared")
                start = await stored.first_at(since, info)
                ahead, no_digests = await ahead_by(stored, self._messages), several or info.allow_counter
                wanted = self._range(start, info.last_sequence, [pattern], headers_only=no_digests)
                reading = _Reading(link, info, wanted, ahead)
                stack.push_async_callback(reading.aclose)
                destination.readings.append(reading)
            found.append(destination)
        if not found:
            detail = f"route {report.route} has no destination in a stream (jetstream = true), so no copy is stored"
            raise SourceError(detail, reason=reasons.NOT_FOUND)
        return found

    def _read(
        self, info: StreamInfo, first: int, last: int, patterns: Sequence[str], *, headers_only: bool
    ) -> AsyncGenerator[Sequence[StoredMessage], None]:
        """Read a range of the source."""
        link = self._links[self._route.source.connection]
        return link.read(info, self._range(first, last, patterns, headers_only=headers_only))

    def _range(self, first: int, last: int, patterns: Sequence[str], *, headers_only: bool) -> StreamRange:
        return StreamRange(first, last, patterns, OWNER, headers_only, self._pace.most)

    async def _read_all(self, link: CommandLink, info: StreamInfo) -> AsyncGenerator[Sequence[StoredMessage], None]:
        """Read the headers of a stream, to the end that it has by then."""
        everything = self._range(max(info.first_sequence, 1), framing.LAST_SEQUENCE, [">"], headers_only=True)
        async with aclosing(link.read(info, everything)) as batches:
            async for batch in batches:
                await self._pace.spend(len(batch))
                yield batch

    async def _compare(self, report: Report, info: StreamInfo, floor: int) -> None:
        patterns, total = self._route.source.patterns, report.last - report.first + 1
        by_index = {one.index: one for one in self._destinations}
        first, handled = max(report.first, 1), self.expectations.handled
        async with aclosing(self._read(info, first, report.last, patterns, headers_only=handled)) as batches:
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
                for destination in self._destinations:
                    await destination.catch_up(batch[-1].sequence, batch[-1].time_ns, self._pace, self._confirm)
                self.compared_to = batch[-1].sequence
                self._progress(batch[-1].sequence - report.first + 1, total)
        for destination in self._destinations:
            await destination.catch_up(framing.LAST_SEQUENCE, NEVER, self._pace, self._confirm)
            await destination.read_again(self._pace)
            await self._confirm(destination)

    async def _dead_letters(self, report: Report, first: int) -> set[int]:
        """Return the messages that lack a copy and have a dead letter of the route."""
        dead = set[int]()
        letter, source = self._route.dead_letter, self._route.source
        if letter is None or not letter.jetstream:
            return dead
        without = set(self._given_up)
        pattern = ">" if letter.stream is not None else source.mapping(letter.subject).pattern
        link = self._links[letter.connection]
        names = [letter.stream] if letter.stream is not None else await link.link.find_streams(pattern)
        for name in names:
            stored = link.stored(name)
            info = await stored.info()
            everything, begin = [">" if info.has_others else pattern], max(info.first_sequence, 1)
            wanted = self._range(begin, info.last_sequence, everything, headers_only=True)
            async with aclosing(link.read(info, wanted)) as batches:
                async for batch in batches:
                    await self._pace.spend(len(batch))
                    for one in batch:
                        sequence = self._of_dead_letter(one)
                        if sequence is None or not first <= sequence <= report.last:
                            continue
                        if sequence not in without and not any(
                            to.compared.lacks(sequence) for to in self._destinations
                        ):
                            continue
                        # The sequence may have belonged to another message, before a stream was restored.
                        message, whole = await self._messages.get(sequence), await stored.get(one.sequence)
                        if message is None or whole is None:
                            continue
                        if is_letter_of(whole, self._route.name, self._messages.stream, message, is_gone=False):
                            dead.add(sequence)
        return dead

    def _of_dead_letter(self, message: StoredMessage) -> int | None:
        """Return the message of the source whose dead letter this may be; None if its id is not that of one."""
        origin = message_ids.origin(message_ids.find(message.headers))
        if origin is None or not origin.is_dead or origin.stream != framing.wire(self._messages.stream):
            return None
        return origin.sequence

    # --- judging ---

    async def _messages_at(
        self, sequences: Iterator[int]
    ) -> AsyncGenerator[tuple[int, StoredMessage | None, Mapping[int, ExpectedCopy]], None]:
        """Yield messages of the source, None for what is gone, with their copies, computed again, by destination."""
        while some := list(islice(sequences, TOGETHER)):
            await self._pace.spend(len(some))
            for sequence, message in zip(some, await self._messages.get_each(some), strict=True):
                copies = () if message is None else (await self.expectations.of(message)).copies
                yield sequence, message, {one.destination: one for one in reversed(copies)}

    async def _confirm(self, destination: _Destination) -> None:
        """Look at the repeated copies of a destination, and record which are its own."""
        compared = destination.compared
        by_sequence: dict[int, list[Repeated]] = {}
        for repeated in compared.repeated:
            by_sequence.setdefault(repeated.sequence, []).append(repeated)
        compared.repeated.clear()
        async with aclosing(self._messages_at(iter(sorted(by_sequence)))) as found:
            async for sequence, _, copies in found:
                if (expected := copies.get(destination.index)) is not None:
                    for repeated in by_sequence[sequence]:
                        compared.confirm(repeated, expected.identity)
        compared.confirm_spare()

    def _groups(self) -> Sequence[Sequence[_Destination]]:
        """Return the destinations that each message has a copy at, together with those that could have it instead.

        The first of a group has its comparison.
        """
        if not self.expectations.one_of:
            return [[one] for one in self._destinations]
        for other in self._destinations[1:]:
            self._destinations[0].compared.merge(other.compared)
        return [self._destinations]

    async def _explain(self, group: Sequence[_Destination], dead: set[int]) -> None:
        compared = group[0].compared
        if next(compared.sequences(comparison.AWAITED), None) is None:
            return
        waiting = [one for one in compared.sequences(comparison.AWAITED) if one in self._retries and one not in dead]
        async with aclosing(self._messages_at(iter(waiting))) as found:
            async for sequence, message, _ in found:
                # The sequence may have belonged to another message, before a stream was restored.
                if message is not None and message.time_ns == self._retries[sequence]:
                    compared.explain(sequence, comparison.WAITING)
        streams = [[reading.stored for reading in one.readings] for one in group]
        removals = [await Removals.of(one, self._messages) for one in streams]
        self._removals.update({to.index: one for to, one in zip(group, removals, strict=True)})
        before = max(one.before for one in removals)
        border = await self._messages.first_at(before, await self._messages.info()) if before else 0
        for sequence in compared.sequences(comparison.AWAITED):
            is_judged = sequence >= self._start.sequence and sequence not in dead
            if sequence < border and is_judged and not self.expectations.handled:
                compared.explain(sequence, comparison.EXPIRED)
        # The newest first: a copy may have been replaced by others that are lost as well.
        awaited = compared.sequences(comparison.AWAITED, newest_first=True)
        async with aclosing(self._messages_at(awaited)) as found:
            async for sequence, message, copies in found:
                if message is None:
                    compared.explain(sequence, comparison.GONE)
                elif sequence in dead:
                    compared.explain(sequence, comparison.DEAD_LETTERED)
                elif self.expectations.handled or self._start.is_before(sequence, message.time_ns):
                    compared.explain(sequence, comparison.UNKNOWN)
                elif any(
                    [await one.removed(message, copies.get(to.index)) for one, to in zip(removals, group, strict=True)]
                ):
                    compared.explain(sequence, comparison.EXPIRED)
                else:
                    compared.explain(sequence, comparison.MISSING)
                    removals[0].lost(copies.get(group[0].index))

    async def _find_extra(self, report: Report) -> None:
        """Count and list the keys of copies that the source of the route no longer has."""
        found = []
        for index in self._extra.destinations:
            extra = await self._extra.find(index, self._wanted.has)
            report.notes += self._extra.notes
            to = self.expectations.destinations[index]
            name = f"{to.connection}:{to.template}"
            report.counts["extra"] += len(extra)
            for one in extra[: MAX_FINDINGS - len(report.findings)]:
                detail = f"message {one.value.sequence:,} of stream {to.stream}"
                report.findings.append(Finding(one.origin.sequence, one.value.subject, "extra", name, detail))
            if extra:
                found.append(index)
        self._with_extra = found

    async def _judge(self, group: Sequence[_Destination], report: Report) -> None:
        """Count the copies by class, and list what is wrong."""
        compared, name = group[0].compared, " or ".join(one.name for one in group)
        for state, one in _NAMES.items():
            report.counts[one] += compared.count(state)
        for state in (comparison.MISSING, comparison.TWICE, comparison.DIFFERENT):
            sequences = islice(compared.sequences(state), MAX_FINDINGS - len(report.findings))
            while some := list(islice(sequences, TOGETHER)):
                for sequence, message in zip(some, await self._messages.get_each(some), strict=True):
                    subject = "" if message is None else message.subject
                    report.findings.append(Finding(sequence, subject, _NAMES[state], name, ""))
