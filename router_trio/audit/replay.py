"""Send a range of the source of a route through the route again, in the order of its stream.

The source is read by a consumer of its own, so the durable of the route does not move. A work queue, or a stream that
keeps messages for its consumers, is read from its leader without one, and so loses nothing. Copies have the ids that
they had, so a stream stores what it has already only once, within its duplicate window.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field
from secrets import token_hex

from router_trio.audit.audit import Pace, Progress, Range, limits_of
from router_trio.audit.expectations import size_limits
from router_trio.errors import EvaluationError, SourceError, reasons
from router_trio.errors.quotes import excerpt, redact
from router_trio.expressions.expression import Expression
from router_trio.expressions.message import Facts
from router_trio.nats.command_link import CommandLink
from router_trio.nats.jetstream.api import StoredMessage, StreamInfo
from router_trio.nats.jetstream.pubacks import Refused, read_puback
from router_trio.nats.range_reader import StreamRange
from router_trio.nats.requests import Request
from router_trio.protocol import framing, message_ids
from router_trio.routing.rehearsal import Arrived, Copy, Place, Rehearsal
from router_trio.routing.route_plans import Handler
from router_trio.settings import RouteSettings, Settings
from router_trio.subjects.patterns import matches

TOGETHER = 64
"""Messages whose copies are sent before the first answer is waited for. Those of one source subject go one by one."""

REPLAYED, STORED_BEFORE, FILTERED, FAILED, SKIPPED = "replayed", "stored_before", "filtered", "failed", "skipped"
OUTCOMES = (REPLAYED, STORED_BEFORE, FILTERED, FAILED, SKIPPED)
"""The outcomes of a message. `stored_before`: every stream has its copy already, by its id; `skipped`: the condition
is false."""


@dataclass(slots=True)
class _Sent:
    """A message and the copies that were sent for it. `answers` are requests for PubAcks, with their copies."""

    sequence: int
    answers: list[tuple[Copy, Request]] = field(default_factory=list)
    has_core: bool = False


class Replay:
    """A replay of one route over links of its own. `counts` has the messages by outcome."""

    def __init__(
        self,
        settings: Settings,
        route: RouteSettings,
        links: Mapping[str, CommandLink],
        handlers: dict[str, Handler],
        *,
        where: Expression | None = None,
        new_ids: bool = False,
        dry_run: bool = False,
        progress: Progress = lambda done, total: None,
        report: Callable[[int, str], None] = lambda sequence, why: None,
    ) -> None:
        """`links` are those of the source and of all destinations. `report` is called for each message that failed.

        With `new_ids`, streams store the copies again even if they have them. `dry_run` reads and maps, sends nothing,
        and does not call the handler.
        """
        self.counts: Counter[str] = Counter(dict.fromkeys(OUTCOMES, 0))
        self.first: int = 0
        self.last: int = 0
        """The range, once it is known."""
        limits = size_limits(links)
        self._rehearsal = Rehearsal(settings, route, handlers, limits)
        self._route = route
        self._links = links
        self._where = where
        self._dry_run = dry_run
        self._progress = progress
        self._report = report
        self._prefix = b"replay-%b." % token_hex(4).encode() if new_ids else b""
        rate = route.limit.rate if route.limit is not None else None
        self._pace = Pace(0.0 if rate is None else rate.messages / rate.seconds)
        consumer = route.source.kind.consumer(route.source)
        assert consumer is not None, "the route reads a stream"
        self._stream, self._durable = consumer
        self._messages = links[route.source.connection].stored(self._stream)
        self._waiting: dict[str, _Sent] = {}
        """Messages that were sent and are not confirmed, by source subject, in order."""
        self._finished = 0
        self._is_cut = False
        """True if the range was to end behind the last message that the route has settled."""

    async def run(self, wanted: Range) -> None:
        """Replay the range, as far as the durable of the route has settled it.

        Stops at the first copy that a destination refuses: what is behind it must not pass it. Raises `SourceError`
        and `LinkError` then; can be cancelled. `how_far` has where to continue.
        """
        info = await self._messages.info()
        self.first, self.last = await limits_of(self._messages, wanted, info)
        self._finished = self.first - 1
        if (durable := await self._messages.consumer(self._durable)) is not None:
            # The route itself sends the others.
            self._is_cut = durable.ack_floor.sequence < self.last
            self.last = min(self.last, durable.ack_floor.sequence)
        async with aclosing(self._selected(info)) as selected:
            async for message in selected:
                await self._pace.spend(1)
                if message.subject in self._waiting or len(self._waiting) == TOGETHER:
                    await self._finish()
                await self._replay(message)
                if not self._waiting:
                    self._finished = message.sequence
        await self._finish()
        self._finished = self.last

    def summary(self) -> str:
        """Describe the range and the counts.

        A dry run sends nothing, so it does not know which copies are stored already, and does not count them.
        """
        if self.first > self.last:
            later = "; the route itself sends later messages" if self._is_cut else ""
            why = f"the range ends with message {self.last:,} and begins with {self.first:,}"
            return f": nothing to replay, as {why}{later}"
        counts = dict(self.counts)
        if self._dry_run:
            del counts[STORED_BEFORE]
        words = ((name.replace("_", " "), count) for name, count in counts.items())
        would = "would be " if self._dry_run else ""
        text = ", ".join(f"{count:,} {would if name == REPLAYED else ''}{name}" for name, count in words)
        return f", messages {self.first:,} to {self.last:,}: {text}"

    def how_far(self) -> str:
        """Describe where to continue after a replay that was ended early."""
        if not self.first:
            return "ended before any message was replayed"
        after = "before any message was confirmed"
        if self._finished >= self.first:
            after = f"after message {self._finished:,}"
        text = f"ended {after}; continue with --from {self._finished + 1}"
        return f"{text}, which may repeat up to {len(self._waiting)} messages" if self._waiting else text

    async def _selected(self, info: StreamInfo) -> AsyncGenerator[StoredMessage, None]:
        patterns, total = self._route.source.patterns, self.last - self.first + 1
        link, first = self._links[self._route.source.connection], max(self.first, 1)
        async with aclosing(link.read(info, StreamRange(first, self.last, patterns, "replay"))) as batches:
            async for batch in batches:
                for message in batch:
                    if any(matches(one, message.subject) for one in patterns) and self._is_wanted(message):
                        yield message
                self._progress(batch[-1].sequence - self.first + 1, total)

    def _is_wanted(self, message: StoredMessage) -> bool:
        if self._where is None:
            return True
        facts = Facts(
            message.subject,
            message.headers,
            message.payload,
            stream=self._stream,
            sequence=message.sequence,
            deliveries=1,
            time_ns=message.time_ns,
        )
        try:
            wanted = bool(self._where.evaluate(facts))
        except EvaluationError as error:
            self._fail(message.sequence, f"--where failed: {error}")
            return False
        self.counts[SKIPPED] += not wanted
        return wanted

    async def _replay(self, message: StoredMessage) -> None:
        """Send the copies of a message, and begin to wait for their answers."""
        if self._dry_run and self._rehearsal.calls_handler:
            self.counts[REPLAYED] += 1  # as far as is known without the handler
            return
        place = Place(self._stream, message.sequence, message.time_ns)
        own = message_ids.of_position(framing.wire(self._stream), message.sequence, message.time_ns)
        first = own if self._route.source.own_ids else message_ids.find(message.headers) or own
        arrived = Arrived(message.subject, message.headers, message.payload, self._prefix + first, place)
        result = await self._rehearsal.run(arrived)
        if result.failed is not None:
            detail = excerpt(redact(result.failed.detail), 300)
            self._fail(message.sequence, f"it fails in the route: {result.failed.reason}{': ' * bool(detail)}{detail}")
        elif result.filtered is not None:
            self.counts[FILTERED] += 1
        elif self._dry_run:
            self.counts[REPLAYED] += 1
        else:
            self._send(message, result.copies)

    def _send(self, message: StoredMessage, copies: tuple[Copy, ...]) -> None:
        sent = self._waiting[message.subject] = _Sent(message.sequence)
        for made in copies:
            link = self._links[made.connection]
            subject = framing.wire(made.subject)
            if made.jetstream:
                request = link.requests.send(subject, made.payload, made.headers)
                if made.mirror:
                    request.forget()
                else:
                    sent.answers.append((made, request))
            else:
                link.link.wire.send(framing.publish(subject, made.payload, headers=made.headers))
                sent.has_core |= not made.mirror

    async def _finish(self) -> None:
        """Wait until everything that was sent is confirmed, and count it. Raises `SourceError` if a copy is refused."""
        if any(sent.has_core for sent in self._waiting.values()):
            for name in {to.connection for to in self._route.to}:
                await self._links[name].link.fence()
        for subject, sent in list(self._waiting.items()):
            duplicates = [await self._is_duplicate(sent, copy, request) for copy, request in sent.answers]
            new = sent.has_core or not all(duplicates)
            self.counts[REPLAYED if new or not duplicates else STORED_BEFORE] += 1
            self._finished = sent.sequence
            del self._waiting[subject]

    async def _is_duplicate(self, sent: _Sent, copy: Copy, request: Request) -> bool:
        what = f"message {sent.sequence}: {excerpt(copy.subject)} on connection {copy.connection}"
        try:
            (stream, _), _, duplicate = read_puback(await request.answered())
        except Refused as error:
            raise SourceError(f"{what} was refused: {error}", reason=error.reason) from error
        except SourceError as error:
            raise SourceError(f"{what}: {error}", reason=error.reason) from error
        if copy.stream is not None and stream != copy.stream:
            detail = f"{what} was stored by stream {stream!r} instead of {copy.stream!r}"
            raise SourceError(detail, reason=reasons.JETSTREAM)
        return duplicate

    def _fail(self, sequence: int, why: str) -> None:
        self.counts[FAILED] += 1
        self._report(sequence, why)
