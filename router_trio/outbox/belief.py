"""Which streams may answer a JetStream publish: those that take its subject, as lookups say.

A PubAck comes to a reply subject that every client can read that hears the destination. A client that publishes with
that subject as its own reply, to a subject that some stream takes, has a server send us a PubAck of that stream. So a
PubAck counts only if the stream that it names takes the subject of the publish. One of a stream of which that is not
known waits until the stream was looked up. If the stream does not take the subject, the PubAck is passed over, and the
publish still waits for its own. Pure and synchronous.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence

from router_trio.message import PubAck
from router_trio.outbox.operation import OperationWithAck
from router_trio.protocol.framing import text

MAX_KEPT = 8192
"""PubAcks and errors that wait for a lookup, more than may be in flight. The publishes of others are sent again."""

MAX_STREAMS = 1024
"""Streams that are known, or asked about, at a time. With one more the memory starts afresh."""

MAX_SUBJECTS = 4096
"""Subjects of one stream of which is remembered whether it takes them. With one more the memory starts afresh."""

AckRefusal = tuple[int, str, str, bool]
"""The arguments of `Refusals.ack_refused`: number of the publish, reason, detail, and True if a later try may help."""

NONE: frozenset[Hashable] = frozenset()


class Belief:
    """Of one outbox, on one link. Inactive, which it is without a link, it believes every stream."""

    def __init__(self) -> None:
        self.active: bool = False
        self.matches: Callable[[str, str], bool] = lambda pattern, subject: pattern == subject
        """Says whether a pattern of a stream's subjects takes a subject: given, as are all rules of subjects here."""
        self.ask: Callable[[str], None] = lambda stream: None
        """Called with a stream that is to be looked up: see `Outbox.stream_found`."""
        self._looked_up: frozenset[str] = frozenset()
        self._covered: dict[str, frozenset[Hashable]] = {}
        self._streams: dict[str, tuple[str, ...]] = {}
        self._taken: dict[str, dict[bytes, bool]] = {}
        self._kept: dict[str, tuple[list[PubAck], list[AckRefusal]]] = {}
        self._kept_count = 0

    def begin_link(self) -> None:
        """A link is there. Nothing is known of its streams: rights may have changed, and it may be another server."""
        self.active = True
        for known in (self._covered, self._streams, self._taken, self._kept):
            known.clear()
        self._kept_count = 0

    # --- what is known ---

    def learn(self, streams: Mapping[str, tuple[str, ...]], covered: Mapping[str, Iterable[Hashable]]) -> None:
        """Know the subjects of these streams, and the destinations (see `capacity_key`) of which each takes all.

        Those of the last time that are not among them are forgotten.
        """
        self._covered = {stream: frozenset(each) for stream, each in covered.items()}
        for gone in self._looked_up - streams.keys():
            self._streams.pop(gone, None)
            self._taken.pop(gone, None)
        self._looked_up = frozenset(streams)
        for stream, subjects in streams.items():
            self._know(stream, subjects)

    def covered_by(self, stream: str | None) -> frozenset[Hashable] | None:
        """Return the destinations whose publishes a stream takes, whatever their subject; None: it takes all."""
        if not self.active or stream is None:
            return None
        return self._covered.get(stream, NONE)

    def may_answer(self, stream: str, operation: OperationWithAck) -> bool | None:
        """Return True if a stream takes a publish, False if it does not, and None until it was looked up."""
        covered = self.covered_by(stream)
        if covered is None or operation.mapped_by in covered:
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
            found = taken[subject] = any(self.matches(pattern, name) for pattern in subjects)
        return found

    # --- what is not ---

    def keep(self, pubacks: Sequence[PubAck]) -> None:
        """Keep PubAcks until their streams are looked up."""
        for puback in pubacks:
            stream = puback[1].stream
            assert stream is not None
            kept = self._kept_of(stream)
            if kept is not None:
                kept[0].append(puback)

    def keep_refusal(self, stream: str, refusal: AckRefusal) -> None:
        """Keep an error that names a stream until that is looked up."""
        kept = self._kept_of(stream)
        if kept is not None:
            kept[1].append(refusal)

    def found(self, stream: str, subjects: tuple[str, ...]) -> tuple[list[PubAck], list[AckRefusal]]:
        """A stream takes these subjects. Return the PubAcks and the errors that have waited for that."""
        if self._streams.get(stream) != subjects:
            self._covered.pop(stream, None)
            self._know(stream, subjects)
        pubacks, refusals = self._kept.pop(stream, ([], []))
        self._kept_count -= len(pubacks) + len(refusals)
        return pubacks, refusals

    def _kept_of(self, stream: str) -> tuple[list[PubAck], list[AckRefusal]] | None:
        """Return where one more answer of a stream is kept; None if too many are."""
        if self._kept_count >= MAX_KEPT:
            return None
        kept = self._kept.get(stream)
        if kept is None:
            if len(self._kept) >= MAX_STREAMS:
                return None
            kept = self._kept[stream] = ([], [])
            self.ask(stream)
        self._kept_count += 1
        return kept

    def _know(self, stream: str, subjects: tuple[str, ...]) -> None:
        if self._streams.get(stream) == subjects:
            return
        if len(self._streams) >= MAX_STREAMS:
            self._streams.clear()
            self._taken.clear()
        self._taken.pop(stream, None)
        self._streams[stream] = subjects
