"""Find a message of a stream, and what became of it in each route: its copies and its dead letters, by their ids.

Everything is read from the leaders of the streams, and nothing is changed. At a destination only messages with the
subject of the copy are read, from the time of the message on, and a bounded number of them.

A stream that is missing or can't be read makes only what it could have shown unknown: the search continues without it.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field

import trio

from router_trio.audit.audit import CLOCKS_DIFFER_BY, connections_of
from router_trio.audit.expectations import Expectations, ExpectedCopy, size_limits
from router_trio.audit.letter import is_letter_of
from router_trio.audit.outcomes import (
    CopyFound,
    Facts,
    Found,
    LetterFound,
    Outcome,
    Progress,
    Stored,
    Whereabouts,
    outcome_of,
)
from router_trio.audit.removals import Removals, ahead_by
from router_trio.audit.start import Start, start_of
from router_trio.audit.waiting import RetryStream
from router_trio.errors import MappingError, SourceError, reasons
from router_trio.nats.command_link import CommandLink
from router_trio.nats.jetstream.api import StoredMessage, StreamInfo
from router_trio.nats.stored import StoredMessages
from router_trio.protocol import buckets, framing, headers, message_ids, schedules
from router_trio.routing.dead_letters import PREFIX
from router_trio.routing.rehearsal import Copy, Limits
from router_trio.routing.route_plans import Destination
from router_trio.routing.stream.retries.origin import Place
from router_trio.settings import RouteSettings, Settings
from router_trio.subjects.mapping import Mapping as SubjectMapping
from router_trio.subjects.patterns import matches

MAX_READ = 20_000
"""Messages of one stream that are read to find a copy or a dead letter."""

MAX_BEHIND = 1_000
"""Messages behind a copy that are read to find the same copy a second time."""

HAS_PARTITIONS = "it has partitions, so the ids of its copies may lack the time of a message of this stream"
"""Why copies of a route are not looked for."""

UNLIMITED = Limits(sys.maxsize, sys.maxsize)
"""The limits of a server that can't be reached."""


def connections_for(settings: Settings, subject: str) -> list[str]:
    """Return the names of the connections that are needed to find a message with this subject."""
    names = []
    for route in settings.routes:
        if route.source.kind.is_stored:
            names += connections_of(route) if _reads(route, subject) else [route.source.connection]
    return list(dict.fromkeys(names))


def routes_for(settings: Settings, subject: str) -> list[str]:
    """Return the names of the routes from streams that read this subject."""
    return [route.name for route in settings.routes if route.source.kind.is_stored and _reads(route, subject)]


def _reads(route: RouteSettings, subject: str) -> bool:
    return any(matches(pattern, subject) for pattern in route.source.patterns)


Recognizes = Callable[[StoredMessage, bool], bool]
"""Returns True for the message that is looked for. The flag is True if its stream keeps the subjects of publishes."""


@dataclass(slots=True)
class _Search:
    """The result of a search: what was found, in which streams, and whether all of their messages were read.

    `unread` is why one of the streams could not be read.
    """

    found: list[tuple[Stored, StoredMessage, StreamInfo]] = field(default_factory=list)
    streams: list[StoredMessages] = field(default_factory=list)
    is_complete: bool = True
    unread: str = ""


@dataclass(frozen=True, slots=True)
class _Source:
    """A stream, and the routes that read it."""

    connection: str
    stored: StoredMessages
    routes: Sequence[RouteSettings]


class Finder:
    """Finds messages over links of its own."""

    def __init__(
        self,
        settings: Settings,
        links: Mapping[str, CommandLink],
        unreachable: Mapping[str, str] | None = None,
        former_names: Mapping[str, str] | None = None,
    ) -> None:
        """`links` are those of all connections that `connections_for` names.

        `unreachable` are connections without a link, each with the reason. `former_names` are the names that renamed
        routes had when they made the copies, by today's name.
        """
        self._settings = settings
        self._links = links
        self._unreachable = unreachable or {}
        self._former_names = former_names or {}
        self._limits = size_limits(links) | dict.fromkeys(self._unreachable, UNLIMITED)
        self._notes: list[str] = []
        self._unread: list[str] = []
        self._lacks_permission = False

    async def find(self, subject: str, sequence: int | None = None) -> Found:
        """Find the last message with this subject, or the one with this sequence, in each stream that has one.

        Raises `LinkError` if a link is lost; can be cancelled.
        """
        self._notes, self._unread, self._lacks_permission, found = [], [], False, []
        for (connection, stream), routes in self._sources().items():
            try:
                source = _Source(connection, self.stored(connection, stream), routes)
                if (where := await self._in(source, subject, sequence)) is not None:
                    where.routes += self._unstored(connection, subject)
                    found.append(where)
            except SourceError as error:
                self.report(connection, error)
        return Found(subject, found, self._notes, list(dict.fromkeys(self._unread)), self._lacks_permission)

    def report(self, connection: str, error: SourceError) -> str:
        """Record that something could not be read. Return why, as text."""
        why = str(error)
        self._lacks_permission |= error.reason == reasons.PERMISSION_DENIED
        self._unread.append(why if connection in self._unreachable else f"connection {connection}: {why}")
        return why

    async def _in(self, source: _Source, subject: str, sequence: int | None) -> Whereabouts | None:
        # What is settled by now has its copies in the streams that are read from here on.
        progress = {
            route.name: await self._progress(source, route)
            for route in source.routes
            if route.source.partitions is None
        }
        message = await self._message(source.stored, subject, sequence)
        is_gone = message is None
        if message is None:
            message = await self._gone(source, subject, sequence)
        if message is None:
            if not any(_reads(route, subject) for route in source.routes):
                self._notes[-1] += f"; no route from this stream reads {subject}"
                if not subject.startswith("$") and any(route.source.bucket is not None for route in source.routes):
                    key = f"{buckets.prefix_of(buckets.bucket_of(source.stored.stream))}{subject}"
                    self._notes[-1] += f": a key has the subject {key}"
            return None
        stored = _stored(source.connection, source.stored.stream, message)
        where = Whereabouts(stored, len(message.payload), is_gone)
        for route in source.routes:
            if not _reads(route, subject):
                where.routes.append(Outcome(route.name, "not_of_its_filter", route.source.pattern))
                continue
            if route.source.partitions is not None:
                where.routes.append(Outcome(route.name, "unknown", HAS_PARTITIONS))
                continue
            one = _OneRoute(self, route, source.stored, message, is_gone)
            where.routes.append(await one.outcome(progress[route.name]))
        return where

    def stored(self, connection: str, stream: str) -> StoredMessages:
        """Return the messages of a stream. Raises `SourceError` if its connection is unreachable."""
        return self._link(connection).stored(stream)

    def _link(self, connection: str) -> CommandLink:
        if (why := self._unreachable.get(connection)) is not None:
            raise SourceError(why, reason=reasons.NOT_CONNECTED)
        return self._links[connection]

    async def retries(self, route: RouteSettings) -> RetryStream | None:
        """Return the stream of retries of a route; None if it has none. Raises `SourceError`."""
        return await RetryStream.of(self._link(route.source.connection), route)

    def expectations(self, route: RouteSettings) -> Expectations:
        """Return the rules by which the copies of a route are recognized."""
        return Expectations(self._settings, self.as_named(route), self._limits)

    def as_named(self, route: RouteSettings) -> RouteSettings:
        """Return a route with the name that it had when it made the copies."""
        former = self._former_names.get(route.name)
        return route if former is None else route.model_copy(update={"name": former})

    async def search(
        self,
        connection: str,
        named: str | None,
        pattern: str,
        recognizes: Recognizes,
        *,
        source: StoredMessages | None = None,
        since: int = 0,
        newest: bool = False,
    ) -> _Search:
        """Look for a message in the stream that is `named`, or in those that take the subjects of the pattern.

        With a `source`, it is looked for from the time `since` of that stream on, in nanoseconds, and then in what was
        stored shortly before, as clocks may have been set. Without, from the first message on, or with `newest` among
        the last ones.
        """
        search = _Search()
        try:
            names = [named] if named is not None else await self._link(connection).link.find_streams(pattern)
        except SourceError as error:
            search.unread = self.report(connection, error)
            return search
        for name in names:
            try:
                stored = self.stored(connection, name)
                info = await stored.info()
                same_subject = named is None and not info.has_others
                read = pattern if same_subject else ">"
                search.streams.append(stored)
                first = max(info.first_sequence, 1)
                if source is None:
                    if newest and (last := await stored.last(read)) is not None and recognizes(last, same_subject):
                        search.found.append((_stored(connection, name, last), last, info))
                        continue
                    if newest:
                        first = max(first, info.last_sequence - MAX_READ + 1)
                    await _read(search, connection, stored, info, (first, info.last_sequence), read, recognizes)
                    continue
                begin = await stored.first_at(since + await ahead_by(stored, source), info)
                if await _read(search, connection, stored, info, (begin, info.last_sequence), read, recognizes):
                    continue
                early = await stored.first_at(since - CLOCKS_DIFFER_BY * 10**9, info)
                await _read(search, connection, stored, info, (early, begin - 1), read, recognizes)
            except SourceError as error:
                search.unread = self.report(connection, error)
        return search

    def _sources(self) -> Mapping[tuple[str, str], Sequence[RouteSettings]]:
        """Return the routes from each stream, by its connection and name."""
        sources: dict[tuple[str, str], list[RouteSettings]] = {}
        for route in self._settings.routes:
            stream = route.source.kind.stream(route.source)
            if stream is not None:
                sources.setdefault((route.source.connection, stream), []).append(route)
        return sources

    async def _progress(self, source: _Source, route: RouteSettings) -> Progress | str:
        """Return how far the durable of a route has come, or why that is not known."""
        consumer, start = route.source.kind.consumer(route.source), Start(0)
        try:
            durable = None if consumer is None else await source.stored.consumer(consumer[1])
            if durable is not None:
                info = await source.stored.info()
                start = await start_of(durable, route.source.deliver, source.stored, info)
        except SourceError as error:
            return f"it is not known what is settled: {self.report(source.connection, error)}"
        if durable is None:
            why = "the durable of the route does not exist, so nothing is known to be settled"
            return f"{why}; a router that runs creates it"
        return Progress(
            durable.name,
            durable.ack_floor.sequence,
            durable.delivered.sequence,
            durable.paused,
            start.sequence,
        )

    async def _message(self, stored: StoredMessages, subject: str, sequence: int | None) -> StoredMessage | None:
        if sequence is None:
            message = await stored.last(subject)
            if message is None:
                self._notes.append(f"stream {stored.stream} has no message with the subject {subject}")
            return message
        message = await stored.get(sequence)
        if message is None:
            self._notes.append(f"stream {stored.stream} has no message {sequence:,}")
        elif message.subject != subject:
            self._notes.append(f"message {sequence:,} of stream {stored.stream} has the subject {message.subject}")
            return None
        return message

    async def _gone(self, source: _Source, subject: str, sequence: int | None) -> StoredMessage | None:
        """Return what copies and dead letters show of a message that its stream no longer has: place and subject."""
        if sequence is not None and await source.stored.get(sequence) is not None:
            return None  # of another subject
        origins: list[message_ids.Origin] = []
        for route in source.routes:
            if _reads(route, subject) and route.source.own_ids and route.source.partitions is None:
                origins += await self._origins(source, route, subject, sequence)
        if not origins:
            return None
        newest = max(origins, key=lambda one: (one.sequence, one.time_ns))
        return StoredMessage(newest.sequence, newest.time_ns, subject, b"", b"")

    async def _origins(
        self, source: _Source, route: RouteSettings, subject: str, sequence: int | None
    ) -> list[message_ids.Origin]:
        stream, expectations = framing.wire(source.stored.stream), self.expectations(route)
        origins: list[message_ids.Origin] = []

        def of(stored: StoredMessage) -> message_ids.Origin | None:
            origin = message_ids.origin(message_ids.find(stored.headers))
            is_its = origin is not None and origin.stream == stream and sequence in (None, origin.sequence)
            return origin if is_its else None

        for index, one in enumerate(expectations.destinations):
            if not expectations.is_judged(index):
                continue
            if sequence is None and (expectations.handled or not _shows_subject(one.mapping, route, subject)):
                continue
            pattern = _target(one.mapping, subject, is_known=not expectations.handled)

            def is_copy(stored: StoredMessage, same_subject: bool, to: Destination = one) -> bool:
                origin = of(stored)
                if origin is None or origin.is_dead:
                    return False
                message_id = message_ids.usual(message_ids.find(stored.headers))
                return message_id == origin.first + to.copy_id(framing.wire(stored.subject))

            search = await self.search(one.connection, one.stream, pattern, is_copy, newest=sequence is None)
            origins += [origin for _, stored, _ in search.found if (origin := of(stored)) is not None]

        def is_letter(stored: StoredMessage, same_subject: bool) -> bool:
            origin = of(stored)
            if origin is None or not origin.is_dead:
                return False
            gone = StoredMessage(origin.sequence, origin.time_ns, subject, b"", b"")
            return is_letter_of(stored, self.as_named(route).name, source.stored.stream, gone, is_gone=True)

        letters = await self.letters(route, subject, is_letter, newest=sequence is None)
        origins += [origin for _, stored, _ in letters.found if (origin := of(stored)) is not None]
        return origins + await self._origins_of_retries(route, subject, sequence)

    async def _origins_of_retries(
        self, route: RouteSettings, subject: str, sequence: int | None
    ) -> list[message_ids.Origin]:
        retries = await self.retries(self.as_named(route))
        if retries is None:
            return []

        def place_of(stored: StoredMessage) -> Place | None:
            place = retries.waits(stored)
            is_its = place is not None and place.subject == framing.wire(subject)
            return place if place is not None and is_its and sequence in (None, place.sequence) else None

        search = await self.search(
            route.source.connection,
            retries.stream,
            ">",
            lambda stored, same_subject: place_of(stored) is not None,
            newest=sequence is None,
        )
        places = [place for _, stored, _ in search.found if (place := place_of(stored)) is not None]
        first = [message_ids.of_position(place.stream, place.sequence, place.time_ns) for place in places]
        return [
            message_ids.Origin(one, place.stream, place.sequence, place.time_ns, is_dead=False)
            for one, place in zip(first, places, strict=True)
        ]

    async def letters(
        self,
        route: RouteSettings,
        subject: str,
        recognizes: Recognizes,
        *,
        source: StoredMessages | None = None,
        since: int = 0,
        newest: bool = False,
    ) -> _Search:
        """Look for a dead letter of a message with this subject, as `search` does."""
        letter = route.dead_letter
        if letter is None or not letter.jetstream:
            return _Search()
        pattern = _target(route.source.mapping(letter.subject), subject)
        return await self.search(
            letter.connection, letter.stream, pattern, recognizes, source=source, since=since, newest=newest
        )

    def _unstored(self, connection: str, subject: str) -> Iterator[Outcome]:
        """Yield the outcome in routes that read the subject, and no stream."""
        for route in self._settings.routes:
            if route.source.connection == connection and not route.source.kind.is_stored and _reads(route, subject):
                yield Outcome(route.name, "unknown", "it reads the subject, and no stream records what was routed")


class _OneRoute:
    """The search for what became of a message in one route that reads it."""

    def __init__(
        self, finder: Finder, route: RouteSettings, source: StoredMessages, message: StoredMessage, is_gone: bool
    ) -> None:
        self._finder = finder
        self._unread_letters = ""
        self._unread_retries = ""
        self._route = route
        self._source = source
        self._message = message
        self._is_gone = is_gone
        self._expectations = finder.expectations(route)

    async def outcome(self, progress: Progress | str) -> Outcome:
        """Look for all copies and the dead letter, and decide."""
        expectations, message = self._expectations, self._message
        made_today, reason = "", ""
        waits = await self._waits()  # what does not wait any more by now has its copies where they are read below
        copies: list[CopyFound] = []
        others: list[CopyFound] = []
        if self._is_gone or expectations.handled:
            copies = [
                await self._copy_of_any_content(index, one)
                for index, one in enumerate(expectations.destinations)
                if expectations.is_judged(index)
            ]
        else:
            expectations.set_clock(await self._source.clock() or 0, trio.current_time())
            expected = await expectations.of(message)
            made_today, reason = expected.outcome, expected.reason
            if made_today in ("", "unknown"):  # unknown: none of its copies is judged
                made_today = "routed"
            may_be_removed = isinstance(progress, Progress) and message.sequence <= progress.floor
            copies = [await self._copy(one, may_be_removed) for one in expected.copies]
            others = [await self._other_copy(one) for one in expected.others]
        letter = await self._letter()
        facts = Facts(
            message.sequence,
            message.time_ns,
            made_today,
            reason,
            progress,
            copies,
            others,
            letter,
            self._unread_letters,
            self._is_gone,
            expectations.one_of,
            waits,
            self._unread_retries,
        )
        return outcome_of(self._route.name, facts)

    async def _copy(self, expected: ExpectedCopy, may_be_removed: bool) -> CopyFound:
        copy = expected.copy
        assert copy is not None, "only a handler's copies are not computed"
        destination = self._expectations.destinations[expected.destination]
        shown = f"{destination.connection}:{destination.template}"
        search = await self._search(destination, _drawn(destination, copy.subject), self._has_id_of(copy))
        if search.found:
            if any(self._expectations.is_overruled(stored) for _, stored, _ in search.found):
                return CopyFound(shown, "overruled", [one for one, _, _ in search.found])
            return _found(shown, search, copy.payload)
        if search.unread:
            return CopyFound(shown, "unknown", detail=search.unread)
        if not search.is_complete:
            return CopyFound(shown, "not_found", detail=self._beyond())
        if not search.streams:
            return CopyFound(shown, "missing", detail=f"no stream takes {copy.subject}")
        if may_be_removed:
            try:
                removals = await Removals.of(search.streams, self._source)
                if self._message.time_ns < removals.before or await removals.removed(self._message, expected):
                    return CopyFound(shown, "expired", detail=copy.subject)
            except SourceError as error:
                return CopyFound(shown, "unknown", detail=self._finder.report(destination.connection, error))
        return CopyFound(shown, "missing", detail=copy.subject)

    async def _other_copy(self, publish: Copy) -> CopyFound:
        """Look for the copy of a destination that is not judged."""
        shown = f"{publish.connection}:{publish.subject}"
        if not publish.jetstream:
            return CopyFound(shown, "not_stored", detail="a core publish")
        if headers.find(publish.headers, schedules.SCHEDULE) is not None:
            return CopyFound(shown, "unknown", detail="a delayed copy, which has no id once it is published")
        message_id = message_ids.find(publish.headers)
        for one in self._expectations.destinations:
            if one.connection == publish.connection and message_id.endswith(one.copy_id(framing.wire(publish.subject))):
                search = await self._search(one, _drawn(one, publish.subject), self._has_id_of(publish))
                if search.found:
                    return _found(shown, search, publish.payload)
                if search.unread:
                    return CopyFound(shown, "unknown", detail=search.unread)
        return CopyFound(shown, "no_share", detail="a mirror gets a share of the messages")

    async def _copy_of_any_content(self, index: int, destination: Destination) -> CopyFound:
        """Look for a copy whose contents are not known, by the first part of its id."""
        shown = f"{destination.connection}:{destination.template}"
        if self._is_gone and not self._expectations.by_sequence:
            return CopyFound(shown, "not_found", detail="its id is made of the message, which is gone")
        first = self._expectations.first_part(self._message)

        def is_copy(stored: StoredMessage, same_subject: bool) -> bool:
            message_id = message_ids.find(stored.headers)
            if not same_subject:
                return message_id.rpartition(b":")[0] == first
            return message_id == first + destination.copy_id(framing.wire(stored.subject))

        pattern = _target(destination.mapping, self._message.subject, is_known=not self._expectations.handled)
        search = await self._search(destination, pattern, is_copy)
        if search.found:
            return _found(shown, search, None)
        if search.unread:
            return CopyFound(shown, "unknown", detail=search.unread)
        return CopyFound(shown, "not_found", detail="" if search.is_complete else self._beyond())

    async def _letter(self) -> LetterFound | None:
        message, finder = self._message, self._finder
        name, searched = finder.as_named(self._route).name, self._source

        def is_letter(stored: StoredMessage, same_subject: bool) -> bool:
            return is_letter_of(stored, name, searched.stream, message, is_gone=self._is_gone)

        search = await finder.letters(
            self._route, message.subject, is_letter, source=self._source, since=message.time_ns
        )
        if not search.found:
            self._unread_letters = search.unread
            return None
        stored, letter, _ = search.found[-1]
        fields = (headers.find(letter.headers, f"{PREFIX}{name}".encode()) for name in ("Reason", "Detail", "Attempts"))
        return LetterFound(stored, *(framing.text(value or b"") for value in fields))

    async def _waits(self) -> str:
        """Return where the message waits for its next attempt; empty if it does not."""
        finder, message = self._finder, self._message
        route = finder.as_named(self._route)
        try:
            retries = await finder.retries(route)
        except SourceError as error:
            self._unread_retries = finder.report(route.source.connection, error)
            return ""
        if retries is None:
            return ""

        def is_retry(stored: StoredMessage, same_subject: bool) -> bool:
            place = retries.waits(stored)
            return place is not None and (place.sequence, place.time_ns) == (message.sequence, message.time_ns)

        search = await finder.search(
            route.source.connection, retries.stream, ">", is_retry, source=self._source, since=message.time_ns
        )
        if search.found:
            return retries.describe(search.found[-1][1])
        self._unread_retries = search.unread
        if not search.unread and not search.is_complete:
            self._unread_retries = f"it has more than {MAX_READ:,} messages stored since"
        return ""

    async def _search(self, destination: Destination, pattern: str, recognizes: Recognizes) -> _Search:
        return await self._finder.search(
            destination.connection,
            destination.stream,
            pattern,
            recognizes,
            source=self._source,
            since=self._message.time_ns,
        )

    @staticmethod
    def _has_id_of(copy: Copy) -> Recognizes:
        message_id = message_ids.find(copy.headers)

        def has_id(stored: StoredMessage, same_subject: bool) -> bool:
            stored_id = message_ids.find(stored.headers)
            return message_id in (stored_id, message_ids.usual(stored_id))

        return has_id

    def _beyond(self) -> str:
        number = self._message.sequence
        audit = f"router-trio audit CONFIG {self._route.name} --from {number} --to {number}"
        former = self._finder.as_named(self._route).name
        if former != self._route.name:
            audit += f" --as {former}"
        return f"not among {MAX_READ:,} messages stored since; {audit} reads all"


def _drawn(destination: Destination, subject: str) -> str:
    """Return the subject of a copy, or the pattern of all possible ones if a part of it was drawn at random."""
    return subject if destination.mapping.deterministic else destination.mapping.pattern


def _target(mapping: SubjectMapping, subject: str, *, is_known: bool = True) -> str:
    """Return the subject to which a message is mapped, or the pattern of all if that is not known."""
    if not is_known or not mapping.deterministic:
        return mapping.pattern
    try:
        return mapping.apply(subject)
    except MappingError:
        return mapping.pattern


def _shows_subject(mapping: SubjectMapping, route: RouteSettings, subject: str) -> bool:
    """Return True if no other message of the route is mapped to the same subject as this one."""
    if len(route.source.patterns) != 1 or not mapping.deterministic:
        return False
    if any(name.lower() != "wildcard" for name in _FUNCTION.findall(mapping.destination)):
        return False
    target, tokens = _target(mapping, subject), subject.split(".")
    pattern = route.source.pattern.split(".")
    for place in range(len(tokens)):
        if pattern[min(place, len(pattern) - 1)] in ("*", ">"):
            other = ".".join([*tokens[:place], f"{tokens[place]}-", *tokens[place + 1 :]])
            if _target(mapping, other) == target:
                return False
    return True


_FUNCTION = re.compile(r"\{\{\s*(\w+)")
"""The name of a function in a mapping."""


def _found(shown: str, search: _Search, payload: bytes | None) -> CopyFound:
    """Return the copies that were found; `payload` is None if it is not compared."""
    is_there = payload is None or any(
        info.allow_counter or stored.payload == payload for _, stored, info in search.found
    )
    return CopyFound(shown, "there" if is_there else "different", [one for one, _, _ in search.found])


def _stored(connection: str, stream: str, message: StoredMessage) -> Stored:
    return Stored(connection, stream, message.sequence, message.subject, message.time_ns)


async def _read(
    search: _Search,
    connection: str,
    stored: StoredMessages,
    info: StreamInfo,
    sequences: tuple[int, int],
    pattern: str,
    recognizes: Recognizes,
) -> bool:
    """Add what is recognized among these sequences of a stream to the search. Return True if there is something.

    Reads up to `MAX_READ` messages, and up to `MAX_BEHIND` behind the last one that was found.
    """
    same_subject, read, found_at = pattern != ">", 0, None
    async with aclosing(stored.batches(*sequences, pattern)) as batches:
        async for batch in batches:
            for one in batch:
                if recognizes(one, same_subject):
                    search.found.append((_stored(connection, stored.stream, one), one, info))
                    found_at = read
            read += len(batch)
            if found_at is None and read >= MAX_READ:
                search.is_complete = False
                break
            if found_at is not None and read - found_at >= MAX_BEHIND:
                break
    return found_at is not None
