"""Which streams may answer a JetStream publish: those that take its subject, as lookups say, and the one that it names.

A PubAck comes to a reply subject that every client can read that hears the destination. A client that publishes with
that subject as its own reply, to a subject that some stream takes, has a server send us a PubAck of that stream. So a
PubAck counts only if the stream that it names takes the subject of the publish. One of a stream of which that is not
known waits until the stream was looked up. If the stream does not take the subject, the PubAck is passed over, and the
publish still waits for its own.

Where a server maps the subject on its way, the stream that answers does not take it, and what it stored tells nothing:
whoever hears the destination can store a copy elsewhere, id and all. So somebody has to name that stream. Pure and
synchronous; the clock is given.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import Protocol

from router_trio.errors.quotes import excerpt
from router_trio.message import PubAck
from router_trio.outbox.operation import OperationWithAck
from router_trio.protocol.framing import text

MAX_KEPT = 8192
"""PubAcks and errors that wait for a lookup, more than may be in flight. The publishes of others are sent again."""

MAX_STREAMS = 1024
"""Streams that are known, or asked about, at a time. With one more the memory starts afresh."""

MAX_SUBJECTS = 4096
"""Subjects of one stream of which is remembered whether it takes them. With one more the memory starts afresh."""

NO_FOR = 1.0
"""Seconds after a lookup in which a stream that does not take a subject is not looked up again."""

YES_FOR = 4.0
"""Seconds after a lookup from which on, at the next `sweep`, a stream is looked up again before its PubAcks count.

Not for streams that `learn` tells of, which are looked up as often anyway.
"""

AckRefusal = tuple[int, str, str, bool]
"""The arguments of `Refusals.ack_refused`: number of the publish, reason, detail, and True if a later try may help."""


class Lookups(Protocol):
    """Looks up streams for a `Belief`, and is told of answers that were passed over."""

    def matches(self, pattern: str, subject: str) -> bool:
        """Return True if a pattern of a stream's subjects takes a subject."""
        ...

    def look_up(self, stream: str) -> None:
        """Find out which subjects a stream takes, for `Outbox.stream_found`."""

    def puback_passed_over(self, operation: OperationWithAck, stream: str) -> None:
        """Note that a publish is sent again, since the answers of that stream to it were passed over."""

    def answered(self, key: Hashable) -> None:
        """Note that each publish with this `capacity_key` that was noted so has its fate."""


class _NoLookups:
    """Look nothing up, as without a link."""

    def matches(self, pattern: str, subject: str) -> bool:
        return pattern == subject

    def look_up(self, stream: str) -> None:
        pass

    def puback_passed_over(self, operation: OperationWithAck, stream: str) -> None:
        pass

    def answered(self, key: Hashable) -> None:
        pass


class Belief:
    """Decide which PubAcks of one outbox count, on one link. Inactive, as without a link, it believes all streams."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self.active: bool = False
        self._lookups: Lookups = _NoLookups()
        self._looked_up: frozenset[str] = frozenset()
        self._covered: dict[str, frozenset[Hashable]] = {}
        self._streams: dict[str, tuple[str, ...]] = {}
        self._taken: dict[str, dict[bytes, bool]] = {}
        self._asked_at: dict[str, float] = {}
        """When those of `_streams` were looked up that an answer named."""
        self._outdated: dict[str, tuple[str, ...]] = {}
        """Subjects of streams that are to be asked about again. They count if nobody answers."""
        self._passed_over: dict[int, str] = {}
        """By the number of a publish, the last stream whose answer to it was passed over."""
        self._told: dict[int, Hashable] = {}
        """By the number of a publish, its `capacity_key`, where `Lookups.puback_passed_over` was called."""
        self._kept: dict[str, tuple[list[PubAck], list[AckRefusal]]] = {}
        self._kept_count = 0

    def ask(self, lookups: Lookups) -> None:
        """Have streams looked up by `lookups`."""
        self._lookups = lookups

    def begin_link(self) -> None:
        """Begin on a new link, and forget all streams: permissions may differ, and it may be another server."""
        self.active = True
        self._forget_streams()
        for known in (self._covered, self._passed_over, self._told, self._kept):
            known.clear()
        self._kept_count = 0

    # --- what is known ---

    def learn(self, streams: Mapping[str, tuple[str, ...]], covered: Mapping[str, Iterable[Hashable]]) -> None:
        """Know the subjects of these streams, and the destinations (see `capacity_key`) of which each takes all.

        Those of the last time that are not among them are forgotten.
        """
        self._covered = {stream: frozenset((stream, *each)) for stream, each in covered.items()}
        for gone in self._looked_up.difference(streams):  # minus `keys()` would give a set, not a frozenset
            self._forget(gone)
        self._looked_up = frozenset(streams)
        for stream, subjects in streams.items():
            self._know(stream, subjects)

    def covered_by(self, stream: str | None) -> frozenset[Hashable] | None:
        """Return the `puback_from` of all publishes that a stream may answer whatever their subject is; None: any."""
        if not self.active or stream is None:
            return None
        covered = self._covered.get(stream)
        return frozenset((stream,)) if covered is None else covered

    def may_answer(self, stream: str, operation: OperationWithAck) -> bool | None:
        """Return True if a stream takes a publish, False if it does not, and None until it was looked up."""
        covered = self.covered_by(stream)
        if covered is None or operation.puback_from in covered:
            return True
        return self.takes(stream, operation.subject) if stream in self._streams else None

    def takes(self, stream: str | None, subject: bytes) -> bool:
        """Return True if a stream is known to take this subject."""
        subjects = None if stream is None else self._streams.get(stream)
        if stream is None or subjects is None:
            return False
        taken = self._taken.setdefault(stream, {})
        found = taken.get(subject)
        if found is None:
            if len(taken) >= MAX_SUBJECTS:
                taken.clear()
            name = text(subject)
            found = taken[subject] = any(self._lookups.matches(pattern, name) for pattern in subjects)
        return found

    # --- what is not ---

    def keep(self, pubacks: Sequence[PubAck]) -> None:
        """Keep PubAcks until their streams are looked up. Passes over those of streams that were a moment ago."""
        recent = self._clock() - NO_FOR
        for puback in pubacks:
            stream = puback[1].stream
            assert stream is not None
            if self._asked_at.get(stream, recent) > recent:
                self.pass_over(puback[0], stream)
                continue
            kept = self._kept_of(stream)
            if kept is not None:
                kept[0].append(puback)

    def keep_refusal(self, stream: str, refusal: AckRefusal) -> None:
        """Keep an error that names a stream until that is looked up."""
        kept = self._kept_of(stream)
        if kept is not None:
            kept[1].append(refusal)

    def found(self, stream: str, subjects: tuple[str, ...] | None) -> tuple[list[PubAck], list[AckRefusal]]:
        """Record which subjects a stream takes: `()` if there is no such stream, `(">",)` if nobody may know.

        None if nobody has answered: then what was known of it before goes on to count. Return the PubAcks and the
        errors that have waited for that.
        """
        if subjects is None:
            subjects = self._streams.get(stream) or self._outdated.get(stream, ())
        if self._streams.get(stream) != subjects:
            self._covered.pop(stream, None)
            self._know(stream, subjects)
        self._asked_at[stream] = self._clock()
        self._outdated.pop(stream, None)
        pubacks, refusals = self._kept.pop(stream, ([], []))
        self._kept_count -= len(pubacks) + len(refusals)
        assert self._kept_count >= 0
        return pubacks, refusals

    def pass_over(self, order: int, stream: str) -> None:
        """Record an answer of a stream that does not take the publish: it decides nothing."""
        if order in self._passed_over or len(self._passed_over) < MAX_KEPT:
            self._passed_over[order] = stream

    def passed_over(self, order: int) -> str | None:
        """Return a stream whose answer to this publish was passed over, None if there was none."""
        return self._passed_over.get(order)

    def sweep(self, sent_again: Iterable[OperationWithAck], has_fate: Callable[[int], bool]) -> None:
        """Have streams looked up again that were asked about some time ago, as soon as another answer names them.

        Tell of what is sent again since the answers to it were passed over, and when none of that is left.
        """
        old = self._clock() - YES_FOR
        for stream in [stream for stream, at in self._asked_at.items() if at <= old]:
            if stream in self._looked_up:
                del self._asked_at[stream]
            else:
                subjects = self._streams[stream]
                self._forget(stream)
                self._outdated[stream] = subjects
        if not self._passed_over:
            return
        of_whom: dict[Hashable, tuple[OperationWithAck, str]] = {}
        for operation in sent_again:
            stream = self._passed_over.get(operation.order, "")
            if stream:
                self._told[operation.order] = operation.capacity_key
                of_whom[operation.capacity_key] = operation, stream
        for operation, stream in of_whom.values():
            self._lookups.puback_passed_over(operation, stream)
        before = {*self._told.values()}
        for order in [order for order in self._passed_over if has_fate(order)]:
            del self._passed_over[order]
            self._told.pop(order, None)
        for key in before.difference(self._told.values()):
            self._lookups.answered(key)

    def _kept_of(self, stream: str) -> tuple[list[PubAck], list[AckRefusal]] | None:
        """Return where one more answer of a stream is kept; None if too many are."""
        if self._kept_count >= MAX_KEPT:
            return None
        kept = self._kept.get(stream)
        if kept is None:
            if len(self._kept) >= MAX_STREAMS:
                return None
            kept = self._kept[stream] = ([], [])
            self._lookups.look_up(stream)
        self._kept_count += 1
        return kept

    def _know(self, stream: str, subjects: tuple[str, ...]) -> None:
        if self._streams.get(stream) == subjects:
            return
        if len(self._streams) + len(self._outdated) >= MAX_STREAMS:
            self._forget_streams()
        self._taken.pop(stream, None)
        self._streams[stream] = subjects

    def _forget(self, stream: str) -> None:
        for known in (self._streams, self._taken, self._asked_at, self._outdated):
            known.pop(stream, None)

    def _forget_streams(self) -> None:
        for known in (self._streams, self._taken, self._asked_at, self._outdated):
            known.clear()


def does_not_count(stream: str, subject: str = "its subject") -> str:
    """Return why the PubAcks of a stream don't count for a subject, and what to do about it."""
    name = excerpt(stream)
    return (
        f"PubAcks from stream {name!r} for {subject} don't count: {name!r} does not take it; if the server maps it to "
        f"one that {name!r} takes, name that stream: stream = {name!r}"
    )
