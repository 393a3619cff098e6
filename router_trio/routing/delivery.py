"""Follow a message through its route until every destination is settled.

`Delivery` follows a single message: from a stream, through a handler, or in a trace. Plain messages from a core
subscription are followed as a batch (`BatchDelivery`), since they have nothing to ack.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from sys import maxsize
from typing import Any, ClassVar, Protocol

import trio

from router_trio.message import FENCED, Fate, fate_with_detail
from router_trio.outbox.operation import (
    NOT_RESENT,
    CoreOperation,
    NumberedOwner,
    Operation,
    OperationWithAck,
    RouteOwner,
)
from router_trio.protocol.framing import RawMessage, text
from router_trio.routing.policy.retry import Failure
from router_trio.routing.tracing import MessageTrace, RouteTracing
from router_trio.states import RouteState


def was_resent(operation: Operation) -> bool:
    """Return True for a publish that was written more than once, so a stream may have it already."""
    return isinstance(operation, OperationWithAck) and operation.resent != NOT_RESENT


class Delivery:
    """The `operation.Owner` of one message: counts down its destinations."""

    __slots__ = ("failure", "outcome", "raw", "received_at", "remaining", "route", "trace")

    from_stream: ClassVar[bool] = False
    """True if its source keeps it and bounds the number of messages: no other message is dropped for it."""

    message_id: bytes | None = None
    """The id of its copies if the message has none; None if any new id will do."""

    key: bytes | None = None
    """The value of its route's key, once that is known."""

    refused: bool = False
    """True if a destination refused it, not because of its content: later messages in its stream wait."""

    def __init__(self, route: RouteState, raw: RawMessage, received_at: float) -> None:
        self.route: RouteState = route
        self.raw: RawMessage = raw
        self.received_at: float = received_at
        self.remaining: int = (
            1  # one for the routing itself, so that it can't be done while destinations are being added
        )
        self.failure: Failure | None = None
        self.outcome: str = "routed"  # the fate if it does not fail
        self.trace: MessageTrace | None = None

    @property
    def reply(self) -> bytes:
        """The subject that a destination may reply to, `b""` for none."""
        return self.raw[1]

    @property
    def destination(self) -> tuple[str, str]:
        """The destination of an operation that this owns: route and template. Every owner in this module has it."""
        return self.route.name, self.route.destinations[0]

    def origin(self) -> dict[str, Any]:
        """Return the fields of a `Message` about the stream that it came from."""
        return {}

    def in_stream(self) -> dict[str, Any]:
        """Return the fields of `Facts` about that stream."""
        return {}

    def start_again(self) -> None:
        """Reset it, so that it is routed as if it had just arrived."""
        self.remaining = 1
        self.failure = None
        self.outcome = "routed"
        self.trace = None

    def finished(self) -> None:
        """Settle the message. Called once, when the last destination is settled."""
        if self.failure is None:
            self.settle_as(self.outcome)
            return
        if self.route.gives_up:
            self.route.given_up[self.failure.reason] += 1
        self.settle_as("lost")

    def settle_as(self, fate: str) -> None:
        """Count the fate of the message, and report it to its trace, if it has one."""
        self.route.fates[fate] += 1
        if self.trace is not None:
            self.trace.settled(fate, self.failure)

    def when_given_up(self, report: Callable[[], None]) -> None:
        """Call `report` if it is not retried after this failure."""
        report()

    def report_given_up(self) -> None:
        """Call the function that was passed to `when_given_up`, if it was kept."""

    def owner_for(self, template: str) -> RouteOwner:
        """Return the owner of the only operation to the destination with this template."""
        self.remaining += 1
        # With one destination the message itself is the owner, which saves an object for most messages.
        return self if len(self.route.destinations) == 1 else self._tracked(template)

    def _tracked(self, template: str) -> RouteOwner:
        return DestinationTracker(self, template, self.route.destinations.index(template))

    def copy(self, template: str, number: int) -> RouteOwner:
        """Return the owner of one of several operations, which send numbered copies.

        Copies for destinations have the number of their message, times the number of destinations, plus their place.
        Answers to the requester have negative numbers.
        """
        self.remaining += 1
        return DestinationTracker(self, template, number)

    def _is_of_another(self, operation: Operation) -> bool:
        """Return True if the stream took a copy for another message with the same id, chosen by its sender."""
        return not self.route.own_ids and not self.was_tried and not was_resent(operation)

    @property
    def place_in_stream(self) -> int | None:
        """Its sequence in the stream that it came from."""
        return None

    @property
    def attempt(self) -> int:
        """The number of this attempt, from 1 on."""
        return 1

    def count_failure(self, failure: Failure) -> None:
        """Count the failure, and record it as the last failure of the route."""
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
        """True if this process may have sent copies of the message in an earlier attempt."""
        return False

    @property
    def out_of_turn(self) -> bool:
        """True if an earlier message has to be redelivered first, so nothing of this one may be sent now."""
        return False

    def copied(self, copy: int) -> None:
        """Record that one of several copies was delivered."""

    def has_copied(self, copy: int) -> bool:
        """Return True if this one of several copies was delivered in an earlier attempt."""
        return False

    @property
    def has_copies(self) -> bool:
        """Return True if any copy was delivered in an earlier attempt."""
        return False

    def choice(self, number: int) -> Sequence[int] | None:
        """Return the places of the destinations that were chosen in an earlier attempt; None if none were.

        `number` is 0, or that of one of several messages that a handler returned for it.
        """
        return None

    def keep_choice(self, number: int, chosen: Sequence[int]) -> None:
        """Remember the chosen destinations, if the message may be redelivered."""

    @property
    def was_accepted(self) -> bool:
        """True if the route accepted the message in an earlier attempt, which is not decided twice."""
        return self.choice(0) is not None

    def mark_tried(self) -> None:
        """Record that copies may be stored though the message did not fail."""

    def counted_fate(self, fate: Fate, refused: Callable[[str], str]) -> Fate:
        """Return the fate that counts for an undelivered copy: see `RouteState.counted_reason`."""
        reason = fate.reason or fate.name
        counted = refused(reason)
        if counted == reason:
            return fate
        self.mark_tried()
        return fate_with_detail("failed", counted, fate.detail)

    def proved(self, template: str, operation: Operation, fate: Fate) -> Fate:
        """Return the fate that counts if the stream has the id of a copy already: it may be that of another message."""
        return fate

    def settle(self, operation: Operation, count: int, fate: Fate, now: float) -> None:
        if not fate.delivered:
            fate = self.counted_fate(fate, self.route.counted_reason)
        elif fate.duplicate:
            fate = self.proved(self.route.destinations[0], operation, fate)
        self.operation_settled(self.route.destinations[0], operation, fate, now)

    def operation_settled(self, template: str, operation: Operation, fate: Fate, now: float) -> None:
        """Record the fate of the operation to the destination with this template."""
        if not fate.delivered:
            if was_resent(operation):
                self.mark_tried()  # it may not count as failed: see `StreamDelivery.recalled`
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
        """Fail the message; the first reason is kept. `failure` has details."""
        if self.failure is None:
            self.failure = Failure(reason) if failure is None else failure

    def done(self, now: float | None = None) -> None:
        """Record that an operation, or the routing, is done. Settle the message if it was the last one."""
        self.remaining -= 1
        if self.remaining:
            assert self.remaining > 0, "a message is settled once at each destination"
            return
        route = self.route
        seconds = (trio.current_time() if now is None else now) - self.received_at
        route.elapsed.record(seconds)
        if self.failure is not None:
            self.count_failure(self.failure)
        if self.trace is not None:
            route.elapsed.keep(self.trace.end(seconds))
        self.finished()


class DestinationTracker:
    """The `operation.Owner` of one of several copies of a message, by its number."""

    __slots__ = ("_copy", "_template", "delivery")

    def __init__(self, delivery: Delivery, template: str, copy: int) -> None:
        self.delivery: Delivery = delivery
        self._template = template
        self._copy = copy

    @property
    def destination(self) -> tuple[str, str]:
        """The route and the template of the destination."""
        return self.delivery.route.name, self._template

    @property
    def from_stream(self) -> bool:
        """True if the message is from a stream, which redelivers it."""
        return self.delivery.from_stream

    @property
    def place_in_stream(self) -> int | None:
        """The sequence of the message in its stream."""
        return self.delivery.place_in_stream

    @property
    def key(self) -> bytes | None:
        """The value of its route's key, if that is known: see `OperationWithAck.lane`."""
        return self.delivery.key

    def settle(self, operation: Operation, count: int, fate: Fate, now: float) -> None:
        if fate.duplicate:
            fate = self.delivery.proved(self._template, operation, fate)
        if fate.delivered:
            self.delivery.copied(self._copy)
        self.delivery.operation_settled(self._template, operation, fate, now)


class BreakerWatch(Protocol):
    """The breaker of a destination, which observes the fates of operations to it."""

    def copy_passed(self) -> None:
        """Record that the destination accepted a message."""

    def copy_refused(self, reason: str) -> str:
        """Record that the destination refused a message. Return the reason that counts."""
        ...


class BreakerTracker(DestinationTracker):
    """The owner of an operation to a destination with a breaker."""

    __slots__ = ("breaker",)

    def __init__(self, delivery: Delivery, template: str, copy: int, breaker: BreakerWatch) -> None:
        super().__init__(delivery, template, copy)
        self.breaker: BreakerWatch = breaker

    def settle(self, operation: Operation, count: int, fate: Fate, now: float) -> None:
        if fate.delivered:
            super().settle(operation, count, fate, now)
            self.breaker.copy_passed()
        else:
            super().settle(operation, count, self.delivery.counted_fate(fate, self.breaker.copy_refused), now)


def delivery_of(operation: Operation) -> Delivery | None:
    """Return the message of a route that a publish is a copy of; None if there is none."""
    owner = operation.owner if isinstance(operation, CoreOperation) else None
    delivery = owner.delivery if isinstance(owner, DestinationTracker) else owner
    return delivery if isinstance(delivery, Delivery) else None


class MirrorCopy:
    """The `operation.Owner` of a copy for a mirror. Its fate is counted, and has no effect on the message."""

    __slots__ = ("_route", "_template")

    def __init__(self, route: RouteState, template: str) -> None:
        self._route = route
        self._template = template
        route.mirrors_under_way += 1

    @property
    def destination(self) -> tuple[str, str]:
        """The route and the template of the destination."""
        return self._route.name, self._template

    def settle(self, operation: Operation, count: int, fate: Fate, now: float) -> None:
        self._route.mirrors_under_way -= count
        if fate.delivered:
            self._route.delivered[self._template] += count
        else:
            self._route.mirror_failed[fate.reason or fate.name] += count

    def count_failure(self, reason: str) -> None:
        """Count a copy that never became an operation."""
        self._route.mirrors_under_way -= 1
        self._route.mirror_failed[reason] += 1


class BatchDelivery:
    """Messages that were received together, have nothing to ack, and are sent to all destinations of a route.

    They are numbered from 0. If there are several destinations, all of them are connected while the messages are
    offered, so no message is settled before its number is known.
    """

    __slots__ = ("_count", "_failed", "_received_at", "_recorded", "_settled", "route")

    def __init__(self, route: RouteState, received_at: float, count: int) -> None:
        self.route: RouteState = route
        self._received_at = received_at
        self._count = count
        self._settled: list[int] = []
        self._recorded = 0
        self._failed: dict[int, str | None] = {}
        """The first reasons, by number, of messages lost at one of several destinations; None for a duplicate."""

    def owner_for(self, template: str) -> BatchTracker:
        """Return the owner of the batch's operations to one more destination. Called before anything is offered."""
        self._settled.append(0)
        return BatchTracker(self, template, len(self._settled) - 1)

    @property
    def has_several(self) -> bool:
        """Return True if there are several destinations, so the messages settled at each have to be known."""
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
        """Settle `count` messages at one destination. A message is settled when it is settled at all destinations.

        `numbers` identifies the messages, unless they were routed or there is one destination.
        """
        route = self.route
        outcome, reason = "routed", None
        if fate.duplicate and not route.own_ids and not resent:
            outcome = "duplicate"
            route.suppressed(count, fate.stream)
        elif fate.delivered:
            route.delivered[template] += count
        else:
            outcome, reason = "lost", fate.reason or fate.name
            if len(self._settled) == 1:
                route.counted_reason(reason)
            route.failed[reason] += count
            route.failed_at_last(reason, detail=route.not_taken(template, fate.detail))
        settled = self._settled
        settled[place] += count
        if len(settled) == 1:
            route.elapsed.record(now - self._received_at, count)
            route.fates[outcome] += count
            return
        failed = self._failed
        if outcome != "routed":
            assert len(numbers) == count, "which messages these are is known"
            for number in numbers:
                if failed.get(number) is None:
                    failed[number] = reason
        everywhere = min(settled)
        if failed and everywhere < self._count:
            return  # it is unknown which messages are settled until all are
        assert everywhere <= self._count, "no message is settled twice at one destination"
        assert len(failed) <= self._count, "no message is counted that is not of this batch"
        done = everywhere - self._recorded
        if done > 0:
            route.elapsed.record(now - self._received_at, done)
            self._recorded += done
            for reason in failed.values():
                if reason is not None:
                    route.given_up[reason] += 1
                route.fates["duplicate" if reason is None else "lost"] += 1
            route.fates["routed"] += done - len(failed)


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
        """Pairs of the numbers of a publish and of its message. The following messages have the following numbers."""

    @property
    def destination(self) -> tuple[str, str]:
        """The route and the template of the destination."""
        return self._batch.route.name, self._template

    def offered(self, order: int, number: int) -> None:
        """Record that messages from `number` on have the publishes from `order` on, until the next call."""
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
        """Return the number of the message that has the publish with this number."""
        at = bisect_right(self._offered, (order, maxsize)) - 1
        assert at >= 0, "a message of several destinations has its fates after it was offered"
        first, number = self._offered[at]
        return number + order - first

    def refuse(self, number: int, reason: str) -> None:
        """Settle the message with this number, which never became an operation."""
        self._batch.settle(self._place, self._template, 1, Fate("failed", reason), trio.current_time(), (number,))


def sampled(tracing: RouteTracing, deliveries: Sequence[Delivery]) -> Sequence[int]:
    """Return the indexes of sampled messages, in order. Examines each message only if one has headers."""
    for delivery in deliveries:
        if delivery.raw[2]:
            return tracing.sampled([one.raw for one in deliveries])
    return tracing.sampled_plain(len(deliveries))
