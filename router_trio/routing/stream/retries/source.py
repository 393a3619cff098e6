"""A stream and the stream of its retries: one source of a route around the sources of both.

Messages are received from the stream as on any route. Those whose next attempt is far away wait as schedules in the
stream of retries, and are received from there by a second durable when they are due. After a reload that schedules them
elsewhere or not at all, that durable is read until nothing waits for it any more.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import trio

from router_trio.connection.latch import Latch
from router_trio.connection.supervisor import Connection
from router_trio.errors import FilterDiffersError, LinkError, SourceError, reasons
from router_trio.events import Emit, RouteRetriesDrained, RouteRetriesDraining, RouteScheduleLost
from router_trio.link import Link, PullConsumer, SchedulesCount, SchedulesSpec
from router_trio.routing.pipeline import Routing
from router_trio.routing.policy.key_queues import ActiveKeys
from router_trio.routing.route_plans import RetrySchedule, RoutePlan
from router_trio.routing.source import KeptSource
from router_trio.routing.stream.consumer.limits import consumer_spec
from router_trio.routing.stream.delivery import StreamDelivery
from router_trio.routing.stream.in_hand import LeftInHand
from router_trio.routing.stream.keeper import StreamKeeper
from router_trio.routing.stream.parts.keeper import PartsKeeper
from router_trio.routing.stream.parts.status import PartStatus
from router_trio.routing.stream.retries.account import Account, Confirmed
from router_trio.routing.stream.retries.deliveries import RetriedDeliveries
from router_trio.routing.stream.retries.schedules import RetrySchedules
from router_trio.routing.stream.source import StreamPart, StreamSource
from router_trio.settings.checks.flow import may_schedule
from router_trio.settings.retry import RetryScheduleSettings, RetrySettings
from router_trio.settings.routes.sources.partitioned import partitioning_of
from router_trio.states import FAILED, PAUSED, RUNNING, Behind

if TYPE_CHECKING:
    from router_trio.events.routes import RetriesEvent
    from router_trio.routing.dead_letters import DeadLetters
    from router_trio.settings import RouteSettings

RETRIES = "scheduled retries"

COUNT_EVERY = 60.0
"""Seconds between two counts of the schedules."""

COUNT_AGAIN_AFTER = 5.0
"""Seconds until the schedules are counted again if they could not be counted."""

DRAIN_EVERY = 5.0
"""Seconds between two looks how many retries wait where nothing new is scheduled."""


class _DueRetries(StreamSource):
    """The durable for due retries of one prefix. The route still runs while that can't be read.

    If the settings of the route have another prefix by now, or none, it `drains`: it receives until nothing waits.
    """

    def __init__(
        self,
        schedule: RetrySchedule,
        routing: Routing,
        connection: Connection,
        emit: Emit,
        dead_letters: DeadLetters | None,
        before: _DueRetries | None,
        durable: str,
        keys: ActiveKeys[StreamDelivery],
        created: Callable[[], str],
    ) -> None:
        """`before` are the due retries of the previous source: its unsettled messages continue here.

        `durable` is its name if that is known, else empty. `keys` are shared with the stream of the route.
        `created` returns when that stream was created, as far as that is known.
        """
        source, now = routing.plan.settings.source, routing.plan.retry_schedule
        spec = replace(
            consumer_spec(source),
            stream=schedule.stream,
            durable=durable or schedule.names.durable,
            filters=(schedule.names.target,),
            deliver="all",
        )
        self.schedule: RetrySchedule = schedule
        self.drains: bool = now is None or now.place != schedule.place
        self.is_over: bool = False
        """True once it received nothing more, because nothing waits or its durable has the filter of another prefix."""
        self.is_of_other_prefix: bool = False
        self._part = f"{RETRIES} left in {schedule.stream} below {schedule.prefix}" if self.drains else RETRIES
        self.status: PartStatus = PartStatus(routing.state, self._part, self._show)
        super().__init__(
            routing,
            connection,
            emit,
            dead_letters,
            None if before is None else before.keeper,
            StreamPart(spec, self.status, None),
            keys,
        )
        if routing.newest is not None:
            self.keeper.forwards_on_arrival = False  # each is compared before
        store = routing.retry_schedules
        self._confirmed: Confirmed = Confirmed()
        if isinstance(store, RetrySchedules) and not self.drains:
            self._confirmed = store.confirmed
        self._account: Account = Account() if before is None else before._account
        self._account.goes_on()
        self._is_found: bool = before is not None and before._is_found
        """True once its durable was opened, so that its name is known."""
        self._reported: bool = before is not None and self.drains and before.drains and before._reported
        """True once it was reported that messages wait where nothing new is scheduled."""
        self._consumer: PullConsumer | None = None
        self._deliveries = RetriedDeliveries(self.keeper, spec.stream, spec.durable, self._confirmed, created)
        if self.drains:
            self.state.draining[schedule.place] = None

    @property
    def durable(self) -> str:
        """The name of the durable; empty if that is not known yet."""
        return self._spec.durable if self._is_found else ""

    def _report_available(self) -> None:
        self._status.enter(RUNNING)
        self._retry.first_try_over.set()
        self._connection.counters.succeed("subscribe")

    def wait_for_lead(self) -> None:
        """Return what is not in a handler to its stream, for the process that has the lead now."""
        self.keeper.return_unrouted()
        self.state.remove_obstacle(self._part)
        self.reopen()

    def _show(self) -> None:
        """Show among the obstacles of the route that due retries can't be read."""
        state, reason = self.status.state, self.status.reason
        if state == RUNNING or self.is_over:
            self.state.remove_obstacle(self._part)
        elif state in (FAILED, PAUSED):
            self.state.add_obstacle(self._part, f"{self._part}: {reason or state}")

    # --- on one link ---

    async def receive_due(self, link: Link) -> None:
        """Receive from this link until closed, and if it drains, until nothing waits. Meanwhile count the schedules."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._count, link)
            if self.drains:
                nursery.start_soon(self._drain, link)
            await self.serve(link, Latch())
            nursery.cancel_scope.cancel()

    async def _receive(self, link: Link, tried: Latch) -> None:
        try:
            await super()._receive(link, tried)
        except FilterDiffersError:
            if self._is_found or self._spec.durable == self.schedule.names.other_durable:
                raise
            self.is_of_other_prefix = True
            self._end()

    async def _receive_from(self, link: Link, consumer: PullConsumer, tried: Latch) -> None:
        self._is_found = True
        self._consumer = consumer
        try:
            await super()._receive_from(link, consumer, tried)
        finally:
            self._consumer = None

    def _end(self) -> None:
        self.is_over = True
        self._show()
        self.close()

    # --- its schedules ---

    async def _drain(self, link: Link) -> None:
        """Count what waits until nothing does, and then end."""
        while True:
            pause = DRAIN_EVERY
            with trio.move_on_after(DRAIN_EVERY):
                await self.opened.wait()
            # Before the look: an earlier generation of the route may still have published a schedule.
            settled = all(one.is_settled for one in self.state.earlier)
            try:
                waiting = await self._waiting(link)
            except SourceError as error:
                waiting = None
                pause = COUNT_EVERY if error.reason == reasons.PERMISSION_DENIED else DRAIN_EVERY
            self.state.draining[self.schedule.place] = waiting
            if waiting and not self._reported:
                self._reported = True
                self._emit_about(RouteRetriesDraining, waiting=waiting)
            if waiting == 0 and settled:
                break
            await trio.sleep(pause)
        del self.state.draining[self.schedule.place]
        if self._reported:
            self._emit_about(RouteRetriesDrained)
        self._end()

    async def _waiting(self, link: Link) -> int | None:
        """Return how many messages wait for their time or are due, and 0 without a stream; None if that is not known.

        Schedules are counted first: one that is published meanwhile is due.
        """
        consumer = self._consumer
        if consumer is None:
            return None if await link.stream_state(self.schedule.stream) is not None else 0
        scheduled = await self.schedules_there(link)
        state = await consumer.check()
        return scheduled + state.undelivered + state.unacked

    async def schedules_there(self, link: Link) -> int:
        """Return how many messages wait for their time. Raises as `Link.count_subjects`."""
        return await link.count_subjects(self.schedule.stream, f"{self.schedule.names.schedules}.*")

    def _emit_about(self, event: type[RetriesEvent], **about: int) -> None:
        stream, prefix = self.schedule.place
        self._emit(event(at=trio.current_time(), route=self.state.name, stream=stream, prefix=prefix, **about))

    async def _count(self, link: Link) -> None:
        """Count the schedules now and every minute, and report lost ones, until cancelled."""
        schedule = self.schedule
        while True:
            pause = COUNT_EVERY
            # Not before it is known to have this filter: what is due would be deleted up to the acks of another prefix.
            durable = self.durable or schedule.names.other_durable
            spec = SchedulesSpec(schedule.stream, schedule.prefix, schedule.names.target, durable)
            confirmed = replace(self._confirmed)
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
                stream=self.schedule.stream,
                scheduled=count.scheduled,
                fired=count.fired,
                there=count.there,
                cancelled=count.cancelled,
                lost=count.lost,
            )
        )


def _look(part: StreamSource) -> None:
    part.look()


class RetryingSource(KeptSource[PartsKeeper]):
    """The stream of one route, and the streams of its retries: that of its settings, and those that drain."""

    def __init__(
        self,
        routing: Routing,
        connection: Connection,
        emit: Emit,
        dead_letters: DeadLetters | None = None,
        before: StreamKeeper | None = None,
        due_before: Sequence[_DueRetries] = (),
    ) -> None:
        """`before` is the keeper of the stream in the previous source, and `due_before` the retries that continue."""
        super().__init__(routing, connection, emit)
        self._dead_letters = dead_letters
        self._keys: ActiveKeys[StreamDelivery] = ActiveKeys(self._wake)
        self._stream = StreamSource(routing, connection, emit, dead_letters, before, None, self._keys)
        self.first_try_over = self._stream.first_try_over
        self.keeper: PartsKeeper = PartsKeeper(routing, self._behind, StreamKeeper.settle_rest)
        self.keeper.add(self._stream.keeper, partial(_look, self._stream))
        self.due: list[_DueRetries] = []
        for one in due_before:
            self._add(one.schedule, one, one.durable)
        schedule = routing.plan.retry_schedule
        if schedule is not None and schedule.place not in self.scheduled_in:
            self._add(schedule)
        self.look = self._look_each

    def _add(self, schedule: RetrySchedule, before: _DueRetries | None = None, durable: str = "") -> _DueRetries:
        about = self._routing, self._connection, self._emit, self._dead_letters
        part = _DueRetries(schedule, *about, before, durable, self._keys, self._created)
        self.due.append(part)
        self.keeper.add(part.keeper, partial(_look, part))
        return part

    def _created(self) -> str:
        return self._stream.keeper.hand.cursor.stream_created

    def _wake(self) -> None:
        self.keeper.route.something_waits()

    @property
    def _parts(self) -> Sequence[StreamSource]:
        return self._stream, *self.due

    async def serve(self, link: Link, tried: Latch) -> None:
        async with trio.open_nursery() as nursery:
            for part in self.due:
                if not part.is_over:
                    nursery.start_soon(self._receive_due, part, link)
            await self._stream.serve(link, tried)
            nursery.cancel_scope.cancel()

    async def _receive_due(self, part: _DueRetries, link: Link) -> None:
        await self._receive_while_open(part, link)
        if part.is_of_other_prefix and not self.closed:
            other = self._add(part.schedule, None, part.schedule.names.other_durable)
            await self._receive_while_open(other, link)

    async def _receive_while_open(self, part: _DueRetries, link: Link) -> None:
        """Receive what is due, with `standby` only while this process has the lead of the stream.

        If it is compared with values of buckets, also not before it is known which stream that is.
        """
        if not self._stream.is_standby and self._routing.newest is None:
            await part.receive_due(link)
            return
        while True:
            await self._stream.opened.wait()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._close_at_end, part, self._stream.ended)
                await part.receive_due(link)
                nursery.cancel_scope.cancel()
            if self.closed or part.is_over:
                return
            part.wait_for_lead()

    async def _close_at_end(self, part: _DueRetries, ended: trio.Event) -> None:
        await ended.wait()
        part.close()

    async def _receive(self, link: Link, tried: Latch) -> None:
        raise AssertionError("each of its parts receives")

    @property
    def scheduled_in(self) -> Sequence[tuple[str, str]]:
        return [part.schedule.place for part in self.due if not part.is_over]

    async def count_scheduled(self, place: tuple[str, str]) -> int | None:
        link = self._connection.link
        part = next(part for part in self.due if part.schedule.place == place)
        if link is None:
            return None
        try:
            return await part.schedules_there(link)
        except (SourceError, LinkError):
            return None

    def _look_each(self) -> None:
        for part in self._parts:
            part.look()

    def _behind(self) -> Behind | None:
        """Return how far the route is behind its stream, with the retries that are due."""
        stream, *due = [part.keeper.behind for part in self._parts]
        return None if stream is None else Behind.of_parts([stream, *(one for one in due if one is not None)])

    # --- the end ---

    def close(self) -> None:
        super().close()
        for part in self._parts:
            part.close()

    def keep_lead(self) -> float:
        return self._stream.keep_lead()

    def give_up_lead(self) -> None:
        self._stream.give_up_lead()

    async def over(self) -> None:
        for part in self._parts:
            await part.over()

    def retire(self) -> None:
        super().retire()
        self.state.draining.clear()
        for part in self._parts:
            part.retire()

    def stays(self, plan: RoutePlan, *, reconnects: bool) -> bool:
        source, settings = plan.settings.source, plan.settings
        same = source.kind.consumer(source) == self._stream.consumer and partitioning_of(source) is None
        drain = all(part.is_over or _may_drain(part.schedule, settings) for part in self.due)
        return same and drain and not reconnects

    def go_on(
        self, routing: Routing, connection: Connection, dead_letters: DeadLetters | None
    ) -> StreamSource | RetryingSource | None:
        """Return a source that continues what it has of the same consumers, even on a new connection.

        What waits for retries that the new settings do not schedule there is received until nothing is left. Return
        None if the new route reads from elsewhere, and could not have scheduled retries.
        """
        source, schedule = routing.plan.settings.source, routing.plan.retry_schedule
        consumer = source.kind.consumer(source)
        if consumer is None or partitioning_of(source) is not None or not connection.has_same_streams(self._connection):
            return None
        due = [part for part in self.due if not part.is_over and _may_drain(part.schedule, routing.plan.settings)]
        stream = self._stream.keeper if consumer == self._stream.consumer else None
        if schedule is None and not due:
            if stream is None:
                return None
            alone = StreamSource(routing, connection, self._emit, dead_letters, stream)
            alone.go_on_leading(self._stream)
            self._leave({self._stream: alone})
            return alone
        successor = RetryingSource(routing, connection, self._emit, dead_letters, stream, due)
        successor._stream.go_on_leading(self._stream)
        self._leave({self._stream: successor._stream} | dict(zip(due, successor.due, strict=False)))
        return successor

    def _leave(self, continued: Mapping[StreamSource, StreamSource]) -> None:
        """Have what is in hand counted in the sources that have it now; what none continues is settled here."""
        left = [
            (continued[part].keeper.started_before if part in continued else None) or part.keeper
            for part in self._parts
        ]
        self.state.held_by(LeftInHand(lambda: sum(one.in_hand or 0 for one in left)))


def _may_drain(schedule: RetrySchedule, route: RouteSettings) -> bool:
    """Return True if a route with these settings could schedule its retries there."""
    retry = RetrySettings(schedule=RetryScheduleSettings(stream=schedule.stream, prefix=schedule.prefix))
    return may_schedule(retry, route)
