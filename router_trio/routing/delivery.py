"""Follow a message through its route until every destination is settled.

`Delivery` is for messages that somebody waits for or looks at: from a stream, through a handler, in a trace. Plain
messages from a core subscription are followed by the batch (`BatchDelivery`): they have nothing to ack.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from sys import maxsize
from typing import Any, ClassVar, Protocol

import trio

from router_trio.message import FENCED, Fate, fate_with_detail
from router_trio.outbox.operation import NumberedOwner, Operation, OperationWithAck, RouteOwner
from router_trio.protocol.framing import RawMessage, text
from router_trio.routing.policy.retry import Failure
from router_trio.routing.tracing import MessageTrace, Tracing
from router_trio.states import RouteState

Batches = list[tuple[float, list[RawMessage]]]
"""Messages that were received together, each batch with its time, the oldest first."""


def was_resent(operation: Operation) -> bool:
    """Return True for a publish that was written more than once: that a stream has it already is its own doing."""
    return isinstance(operation, OperationWithAck) and operation.resent


class Delivery:
    """Counts down the destinations of one message."""

    __slots__ = ("failure", "outcome", "raw", "received_at", "remaining", "route", "trace")

    from_stream: ClassVar[bool] = False
    """True if its source keeps it and bounds how many there are: no place is made for it at the cost of another."""

    message_id: bytes | None = None
    """The id of its copies if it has none of its own; None if any new one will do."""

    key: bytes | None = None
    """The value of its route's key, once that is known."""

    refused: bool = False
    """True if a destination did not take it, for no reason of its own: what is behind it in a stream waits."""

    def __init__(self, route: RouteState, raw: RawMessage, received_at: float) -> None:
        self.route: RouteState = route
        self.raw: RawMessage = raw
        self.received_at: float = received_at
        self.remaining: int = (
            1  # one for the routing itself, so that it can't finish while destinations are being added
        )
        self.failure: Failure | None = None
        self.outcome: str = "routed"  # its fate, if it does not fail
        self.trace: MessageTrace | None = None

    @property
    def reply(self) -> bytes:
        """The subject that a destination may reply to, `b""` for none."""
        return self.raw[1]

    @property
    def destination(self) -> tuple[str, str]:
        """The destination of an operation that this owns: route and template, as of each owner here."""
        return self.route.name, self.route.destinations[0]

    def origin(self) -> dict[str, Any]:
        """Return the fields of a `Message` about the stream that it came from."""
        return {}

    def in_stream(self) -> dict[str, Any]:
        """Return the same for expressions: see `Facts`."""
        return {}

    def start_again(self) -> None:
        """Reset it, to be routed again as if it had just arrived."""
        self.remaining = 1
        self.failure = None
        self.outcome = "routed"
        self.trace = None

    def finished(self) -> None:
        """Called once, when the last destination is settled: it has its fate."""
        self.route.fates[self.outcome if self.failure is None else "lost"] += 1

    def when_given_up(self, report: Callable[[], None]) -> None:
        """Call `report` if it is not tried again after this failure."""
        report()

    def report_given_up(self) -> None:
        """Call what `when_given_up` was given, if the message keeps that until now."""

    def owner_for(self, template: str) -> RouteOwner:
        """Return the owner of the only operation to the destination with this template."""
        self.remaining += 1
        # Of a route with one destination the message itself is the owner: no object more for most messages.
        return self if len(self.route.destinations) == 1 else self._tracked(template)

    def _tracked(self, template: str) -> RouteOwner:
        return DestinationTracker(self, template, self.route.destinations.index(template))

    def copy(self, template: str, number: int) -> RouteOwner:
        """Return the owner of one of several operations, each of which sends a copy with a number of its own."""
        self.remaining += 1
        return DestinationTracker(self, template, number)

    def _is_of_another(self, operation: Operation) -> bool:
        """Return True if the stream took a copy for another message, to which a sender gave the same id."""
        return not self.route.own_ids and not self.was_tried and not was_resent(operation)

    @property
    def place_in_stream(self) -> int | None:
        """Its sequence in the stream that it came from."""
        return None

    @property
    def attempt(self) -> int:
        """Which attempt this is, from 1 on."""
        return 1

    def count_failure(self, failure: Failure) -> None:
        """Count that it failed, and remember that as the last failure of its route."""
        self.route.failed[failure.reason] += 1
        self.route.failed_at_last(
            failure.reason,
            text(self.raw[0]),
            self.place_in_stream,
            self.attempt,
            failure.place,
            failure.shown,
        )

    @property
    def was_tried(self) -> bool:
        """True if copies of the message may have been sent by this process before."""
        return False

    @property
    def out_of_turn(self) -> bool:
        """True if an earlier message has to be redelivered first: nothing of it may be sent now."""
        return False

    def copied(self, copy: int) -> None:
        """Note that one of several copies was delivered."""

    def has_copied(self, copy: int) -> bool:
        """Return True if one of several copies was delivered before, and only others are still to be."""
        return False

    @property
    def has_copies(self) -> bool:
        """Return True if any copy was delivered before."""
        return False

    def choice(self, number: int) -> Sequence[int] | None:
        """Return the places of the destinations that were chosen for it before, None if none were.

        `number` is 0, or that of one of several messages which a handler made of it.
        """
        return None

    def keep_choice(self, number: int, chosen: Sequence[int]) -> None:
        """Remember which destinations were chosen for it, if it may be redelivered."""

    def mark_tried(self) -> None:
        """Note that copies of it may be stored, though it did not fail."""

    def counted_fate(self, fate: Fate, refused: Callable[[str], str]) -> Fate:
        """Return the fate that counts of a copy that was not delivered: see `RouteState.counted_reason`."""
        reason = fate.reason or fate.name
        counted = refused(reason)
        if counted == reason:
            return fate
        self.mark_tried()
        return fate_with_detail("failed", counted, fate.detail)

    def settle(self, operation: Operation, count: int, fate: Fate, now: float) -> None:
        """See `operation.Owner`."""
        if not fate.delivered:
            fate = self.counted_fate(fate, self.route.counted_reason)
        self.operation_settled(self.route.destinations[0], operation, fate, now)

    def operation_settled(self, template: str, operation: Operation, fate: Fate, now: float) -> None:
        """Settle an operation to the destination with this template."""
        if not fate.delivered:
            reason = fate.reason or fate.name
            self.fail(reason, Failure(reason, self.route.not_taken(template, fate.detail)))
        elif fate.duplicate and self._is_of_another(operation):
            self.outcome = "duplicate"
            self.route.suppressed(1, fate.stream)
        else:
            self.route.delivered[template] += 1
        if self.trace is not None:
            self.trace.sent(template, fate)
        self.done(now)

    def fail(self, reason: str, failure: Failure | None = None) -> None:
        """Fail the message; the first reason stands. `failure` says more about it."""
        if self.failure is None:
            self.failure = Failure(reason) if failure is None else failure

    def done(self, now: float | None = None) -> None:
        """Settle the message if nothing else of it is under way."""
        self.remaining -= 1
        if self.remaining:
            assert self.remaining > 0, "a message is settled once at each destination"
            return
        route = self.route
        route.elapsed.record((trio.current_time() if now is None else now) - self.received_at)
        if self.failure is not None:
            self.count_failure(self.failure)
        if self.trace is not None:
            self.trace.end()
        self.finished()


class DestinationTracker:
    """The owner of one of several copies of a message, by its number."""

    __slots__ = ("_copy", "_template", "delivery")

    def __init__(self, delivery: Delivery, template: str, copy: int) -> None:
        self.delivery: Delivery = delivery
        self._template = template
        self._copy = copy

    @property
    def destination(self) -> tuple[str, str]:
        """See `Delivery.destination`."""
        return self.delivery.route.name, self._template

    @property
    def from_stream(self) -> bool:
        """See `Delivery.from_stream`."""
        return self.delivery.from_stream

    @property
    def key(self) -> bytes | None:
        """The value of its route's key, if that is known: see `OperationWithAck.lane`."""
        return self.delivery.key

    def settle(self, operation: Operation, count: int, fate: Fate, now: float) -> None:
        """See `operation.Owner`."""
        if fate.delivered:
            self.delivery.copied(self._copy)
        self.delivery.operation_settled(self._template, operation, fate, now)


class BreakerWatch(Protocol):
    """Hears what becomes of operations to one destination: its breaker."""

    def copy_passed(self) -> None:
        """Note that the destination accepted a message."""

    def copy_refused(self, reason: str) -> str:
        """Note that the destination did not accept a message. Return the reason that counts."""
        ...


class BreakerTracker(DestinationTracker):
    """The owner of an operation to a destination with a breaker."""

    __slots__ = ("breaker",)

    def __init__(self, delivery: Delivery, template: str, copy: int, breaker: BreakerWatch) -> None:
        super().__init__(delivery, template, copy)
        self.breaker: BreakerWatch = breaker

    def settle(self, operation: Operation, count: int, fate: Fate, now: float) -> None:
        """See `operation.Owner`."""
        if fate.delivered:
            super().settle(operation, count, fate, now)
            self.breaker.copy_passed()
        else:
            super().settle(operation, count, self.delivery.counted_fate(fate, self.breaker.copy_refused), now)


class MirrorCopy:
    """The owner of a copy for a mirror: counted, and nothing else follows from its fate."""

    __slots__ = ("_route", "_template")

    def __init__(self, route: RouteState, template: str) -> None:
        self._route = route
        self._template = template
        route.mirrors_under_way += 1

    @property
    def destination(self) -> tuple[str, str]:
        """See `Delivery.destination`."""
        return self._route.name, self._template

    def settle(self, operation: Operation, count: int, fate: Fate, now: float) -> None:
        """See `operation.Owner`."""
        self._route.mirrors_under_way -= count
        if fate.delivered:
            self._route.delivered[self._template] += count
        else:
            self._route.mirror_failed[fate.reason or fate.name] += count

    def count_failure(self, reason: str) -> None:
        """The copy never became an operation."""
        self._route.mirrors_under_way -= 1
        self._route.mirror_failed[reason] += 1


class BatchDelivery:
    """Messages that came together and have nothing to ack, to all destinations of a route. Their numbers begin at 0.

    With several destinations all of them are connected while the messages are offered: none has a fate before its
    number is known.
    """

    __slots__ = ("_count", "_outcomes", "_received_at", "_recorded", "_settled", "route")

    def __init__(self, route: RouteState, received_at: float, count: int) -> None:
        self.route: RouteState = route
        self._received_at = received_at
        self._count = count
        self._settled: list[int] = []
        self._recorded = 0
        self._outcomes: dict[int, str] = {}
        """By number, the fates of those that were not routed to all of several destinations."""

    def owner_for(self, template: str) -> BatchTracker:
        """Return the owner of the batch's operations to one more destination. Before anything is offered."""
        self._settled.append(0)
        return BatchTracker(self, template, len(self._settled) - 1)

    @property
    def has_several(self) -> bool:
        """Return True if there are several destinations: then it matters which messages are settled at each."""
        return len(self._settled) > 1

    def settle(
        self,
        place: int,
        template: str,
        count: int,
        fate: Fate,
        now: float,
        numbers: Sequence[int] = (),
        *,
        resent: bool = False,
    ) -> None:
        """Settle `count` messages at one destination. Each is done when it is settled at all of them.

        `numbers` says which they are, unless they were routed or there is one destination.
        """
        route = self.route
        outcome = "routed"
        if fate.duplicate and not route.own_ids and not resent:
            outcome = "duplicate"
            route.suppressed(count, fate.stream)
        elif fate.delivered:
            route.delivered[template] += count
        else:
            outcome = "lost"
            if len(self._settled) == 1:
                route.counted_reason(fate.reason or fate.name)
            route.failed[fate.reason or fate.name] += count
            route.failed_at_last(fate.reason or fate.name, detail=route.not_taken(template, fate.detail))
        settled = self._settled
        settled[place] += count
        if len(settled) == 1:
            route.elapsed.record(now - self._received_at, count)
            route.fates[outcome] += count
            return
        outcomes = self._outcomes
        if outcome != "routed":
            assert len(numbers) == count, "which messages these are is known"
            for number in numbers:
                if outcome == "lost" or number not in outcomes:
                    outcomes[number] = outcome
        everywhere = min(settled)
        if outcomes and everywhere < self._count:
            return  # which of them are done is not known until all are
        assert everywhere <= self._count, "no message is settled twice at one destination"
        assert len(outcomes) <= self._count, "no message is counted that is not of this batch"
        done = everywhere - self._recorded
        if done > 0:
            route.elapsed.record(now - self._received_at, done)
            self._recorded += done
            for outcome in outcomes.values():
                route.fates[outcome] += 1
            route.fates["routed"] += done - len(outcomes)


class BatchTracker(NumberedOwner):
    """The owner of a batch's operations to one destination."""

    __slots__ = ("_batch", "_offered", "_place", "_template")

    reply = b""
    message_id = None

    def __init__(self, batch: BatchDelivery, template: str, place: int) -> None:
        self._batch = batch
        self._template = template
        self._place = place
        self._offered: list[tuple[int, int]] = []
        """The number of a publish, and which message it is of. The messages behind it are those of the next numbers."""

    @property
    def destination(self) -> tuple[str, str]:
        """See `Delivery.destination`."""
        return self._batch.route.name, self._template

    def offered(self, order: int, number: int) -> None:
        """Note that messages from `number` on have the publishes from `order` on, until another call says otherwise."""
        offered = self._offered
        if not offered or offered[-1][0] - offered[-1][1] != order - number:
            offered.append((order, number))

    def settle(self, operation: Operation, count: int, fate: Fate, now: float) -> None:
        if fate is FENCED:
            self._batch.settle(self._place, self._template, count, fate, now)
        else:
            self.settle_up_to(operation.order, operation, count, fate, now)

    def settle_up_to(self, last: int, operation: Operation, count: int, fate: Fate, now: float) -> None:
        numbers: Sequence[int] = ()
        if (not fate.delivered or fate.duplicate) and self._batch.has_several:
            numbers = [self._number_of(order) for order in range(last - count + 1, last + 1)]
        self._batch.settle(self._place, self._template, count, fate, now, numbers, resent=was_resent(operation))

    def _number_of(self, order: int) -> int:
        """Return which message of the batch has the publish with this number."""
        at = bisect_right(self._offered, (order, maxsize)) - 1
        assert at >= 0, "a message of several destinations has its fates after it was offered"
        first, number = self._offered[at]
        return number + order - first

    def refuse(self, number: int, reason: str) -> None:
        """Settle the message with this number, which never became an operation here."""
        self._batch.settle(self._place, self._template, 1, Fate("failed", reason), trio.current_time(), (number,))


def sampled(tracing: Tracing, deliveries: Sequence[Delivery]) -> Sequence[int]:
    """Return the indexes of sampled messages, in order. Looks at each message only if one has headers."""
    for delivery in deliveries:
        if delivery.raw[2]:
            return tracing.sampled([one.raw for one in deliveries])
    return tracing.sampled_plain(len(deliveries))
