"""Decides which streams may answer a JetStream publish: those taking its subject, and the stream that it names.

Every client that receives the messages of the destination can read the reply subject, where the PubAck is sent. If such
a client publishes with it as its own reply subject, to a subject that some stream takes, a server sends us a PubAck of
that stream. So a PubAck counts only if the stream that it names takes the subject of the publish. If the stream's
subjects are not known, the PubAck is kept until they have been looked up. If the stream does not take the subject, the
PubAck is passed over, and the publish still waits for its own.

Where a server maps the subject on its way, the stream that answers does not take it. What that stream has stored proves
nothing either: any client that receives the destination's messages can store a copy elsewhere, with the same id. So the
configuration has to name that stream. Pure and synchronous; the clock is passed in.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import Protocol

from router_trio.errors.quotes import excerpt
from router_trio.message import PubAck
from router_trio.outbox.operation import OperationWithAck
from router_trio.protocol.framing import text

MAX_KEPT = 8192
"""PubAcks and errors kept until a lookup, which is more than may be in flight. Publishes with further ones are sent
again."""

MAX_STREAMS = 1024
"""Streams that are known, or being looked up, at a time. Beyond that all are forgotten."""

MAX_SUBJECTS = 4096
"""Subjects for which it is remembered whether one stream takes them. Beyond that all are forgotten."""

NO_FOR = 1.0
"""Seconds after a lookup during which a stream that does not take a subject is not looked up again."""

YES_FOR = 4.0
"""Seconds after which a stream is looked up again before its PubAcks count; checked at each `sweep`.

Does not apply to the streams passed to `learn`, which are looked up as often anyway.
"""

AckRefusal = tuple[int, str, str, bool]
"""The arguments of `Refusals.ack_refused`: number of the publish, reason, detail, and True if a later try may help."""


class Lookups(Protocol):
    """Looks up streams for a `Belief`, and is notified of answers that were passed over."""

    def matches(self, pattern: str, subject: str) -> bool:
        """Return True if a pattern of a stream's subjects takes a subject."""
        ...

    def look_up(self, stream: str) -> None:
        """Look up the subjects of a stream, and pass them to `Outbox.stream_found`."""

    def puback_passed_over(self, operation: OperationWithAck, stream: str) -> None:
        """Record that a publish is sent again because answers of that stream to it were passed over."""

    def answered(self, key: Hashable) -> None:
        """Record that all publishes with this `capacity_key` that `puback_passed_over` reported have their fate."""


class _NoLookups:
    """`Lookups` for the time without a link: looks nothing up."""

    def matches(self, pattern: str, subject: str) -> bool:
        return pattern == subject

    def look_up(self, stream: str) -> None:
        pass

    def puback_passed_over(self, operation: OperationWithAck, stream: str) -> None:
        pass

    def answered(self, key: Hashable) -> None:
        pass


class Belief:
    """Decide which PubAcks of one outbox count, on one link. While inactive, as without a link, all of them count."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self.active: bool = False
        self._lookups: Lookups = _NoLookups()
        self._looked_up: frozenset[str] = frozenset()
        self._covered: dict[str, frozenset[Hashable]] = {}
        self._streams: dict[str, tuple[str, ...]] = {}
        self._taken: dict[str, dict[bytes, bool]] = {}
        self._asked_at: dict[str, float] = {}
        """When streams that an answer named were looked up. Only for keys of `_streams`."""
        self._outdated: dict[str, tuple[str, ...]] = {}
        """Subjects of streams that have to be looked up again. They still count if the lookup gets no answer."""
        self._passed_over: dict[int, str] = {}
        """The last stream whose answer to a publish was passed over, by the publish's number."""
        self._reported: dict[int, Hashable] = {}
        """`capacity_key` of the publishes reported to `Lookups.puback_passed_over`, by number."""
        self._kept: dict[str, tuple[list[PubAck], list[AckRefusal]]] = {}
        self._kept_count = 0

    def ask(self, lookups: Lookups) -> None:
        """Use `lookups` to look up streams."""
        self._lookups = lookups

    def begin_link(self) -> None:
        """Start on a new link with no known streams: permissions may differ, and it may be another server."""
        self.active = True
        self._forget_streams()
        for known in (self._covered, self._passed_over, self._reported, self._kept):
            known.clear()
        self._kept_count = 0

    # --- known streams ---

    def learn(self, streams: Mapping[str, tuple[str, ...]], covered: Mapping[str, Iterable[Hashable]]) -> None:
        """Record the subjects of these streams, and the destinations (see `capacity_key`) that each one covers.

        Forgets the streams of the previous call that are not among them.
        """
        self._covered = {stream: frozenset((stream, *each)) for stream, each in covered.items()}
        for gone in self._looked_up.difference(streams):  # minus `keys()` would give a set, not a frozenset
            self._forget(gone)
        self._looked_up = frozenset(streams)
        for stream, subjects in streams.items():
            self._know(stream, subjects)

    def covered_by(self, stream: str | None) -> frozenset[Hashable] | None:
        """Return the `puback_from` of publishes that a stream may answer regardless of their subject; None for all."""
        if not self.active or stream is None:
            return None
        covered = self._covered.get(stream)
        return frozenset((stream,)) if covered is None else covered

    def may_answer(self, stream: str, operation: OperationWithAck) -> bool | None:
        """Return True if a stream takes a publish, False if it does not, None if it has to be looked up first."""
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

    # --- answers of unknown streams ---

    def keep(self, pubacks: Sequence[PubAck]) -> None:
        """Keep PubAcks until their streams are looked up. Pass over those of streams looked up a moment ago."""
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
        """Keep an error that names a stream until the stream is looked up."""
        kept = self._kept_of(stream)
        if kept is not None:
            kept[1].append(refusal)

    def found(self, stream: str, subjects: tuple[str, ...] | None) -> tuple[list[PubAck], list[AckRefusal]]:
        """Record the subjects of a stream: `()` if there is no such stream, `(">",)` if looking it up is not permitted.

        None means that the lookup was not answered: the subjects known before still count. Returns the PubAcks and the
        errors that were kept for this lookup.
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
        """Record an answer of a stream that does not take the publish. It decides nothing."""
        if order in self._passed_over or len(self._passed_over) < MAX_KEPT:
            self._passed_over[order] = stream

    def passed_over(self, order: int) -> str | None:
        """Return a stream whose answer to this publish was passed over; None if there is none."""
        return self._passed_over.get(order)

    def sweep(self, sent_again: Iterable[OperationWithAck], has_fate: Callable[[int], bool]) -> None:
        """Forget outdated lookups, and report publishes that are sent again after their answers were passed over.

        A stream whose lookup is outdated is looked up again when another answer names it. `Lookups.puback_passed_over`
        is called for the publishes, and `Lookups.answered` when none of them is left.
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
        latest: dict[Hashable, tuple[OperationWithAck, str]] = {}
        for operation in sent_again:
            stream = self._passed_over.get(operation.order, "")
            if stream:
                self._reported[operation.order] = operation.capacity_key
                latest[operation.capacity_key] = operation, stream
        for operation, stream in latest.values():
            self._lookups.puback_passed_over(operation, stream)
        before = {*self._reported.values()}
        for order in [order for order in self._passed_over if has_fate(order)]:
            del self._passed_over[order]
            self._reported.pop(order, None)
        for key in before.difference(self._reported.values()):
            self._lookups.answered(key)

    def _kept_of(self, stream: str) -> tuple[list[PubAck], list[AckRefusal]] | None:
        """Return the lists that keep one more answer of a stream; None if too many are kept."""
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
    """Return why PubAcks of a stream don't count for a subject, and what to do about it."""
    name = excerpt(stream)
    return (
        f"PubAcks from stream {name!r} for {subject} don't count, because {name!r} does not take it; if the server "
        f"maps it to a subject that {name!r} takes, set stream = {name!r} for the destination"
    )
