"""The outbox of one connection: decides what becomes of every publish.

Queue, retries, capacity and settlement meet here and nowhere else: an operation is accepted, queued, dropped, failed
or confirmed by exactly one method. Synchronous and pure but for `emit`, `clock` and `wake`, which are given.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Sequence
from math import inf

from router_trio.errors import PublishError
from router_trio.events import Emit
from router_trio.message import Fate, PubAck
from router_trio.outbox.capacity import Capacity, TakenOut
from router_trio.outbox.fast_ingest import FastIngest
from router_trio.outbox.fences import Fences
from router_trio.outbox.ledger import Counters, Ledger
from router_trio.outbox.operation import CoreOperation, FrameOwners, Operation, OperationWithAck, Owner
from router_trio.outbox.queue import SendQueue
from router_trio.outbox.retries import ACK_BUDGET, RESEND_UNACKED_AFTER, Retries
from router_trio.outbox.settlement import Settlement
from router_trio.outbox.suspects import Suspects

MAX_UNACKED = 4096
"""JetStream publishes in flight at once; a server refuses more than 10,000 waiting for one stream."""

MAX_UNFENCED = 65_536
"""Core publishes in flight at once: what a server that reads but never answers can make us keep."""

BATCH_OPERATIONS = 2048
BATCH_BYTES = 256 * 1024

BATCHES_HELD = 8
"""Batches of which all is held back that are taken one after the other, before others have their turn."""

SAME_TIME = 0.001
"""Seconds within which publishes count as accepted at one time: those that are forwarded stay together, and those that
have to wait share it, which saves memory."""

POISON = "the server ended the connection each time that this was sent"

TriedAgain = Callable[[OperationWithAck, str], None]
"""Is told that a publish was refused for now, or not answered for long, and why. It is held, and may be given up."""

OUT_OF_TURN = "out_of_turn"
"""Why a publish failed that its owner took back."""


class Outbox:
    """All publishes of one connection, from acceptance to fate."""

    def __init__(
        self,
        connection: str,
        *,
        emit: Emit,
        clock: Callable[[], float],
        wake: Callable[[], None],
        fail_open: bool,
        max_operations: int,
        max_bytes: int,
        on_full: str,
        max_age: float,
    ) -> None:
        self.connection = connection
        self.settlement: Settlement = Settlement(connection, emit=emit, clock=clock, fail_open=fail_open)
        self.ledger: Ledger = self.settlement.ledger
        self.counters: Counters = self.settlement.counters
        self.connected: bool = False
        self.max_operations = max_operations
        self.max_bytes = max_bytes
        self.fail_open = fail_open
        self._clock = clock
        self._wake = wake
        self._max_age = max_age
        self.queue: SendQueue = SendQueue()
        """What is pending and in flight: for who looks. It is changed here alone."""
        self._lanes = self.queue.lanes
        self._in_flight = self.queue.in_flight
        self.fences: Fences = Fences(self._in_flight)
        """For who asks the server to confirm core publishes."""
        self._suspects = Suspects()
        self._retries = Retries(self.queue, clock=clock)
        self.ingest: FastIngest = FastIngest(self, clock=clock)
        """For who is told which streams take batches, and what they answer."""
        self.capacity: Capacity = Capacity(
            connection,
            self.queue,
            self.settlement,
            max_operations=max_operations,
            max_bytes=max_bytes,
            on_full=on_full,
            clock=clock,
        )
        """Also for who asks before it publishes, and for who asks which destinations refuse."""
        self._order = 0
        self._accepted_at = -inf
        self._held_back = False
        self._closed = False
        self._when_nothing_in_flight: list[Callable[[], None]] = []
        self.tried_again: dict[Hashable, list[TriedAgain]] = {}
        """Who is called each time that a publish of a destination (see `capacity_key`) is to be tried again."""

    # --- what there is ---

    @property
    def pending(self) -> int:
        """Operations accepted and not written."""
        return self.queue.pending

    @property
    def in_flight(self) -> int:
        """Operations written and not confirmed."""
        return self._in_flight.count

    @property
    def oldest_age(self) -> float:
        """Seconds since the oldest pending operation was accepted; 0 when nothing is pending."""
        oldest = self.queue.oldest_accepted_at
        return 0.0 if oldest is None else self._clock() - oldest

    @property
    def blocks(self) -> bool:
        """Return True if a publisher has to wait now: there is no room, and waiting may make some."""
        return self.capacity.full and (self.connected or (self.capacity.is_waited_for and not self.fail_open))

    @property
    def over_limit(self) -> bool:
        """The same for who forwards what a reader has in hand: it may go beyond `max_operations` while connected."""
        return self.blocks and (not self.connected or self.capacity.over_limit)

    @property
    def next_order(self) -> int:
        """The number that the next accepted operation will get."""
        return self._order + 1

    # --- in ---

    def offer(
        self,
        frame: bytes,
        *,
        with_ack: bool = False,
        owner: Owner | None = None,
        blocked: bool = False,
        ingest_to: Hashable | None = None,
    ) -> str:
        """Accept one operation. Returns its status: `sent` (on its way), `queued` or `failed_open`.

        `blocked` says that the caller waited for room while not connected: its failure is counted already.
        `ingest_to`: see `OperationWithAck`. Raises
        `PublishError` (queue_full) when the policy is to refuse. Never blocks: a caller that can wait asks `blocks` and
        `capacity.waits_for`.
        """
        if self._closed:
            raise PublishError("the router has stopped; publish inside of its open()", reason="shutdown")
        taken_out: TakenOut | None = None
        if self.connected:
            now = self._clock()
            if with_ack and self._lanes.lanes and not getattr(owner, "from_stream", False):
                taken_out = self.capacity.make_share(OperationWithAck(0, frame, owner, now, True))
        else:
            if not blocked:
                self.settlement.not_connected(with_ack)
            if not self.fail_open:
                taken_out = self.capacity.make_space(len(frame))
            now = self._same_time()
        self._order += 1
        if not with_ack:
            self.fences.behind = self._order
        clean = self.connected and not blocked
        operation = (
            OperationWithAck(self._order, frame, owner, now, clean, ingest_to)
            if with_ack
            else CoreOperation(self._order, frame, owner, now, clean)
        )
        self.ledger.accepted += 1
        if self.connected:
            self.queue.append(operation)
            if taken_out is not None:
                self.capacity.drop(taken_out)
            self._wake()
            return "queued" if self.settlement.draining else "sent"
        if self.fail_open:
            self.settlement.let_go([operation], "not_connected")
            return "failed_open"
        self.queue.append(operation)
        if taken_out is not None:
            self.capacity.drop(taken_out)
        self.settlement.queued(with_ack, self.pending)
        return "queued"

    def offer_frame(self, frame: bytes, owner: Owner) -> str:
        """Accept one core publish while connected, as `offer` does. Those of the same time stay together.

        Fast path of `offer`; held equal by
        tests/unit/routing/test_both_ways.py::test_what_a_program_publishes_is_accepted_as_any_other_publish, worth 50
        instructions a message (tests/performance/test_fast_paths.py::test_what_a_program_publishes_in_a_row).
        """
        self._order += 1
        self.fences.behind = self._order
        self.ledger.accepted += 1
        self.queue.append_frame(self._order, frame, owner, self._same_time())
        self._wake()
        return "queued" if self.settlement.draining else "sent"

    def offer_frames(self, frames: Sequence[bytes], owners: FrameOwners) -> None:
        """Accept core publishes, as `offer` does for each; one that is refused fails at its owner.

        While connected they stay together: one operation, for as long as nothing happens to them.
        """
        if not frames:
            return
        if self.connected:
            self._order += len(frames)
            self.ledger.accepted += len(frames)
            self.queue.append_frames(self._order, frames, owners, self._same_time())
            self._wake()
            return
        for frame, owner in zip(frames, owners.each(), strict=True):
            try:
                self.offer(frame, owner=owner)
            except PublishError as error:
                now = self._clock()
                refused = CoreOperation(0, frame, owner=owner, accepted_at=now, clean=False)
                refused.settle(Fate("failed", error.reason), now)

    def offer_each(
        self, frames: Sequence[bytes], owners: Sequence[Owner], ingest_to: Hashable | None, own_acks: Collection[int]
    ) -> None:
        """Accept JetStream publishes while connected, as `offer` does for each: their numbers begin at `next_order`.

        All of them have this `ingest_to`, but for those with an index in `own_acks`. For `Outlet.forward_each`, whose
        tests hold this equal.
        """
        now = self._clock()
        first = self._order + 1
        self._order += len(frames)
        self.ledger.accepted += len(frames)
        operations = [
            OperationWithAck(order, frame, owner, now, True, ingest_to)
            for order, (frame, owner) in enumerate(zip(frames, owners, strict=True), first)
        ]
        for index in own_acks:
            operations[index].ingest_to = None
        self.queue.append_each(operations, sum(map(len, frames)))
        self._wake()

    # --- the life of the link ---

    def link_up(self, inbox: bytes = b"") -> None:
        """A link is there, whose PubAcks come to `inbox`: what was kept is drained first, in order."""
        if inbox:
            self.queue.readdress(inbox)
        self.ingest.begin_link(inbox)
        self.connected = True
        self._held_back = False
        self._suspects.link_up(self.ledger.settled_count)
        kept = self.pending
        if kept:
            self.settlement.drain_begins(kept, self._order)
        self._wake()

    def link_down(self, reason: str = "") -> None:
        """The link is gone: everything unconfirmed returns to the head; in fail-open mode it is let go.

        `reason` is that of the `LinkError`. A publish that ends one link after the other fails, as `poison`.
        """
        self.connected = False
        self.ingest.begin_link(b"")
        self.settlement.drain_ends()
        queue, settled, now = self.queue, self.ledger.settled_count, self._clock()
        only = self._in_flight.only()
        blamed = self._suspects.link_down(reason, settled, self._in_flight.count, only.order if only else None, now)
        queue.requeue_all()
        self._retries.clear()
        if blamed and only is not None and queue.withdraw(only):
            self._suspects.remember(only.subject, _content(only))
            self._fail([only], "poison", POISON)
        if self.fail_open:
            self.settlement.let_go(self.queue.drop_all(), "not_connected")
            self._look_idle()

    def unreachable(self) -> None:
        """An attempt to connect has failed."""
        self._suspects.unreachable()

    def hold_back(self) -> None:
        """Write nothing more on this link but ends of batches: it is being left. The next one takes what is pending."""
        self._held_back = True
        self._wake()

    def when_nothing_in_flight(self, tell: Callable[[], None]) -> None:
        """Call `tell` once, when an operation is confirmed, refused or gone and nothing is in flight any more."""
        self._when_nothing_in_flight.append(tell)

    def next_batch(self) -> list[Operation]:
        """Move what may be written now from pending into flight, and return it.

        Asking says that the batch before was sent, and that what the link refused of it was told to `write_refused`.
        """
        self.fences.batch_sent()
        if self.ingest.at_work:
            return self._next_batch_with_ingest()
        return [] if self._held_back else self._take_batch()

    def _next_batch_with_ingest(self) -> list[Operation]:
        now = self._clock()
        if self._held_back:
            return self._ends_of_batches(now)
        written, aside = self.ingest.arrange(self._take_batch(), now, self._lanes.holds_of)
        if aside:
            self.queue.take_back(aside)
        self.ingest.check_ends(now, self.queue.waits)
        return written

    def _ends_of_batches(self, now: float) -> list[Operation]:
        """The last message of each batch, which is pending."""
        ends: list[Operation] = []
        for batch, latest in self.ingest.latest():
            if self.queue.withdraw(latest):
                self._in_flight.add_with_ack(latest, now)
                batch.take_as_last(latest, now)
                ends.append(latest)
        return ends

    def _take_batch(self) -> list[Operation]:
        if self._max_age:
            self._expire()
        if not self.queue.waiting and not self._lanes.lanes:
            return []
        now = self._clock()
        window = self._retries.window(MAX_UNACKED, now)
        due = self._retries.take_due(now)
        if due and self._suspects.careful:
            return [*due]
        if self._in_flight.unfenced >= MAX_UNFENCED:
            return [*due]
        most = BATCH_OPERATIONS
        if self._suspects.careful:
            most = min(most, self._suspects.send_limit(self._in_flight.count, now))
            self.queue.split_head(most)
        written: list[Operation] = []
        for _ in range(BATCHES_HELD if most else 0):
            batch = self.queue.take_batch(now, max_operations=most, max_bytes=BATCH_BYTES, max_unacked=window)
            # A whole batch may belong in lanes; nothing to write would then be a lie, and what is behind it would wait.
            written = self._retries.without_held(batch)
            if self._suspects.known:
                written = self._without_poison(written)
            if written or not batch:
                break
        else:
            if most:
                self._wake()  # there may be more behind it, once others had their turn
        # Those of lanes go with the others: however many are due, what is behind them in the queue does not wait.
        return [*due, *written] if due else written

    def _without_poison(self, batch: list[Operation]) -> list[Operation]:
        """Fail of what was taken whatever has ended links before. Seldom: only once there was such a publish."""
        good = []
        for operation in batch:
            poison = [one for one in operation.split() if self._suspects.knows(one.subject, _content(one))]
            if not poison:
                good.append(operation)
                continue
            for one in self._in_flight.single_parts(operation):
                if any(one.order == bad.order for bad in poison):
                    self.queue.withdraw(one)
                    self._fail([one], "poison", POISON)
                else:
                    good.append(one)
        return good

    # --- confirmations ---

    def fenced(self, mark: int) -> None:
        """A fence behind `mark`, as `Fences.sent` was then, was answered: the server has what was published before."""
        held_up = self._in_flight.unfenced >= MAX_UNFENCED
        confirmed = self.fences.take_confirmed(mark)
        if not confirmed:
            return
        if held_up or self._suspects.careful:
            self._wake()
        self.settlement.settle_fenced(confirmed)
        if self._when_nothing_in_flight:
            self._look_idle()

    def acked(self, pubacks: Sequence[PubAck]) -> None:
        """PubAcks came. One for an operation that has a fate, or will be sent again, is ignored.

        A late one, for a publish that is held by now, counts: the stream has it, and a held one may yet fail.
        """
        acked: list[tuple[OperationWithAck, Fate]] = []
        take_out = self._in_flight.unacked.pop
        for order, fate in pubacks:
            # Held: seldom, and a late PubAck. One that is doubled is not found at all.
            operation = take_out(order, None) or self._retries.take_held(order)
            if operation is not None:
                acked.append((operation, fate))
        if not acked:
            return
        if self._lanes.lanes:
            self._retries.left([operation for operation, _ in acked], accepted=True)
        self.settlement.settle_acked(acked)
        if self._when_nothing_in_flight:
            self._look_idle()
        if self._lanes.lanes or self.queue.waiting:
            self._wake()  # there is room in flight, or a lane goes on

    def ack_refused(self, order: int, reason: str, detail: str, retriable: bool) -> None:
        """A publish was answered with an error: tried again within its budget if that may help, else failed."""
        operation = self._in_flight.take_acked(order)
        if operation is not None:
            self._hold_or_fail(operation, reason, detail, retriable)
            self._wake()

    def publish_denied(self, subject: bytes, detail: str) -> None:
        """The server refused a publish to `subject`: the oldest one in flight to it has failed."""
        operation = self._in_flight.oldest_to(subject)
        if operation is not None and self._in_flight.withdraw(operation):
            self.ingest.abandon_with(operation)
            self._fail([operation], "permission_denied", detail)
            self._wake()

    def write_refused(self, operation: Operation, reason: str, detail: str, retriable: bool = False) -> None:
        """The link did not write this operation, or this part of one, though it was taken."""
        self.ingest.abandon_with(operation)
        for one in self.queue.remains(operation):
            if self.queue.withdraw(one):
                self._hold_or_fail(one, reason, detail, retriable)
        self._wake()

    def not_stored(self, operations: Sequence[OperationWithAck]) -> None:
        """See `fast_ingest.Publishes`. These go first, in order, and each gets a PubAck of its own."""
        again = [one for one in operations if self._in_flight.take_acked(one.order) is not None]
        for operation in again:
            operation.send_again()
            operation.expect_puback_at(self.ingest.inbox)
        self.queue.put_back(again)
        self._wake()

    # --- giving up ---

    def give_up(self, operation: Operation, reason: str, detail: str) -> bool:
        """Fail an operation wherever it is, as when its publisher's time is over. False if it has a fate already."""
        if not self.queue.withdraw(operation):
            return False
        self._fail([operation], reason, detail)
        self._wake()
        return True

    def recall(
        self,
        out_of_turn: Callable[[Operation], bool],
        why: str = "a message before it was refused, and comes again first",
    ) -> None:
        """Fail of what is pending all that must not be sent now. What is in flight can't be taken back.

        May be called by an owner that is told a fate: nothing here is in the middle of anything then.
        """
        recalled = self.queue.take_out(out_of_turn)
        if recalled:
            self.settlement.fail(recalled, OUT_OF_TURN, why)
            self._look_idle()
            self._wake()

    def sweep(self) -> None:
        """Send again what has been without a PubAck for long on this link, and fail what is over its budget.

        Drop what has waited longer than `pending_max_age`.
        """
        if self._max_age:
            self._expire()
        self.ingest.abandon_unanswered(self._clock() - RESEND_UNACKED_AFTER)
        by_reason, again = self._retries.sweep()
        for reason, operations in by_reason.items():
            over = [one for one in operations if self.queue.withdraw(one)]
            self._fail(over, reason, f"no PubAck within {ACK_BUDGET:g} s")
        for operation in again:
            self._tell_tried_again(operation, "timeout")
        self._wake()

    def next_batch_at(self) -> float | None:
        """When to ask for a batch again though nothing has happened; None if there is no need to."""
        due = self.ingest.next_due_at() if self.ingest.at_work else inf
        if (self.queue.waiting or self._lanes.lanes) and not self._held_back:
            try_at = self._retries.next_try_at(MAX_UNACKED)
            due = due if try_at is None else min(due, try_at)
        return None if due == inf else due

    def shut_down(self) -> int:
        """The end: whatever has no fate yet is dropped, or was in flight and stays unconfirmed. Returns how many."""
        self.connected = False
        self._closed = True
        self.queue.requeue_all()
        self._retries.clear()
        left = self.settlement.drop(self.queue.drop_all(), "shutdown")
        self._look_idle()
        return left

    # --- inside ---

    def _same_time(self) -> float:
        """The time now, or that of an operation before that counts as accepted at the same time."""
        now = self._clock()
        if now - self._accepted_at >= SAME_TIME:
            self._accepted_at = now
            self.fences.follow_at_times(self._order, now)
        return self._accepted_at

    def _hold_or_fail(self, operation: Operation, reason: str, detail: str, retriable: bool) -> None:
        held = (
            retriable
            and isinstance(operation, OperationWithAck)
            and self.capacity.may_hold(operation)
            and self._retries.hold(operation, reason)
        )
        if held:
            self._look_idle()
            assert isinstance(operation, OperationWithAck)
            self._tell_tried_again(operation, reason)
        else:
            self._fail([operation], reason, detail)

    def _tell_tried_again(self, operation: OperationWithAck, reason: str) -> None:
        if self.tried_again:
            for tell in self.tried_again.get(operation.capacity_key, ()):
                tell(operation, reason)

    def _fail(self, operations: Sequence[Operation], reason: str, detail: str) -> None:
        self._retries.left(operations, accepted=False)
        self.settlement.fail(operations, reason, detail)
        self._look_idle()

    def _expire(self) -> None:
        dropped = self.queue.drop_older_than(self._clock() - self._max_age)
        if dropped:
            self.settlement.drop(dropped, "expired")
            self._look_idle()

    def _look_idle(self) -> None:
        if self._when_nothing_in_flight and not self._in_flight.count:
            waiting, self._when_nothing_in_flight = self._when_nothing_in_flight, []
            for tell in waiting:
                tell()


def _content(operation: Operation) -> bytes:
    """Headers and payload: the reply subject is another one each time."""
    return operation.frame.partition(b"\r\n")[2]
