"""The outbox of one connection: accepts publishes, keeps them until they are confirmed, and gives each one fate.

`Outbox` joins queue, retries, capacity and settlement. `sender.py` decides what may be written now, and `refusals.py`
what happens to a publish that is refused or not confirmed in time; both work on the same queue. Synchronous and pure,
except for `emit`, `clock` and `wake`, which are passed in.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from math import inf

from router_trio.errors import PublishError, reasons
from router_trio.events import Emit
from router_trio.message import Fate, PubAck, fate_with_detail
from router_trio.outbox import sender
from router_trio.outbox.belief import AckRefusal, Belief
from router_trio.outbox.capacity import Capacity, TakenOut
from router_trio.outbox.fences import Fences
from router_trio.outbox.ledger import Counters, Ledger
from router_trio.outbox.operation import CoreOperation, FrameOwners, Operation, OperationWithAck, Owner
from router_trio.outbox.queue import SendQueue
from router_trio.outbox.refusals import Refusals
from router_trio.outbox.retries import Retries
from router_trio.outbox.retry_lanes import Shut
from router_trio.outbox.sender import Sender
from router_trio.outbox.settlement import Settlement
from router_trio.outbox.suspects import Suspects
from router_trio.protocol.framing import publish

SAME_TIME = 0.001
"""Seconds within which publishes count as accepted at the same time, which saves memory."""


class Outbox:
    """Carry the publishes of one connection from acceptance to their fate."""

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
        queue = SendQueue()
        self._queue = queue
        self._lanes = queue.lanes
        self._in_flight = queue.in_flight
        self.fences: Fences = Fences(self._in_flight)
        """For the task that asks the server to confirm core publishes."""
        self._suspects = Suspects()
        self._retries = Retries(queue, clock=clock)
        self.capacity: Capacity = Capacity(
            connection,
            queue,
            self.settlement,
            max_operations=max_operations,
            max_bytes=max_bytes,
            on_full=on_full,
            clock=clock,
        )
        """For callers that ask before they publish, or that report which destinations refuse."""
        self.belief: Belief = Belief(clock)
        """For the code that looks up streams."""
        self._order = 0
        self._accepted_at = -inf
        self._confirmed_at = -inf
        self._closed = False
        self.refusals: Refusals = Refusals(
            queue,
            self._retries,
            self.settlement,
            self.capacity,
            self.belief,
            max_age=max_age,
            clock=clock,
            wake=wake,
        )
        """For callers that report a refusal, or give up a publish."""
        self.sender: Sender = Sender(
            queue, self.fences, self._suspects, self._retries, self.refusals, clock=clock, wake=wake
        )
        """For the task that writes."""

    def add_counts(self, ledger: Ledger, counters: Counters) -> None:
        """Add the counts of an earlier outbox, whose publishes are all settled."""
        assert not ledger.unsettled, "an outbox ends with a fate for each publish"
        self.ledger.add(ledger)
        self.counters.add(counters)

    # --- state ---

    @property
    def pending(self) -> int:
        """Number of operations that are accepted and not written."""
        return self._queue.pending

    @property
    def pending_bytes(self) -> int:
        """Bytes of the frames of pending operations."""
        return self._queue.pending_bytes

    @property
    def in_flight(self) -> int:
        """Number of operations that are written and not confirmed."""
        return self._in_flight.count

    @property
    def oldest_age(self) -> float:
        """Seconds since the oldest pending operation was accepted; 0 when nothing is pending."""
        oldest = self._queue.oldest_accepted_at
        return 0.0 if oldest is None else self._clock() - oldest

    @property
    def silent_since(self) -> float:
        """Time since which the server has confirmed nothing, though something is on its way; infinite if nothing is."""
        return max(self._queue.oldest_on_its_way_at, self._confirmed_at)

    def undelivered_since(self, round_trip: float) -> float:
        """Return the time since which publishes may not have reached the server; infinite if nothing is on its way.

        The server received the publish that was confirmed last at most a `round_trip` before its confirmation.
        """
        return max(self._queue.oldest_on_its_way_at, self.silent_since - round_trip)

    def unanswered(self) -> list[OperationWithAck]:
        """Return the pending JetStream publishes that were sent on an earlier link and got no PubAck."""
        return self._queue.unanswered()

    def unanswered_destinations(self) -> list[str]:
        """Return the destinations that do not confirm what is sent to them."""
        return self.capacity.unanswered()

    @property
    def blocks(self) -> bool:
        """Return True if a publisher has to wait now: there is no room, and waiting may make some."""
        return self.capacity.full and (self.connected or (self.capacity.is_waited_for and not self.fail_open))

    @property
    def over_limit(self) -> bool:
        """Return the same as `blocks` for publishes of a reader, which may exceed `max_operations` while connected."""
        return self.blocks and (not self.connected or self.capacity.over_limit)

    # --- accepting ---

    def offer(self, frame: bytes, *, owner: Owner | None = None, blocked: bool = False, together: bool = False) -> str:
        """Accept one core publish. Returns its status: `sent` (on its way), `queued` or `failed_open`.

        With `blocked` the caller has waited for room while not connected, so the failure is counted already. With
        `together` the publish is never recalled, and may be merged with others accepted at the same time into one
        operation. Raises `PublishError` (queue_full) if the policy is to refuse. Never blocks: a caller that can wait
        checks `blocks` and `capacity.waits_for` first.
        """
        if not self.connected:
            return self._keep(CoreOperation(self._order + 1, frame, owner, 0.0, False), blocked)
        self._order = order = self._order + 1
        self.fences.behind = order
        self.ledger.accepted += 1
        if together and owner is not None and not blocked:
            self._queue.append_frame(order, frame, owner, self._same_time())
        else:
            self._queue.append(CoreOperation(order, frame, owner, self._clock(), not blocked))
        self._wake()
        return "queued" if self.settlement.drain_left else "sent"

    def offer_with_ack(
        self,
        subject: bytes,
        body: bytes,
        headers: bytes,
        inbox: bytes,
        *,
        owner: Owner | None = None,
        blocked: bool = False,
        puback_from: Hashable | None = None,
    ) -> tuple[str, int]:
        """Accept one JetStream publish as `offer` does, with its PubAck directed to `inbox`. Returns status and number.

        `puback_from` selects the streams whose PubAck counts, as described at `OperationWithAck`.
        """
        order = self._order + 1
        frame = publish(subject, body, b"%b.%d" % (inbox, order), headers)
        if not self.connected:
            return self._keep(OperationWithAck(order, frame, owner, 0.0, False, puback_from), blocked), order
        operation = OperationWithAck(order, frame, owner, self._clock(), not blocked, puback_from)
        taken_out: TakenOut | None = None
        if self._lanes.lanes and not getattr(owner, "from_stream", False):
            taken_out = self.capacity.make_share(operation)
        self._order = order
        self.ledger.accepted += 1
        self._queue.append(operation)
        if taken_out is not None:
            self.capacity.drop(taken_out)
        self._wake()
        return "queued" if self.settlement.drain_left else "sent", order

    def offer_frames(self, frames: Sequence[bytes], owners: FrameOwners) -> int:
        """Accept core publishes as `offer` does for each; the owner of a refused one is notified of its failure.

        While connected they are one operation until a loss or a denial takes it apart: none has a fate when this
        returns, and they are numbered consecutively from the returned number on. While not connected neither holds.
        """
        first = self._order + 1
        if not frames:
            return first
        if self.connected:
            self._order += len(frames)
            self.ledger.accepted += len(frames)
            self._queue.append_frames(self._order, frames, owners, self._same_time())
            self._wake()
            return first
        for frame, owner in zip(frames, owners.each(), strict=True):
            operation = CoreOperation(self._order + 1, frame, owner, 0.0, False)
            try:
                self._keep(operation, blocked=False)
            except PublishError as error:
                self._order = operation.order  # this number is used up
                operation.accepted_at = now = self._clock()
                operation.settle(fate_with_detail("failed", error.reason, str(error)), now)
        return first

    def take_numbers(self, count: int) -> int:
        """Reserve `count` numbers for the next `offer_each`, and return the first. Some may stay unused."""
        first = self._order + 1
        self._order += count
        return first

    def offer_each(
        self, first: int, frames: Sequence[bytes], owners: Sequence[Owner], puback_from: Hashable | None
    ) -> None:
        """Accept JetStream publishes while connected, numbered from `first` on, as `offer_with_ack` does for one.

        The tests of `Outlet.forward_each` verify that the two are equivalent.
        """
        assert self.connected
        now = self._clock()
        operations = [
            OperationWithAck(order, frame, owner, now, True, puback_from)
            for order, (frame, owner) in enumerate(zip(frames, owners, strict=True), first)
        ]
        self.ledger.accepted += len(frames)
        self._queue.append_each(operations, sum(map(len, frames)))
        self._wake()

    # --- link up and down ---

    def link_up(self, inbox: bytes = b"") -> None:
        """Use a new link, whose PubAcks are directed to `inbox`. Pending operations are sent first, in order.

        Other clients may be able to publish to that inbox: see `Belief`, and `Refusals.ack_refused`.
        """
        if inbox:
            self._queue.readdress(inbox)
            self.belief.begin_link()
            self.refusals.resend_refused()
        self.connected = True
        self.sender.begin_link()
        self._suspects.link_up(self.ledger.settled_count)
        kept = self.pending
        if kept:
            self.settlement.drain_begins(kept, self._order)
        self._wake()

    def link_down(self, reason: str = "") -> None:
        """Return everything unconfirmed to the head after the loss of the link; in fail-open mode, let it go.

        `reason` is that of the `LinkError`. A publish that ends one link after another fails as `poison`.
        """
        self.connected = False
        self.refusals.link_down()
        self.settlement.drain_ends()
        queue, settled, now = self._queue, self.ledger.settled_count, self._clock()
        only = self._in_flight.only()
        blamed = self._suspects.link_down(reason, settled, self._in_flight.count, only.order if only else None, now)
        queue.requeue_all()
        self._retries.clear()
        if blamed and only is not None and self.refusals.fail_poison(only):
            self._suspects.remember(only, now)
        if self.fail_open:
            self.settlement.let_go(self._queue.drop_all(), reasons.NOT_CONNECTED)
            self._in_flight.notify_if_none()

    def server_unreachable(self) -> None:
        """Record that no server could be reached, which is no publish's fault."""
        self._suspects.unreachable()

    def change_shut(self, changes: Mapping[Hashable, Shut | None]) -> None:
        """Keep the JetStream publishes to some destinations as if there were no link to them, or no longer.

        `changes` has why each is shut, by `capacity_key`, and None for each that is opened.
        """
        self._retries.change_shut(changes)
        self._wake()

    def when_nothing_in_flight(self, notify: Callable[[], None]) -> None:
        """Call `notify` once, when an operation is confirmed, refused or withdrawn and none is in flight any more."""
        self._in_flight.when_none.append(notify)

    # --- confirmations ---

    def fenced(self, mark: int) -> None:
        """Settle the publishes confirmed by an answered fence: those written when `Fences.sent` was `mark`."""
        held_up = self._in_flight.unfenced >= sender.MAX_UNFENCED
        if self.refusals.expected_denials:
            self.refusals.fence_answered(mark)
        confirmed = self.fences.take_confirmed(mark)
        if not confirmed:
            return
        self._confirmed_at = self._clock()
        if held_up or self._suspects.careful:
            self._wake()
        self.settlement.settle_fenced(confirmed)
        if self._in_flight.when_none:
            self._in_flight.notify_if_none()

    def acked(self, pubacks: Sequence[PubAck]) -> None:
        """Settle the publishes that PubAcks confirm. Ignore those whose publish has a fate or will be sent again.

        A late PubAck for a publish that is held by now counts: the stream has stored it, and a held publish may still
        fail. A PubAck of a stream that is not known to take the subject is kept until the stream has been looked up
        (`Belief`).
        """
        acked: list[tuple[OperationWithAck, Fate]] = []
        unknown: list[PubAck] = []
        unacked, belief = self._in_flight.unacked, self.belief
        stream: str | None = None
        covered: frozenset[Hashable] | None = None
        for order, fate in pubacks:
            # A held publish with a late PubAck is rare. A duplicate PubAck finds nothing.
            operation = unacked.get(order) or self._lanes.find(order)
            if operation is None:
                operation = self.refusals.asked(order)
                if operation is None:
                    continue
                order = operation.order
            if fate[2] is not stream:
                stream = fate[2]
                covered = belief.covered_by(stream)
            # The destination decides at once. The subject decides if the stream does not cover the destination, or if
            # no destination mapped the subject.
            if (
                covered is not None
                and operation.puback_from not in covered
                and not belief.takes(stream, operation.subject)
            ):
                unknown.append((order, fate))
                continue
            if unacked.pop(order, None) is None:
                self._retries.take_held(order)
            acked.append((operation, fate))
        if unknown:
            belief.keep(unknown)
        if not acked:
            return
        self._confirmed_at = self._clock()
        retried = [operation for operation, _ in acked] if self._lanes.lanes else []
        if retried:
            self._retries.release(retried, accepted=True)
        self.settlement.settle_acked(acked)
        if retried:
            self.refusals.notify_of_acks(retried)
        if self._in_flight.when_none:
            self._in_flight.notify_if_none()
        if self._lanes.lanes or self._queue.waiting:
            self._wake()  # there is room in flight, or the next publish of a lane may be tried

    def stream_found(self, stream: str, subjects: tuple[str, ...] | None) -> list[AckRefusal]:
        """Record the result of a lookup: the subjects that a stream takes, as in `Belief.found`.

        PubAcks kept for this lookup count if the stream takes the subjects of their publishes. Returns the errors that
        were kept for it.
        """
        pubacks, refusals = self.belief.found(stream, subjects)
        self.acked(pubacks)
        return refusals

    def answered_by(self, stream: str, refusal: AckRefusal) -> OperationWithAck | None:
        """Return the publish that an error answers; None if it has a fate, or the stream does not take its subject.

        `stream` is `""` if the error does not name one. An error of a stream that has not been looked up yet is kept
        until it has been, as PubAcks are; `stream_found` then returns it.
        """
        operation = self.refusals.answered(refusal[0])
        may_answer = self.belief.may_answer(stream, operation) if operation is not None and stream else True
        if operation is None or may_answer:
            return operation
        if may_answer is None:
            self.belief.keep_refusal(stream, refusal)
        else:
            self.belief.pass_over(operation.order, stream)
        return None

    def expects(self, stream: str) -> bool:
        """Return True if a written publish without a fate names this stream in its `puback_from`."""

        def names(operation: OperationWithAck) -> bool:
            return operation.puback_from == stream

        return any(map(names, self._in_flight.unacked.values())) or bool(self._lanes.wanted(names))

    # --- giving up ---

    def recall(
        self,
        out_of_turn: Callable[[Operation], bool],
        why: str = "an earlier message of its subject was refused, and is to be redelivered first",
    ) -> None:
        """Fail the pending operations that must not be sent now. Operations in flight can't be recalled.

        An owner may call this while it is notified of a fate: the outbox is in a consistent state then.
        """
        recalled = self._queue.take_out(out_of_turn)
        if recalled:
            self.settlement.fail(recalled, reasons.OUT_OF_TURN, why)
            self._in_flight.notify_if_none()
            self._wake()

    def take_pending(self) -> list[Operation]:
        """Take out the operations that wait for the wire, without a fate: for a rehearsal, which sends nothing."""
        return self._queue.drop_all()

    def shut_down(self) -> int:
        """Drop everything that has no fate yet, at the end. Returns how many messages no stream will redeliver."""
        self.connected = False
        self._closed = True
        self._queue.requeue_all()
        self._retries.clear()
        left = self._queue.drop_all()
        redelivered = sum(operation.redelivered for operation in left)
        dropped = self.settlement.drop(left, reasons.SHUTDOWN)
        self._in_flight.notify_if_none()
        return dropped - redelivered

    # --- internals ---

    def _keep(self, operation: CoreOperation, blocked: bool) -> str:
        """Accept an operation at the current time while not connected. Returns its status, as `offer` does."""
        if self._closed:
            raise PublishError("the router has stopped; publish inside of its open()", reason=reasons.SHUTDOWN)
        if not blocked:
            self.settlement.not_connected(operation.with_ack)
        taken_out = None if self.fail_open else self.capacity.make_space(len(operation.frame))
        operation.accepted_at = self._same_time()
        self._order = operation.order
        if not operation.with_ack:
            self.fences.behind = operation.order
        self.ledger.accepted += 1
        if self.fail_open:
            self.settlement.let_go([operation], reasons.NOT_CONNECTED)
            return "failed_open"
        self._queue.append(operation)
        if taken_out is not None:
            self.capacity.drop(taken_out)
        self.settlement.queued(operation.with_ack, self.pending)
        return "queued"

    def _same_time(self) -> float:
        """Return the current time, or that of a recent operation that counts as accepted at the same time."""
        now = self._clock()
        if now - self._accepted_at >= SAME_TIME:
            self._accepted_at = now
            self.fences.follow_regularly(self._order, now)
        return self._accepted_at
