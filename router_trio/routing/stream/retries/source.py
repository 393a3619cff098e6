"""A stream and the stream of its retries: one source of a route around the sources of both.

Messages are received from the stream as on any route. Those whose next attempt is far away wait as schedules in the
stream of retries, and are received from there by a second durable when they are due.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import trio

from router_trio.connection.latch import Latch
from router_trio.connection.supervisor import Connection
from router_trio.errors import SourceError, reasons
from router_trio.events import Emit, RouteScheduleLost
from router_trio.link import Link, SchedulesCount, SchedulesSpec
from router_trio.routing.pipeline import Routing
from router_trio.routing.route_plans import RetrySchedule
from router_trio.routing.source import KeptSource
from router_trio.routing.stream.consumer.limits import consumer_spec
from router_trio.routing.stream.in_hand import LeftInHand
from router_trio.routing.stream.keeper import StreamKeeper
from router_trio.routing.stream.parts.keeper import PartsKeeper
from router_trio.routing.stream.parts.status import PartStatus
from router_trio.routing.stream.retries.account import Account, Confirmed
from router_trio.routing.stream.retries.deliveries import RetriedDeliveries
from router_trio.routing.stream.retries.schedules import RetrySchedules
from router_trio.routing.stream.source import StreamPart, StreamSource
from router_trio.states import FAILED, PAUSED, RUNNING, Behind

if TYPE_CHECKING:
    from router_trio.routing.dead_letters import DeadLetters

RETRIES = "scheduled retries"

COUNT_EVERY = 60.0
"""Seconds between two counts of the schedules."""

COUNT_AGAIN_AFTER = 5.0
"""Seconds until the schedules are counted again if they could not be counted."""


class _DueRetries(StreamSource):
    """The durable for due retries. The route still runs while that can't be read."""

    def __init__(
        self,
        schedule: RetrySchedule,
        routing: Routing,
        connection: Connection,
        emit: Emit,
        dead_letters: DeadLetters | None,
        before: StreamKeeper | None,
    ) -> None:
        source = routing.plan.settings.source
        spec = replace(
            consumer_spec(source),
            stream=schedule.stream,
            durable=schedule.names.durable,
            filters=(schedule.names.target,),
            deliver="all",
        )
        self.status: PartStatus = PartStatus(routing.state, RETRIES, self._show)
        part = StreamPart(spec, self.status, None)
        super().__init__(routing, connection, emit, dead_letters, before, part)
        self._deliveries = RetriedDeliveries(self.keeper, spec.stream, spec.durable)

    def _report_available(self) -> None:
        self._status.enter(RUNNING)
        self._retry.first_try_over.set()
        self._connection.counters.succeed("subscribe")

    def _show(self) -> None:
        """Show among the obstacles of the route that due retries can't be read."""
        state, reason = self.status.state, self.status.reason
        if state in (FAILED, PAUSED):
            self.state.add_obstacle(RETRIES, f"{RETRIES}: {reason or state}")
        elif state == RUNNING:
            self.state.remove_obstacle(RETRIES)


def _look(part: StreamSource) -> None:
    part.look()


class RetryingSource(KeptSource[PartsKeeper]):
    """The stream of one route, and the stream of its retries."""

    def __init__(
        self,
        routing: Routing,
        connection: Connection,
        emit: Emit,
        dead_letters: DeadLetters | None = None,
        before: Sequence[StreamKeeper | None] = (None, None),
        account: Account | None = None,
    ) -> None:
        """`before` are the keepers of the previous source: its unsettled messages continue here, and its `account`."""
        super().__init__(routing, connection, emit)
        schedule = routing.plan.retry_schedule
        assert schedule is not None, "the route has a schedule for its retries"
        self._schedule = schedule
        self._stream = StreamSource(routing, connection, emit, dead_letters, before[0])
        self._due = _DueRetries(schedule, routing, connection, emit, dead_letters, before[1])
        store = routing.retry_schedules
        self._confirmed: Confirmed = store.confirmed if isinstance(store, RetrySchedules) else Confirmed()
        self._account: Account = account or Account()
        self._parts = (self._stream, self._due)
        self.first_try_over = self._stream.first_try_over
        self.keeper: PartsKeeper = PartsKeeper(routing, self._behind, StreamKeeper.settle_rest)
        for part in self._parts:
            self.keeper.add(part.keeper, partial(_look, part))
        self.look = self._look_each

    async def serve(self, link: Link, tried: Latch) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._due.serve, link, Latch())
            nursery.start_soon(self._count, link)
            await self._stream.serve(link, tried)
            nursery.cancel_scope.cancel()

    async def _receive(self, link: Link, tried: Latch) -> None:
        raise AssertionError("each of its parts receives")

    async def _count(self, link: Link) -> None:
        """Count the schedules now and every minute, and report lost ones, until cancelled."""
        schedule = self._schedule
        spec = SchedulesSpec(schedule.stream, schedule.prefix, schedule.names.target, schedule.names.durable)
        while True:
            pause = COUNT_EVERY
            confirmed = replace(self._confirmed, received=self.state.fired)
            try:
                count = await link.count_schedules(spec)
            except SourceError as error:
                if error.reason != reasons.PERMISSION_DENIED:
                    pause = COUNT_AGAIN_AFTER
            else:
                judged = self._account.judged(count, confirmed)
                if judged is None:
                    pause = COUNT_AGAIN_AFTER
                elif judged.lost:
                    self._report_lost(judged)
            await trio.sleep(pause)

    def _report_lost(self, count: SchedulesCount) -> None:
        self.state.schedules_lost += count.lost
        self._emit(
            RouteScheduleLost(
                at=trio.current_time(),
                route=self.state.name,
                stream=self._schedule.stream,
                scheduled=count.scheduled,
                fired=count.fired,
                there=count.there,
                cancelled=count.cancelled,
                lost=count.lost,
            )
        )

    def _look_each(self) -> None:
        for part in self._parts:
            part.look()

    def _behind(self) -> Behind | None:
        """Return how far the route is behind its stream, with the retries that are due."""
        behind, due = self._stream.keeper.behind, self._due.keeper.behind
        return behind if behind is None or due is None else Behind.of_parts((behind, due))

    # --- the end ---

    def close(self) -> None:
        super().close()
        for part in self._parts:
            part.close()

    async def over(self) -> None:
        for part in self._parts:
            await part.over()

    def retire(self) -> None:
        super().retire()
        for part in self._parts:
            part.retire()

    def go_on(
        self, routing: Routing, connection: Connection, dead_letters: DeadLetters | None
    ) -> RetryingSource | None:
        """Return a source that continues if it has the same consumers, even on a new connection; otherwise None."""
        source, schedule = routing.plan.settings.source, routing.plan.retry_schedule
        same = schedule is not None and schedule.names == self._schedule.names
        same = same and schedule is not None and schedule.stream == self._schedule.stream
        if not same or source.kind.consumer(source) != self._stream.consumer:
            return None
        if not connection.has_same_streams(self._connection):
            return None
        before = [part.keeper for part in self._parts]
        self._account.goes_on()
        successor = RetryingSource(routing, connection, self._emit, dead_letters, before, self._account)
        left = [part.keeper.left or keeper for part, keeper in zip(successor._parts, before, strict=True)]
        self.state.held_by(LeftInHand(lambda: sum(one.in_hand or 0 for one in left)))
        return successor
