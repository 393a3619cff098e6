"""Messages of a core subscription of which each value has a limit: what is over it is set aside, and others pass it.

What is set aside uses the room of the intake queue.
"""

from __future__ import annotations

from typing import Generic, Protocol, TypeVar

import trio

from router_trio.errors import EvaluationError
from router_trio.protocol.framing import RawMessage
from router_trio.routing.core.intake_queue import IntakeQueue
from router_trio.routing.delivery import Delivery
from router_trio.routing.flow.control import FlowControl
from router_trio.routing.policy.limit import ValueLimits
from router_trio.routing.policy.value_queues import ValueQueues
from router_trio.states import RouteState


class Values(Protocol):
    """Who knows the value that has a limit of its own: a route with expressions."""

    def limited_value(self, raw: RawMessage, delivery: Delivery | None = None) -> bytes | None:
        """Return it for a message; None if the route does not take the message. Raises `EvaluationError`."""
        ...

    def expression_failed(self, error: EvaluationError, delivery: Delivery) -> None:
        """A message has no value, and fails."""


class Waiting(Protocol):
    """What is set aside for a message."""

    @property
    def raw(self) -> RawMessage:
        """The message."""
        ...


W = TypeVar("W", bound=Waiting)


class WaitingForLimit(Generic[W]):
    """What one route has set aside."""

    def __init__(
        self, state: RouteState, flow: FlowControl, limits: ValueLimits, intake: IntakeQueue, values: Values
    ) -> None:
        self._state = state
        self._flow = flow
        self._intake = intake
        self._values = values
        self._queues: ValueQueues[W] = ValueQueues(limits)
        self._none_waits = trio.lowlevel.ParkingLot()

    @property
    def count(self) -> int:
        """How many messages that are."""
        return self._queues.count

    @property
    def may_go_at(self) -> float:
        """When one of them may go; infinite if there is none."""
        return self._queues.due_at

    def lets_go(self, waiting: W, now: float, delivery: Delivery | None = None) -> bool:
        """Return True if a message goes now; else it is set aside. Raises `EvaluationError` if it has no value."""
        value = self._values.limited_value(waiting.raw, delivery)
        if value is None or self._queues.admit(value, 0, waiting, now):
            return True
        self._intake.set_aside(waiting.raw)
        self._flow.hold_back(1)
        return False

    def value_failed(self, error: EvaluationError, delivery: Delivery) -> None:
        """A message has no value: it fails, and is done."""
        self._values.expression_failed(error, delivery)
        delivery.done()

    def take_allowed(self, now: float) -> W | None:
        """Take out a message that goes now; None if there is none."""
        waiting = self._queues.pop_due(now)
        if waiting is not None:
            self._intake.set_aside(waiting.raw, -1)
            self._state.limited += 1
        elif not self._queues.count:
            self._flow.nothing_waits()
            self._none_waits.unpark_all()
        return waiting

    async def all_gone(self) -> None:
        """Wait until nothing is set aside."""
        while self._queues.count:
            await self._none_waits.park()

    def clear(self) -> int:
        """Forget all that is set aside. Returns how many messages that were."""
        return len(self.take_all())

    def take_all(self) -> list[W]:
        """Take out all that is set aside."""
        taken = self._queues.clear()
        for waiting in taken:
            self._intake.set_aside(waiting.raw, -1)
        self._none_waits.unpark_all()
        return taken
