"""Find the keys of a bucket's copy that the bucket no longer has: what removed them left no message to be copied.

That is a marker or a purge with a TTL which expired before it was copied, or `nats stream purge`. Only values are
considered that the route has copied itself, and not those of other writers.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from time import time_ns

from router_trio.audit.expectations import Expectations, hash64
from router_trio.audit.removals import EXPIRES_WITHIN, SECOND, ahead_by
from router_trio.errors import MappingError
from router_trio.nats.command_link import CommandLink
from router_trio.nats.jetstream.api import StoredMessage, StreamInfo, nanoseconds
from router_trio.protocol import buckets, framing, headers, message_ids
from router_trio.protocol.message_ids import Origin
from router_trio.routing.route_plans import Destination
from router_trio.settings import RouteSettings
from router_trio.subjects.mapping import Mapping as SubjectMapping

ReadAll = Callable[[CommandLink, StreamInfo], AsyncGenerator[Sequence[StoredMessage], None]]
"""Reads the headers of all messages of a stream, up to its end at that time."""


@dataclass(frozen=True, slots=True)
class ExtraKey:
    """The value of a key that the source no longer has, and the message of the source that it is a copy of.

    `subject` and `headers` are those of the publish that deletes the key, unless its value has changed since.
    """

    connection: str
    value: StoredMessage
    origin: Origin
    subject: str
    headers: bytes


class ExtraKeys:
    """Compares the keys of a bucket with those of its copies."""

    def __init__(
        self, route: RouteSettings, links: Mapping[str, CommandLink], expectations: Expectations, read: ReadAll
    ) -> None:
        self.notes: list[str] = []
        """Why values or destinations were not judged."""
        self._route = route
        self._links = links
        self._expectations = expectations
        self._read = read
        self._source = links[route.source.connection]
        self._stream = route.source.kind.stream(route.source) or ""

    @property
    def destinations(self) -> Sequence[int]:
        """The destinations whose keys can be compared: buckets to which the route copies a bucket by its settings."""
        if not self._route.source.kind.is_bucket or self._expectations.handled:
            return ()
        return [
            index
            for index, one in enumerate(self._expectations.destinations)
            if one.kind.is_bucket and one.mapping.deterministic and self._expectations.is_judged(index)
        ]

    async def find(self, index: int, is_wanted: Callable[[Origin], bool]) -> Sequence[ExtraKey]:
        """Return the extra keys of a destination, in the order of their values. Raises `SourceError`.

        `is_wanted` returns True for the messages of the source whose copies are judged.
        """
        self.notes.clear()
        to = self._expectations.destinations[index]
        link = self._links[to.connection]
        stored, source = link.stored(to.stream or ""), self._source.stored(self._stream)
        info, origins = await stored.info(), await source.info()
        ahead, now = await ahead_by(stored, source), await stored.clock()
        values = await self._values(to, info, is_wanted)
        if not values or (there := await self._keys(to, origins)) is None:
            return ()
        now, extra, earlier = time_ns() if now is None else now, list[ExtraKey](), 0
        for value, origin in values.values():
            if hash64(framing.wire(value.subject)) in there:
                continue
            if origin.sequence > origins.last_sequence or origin.time_ns < nanoseconds(origins.created):
                earlier += 1
            elif not _expires(value, origin, info, origins, now, ahead):
                extra.append(self._extra(to, info, value, origin))
        if earlier:
            text = f"not judged: {earlier:,} keys of stream {info.name} that stream {self._stream} lacks: their values"
            self.notes.append(f"{text} are from before it was created, or restored")
        return extra

    async def _values(
        self, to: Destination, info: StreamInfo, is_wanted: Callable[[Origin], bool]
    ) -> Mapping[str, tuple[StoredMessage, Origin]]:
        """Return the newest values of the keys that are copies of this route, by their subjects."""
        found: dict[str, tuple[StoredMessage, Origin]] = {}
        async with aclosing(self._read(self._links[to.connection], info)) as batches:
            async for batch in batches:
                for one in batch:
                    found.pop(one.subject, None)
                    origin = self._origin(to, one)
                    if origin is not None and is_wanted(origin):
                        found[one.subject] = one, origin
        return found

    def _origin(self, to: Destination, value: StoredMessage) -> Origin | None:
        """Return the message that a value is a copy of; None unless this route has copied it for this key."""
        message_id = message_ids.find(value.headers)
        origin = message_ids.origin(message_id)
        start = buckets.prefix_of(buckets.bucket_of(to.stream or ""))
        if origin is None or buckets.deletes(value.headers) or not value.subject.startswith(start):
            return None
        if origin.is_dead or origin.stream != framing.wire(self._stream) or self._expectations.is_overruled(value):
            return None
        target = to.subject_prefix + value.subject.removeprefix(start)
        return origin if message_ids.usual(message_id) == origin.first + to.copy_id(framing.wire(target)) else None

    async def _keys(self, to: Destination, origins: StreamInfo) -> set[int] | None:
        """Return the hashes of the subjects of all copies that the keys of the source can have.

        None if they can't be computed. A key that changes meanwhile is read at its new place, behind all others.
        """
        own = self._route.source.kind.subject_prefix(self._route.source)
        there, start = set[int](), buckets.prefix_of(buckets.bucket_of(to.stream or ""))
        try:  # keys that the filter of today leaves out are the source's as well
            mapping = SubjectMapping.compile(f"{own}>", to.mapping.destination)
        except MappingError:
            mapping = to.mapping
        async with aclosing(self._read(self._source, origins)) as batches:
            async for batch in batches:
                for one in batch:
                    key = one.subject.split(".", 2)[-1]  # a mirror has the subjects of another bucket
                    try:
                        target = mapping.apply(own + key)
                    except MappingError:
                        if mapping is not to.mapping:
                            continue  # no value of this key was ever copied
                        text = f"not judged: keys of stream {to.stream} that stream {self._stream} lacks: its key"
                        self.notes.append(f"{text} {key!r} is not of the route's filter, so its copy is not known")
                        return None
                    there.add(hash64(framing.wire(start + target.removeprefix(to.subject_prefix))))
        return there

    def _extra(self, to: Destination, info: StreamInfo, value: StoredMessage, origin: Origin) -> ExtraKey:
        """Return an extra key with the delete of it, which is a purge if its bucket takes one."""
        key = value.subject.removeprefix(buckets.prefix_of(buckets.bucket_of(to.stream or "")))
        subject = to.subject_prefix + key
        purges = info.allow_rollup and not info.deny_purge
        block = headers.replace(b"", buckets.OPERATION, b"PURGE" if purges else b"DEL")
        if purges:
            block = headers.replace(block, buckets.ROLLUP, b"sub")
        if (version := headers.find(value.headers, buckets.ORIGIN)) is not None:
            block = headers.replace(block, buckets.ORIGIN, version)
        block = headers.replace(block, buckets.EXPECTED, b"%d" % value.sequence)
        # The id of the value itself would be a duplicate.
        block = message_ids.replace(block, origin.first + to.copy_id(framing.wire(subject) + b" deleted"))
        return ExtraKey(to.connection, value, origin, subject, block)


def _expires(value: StoredMessage, origin: Origin, info: StreamInfo, origins: StreamInfo, now: int, ahead: int) -> bool:
    """Return True if a value expires by itself soon, as that of the source did."""
    ttl = buckets.time_to_live(value.headers) if info.allow_message_ttl else None
    if ttl is not None and value.time_ns + ttl <= now + EXPIRES_WITHIN:
        return True
    age = round(origins.max_age * SECOND)
    return 0 < info.max_age <= origins.max_age and origin.time_ns + age <= now - ahead + EXPIRES_WITHIN
