"""How a route from a core subscription waits: what may not go yet stays in its intake queue, up to the queue's bound.

With a limit for each value, what is over it is set aside, and others pass it. It uses the room of the queue.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Protocol

import trio

from router_trio.errors import EvaluationError
from router_trio.protocol.framing import RawMessage
from router_trio.routing.core.intake_queue import IntakeQueue
from router_trio.routing.delivery import Delivery
from router_trio.routing.flow.control import FlowControl
from router_trio.routing.policy.value_queues import ValueQueues
from router_trio.states import RouteState

Arrived = tuple[float, RawMessage]
"""A message, and when it came."""

RouteBatch = Callable[[float, list[RawMessage]], Awaitable[None]]


class Values(Protocol):
    """Who knows the value that has a limit of its own: a route with expressions."""

    def limited_value(self, raw: RawMessage) -> bytes | None:
        """Return it for a message; None if the route does not take the message. Raises `EvaluationError`."""
        ...

    def expression_failed(self, error: EvaluationError, delivery: Delivery) -> None:
        """A message has no value, and fails."""


class CoreFlow:
    """The flow of one route from its intake queue to `route`, which routes a batch that came at one time.

    `values` is asked where each value has a limit.
    """

    def __init__(
        self, state: RouteState, flow: FlowControl, intake: IntakeQueue, route: RouteBatch, values: Values | None
    ) -> None:
        self._state = state
        self._values = values
        self._flow = flow
        self._intake = intake
        self._route = route
        self._left = 0
        """Of what was taken from the queue, what is not given to `route` yet."""
        self._aside: ValueQueues[Arrived] | None = None
        if flow.values is not None:
            self._aside = ValueQueues(flow.values)
        self._none_aside = trio.lowlevel.ParkingLot()
        if state.limit is not None:
            state.limit.waiting = self._waiting

    def lets_go(self, count: int) -> bool:
        """Return True if so many messages go at once, past the queue. Then they count as gone."""
        if self._aside is not None or self._flow.may_go(count) < count:
            return False
        self._flow.going(count, 0)
        return True

    async def run(self) -> None:
        """Take what comes and route it when it may go, for ever."""
        aside = self._aside
        while True:
            if aside is None:
                await self._go(*await self._intake.take())
                continue
            with trio.CancelScope(deadline=aside.due_at):
                await self._sort(*await self._intake.take())
            while (arrived := aside.pop_due(trio.current_time())) is not None:
                received_at, raw = arrived
                self._intake.set_aside(raw, -1)
                self._state.limited += 1
                await self._go(received_at, [raw])
            if not aside.count:
                self._flow.nothing_waits()
                self._none_aside.unpark_all()

    async def empty(self) -> None:
        """Wait until nothing is set aside."""
        while self._aside is not None and self._aside.count:
            await self._none_aside.park()

    def clear(self) -> int:
        """Forget all that waits here. Returns how many messages that were."""
        left, self._left = self._left, 0
        return left + (0 if self._aside is None else len(self._aside.clear()))

    def _waiting(self) -> int:
        if self._aside is not None:
            return self._aside.count
        return len(self._intake) + self._left if self._flow.holds else 0

    async def _go(self, received_at: float, batch: list[RawMessage]) -> None:
        """Route a batch, as much of it at a time as may go."""
        flow, self._left = self._flow, len(batch)
        while self._left:
            most = flow.may_go(self._left)
            if not most:
                await flow.wait_to_go(self._left)
                continue
            start = len(batch) - self._left
            self._left -= most
            flow.going(most, self._left + len(self._intake))
            await self._route(received_at, batch[start : start + most])

    async def _sort(self, received_at: float, batch: list[RawMessage]) -> None:
        """Route what the limits of the values let go, and set the rest of a batch aside."""
        aside, values, now = self._aside, self._values, trio.current_time()
        assert aside is not None
        assert values is not None
        goes = []
        for raw in batch:
            try:
                value = values.limited_value(raw)
            except EvaluationError as error:
                delivery = Delivery(self._state, raw, received_at)
                values.expression_failed(error, delivery)
                delivery.done()
                continue
            if value is None or aside.admit(value, 0, (received_at, raw), now):
                goes.append(raw)
            else:
                self._intake.set_aside(raw)
                self._flow.hold_back(1)
        await self._go(received_at, goes)
