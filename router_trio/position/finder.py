"""Find the position of a consumer of a route's source in the stream of the route's destination."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import aclosing

from router_trio.audit.audit import CLOCKS_DIFFER_BY
from router_trio.audit.expectations import Expectations, size_limits
from router_trio.errors import SourceError, reasons
from router_trio.nats.command_link import CommandLink
from router_trio.nats.jetstream.api import StreamInfo
from router_trio.nats.stored import StoredMessages
from router_trio.position.answer import MAX_LISTED, Answer
from router_trio.position.decision import Search
from router_trio.position.filters import UnmappableError, map_filters
from router_trio.position.standing import Standing, read_standing
from router_trio.protocol import message_ids
from router_trio.settings import RouteSettings, Settings
from router_trio.subjects.patterns import covers, matches, overlaps

TOGETHER = 64
"""Messages without a copy that are requested at a time."""


def copies_on(route: RouteSettings) -> list[str]:
    """Return the names of the connections that the route sends to."""
    return list(dict.fromkeys(to.connection for to in route.to))


class Finder:
    """Finds positions in the copies of one route, over links of its own. Every method can be cancelled.

    They raise `SourceError` if a server refuses a request, or if the question has no answer, with the reason.
    """

    def __init__(self, settings: Settings, route: RouteSettings, links: Mapping[str, CommandLink]) -> None:
        """`links` are those that `copies_on` names, and that of the source unless it can't be reached."""
        limits = size_limits(links)
        self._expectations = Expectations(settings, route, limits)
        self._route = route
        self._links = links
        consumer = route.source.kind.consumer(route.source)
        assert consumer is not None, "only what a stream holds has positions"
        self._source_stream, self._durable = consumer

    async def standing(self, consumer: str) -> Standing:
        """Read how far a consumer of the source has come."""
        return await read_standing(self._links[self._route.source.connection].stored(self._source_stream), consumer)

    async def find(self, standing: Standing, *, from_checkpoint: bool = False) -> Answer:
        """Return the position. `from_checkpoint`: the source can't be reached, so only the copies are read."""
        if not self._expectations.by_sequence:
            detail = 'with message_id = "sender" the ids of copies do not contain the sequences of their messages'
            raise SourceError(detail, reason=reasons.NOT_FOUND)
        if standing.stream != self._source_stream:
            # The sequences of one stream have no meaning in another one.
            detail = f"the checkpoint is of stream {standing.stream}, and route {self._route.name} reads "
            raise SourceError(f"{detail}{self._source_stream}", reason=reasons.NOT_FOUND)
        connection, stream, indexes = await self._stream_of_copies()
        copy = self._links[connection].stored(stream)
        info = await copy.info()
        search = Search(standing.consumed, has_gaps=True)
        source: StoredMessages | None = None
        subjects: Sequence[str] = (">",)
        if not from_checkpoint:
            source = self._links[self._route.source.connection].stored(self._source_stream)
            source_info = await source.info()
            if not source_info.has_others:
                subjects = source_info.subjects
        patterns, filters, notes = self._filters(standing.filters, subjects, info, indexes)
        if source is not None:
            search = await self._expect(source, standing)
        since = standing.since - CLOCKS_DIFFER_BY * 10**9
        first = max(info.first_sequence, 1) if standing.since == 0 else await copy.first_at(since, info)
        others = 0
        pattern = patterns[0] if len(patterns) == 1 else ">"
        async with aclosing(copy.batches(first, info.last_sequence, pattern)) as batches:
            async for batch in batches:
                for one in batch:
                    if not any(matches(wanted, one.subject) for wanted in patterns):
                        continue
                    origin = message_ids.origin(message_ids.find(one.headers))
                    is_copy = origin is not None and any(
                        self._expectations.identify(index, one, same_subject=not info.has_others) for index in indexes
                    )
                    if is_copy and origin is not None:
                        is_copy = search.found(one.sequence, origin.sequence, origin.time_ns)
                    others += search.has_begun and not is_copy
        end = info.last_sequence + 1
        position = search.position(end)
        answer = Answer(self._route.name, standing, connection, stream, filters, position, notes=notes)
        answer.others, answer.from_checkpoint = others, from_checkpoint
        if source is None:
            answer.notes.append("the source was not read: messages without a copy, and acks since then, are not known")
        else:
            await self._explain(source, search, answer)
            after = await self.standing(standing.consumer)
            if after.consumed != standing.consumed:
                answer.notes.append("the consumer has received or acked messages meanwhile: stop it, and ask again")
        return answer

    async def apply(self, answer: Answer) -> None:
        """Create the durable at the position. Raises `SourceError` if the stream has a consumer with that name."""
        copy, name = self._links[answer.connection].stored(answer.stream), answer.standing.consumer
        if await copy.consumer(name) is not None:
            detail = f"stream {answer.stream} has a consumer {name} already; delete it, or continue with it"
            raise SourceError(detail, reason=reasons.CONSUMER_MISMATCH)
        config = answer.standing.durable_at(answer.position.sequence, list(answer.filters))
        await copy.create_consumer(name, config)
        answer.applied = True

    async def _stream_of_copies(self) -> tuple[str, str, list[int]]:
        """Return the connection and the stream that have all copies, and the indexes of their destinations."""
        places: dict[tuple[str, str], list[int]] = {}
        without: list[str] = []
        for index, one in enumerate(self._expectations.destinations):
            if not self._expectations.is_judged(index):
                continue
            names: Sequence[str] = [one.stream] if one.stream is not None else ()
            if not names:
                names = await self._links[one.connection].link.find_streams(one.mapping.pattern)
            if not names:
                without.append(f"{one.mapping.pattern} on {one.connection}")
            for name in names:
                places.setdefault((one.connection, name), []).append(index)
        name = self._route.name
        if without and not places:
            detail = f"no stream takes the copies of route {name}, {', '.join(without)}"
            raise SourceError(detail, reason=reasons.NOT_FOUND)
        if not places:
            detail = f"route {name} has no destination in a stream (jetstream = true), so no copy is stored"
            raise SourceError(detail, reason=reasons.NOT_FOUND)
        if len(places) > 1:
            listed = ", ".join(f"{stream} on {connection}" for connection, stream in places)
            detail = f"route {name} has copies in several streams ({listed}), and a consumer reads only one"
            raise SourceError(detail, reason=reasons.NOT_FOUND)
        ((connection, stream), indexes) = next(iter(places.items()))
        return connection, stream, indexes

    def _filters(
        self, wanted: Sequence[str], subjects: Sequence[str], info: StreamInfo, indexes: Sequence[int]
    ) -> tuple[list[str], list[str], list[str]]:
        """Return the subjects of the copies, the filters that a consumer needs to get only these, and notes.

        `subjects` are those of the source, `wanted` the filters of its consumer.
        """
        sources, notes = self._route.source.patterns, list[str]()
        reads = [
            one if covers(subject, one) else subject
            for one in wanted or (">",)
            for subject in subjects
            if overlaps(one, subject)
        ]
        outside = [one for one in dict.fromkeys(reads) if not any(covers(source, one) for source in sources)]
        if outside:
            notes.append(f"the consumer reads {', '.join(outside)}, and the route copies only {', '.join(sources)}")
        if info.has_others:
            if wanted and not all(any(covers(one, source) for one in wanted) for source in sources):
                detail = f"stream {info.name} may change the subjects of copies, so the filters can't be mapped"
                raise SourceError(detail, reason=reasons.NOT_FOUND)
            return [">"], [], notes
        mapped = list[str]()
        try:
            for index in indexes:
                for one in map_filters(wanted, sources, self._expectations.destinations[index].mapping.destination):
                    self._check_others(one, index, indexes, wanted)
                    mapped.append(one)
        except UnmappableError as error:
            detail = f"the filters of the consumer can't be mapped: {error}"
            raise SourceError(detail, reason=reasons.NOT_FOUND) from None
        if not mapped:
            detail = f"route {self._route.name} copies no message that matches {', '.join(wanted)}"
            raise SourceError(detail, reason=reasons.NOT_FOUND)
        mapped = [one for one in dict.fromkeys(mapped) if not any(o != one and covers(o, one) for o in mapped)]
        needed = not all(any(covers(one, subject) for one in mapped) for subject in info.subjects)
        return mapped, mapped if needed else [], notes

    def _check_others(self, mapped: str, index: int, indexes: Iterable[int], wanted: Sequence[str]) -> None:
        """Refuse a filter that copies for another destination match, though the consumer does not read them all."""
        sources = self._route.source.patterns
        if not wanted or all(any(covers(one, source) for one in wanted) for source in sources):
            return
        for other in indexes:
            mapping = self._expectations.destinations[other].mapping
            if other != index and overlaps(mapped, mapping.pattern):
                raise UnmappableError(f"copies for {mapping.destination} have subjects that match {mapped}, too")

    async def _expect(self, source: StoredMessages, standing: Standing) -> Search:
        """Read the messages of the source above the ack floor."""
        info = await source.info()
        patterns = list(standing.filters) or list(self._route.source.patterns)
        all_there = info.messages == info.last_sequence - info.first_sequence + 1
        all_there = all_there and info.first_sequence <= standing.floor + 1
        # Without knowing that nothing was deleted, all messages are read to see what is missing.
        pattern = patterns[0] if all_there and len(patterns) == 1 else ">"
        search, there = Search(standing.consumed, has_gaps=not all_there), 0
        async with aclosing(source.batches(standing.floor + 1, info.last_sequence, pattern)) as batches:
            async for batch in batches:
                for one in batch:
                    there += one.sequence <= standing.delivered
                    wanted = not standing.filters or any(matches(each, one.subject) for each in standing.filters)
                    if wanted and self._expectations.reads(one):
                        search.expect(one.sequence, one.time_ns)
        search.has_gaps = not all_there and there < standing.delivered - standing.floor
        return search

    async def _explain(self, source: StoredMessages, search: Search, answer: Answer) -> None:
        """Find out why messages above the ack floor have no copy."""
        durable = await source.consumer(self._durable)
        floor = 0 if durable is None else durable.ack_floor.sequence
        without = list[int]()
        for sequence in search.without_copy():
            if sequence > floor:
                answer.waiting += 1
            else:
                without.append(sequence)
        for place in range(0, len(without), TOGETHER):
            some = without[place : place + TOGETHER]
            for sequence, message in zip(some, await source.get_each(some), strict=True):
                if message is None:
                    continue
                expected = await self._expectations.of(message)
                if not expected.copies or self._expectations.handled:
                    answer.filtered += 1
                    continue
                answer.missing += 1
                if len(answer.lost) < MAX_LISTED:
                    answer.lost.append(sequence)
