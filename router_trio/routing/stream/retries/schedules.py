"""Store failed messages as schedules in the stream of retries, where they wait for their next attempt.

A schedule is an ordinary publish of its connection's outbox. Its message stays in hand until the stream has confirmed
it, and is only then acked.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from router_trio.connection.supervisor import Connection
from router_trio.message import Fate
from router_trio.outbox.operation import Operation
from router_trio.protocol import framing, headers
from router_trio.routing.outlets.outlet import Outlet
from router_trio.routing.policy.failed_messages import Failed, Numbering
from router_trio.routing.route_plans import RetrySchedule
from router_trio.routing.stream.delivery import StreamDelivery
from router_trio.routing.stream.retries.account import Confirmed
from router_trio.routing.stream.retries.origin import Origin, retry_id_of, with_origin
from router_trio.states import RouteState

if TYPE_CHECKING:
    from router_trio.states import DestinationState

_NONE_THERE = b"Nats-Expected-Last-Subject-Sequence"

Report = Callable[[Fate], None]
"""Is called with the fate of a schedule."""


class ScheduledRetry:
    """A schedule that is being published: the `operation.Owner` of its publish. `report` is called with its fate."""

    __slots__ = ("_confirmed", "_report", "delivery", "destination")

    def __init__(
        self, delivery: StreamDelivery, destination: tuple[str, str], report: Report, confirmed: Confirmed
    ) -> None:
        self.delivery: StreamDelivery = delivery
        self.destination: tuple[str, str] = destination
        self._report = report
        self._confirmed = confirmed

    @property
    def from_stream(self) -> bool:
        """True: the stream redelivers the message if its schedule is not stored."""
        return True

    def settle(self, operation: Operation, count: int, fate: Fate, now: float) -> None:
        if fate.sequence is not None and not fate.duplicate:
            self._confirmed.stored += 1
            self._confirmed.newest = max(self._confirmed.newest, fate.sequence)
        self._report(fate)


class RetrySchedules:
    """The stream of retries of one route."""

    def __init__(self, plan: RetrySchedule, numbering: Numbering, connection: Connection, state: RouteState) -> None:
        """Adds the destination to `state` and the connection, which looks up whether it keeps schedules."""
        to: DestinationState = plan.destination.state(state)
        self.after: float = plan.after
        """Seconds: attempts that are further away are scheduled."""
        self.confirmed: Confirmed = Confirmed()
        """The schedules that the stream has confirmed."""
        self._destination = plan.destination
        self._numbering = numbering
        self._connection = connection
        self._outlet = Outlet(plan.destination, connection, state=to)
        state.to.append(to)
        connection.destinations.add(to)

    @property
    def reachable(self) -> bool:
        """Return True if the connection has a link."""
        return self._connection.connected

    def store(self, delivery: StreamDelivery, delay: float, report: Report) -> None:
        """Publish the schedule of a message. `report` is called once with its fate, possibly before this returns.

        Raises `RouterError` if it can't be sent at all: it is too large, there is no room, or the stream would lose it.
        """
        delivery.keep_for_redelivery()
        failures = delivery.cursor.failures
        known = failures.failed.get(delivery.sequence) or Failed()
        known.renumber(self._numbering)
        about = delivery.origin()
        time_ns = int(delivery.in_stream()["time_ns"])
        origin = Origin(delivery.raw[0], about["stream"], about["sequence"], time_ns, about["deliveries"], known)
        block = with_origin(framing.header_block(delivery.raw), origin, self._numbering)
        # A schedule that is sent again must not replace itself: it would be counted twice, and published once.
        block = headers.replace(block, _NONE_THERE, b"0")
        owner = ScheduledRetry(delivery, (self._destination.route, self._destination.template), report, self.confirmed)
        message_id = retry_id_of(origin.message_id, b"%d" % known.attempts)
        due_ns = int((self._connection.platform.wall_clock() + delay) * 1e9)
        self._outlet.forward_with(delivery.raw, owner, message_id, block, due_ns)
