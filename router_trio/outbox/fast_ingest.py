"""Fast ingest: many JetStream publishes to one destination in a batch, for which the stream sends few answers.

Decides which publishes are in a batch, when it ends, and what an answer confirms; what becomes of a publish is the
outbox's business. Within a batch the server keeps order: if one message is missing, it stores nothing behind it. So a
destination has one batch at a time, and while that ends, nothing else is sent there: what the batch turns out not to
have stored comes first. Pure and synchronous; the clock is given.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from math import inf
from typing import Protocol

from router_trio.message import PubAck
from router_trio.outbox.batch import ENDS_WITHIN, Batch
from router_trio.outbox.operation import Operation, OperationWithAck
from router_trio.protocol.fast_ingest import Numbering

WORTH = 32
"""Publishes to one destination, taken at one time, for which a batch begins. Fewer get a PubAck each."""

MOST_FLOW = 200
"""Messages at most that one answer is for. The server has a bound of its own, which batches of a stream share."""

FLOWS_AT_ONCE = 4
"""An answer is for one part in so many of what is sent at one time, so that a source with a window never waits."""

REST = 5.0
"""Seconds without a batch for a destination whose last one came to a bad end."""


class Refused(Protocol):
    """Who decides on publishes that a stream did not take."""

    def ack_refused(self, order: int, reason: str, detail: str, retriable: bool) -> None:
        """A stream has refused the publish with this number."""

    def not_stored(self, operations: Sequence[OperationWithAck]) -> None:
        """A batch has not stored these, as far as is known, and will not store them any more."""


class Publishes(Protocol):
    """Whose publishes are in batches: the outbox."""

    @property
    def refusals(self) -> Refused:
        """Who is told of those that are not stored."""
        ...

    def acked(self, pubacks: Sequence[PubAck], /) -> None:
        """A stream has these."""


class FastIngest:
    """The batches of one outbox, on one link."""

    def __init__(self, publishes: Publishes, *, clock: Callable[[], float]) -> None:
        self._publishes = publishes
        self._clock = clock
        self._streams: dict[Hashable, str] = {}
        self._batches: dict[Hashable, Batch] = {}
        self._by_id: dict[bytes, Batch] = {}
        self._rests_until: dict[Hashable, float] = {}
        self.inbox: bytes = b""
        """Where the answers of the link come to, `b""` without one."""
        self._begun = 0
        self.at_work: bool = False
        """True if there may be anything to ask: a destination takes batches, or did so on this link."""

    def begin_link(self, inbox: bytes) -> None:
        """A link is there, whose answers come below `inbox`; `b""`: none is. Nobody knows who takes batches there."""
        self.inbox = inbox
        self.at_work = False
        self._streams.clear()
        self._batches.clear()
        self._by_id.clear()

    def use_for(self, destination: Hashable, stream: str | None) -> None:
        """Send to a destination (see `capacity_key`) in batches, which this stream takes. None: no longer."""
        if stream is None:
            self._streams.pop(destination, None)
        else:
            self._streams[destination] = stream
            self.at_work = True

    # --- out ---

    def numbering(self, destination: Hashable | None) -> Numbering | None:
        """Return the reply subjects that are likely for what is accepted next for a destination; None if none are."""
        batch = self._batches.get(destination)
        return None if batch is None or batch.ended_at is not None else batch.numbering

    def arrange(
        self, taken: Sequence[Operation], now: float, busy: Callable[[Hashable], bool]
    ) -> tuple[list[Operation], list[OperationWithAck]]:
        """Put what was taken to be written into batches where it belongs. Return what to write, and what can't go yet.

        `busy` tells of a destination that something is held back of: no batch begins there.
        """
        groups: dict[Hashable, list[OperationWithAck]] = {}
        for operation in taken:
            if isinstance(operation, OperationWithAck):
                key = operation.ingest_to
                if key is None:
                    key = operation.capacity_key
                group = groups.get(key)
                if group is None:
                    group = groups[key] = []
                group.append(operation)
        aside: dict[int, OperationWithAck] = {}
        for key, group in groups.items():
            batch = self._batches.get(key) or self._begin(key, group, now, busy)
            if batch is not None:
                aside.update((one.order, one) for one in self._add(batch, group, now))
            else:
                for one in group:
                    if one.numbering is not None:  # of a batch that is over
                        one.expect_puback_at(self.inbox)
        if not aside:
            return list(taken), []
        if len(aside) == 1 and taken[-1].order in aside:
            return list(taken[:-1]), [*aside.values()]
        return [one for one in taken if one.order not in aside], [*aside.values()]

    def _begin(
        self, key: Hashable, group: Sequence[OperationWithAck], now: float, busy: Callable[[Hashable], bool]
    ) -> Batch | None:
        if len(group) < WORTH or key not in self._streams or now < self._rests_until.get(key, -inf) or busy(key):
            return None
        if any(one.ingest_to is None for one in group):
            return None
        self._begun += 1
        # A stream knows a batch by this alone: no other router, and no other link, may have the same.
        batch_id = b"%b-%d" % (self.inbox.rpartition(b".")[2], self._begun)
        flow = max(1, min(MOST_FLOW, len(group) // FLOWS_AT_ONCE))
        batch = Batch(key, self._streams[key], batch_id, self.inbox, flow)
        self._batches[key] = self._by_id[batch_id] = batch
        return batch

    def _add(self, batch: Batch, group: list[OperationWithAck], now: float) -> Sequence[OperationWithAck]:
        """Add to a batch what may go with it. Return what can't go yet."""
        if batch.ended_at is not None:
            batch.waited_for = True
            return group
        own_ack = next((index for index, one in enumerate(group) if one.ingest_to is None), len(group))
        going = group[:own_ack]
        if not going:
            # Its latest message is not here any more, and there is no other to end it with.
            self._abandon(batch, now)
            return group
        if len(going) < len(group) or batch.key not in self._streams or batch.is_to_end(going, now):
            batch.take_along(going[:-1])
            batch.take_as_last(going[-1], now)
            batch.waited_for = len(going) < len(group)
            return group[len(going) :]
        batch.take_along(going[:-1])
        batch.let_wait(going[-1], now)
        return going[-1:]

    def check_ends(self, now: float, is_pending: Callable[[OperationWithAck], bool]) -> None:
        """Abandon those that can't end, or whose end is not answered though others wait for that."""
        for batch in [*self._batches.values()]:
            if batch.ended_at is not None:
                if batch.waited_for and now >= batch.ended_at + ENDS_WITHIN:
                    self._abandon(batch, now)
            elif now >= batch.latest_due_at() and (batch.latest is None or not is_pending(batch.latest)):
                self._abandon(batch, now)

    def abandon_unanswered(self, written_at: float) -> None:
        """Abandon those of which something was written at or before that time, and nobody knows that it is stored."""
        for batch in [*self._batches.values()]:
            if batch.operations and batch.operations[0].written_at <= written_at:
                self._abandon(batch, self._clock())

    def abandon_with(self, operation: Operation) -> None:
        """The server misses this: it stores nothing behind it of its batch, if it is in one."""
        if not self._batches or not isinstance(operation, OperationWithAck):
            return
        # Each destination has one batch: only its own is looked at.
        key = operation.capacity_key if operation.ingest_to is None else operation.ingest_to
        batch = self._batches.get(key)
        if batch is not None and any(one is operation for one in batch.operations):
            self._abandon(batch, self._clock())

    def latest(self) -> list[tuple[Batch, OperationWithAck]]:
        """The batches that have not ended, each with the message that would end it."""
        return [
            (batch, batch.latest)
            for batch in self._batches.values()
            if batch.ended_at is None and batch.latest is not None
        ]

    def next_due_at(self) -> float:
        """When something is to be sent, or looked at, though nothing has come; infinity for never."""
        due = inf
        for batch in self._batches.values():
            if batch.ended_at is None:
                due = min(due, batch.latest_due_at())
            elif batch.waited_for:
                due = min(due, batch.ended_at + ENDS_WITHIN)
        return due

    # --- answers ---

    def stored(self, batch_id: bytes, sequence: int, flow: int) -> None:
        """A stream has stored what a batch has up to this number, and answers again after `flow` more; 0: as before."""
        batch = self._by_id.get(batch_id)
        if batch is not None:
            self._publishes.acked(batch.take_stored(sequence, flow, self._clock()))

    def ended(self, batch_id: bytes, count: int | None) -> None:
        """A batch is over, with so many messages, None if nobody says. What it has not stored is sent again."""
        batch = self._by_id.get(batch_id)
        if batch is None:
            return
        stored = [] if count is None else batch.take_stored(count)
        if batch.operations or batch.ended_at is None:
            self._abandon(batch, self._clock())
        else:
            self._forget(batch)
        self._publishes.acked(stored)

    def one_refused(self, batch_id: bytes, sequence: int, reason: str, detail: str, retriable: bool) -> None:
        """A stream has refused one message of a batch, and stores nothing behind it: that is sent again."""
        batch = self._by_id.get(batch_id)
        if batch is not None:
            alone = batch.with_number(sequence)
            self._abandon(batch, self._clock(), alone)
            if alone is not None:
                alone.expect_puback_at(self.inbox)  # it may be tried again, and the batch is over
                self._publishes.refusals.ack_refused(alone.order, reason, detail, retriable)

    def publish_at(self, batch_id: bytes, sequence: int) -> OperationWithAck | None:
        """The publish with this number in a batch, if it is not known to be stored."""
        batch = self._by_id.get(batch_id)
        return None if batch is None else batch.with_number(sequence)

    def _abandon(self, batch: Batch, now: float, alone: OperationWithAck | None = None) -> None:
        self._forget(batch)
        self._rests_until[batch.key] = now + REST
        self._publishes.refusals.not_stored([one for one in batch.operations if one is not alone])

    def _forget(self, batch: Batch) -> None:
        del self._batches[batch.key], self._by_id[batch.id]
