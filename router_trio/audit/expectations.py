"""The copies that a route makes of a message of its source, by the settings of today."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from hashlib import blake2b

from router_trio.audit.comparison import OVERRULES
from router_trio.errors.reasons import ECHO
from router_trio.nats.command_link import CommandLink
from router_trio.nats.jetstream.api import StoredMessage
from router_trio.protocol import buckets, framing, headers, message_ids
from router_trio.protocol.buckets import ORIGIN
from router_trio.routing.rehearsal import Arrived, Copy, Limits, Place, Rehearsal
from router_trio.routing.route_plans import Destination
from router_trio.settings import RouteSettings, Settings
from router_trio.subjects.patterns import matches

ONE_OF = frozenset({"weighted", "sticky", "fallback"})
"""Strategies that choose one destination by what is not known later: counters, and what was available."""

MAX_ENDINGS = 4096
"""Endings of ids that are remembered, by the subjects of the copies."""

NO_DIGEST = 0
"""The digest of payloads that are not compared."""

Identified = tuple[int | None, int, int | None, int]
"""The identification of a copy: the sequence of its message, if its id contains that; its identity; the digest of its
payload, None if that is not compared, `OVERRULES` for the value of another writer; a hash of its id."""


@dataclass(frozen=True, slots=True)
class ExpectedCopy:
    """A copy at a destination, given by its index. `copy` is None if only a handler can make it."""

    destination: int
    identity: int
    digest: int
    copy: Copy | None = None


@dataclass(frozen=True, slots=True)
class Expected:
    """The expected copies of a message; without any, `outcome` is its class, for this `reason`.

    `others` are the copies at destinations that are not judged.
    """

    copies: Sequence[ExpectedCopy] = ()
    outcome: str = ""
    reason: str = ""
    others: Sequence[Copy] = ()


def hash64(data: bytes) -> int:
    """Return a hash of 64 bits, for which no second text can be found in practice."""
    return int.from_bytes(blake2b(data, digest_size=8).digest(), "big")


def size_limits(links: Mapping[str, CommandLink]) -> dict[str, Limits]:
    """Return the maximum sizes that the servers of these links accept, by connection."""
    return {name: Limits(one.link.max_payload, one.link.max_control_line) for name, one in links.items()}


class Expectations:
    """The rules by which the copies of a route are recognized. It never calls the handler of the route.

    Copies of a handler are recognized by the message that they were made of, and their payloads are not compared.
    """

    def __init__(self, settings: Settings, route: RouteSettings, limits: Mapping[str, Limits]) -> None:
        """`limits` are those of every connection that the route sends to, by name."""
        self.one_of: bool = route.strategy in ONE_OF
        """True if a message has a copy at one of the destinations, and it can't be computed at which."""
        self.handled: bool = route.handler is not None
        """True if a handler decides which copies there are, and what they contain."""
        self.by_sequence: bool = route.source.own_ids
        """True if the id of a copy contains the sequence of its message."""
        alone = route.model_copy(update={"handler": None})
        self._rehearsal = Rehearsal(settings, alone, {}, limits, to_each=self.one_of)
        self._patterns = route.source.patterns
        self._has_other_writers = any(one.last_writer for one in self._rehearsal.destinations)
        stream = route.source.kind.stream(route.source)
        assert stream is not None, "only what a stream holds can be audited"
        self._stream = stream
        self._in_ids = framing.wire(stream)
        self._ending: Callable[[int, bytes], bytes] = lru_cache(maxsize=MAX_ENDINGS)(self._ending_of)

    @property
    def destinations(self) -> Sequence[Destination]:
        """The destinations of the route, in order."""
        return self._rehearsal.destinations

    def set_clock(self, time_ns: int, now: float) -> None:
        """Compute what is left of a TTL by the clock of the source's server, which shows `time_ns`."""
        self._rehearsal.source_clock.set_by(time_ns, now)

    def is_judged(self, index: int) -> bool:
        """Return True if the copies of this destination are stored, all of them, with their ids.

        A mirror gets a share, and a delayed copy has no id once it is published.
        """
        destination = self.destinations[index]
        return destination.waits_for_puback and destination.mirror is None and destination.schedule_prefix is None

    def reads(self, message: StoredMessage) -> bool:
        """Return True if the route reads a message of its stream."""
        return any(matches(pattern, message.subject) for pattern in self._patterns)

    async def of(self, message: StoredMessage) -> Expected:
        """Return the expected copies of a message."""
        if self._has_other_writers and headers.find(message.headers, ORIGIN) is not None:
            return Expected(outcome="filtered", reason=ECHO)  # a copy itself, which is there unless it was overruled
        place, own = Place(self._stream, message.sequence, message.time_ns), self.position_id(message)
        if self.handled:
            stored = [index for index in range(len(self.destinations)) if self.is_judged(index)]
            return Expected([ExpectedCopy(index, hash64(self.first_part(message)), NO_DIGEST) for index in stored])
        arrived = Arrived(message.subject, message.headers, message.payload, own, place)
        result = await self._rehearsal.run(arrived)
        if result.failed is not None:
            return Expected(outcome="given_up", reason=result.failed.reason)
        if result.filtered is not None:
            return Expected(outcome="filtered", reason=result.filtered)
        expected, others = list[ExpectedCopy](), list[Copy]()
        for copy in result.copies:
            message_id = message_ids.find(copy.headers)
            index = self._index(copy, message_id)
            if index is not None and self.is_judged(index):
                expected.append(ExpectedCopy(index, hash64(message_id), hash64(copy.payload), copy))
            else:
                others.append(copy)
        return Expected(expected, outcome="" if expected else "unknown", others=others)

    def first_part(self, message: StoredMessage) -> bytes:
        """Return the first part of the ids of all copies of a message."""
        sender = b"" if self.by_sequence else message_ids.find(message.headers)
        return sender or self.position_id(message)

    def position_id(self, message: StoredMessage) -> bytes:
        """Return the id that is made of the position of a message: the first part of the id of its dead letter."""
        return message_ids.of_position(self._in_ids, message.sequence, message.time_ns)

    def identify(self, index: int, stored: StoredMessage, *, same_subject: bool) -> Identified | None:
        """Return what identifies a stored message as a copy at a destination; None if it is not one.

        With `same_subject` the stream stores messages under the subjects to which they were published.
        """
        message_id = message_ids.find(stored.headers)
        if not message_id:
            return None
        sequence, first = None, message_id.rpartition(b":")[0]
        if self.by_sequence:
            origin = message_ids.origin(message_id)
            if origin is None or origin.is_dead or origin.stream != self._in_ids:
                return None
            sequence, first, message_id = origin.sequence, origin.first, message_ids.usual(message_id)
        if same_subject:
            ending = self._ending(index, framing.wire(stored.subject))
            if message_id != first + ending:
                return None
        if self.handled:
            return sequence, hash64(first), None, hash64(message_id)
        digest = OVERRULES if self.is_overruled(stored) else hash64(stored.payload)
        return sequence, (whole_id := hash64(message_id)), digest, whole_id

    def is_overruled(self, stored: StoredMessage) -> bool:
        """Return True if a copy has the value of another writer, which was later than that of its message."""
        if not self._has_other_writers:
            return False
        message = message_ids.origin(message_ids.find(stored.headers))
        version = buckets.carried_version(stored.headers)
        if message is None or version is None:
            return False
        return (version.sequence, version.time_ns) != (message.sequence, message.time_ns)

    def _ending_of(self, index: int, target: bytes) -> bytes:
        """Return the end of the ids of the copies with a subject at a destination."""
        return self.destinations[index].copy_id(target)

    def _index(self, copy: Copy, message_id: bytes) -> int | None:
        """Return the destination of a copy; None for a core publish without an id."""
        target = framing.wire(copy.subject)
        for index, one in enumerate(self.destinations):
            if one.connection == copy.connection and message_id.endswith(self._ending(index, target)):
                return index
        return None
