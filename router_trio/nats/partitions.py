"""The partitions of a route as its servers show them, for commands: durables, members, and what was moved by hand."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from router_trio.errors import SourceError, reasons
from router_trio.link import Announced
from router_trio.nats.command_link import CommandLink
from router_trio.nats.jetstream import members
from router_trio.nats.jetstream.api import MAX_ANSWER, ConsumerInfo, answer_of
from router_trio.nats.jetstream.pubacks import Refused, read_puback
from router_trio.nats.jetstream.sourced_stream import Partitioned, read_partitioned
from router_trio.protocol import framing, headers
from router_trio.protocol.permissions import KV, kv_below
from router_trio.settings import SourceSettings
from router_trio.settings.routes.sources.partitioned import derived_stream, durables, partitioning_of

TRIES = 5
"""How often moves are read and stored again if another command has changed them in between."""

EXPIRES = {"Nats-TTL": "1s"}
"""Lets the key of the moves vanish when nothing is moved any more, which needs no permission to purge."""


async def durables_of(link: CommandLink, source: SourceSettings) -> tuple[str, tuple[str, ...]]:
    """Return the stream that has the durables of a route from a stream, and their names: one for each partition."""
    consumer = source.kind.consumer(source)
    assert consumer is not None
    stream, durable = consumer
    if partitioning_of(source) is None:
        return stream, (durable,)
    there = RoutePartitions(link, stream, durable, derived_stream(stream, durable))
    return (await there.stream())[0], durables(source)


@dataclass(frozen=True, slots=True)
class Seen:
    """The members of a group with their announcements, and the partitions that were moved to a member by hand."""

    members: Mapping[str, Announced]
    moved: Mapping[int, str]


class RoutePartitions:
    """The partitions of a route. Every method raises `SourceError` and `LinkError`, and can be cancelled."""

    def __init__(self, link: CommandLink, stream: str, durable: str, derived: str) -> None:
        """`derived` is the stream with the partitions, unless `stream` has them itself."""
        self._link = link
        self._stream = stream
        self._durable = durable
        self._derived = derived
        self._bucket = link.stored(members.STREAM)

    async def stream(self) -> tuple[str, Partitioned]:
        """Return the stream that has the partitions, and what is known of them."""
        found = await self._partitioned(self._stream)
        if found is not None:
            return self._stream, found
        try:
            found = await self._partitioned(self._derived)
        except SourceError as error:
            if error.reason != reasons.STREAM_NOT_FOUND:
                raise
            detail = f"the stream {self._derived!r} with the partitions does not exist; a router that runs creates it"
            raise SourceError(detail, reason=reasons.STREAM_NOT_FOUND) from None
        if found is None:
            detail = f"the stream {self._derived!r} exists, and does not put a partition in front of its subjects"
            raise SourceError(detail, reason=reasons.PARTITIONS_DIFFER)
        return self._derived, found

    async def _partitioned(self, name: str) -> Partitioned | None:
        return (await self._link.stored(name).of_stream("INFO", read_partitioned))[1]

    async def consumers(self, stream: str, names: Sequence[str]) -> list[ConsumerInfo | None]:
        """Return these durables of the stream, in order; None for each that does not exist."""
        return await self._link.stored(stream).consumer_each(names)

    async def seen(self) -> Seen:
        """Return the members that exist. Those whose announcement can't be read have an empty one."""

        def read(body: bytes) -> tuple[frozenset[str], bool]:
            return members.seen(answer_of(body, MAX_ANSWER), self._stream, self._durable)

        request = json.loads(members.seen_request(self._stream, self._durable))
        try:
            ids, any_moved = await self._bucket.of_stream("INFO", read, request)
        except SourceError as error:
            if error.reason != reasons.STREAM_NOT_FOUND:
                raise
            return Seen({}, members.NOTHING_MOVED)  # no process has ever run
        announced = await self._announced(sorted(ids)[: members.MOST_READ])
        return Seen(announced, (await self._moved())[0] if any_moved else members.NOTHING_MOVED)

    async def _announced(self, ids: Iterable[str]) -> Mapping[str, Announced]:
        ids = list(ids)
        found = await self._bucket.last_each([self._key(one) for one in ids])
        read = [None if one is None else members.announced(one.payload) for one in found]
        return {member: one or Announced("", "", ()) for member, one in zip(ids, read, strict=True)}

    async def _moved(self) -> tuple[Mapping[int, str], int]:
        """Return the moves, and the sequence of the message that has them; 0 without one."""
        message = await self._bucket.last(self._key(members.MOVED))
        return (members.NOTHING_MOVED, 0) if message is None else (members.moved(message.payload), message.sequence)

    async def move(self, partition: int, member: str | None, existing: Iterable[str]) -> None:
        """Move a partition to a member by hand; None gives it back to the member whose share it is.

        Earlier moves to members that are not among the `existing` ones are removed: they have no effect.
        """
        kept = frozenset(existing)
        for _ in range(TRIES):
            found, sequence = await self._moved()
            moves = {number: one for number, one in found.items() if one in kept and number != partition}
            if member is not None:
                moves[partition] = member
            if await self._put(moves, sequence):
                return
        detail = f"other commands have changed the moved partitions {TRIES} times meanwhile; run this one again"
        raise SourceError(detail, reason=reasons.JETSTREAM)

    async def _put(self, moves: Mapping[int, str], sequence: int) -> bool:
        """Store the moves. Return False if a later message than that of the sequence has others."""
        key = members.key(self._stream, self._durable, members.MOVED)
        stored = await put_after(self._link, key, sequence, members.moves(moves), {} if moves else EXPIRES)
        return stored is not None

    def _key(self, member: str) -> str:
        return f"{KV}.{members.BUCKET}.{members.key(self._stream, self._durable, member)}"


async def put_after(link: CommandLink, key: str, sequence: int, value: bytes, fields: Mapping[str, str]) -> int | None:
    """Store a key of the bucket if its last message is that of the sequence, 0 for none. Return the new sequence.

    Return None if it has a later one. Raises `SourceError`.
    """
    subject = f"{kv_below(link.link.api.prefix)}.{members.BUCKET}.{key}"
    block = {"Nats-Expected-Last-Subject-Sequence": str(sequence), **fields}
    request = link.requests.send(framing.wire(subject), value, headers.encode(headers.Headers(block)))
    try:
        return read_puback(await request.answered())[1]
    except Refused as error:
        if error.reason == reasons.WRONG_EXPECTATION:
            return None
        detail = f"the bucket {members.BUCKET!r} has not stored {key}: {error}"
        raise SourceError(detail, reason=reasons.JETSTREAM) from error
