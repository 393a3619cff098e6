"""How a route from a core subscription waits: what may not go yet stays in its intake queue, up to the queue's bound.

With a limit for each value, what is over it is set aside, and others pass it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from operator import itemgetter
from typing import NamedTuple

import trio

from router_trio.errors import EvaluationError
from router_trio.protocol.framing import RawMessage
from router_trio.routing.core.intake_queue import IntakeQueue
from router_trio.routing.core.limited import Values, WaitingForLimit
from router_trio.routing.delivery import Delivery
from router_trio.routing.flow.control import FlowControl
from router_trio.states import RouteState


class Arrived(NamedTuple):
    """A message, and when it came."""

    received_at: float
    raw: RawMessage


RouteBatch = Callable[[float, list[RawMessage]], Awaitable[None]]


class CoreFlow:
    """The flow of one route from its intake queue to `route`, which routes a batch that came at one time.

    `values` is asked where each value has a limit.
    """

    def __init__(
        self, state: RouteState, flow: FlowControl, intake: IntakeQueue, route: RouteBatch, values: Values | None
    ) -> None:
        self._state = state
        self._flow = flow
        self._intake = intake
        self._route = route
        self._left = 0
        """Of what was taken from the queue, what is not given to `route` yet."""
        self._batch: tuple[float, list[RawMessage]] = (0.0, [])
        """What was taken from the queue last."""
        self._limited: WaitingForLimit[Arrived] | None = None
        if flow.values is not None and values is not None:
            self._limited = WaitingForLimit(state, flow, flow.values, intake, values)
        if state.limit is not None:
            state.limit.waiting = self._waiting

    def lets_go(self, count: int) -> bool:
        """Return True if so many messages go at once, past the queue. Then they count as gone."""
        if self._limited is not None or self._flow.may_go(count, arriving=True) < count:
            return False
        self._flow.going(count, 0)
        return True

    async def run(self) -> None:
        """Take what comes and route it when it may go, for ever."""
        limited = self._limited
        if limited is None:
            while True:
                await self._go(*await self._intake.take())
        while True:
            # The deadline is of the wait alone: no handler is cancelled by it.
            received_at, batch = 0.0, list[RawMessage]()
            while self._flow.is_away:
                await self._flow.wait_to_go(0)
            with trio.CancelScope(deadline=limited.may_go_at):
                received_at, batch = await self._intake.take()
            await self._go(received_at, self._sorted(limited, received_at, batch))
            while (arrived := limited.take_allowed(trio.current_time())) is not None:
                await self._go(arrived.received_at, [arrived.raw])

    @property
    def waiting(self) -> int:
        """How many messages wait here, or in the intake queue."""
        return len(self._intake) + self._left + (0 if self._limited is None else self._limited.count)

    async def empty(self) -> None:
        """Wait until nothing is set aside."""
        if self._limited is not None:
            await self._limited.all_gone()

    def clear(self) -> int:
        """Forget all that waits here. Returns how many messages that were."""
        left, self._left = self._left, 0
        return left + (0 if self._limited is None else self._limited.clear())

    def take_unrouted(self) -> list[tuple[float, list[RawMessage]]]:
        """Take out all that waits here, the oldest first: nothing of it is given to `route` any more."""
        received_at, batch = self._batch
        taken = [(received_at, batch[len(batch) - self._left :])] if self._left else []
        self._left = 0
        self._flow.wake()
        if self._limited is not None:
            taken += [(arrived.received_at, [arrived.raw]) for arrived in self._limited.take_all()]
        return sorted(taken, key=itemgetter(0))

    def _waiting(self) -> int:
        if self._limited is not None:
            return self._limited.count
        return len(self._intake) + self._left if self._flow.holds else 0

    async def _go(self, received_at: float, batch: list[RawMessage]) -> None:
        """Route a batch, as much of it at a time as may go."""
        flow, self._left = self._flow, len(batch)
        self._batch = received_at, batch
        while self._left:
            most = flow.may_go(self._left)
            if not most:
                await flow.wait_to_go(self._left)
                continue
            start = len(batch) - self._left
            self._left -= most
            flow.going(most, self._left + len(self._intake))
            await self._route(received_at, batch[start : start + most])

    def _sorted(
        self, limited: WaitingForLimit[Arrived], received_at: float, batch: list[RawMessage]
    ) -> list[RawMessage]:
        """Return what the limits of the values let go; the rest of a batch is set aside."""
        goes, now = [], trio.current_time()
        for raw in batch:
            try:
                if limited.lets_go(Arrived(received_at, raw), now):
                    goes.append(raw)
            except EvaluationError as error:
                limited.value_failed(error, Delivery(self._state, raw, received_at))
        return goes
