"""The messages of a route that wait in the stream of its retries, or are due there and not settled yet."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import aclosing

from router_trio.audit.outcomes import shown_time
from router_trio.errors import SourceError, reasons
from router_trio.nats.command_link import CommandLink
from router_trio.nats.jetstream.api import StoredMessage
from router_trio.nats.range_reader import StreamRange
from router_trio.protocol import framing, headers, schedules
from router_trio.routing.stream.retries.origin import Place, place_of
from router_trio.settings import RouteSettings
from router_trio.settings.retry import RetryNames

MOST_PASSES = 8
"""Readings of a stream of retries in a row that find no further message, while others are stored in it."""


class RetryStream:
    """The stream of retries of a route, and how much of it is settled by now.

    A message moves on in it: when it is due, it is stored again, and so is its next schedule if it fails. It leaves the
    stream only when its copies are stored, or when it is dead-lettered or given up. So read the durable of the source
    before this, then this from the first message on, and then the streams of the destinations.
    """

    def __init__(self, link: CommandLink, route: str, stream: str, names: RetryNames, source: str, floor: int) -> None:
        """Messages that are due are settled up to `floor`. `source` is the stream that they came from."""
        self.stream: str = stream
        self.patterns: tuple[str, str] = (f"{names.schedules}.*", names.target)
        self._link = link
        self._route = route
        self._names = names
        self._source = framing.wire(source)
        self._floor = floor

    @classmethod
    async def of(cls, link: CommandLink, route: RouteSettings) -> RetryStream | None:
        """Return the stream of a route; None if it has none, or if it does not exist. Raises `SourceError`."""
        source = route.source.kind.stream(route.source)
        if source is None or route.retry is None or route.retry.schedule is None:
            return None
        names, stream = route.retry.schedule.names(route.name), route.retry.schedule.stream
        try:
            durable = await link.stored(stream).consumer(names.durable)
            if durable is None or names.target not in durable.config.filter_subjects:
                durable = await link.stored(stream).consumer(names.other_durable)
        except SourceError as error:
            if error.reason == reasons.STREAM_NOT_FOUND:
                return None
            raise
        return cls(link, route.name, stream, names, source, 0 if durable is None else durable.ack_floor.sequence)

    def waits(self, stored: StoredMessage) -> Place | None:
        """Return which message of the source a stored one is, if it waits or is not known to be settled."""
        if stored.subject == self._names.target and stored.sequence <= self._floor:
            return None
        place = place_of(stored.headers, stored.subject, self._names, self._route)
        return place if place is not None and place.stream == self._source else None

    def describe(self, stored: StoredMessage) -> str:
        """Return where a message waits, and until when."""
        due = schedules.due_ns(headers.find(stored.headers, schedules.SCHEDULE) or b"")
        until = "is due" if due is None else f"waits until {shown_time(due)}"
        return f"its next attempt {until}: message {stored.sequence:,} of stream {self.stream}"

    async def all(self, first: int, last: int, spend: Callable[[int], Awaitable[None]], most: int) -> dict[int, int]:
        """Return the messages from `first` to `last` of the source that wait, with the times when they were stored.

        `spend` is called with the number of messages of each batch that was read, of `most` at a time. What moves on
        meanwhile is found where it is then. Raises `SourceError`.
        """
        found: dict[int, int] = {}
        position, passes = 0, 0
        while passes < MOST_PASSES:
            info = await self._link.stored(self.stream).info()
            begin = max(info.first_sequence, position + 1)
            if info.last_sequence < begin:
                break
            known = len(found)
            wanted = StreamRange(begin, info.last_sequence, self.patterns, "audit", True, most)
            async with aclosing(self._link.read(info, wanted)) as batches:
                async for batch in batches:
                    await spend(len(batch))
                    for stored in batch:
                        place = self.waits(stored)
                        if place is not None and first <= place.sequence <= last:
                            found[place.sequence] = place.time_ns
            position = info.last_sequence
            passes = 0 if len(found) > known else passes + 1
        return found
