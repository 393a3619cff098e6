"""Routes that keep each message until it is settled, for every source.

A route from a stream always keeps its messages. A route from a subject does if messages are retried or dead-lettered,
if they are routed by key, or if they may have to wait for a rate limit or a circuit breaker. The hand decides which
message is next (`in_hand.py`), the limit and the breakers when one may be sent (`flow/`), and the keeper what its fate
means at the source (`keeper.py`).

A route with a `key` or a `concurrency` has one active message of each key at a time, until the destinations have
confirmed it. A failed message holds back its key until it is retried or given up.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Generic, NamedTuple, TypeVar

import trio

from router_trio.connection.latch import Latch
from router_trio.routing.delivery import Delivery
from router_trio.routing.hand_over import Batches
from router_trio.routing.in_hand import InHand
from router_trio.routing.keeper import Keeper
from router_trio.routing.pipeline import Routing
from router_trio.routing.route import Route
from router_trio.routing.source import KeptSource
from router_trio.routing.turns import BATCH, BETWEEN_TWO_LOOKS

D = TypeVar("D", bound=Delivery)

CHECKED_AT_ONCE = 64
"""Messages of a route between KV buckets whose keys are looked up at a time."""


class KeptRoute(Route, Generic[D]):
    """A route that keeps its messages in hand: the `RouteToWake` of its keeper."""

    def __init__(self, routing: Routing, source: KeptSource[Keeper[D, InHand[D]]]) -> None:
        super().__init__(routing, source)
        self._tasks = HandlerTasks(self._lead_on, self._begin_at_once)
        self._arrived = Latch()
        self._left_hand = trio.lowlevel.ParkingLot()
        self._waiting_for_room = trio.CancelScope()
        self._nothing_comes = False
        self._started: list[Started] = []
        self._lost = 0
        self._paused: Latch | None = None
        self._go_by(routing, source)

    def _go_by(self, routing: Routing, source: KeptSource[Keeper[D, InHand[D]]]) -> None:
        plan, flow, keeper = routing.plan, routing.flow, source.keeper
        self._keeper: Keeper[D, InHand[D]] = keeper
        self._hand: InHand[D] = keeper.hand
        self._flow = flow
        self._keyed = plan.by_key
        if flow is not None:
            flow.follow(routing.needed, lambda: keeper.sent)
        keeper.routed_by(self)
        routing.state.held_by(keeper)
        self._tasks.allow(CHECKED_AT_ONCE if plan.copies_bucket else plan.settings.concurrency)

    # --- settings that change ---

    @property
    def routings(self) -> Sequence[Routing]:
        return (self.routing, *(started.routing for started in self._started))

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Begin with no message while this is entered. Messages are received, and what is begun goes on."""
        assert self._paused is None, "reloads follow each other"
        self._paused = Latch()
        self._keeper.pause()
        self._waiting_for_room.cancel()
        if self._flow is not None:
            self._flow.wake()
        try:
            yield
        finally:
            self._keeper.begin()
            self._paused.set()
            self._paused = None

    @property
    def is_paused(self) -> bool:
        """Return True while it begins with no message."""
        return self._paused is not None

    async def settled(self, deadline: float) -> int:
        """Wait until what was begun before the route was `paused` is settled. At the deadline, return or lose it.

        Returns the number of handler calls that do not return although they were cancelled.
        """
        return await self._end(Started(self._keeper, self.routing, self._tasks.in_progress, deadline))

    def use(self, routing: Routing, source: KeptSource[Keeper[D, InHand[D]]], deadline: float) -> Started:
        """Route by other settings from now on, with messages that this source receives.

        What waits is routed by them as well. Returns what was started under the settings before: it ends under them,
        before the deadline, and its keys are not free before.
        """
        started = Started(self._keeper, self.routing, self._tasks.in_progress, deadline)
        self._started.append(started)
        routed = self._keeper.routes
        self.routing, self.state, self.source = routing, routing.state, source
        self._go_by(routing, source)
        if routed:
            self._keeper.begin()
        if started.routing.flow is not None:
            started.routing.flow.unfollow()
            started.routing.flow.wake()
        self._waiting_for_room.cancel()
        self._arrived.set()
        self._left_hand.unpark_all()
        return started

    async def ended(self, started: Started) -> int:
        """Wait until what was started under earlier settings is settled. At its deadline, return or lose it.

        Returns the number of handler calls that do not return although they were cancelled. If this is cancelled, the
        end of the route waits for it.
        """
        hanging = await self._end(started)
        started.keeper.retire()
        if started.routing.flow is not None:
            started.routing.flow.retire()
        if started.routing.lost is None:  # else that is why the run ends, which looks for the cause
            self._started.remove(started)
        return hanging

    async def _end(self, started: Started) -> int:
        with trio.CancelScope(deadline=started.deadline):
            while started.keeper.started:
                await self._left_hand.park()
        started.keeper.recall()
        hanging = await self._tasks.cancel(started.calls)
        started.keeper.give_up_calls()
        self._lost += started.keeper.take_unsettled()
        return hanging

    def take_unsettled(self) -> int:
        """Return the number of messages that changes of the settings have cost, once."""
        lost, self._lost = self._lost, 0
        return lost

    # --- routed ---

    async def _route_arriving(self) -> None:
        if self._paused is None:
            self._keeper.begin()
        await self._tasks.run()

    async def _lead_on(self) -> Awaitable[None]:
        while True:
            await self._something_waits()
            if self._paused is not None:
                await self._paused.wait()
            elif self._tasks.too_many:  # since a reload allows fewer calls than are in progress
                await self._tasks.until_allowed()
            elif await self._some_may_go():
                blocked = self._begin_some()
                if blocked is not None:
                    return blocked
            self._left_hand.unpark_all()
            await self.routing.turn.pass_on()

    def _begin_at_once(self) -> Awaitable[None] | None:
        blocked = self._begin_some() if self._keeper.has_room and self._paused is None else None
        self._left_hand.unpark_all()
        return blocked

    async def _something_waits(self) -> None:
        """Wait until there is a message to route: one that arrived, or is due."""
        while not self._hand.ready(trio.current_time()):
            self._arrived = Latch()
            with trio.CancelScope(deadline=self._hand.due_at):
                await self._arrived.wait()
            self.routing.turn.begin()

    async def _some_may_go(self) -> bool:
        """Return True if a message may be routed now. Otherwise wait until that should be checked again."""
        if not self._keeper.has_room:  # last: messages that are routed together rely on it
            with trio.CancelScope() as self._waiting_for_room:
                await self._keeper.room()
            return False
        if self._flow is None or self._flow.quiet or self._flow.may_go(1):
            return True
        if not (self._nothing_comes and self._keeper.return_unrouted()):
            await self._flow.wait_to_go(self._hand.waiting or 1)  # if none waits, there is one that is due
        return False

    def _begin_some(self) -> Awaitable[None] | None:
        """Route messages that may be routed now. If a handler blocks, return what to await in this task."""
        blocked = self._begin_each()
        if self._flow is not None and not self._flow.quiet and (self._hand.behind or self._hand.held):
            # Only now it is known that these messages leave room for others to be requested, with a limit or to probe.
            self.source.look()
        return blocked

    def _begin_each(self) -> Awaitable[None] | None:
        """Route them one by one, unless the keeper forwards them together."""
        keeper, flow, turn = self._keeper, self._flow, self.routing.turn
        if keeper.forward_waiting():
            return None
        if keeper.forwards_together:
            return self._forward_each()
        for _ in range(BATCH):
            if flow is not None and not flow.quiet and not flow.may_go(1):
                break
            delivery = keeper.next(trio.current_time())
            if delivery is None:
                break
            blocked = self._begin(delivery)
            if blocked is not None:
                return blocked
            if turn.over or not keeper.has_room:
                break
        return None

    def _forward_each(self) -> Awaitable[None] | None:
        """Forward messages of different keys together. If one must be compared first, return what to await.

        Fast path of the loop of `_begin_each`; held equal by
        test_both_ways_of_streams.py::test_messages_by_key_are_forwarded_together_as_they_would_be_one_by_one.
        """
        keeper, newest, now = self._keeper, self.routing.newest, trio.current_time()
        for _ in range(BATCH // BETWEEN_TWO_LOOKS):
            deliveries: list[D] = []
            delivery: D | None = None
            one_by_one: D | None = None
            while len(deliveries) < BETWEEN_TWO_LOOKS and (delivery := keeper.next(now)) is not None:
                if self._lacks_key(delivery) or (newest is not None and newest.needs(delivery)):
                    one_by_one = delivery
                    break
                deliveries.append(delivery)
            if deliveries:
                keeper.forward_each(deliveries)
            blocked = None if one_by_one is None else self._begin(one_by_one)
            if blocked is not None:
                return blocked
            if delivery is None or self.routing.turn.over or not keeper.has_room:
                break
        return None

    def _lacks_key(self, delivery: D) -> bool:
        return self._keyed and self.routing.lacks_key(self._keeper.order_key(delivery))

    def _begin(self, delivery: D) -> Awaitable[None] | None:
        """Route one message. If its handler blocks, return what to await."""
        routing, keeper = self.routing, self._keeper
        if self._lacks_key(delivery):
            routing.fail_without_key(delivery)
            return None
        if self._flow is not None and not self._flow.quiet:
            self._flow.going(1, self._hand.waiting)
        if routing.newest is not None and routing.newest.needs(delivery):
            self._hand.handler_blocks(delivery)
            return self._wait_for(keeper, routing.newest.route(delivery), delivery, None)
        if routing.plan.handler is None:
            keeper.forward(delivery)
            return None
        again_at = trio.current_time() if delivery.attempt > 1 else None
        try:
            blocked = routing.route_until_blocked(routing.plan.handler, delivery)
        except BaseException:
            keeper.not_sent(delivery)
            raise
        if blocked is None:
            if again_at is not None:
                self._handled_again(keeper, again_at)
            return None
        self._hand.handler_blocks(delivery)
        return self._wait_for(keeper, blocked, delivery, again_at)

    async def _wait_for(
        self, keeper: Keeper[D, InHand[D]], blocked: Awaitable[None], delivery: D, again_at: float | None
    ) -> None:
        """Wait for a handler. If it is cancelled, nothing of the message was sent.

        `again_at`: when it was called, if the message has failed before.
        """
        try:
            await blocked
        except BaseException:
            keeper.not_sent(delivery)
            raise
        finally:
            keeper.hand.handler_returned(delivery)
        if again_at is not None:
            self._handled_again(keeper, again_at)

    def _handled_again(self, keeper: Keeper[D, InHand[D]], began_at: float) -> None:
        now = trio.current_time()
        keeper.handled_again(now - began_at, now)

    def something_waits(self) -> None:
        self._arrived.set()

    def look(self) -> None:
        schedule = self._hand.schedule
        if schedule.waiting or schedule.may_begin:
            self._arrived.set()
        self._left_hand.unpark_all()
        self.source.look()

    def left_hand(self) -> None:
        self._left_hand.unpark_all()

    def go_on_with(self, waiting: Batches) -> None:
        from router_trio.routing.core.keeper import SubjectKeeper  # only for routes from a subject

        assert isinstance(self._keeper, SubjectKeeper), "it has the subject of the route that it follows"
        self._keeper.go_on_with(waiting)
        self._arrived.set()

    # --- the end ---

    async def _all_routed(self) -> None:
        """Wait until all messages are routed, unless none may be sent and the source takes them back."""
        self._nothing_comes = True
        self._arrived.set()
        if self._flow is not None:
            self._flow.wake()
        for started in tuple(self._started):  # if a reload was cut short
            await self.ended(started)
        while not self._keeper.settle_rest():
            with trio.move_on_after(self.source.keep_lead()):
                await self._left_hand.park()

    def recall(self) -> None:
        self._keeper.recall()

    def abandon(self) -> int:
        return super().abandon() + self.take_unsettled()

    def _let_go(self) -> int:
        for started in self._started:
            started.keeper.give_up_calls()
            self._lost += started.keeper.take_unsettled()
        return self._keeper.let_go()

    def retire(self) -> None:
        super().retire()
        self._keeper.retire()


Lead = Callable[[], Awaitable[Awaitable[None]]]
"""Waits for messages and calls the handler until it blocks. Returns what to await, in the same task."""

Begin = Callable[[], Awaitable[None] | None]
"""Routes messages that have arrived, without waiting. Returns what a call blocks on; None if none blocks."""


class HandlerTask:
    """A task in which a route calls its handler: its scope, and the number of its waits so far, also of that now."""

    __slots__ = ("cancelled", "forgotten", "scope", "waits")

    def __init__(self) -> None:
        self.scope: trio.CancelScope = trio.CancelScope()
        self.waits: int = 0
        """How often a call began to wait or ended, so it is odd while one waits."""
        self.cancelled: bool = False
        """True once it ends with its call."""
        self.forgotten: bool = False
        """True once others do not wait for that any more."""


Calls = dict[HandlerTask, int]
"""Calls in progress: the tasks that wait for them, each with its `waits` by then."""

CANCELLED_WITHIN = 1.0
"""Seconds in which a cancelled call should have ended. Others do not wait for it any longer."""


class HandlerTasks:
    """The tasks in which one route calls its handler, as many as are allowed. `run` is their lifetime.

    Trio ties what a handler waits for to the task that has called it. So it is not the call that moves to another task
    when it blocks, but the routing of further messages: one task leads, which waits for messages and calls the handler.
    When a call blocks, the task stays with it, and another one leads. A task whose call is over begins with messages
    that wait already, if there are any, before it waits for the lead. A handler that never blocks costs no switch of
    tasks.
    """

    def __init__(self, lead: Lead, begin: Begin) -> None:
        self._most = 1
        self._lead = lead
        self._begin = begin
        self._waits = 0
        self._led = True
        self._idle = trio.lowlevel.ParkingLot()
        self._allowed = trio.lowlevel.ParkingLot()
        self._tasks: set[HandlerTask] = set()
        self._task_ended = trio.lowlevel.ParkingLot()
        self._nursery: trio.Nursery | None = None

    async def run(self) -> None:
        """Lead, and wait for handlers, until cancelled."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            await self._run_task()

    def allow(self, most: int) -> None:
        """Allow that many calls at a time from now on. If more are in progress, none begins until enough have ended."""
        self._most = most
        self._allowed.unpark_all()
        self._lead_if_allowed()

    @property
    def too_many(self) -> bool:
        """Return True if no call may begin before another one has ended."""
        return self._waits >= self._most

    async def until_allowed(self) -> None:
        """Wait until that has changed, or should be checked again."""
        await self._allowed.park()

    @property
    def in_progress(self) -> Calls:
        """The calls that wait for something now, without those that were cancelled in vain."""
        return {task: task.waits for task in self._tasks if task.waits % 2 and not task.forgotten}

    async def cancel(self, calls: Calls) -> int:
        """Cancel those of these calls that are still in progress, and wait for a bounded time until they have ended.

        Return how many do not end. Nothing waits for these any longer.
        """
        for task in self._still(calls):
            task.cancelled = True
            task.scope.cancel()
        with trio.move_on_after(CANCELLED_WITHIN):
            while self._still(calls):
                await self._task_ended.park()
        hanging = self._still(calls)
        for task in hanging:
            task.forgotten = True
            self._wait_ended()
        self._lead_if_allowed()
        return len(hanging)

    def _still(self, calls: Calls) -> list[HandlerTask]:
        return [task for task, waits in calls.items() if task in self._tasks and task.waits == waits]

    async def _run_task(self) -> None:
        task = HandlerTask()
        self._tasks.add(task)
        try:
            with task.scope:
                await self._work(task)
        finally:
            self._tasks.discard(task)
            self._task_ended.unpark_all()
            if task.cancelled and not task.forgotten:
                self._wait_ended()
                self._lead_if_allowed()

    async def _work(self, task: HandlerTask) -> None:
        """Lead until a call blocks; lead again after that call, unless another task leads."""
        while True:
            blocked: Awaitable[None] | None = await self._lead()
            self._waits += 1
            self._pass_lead()
            while blocked is not None:
                task.waits += 1
                await blocked
                task.waits += 1
                if task.cancelled:
                    return
                blocked = self._begin() if self._waits <= self._most else None
            self._wait_ended()
            if self._led or self._waits >= self._most:
                await self._idle.park()
            self._led = True

    def _wait_ended(self) -> None:
        self._waits -= 1
        if self._allowed:
            self._allowed.unpark_all()

    def _pass_lead(self) -> None:
        if self._waits >= self._most:
            self._led = False  # a task whose call has ended leads as soon as that is allowed
        else:
            self._let_one_lead()

    def _lead_if_allowed(self) -> None:
        """Let a task lead if none does, although fewer calls are in progress than are allowed."""
        if self._nursery is not None and not self._led and self._waits < self._most:
            self._led = True
            self._let_one_lead()

    def _let_one_lead(self) -> None:
        if self._idle:
            self._idle.unpark()
        else:
            assert self._nursery is not None, "the tasks run"
            self._nursery.start_soon(self._run_task)


class Started(NamedTuple):
    """The messages and calls that a route has started under earlier settings: see `KeptRoute.use`."""

    keeper: Keeper[Any, Any]
    routing: Routing
    calls: Calls
    deadline: float
