"""Routes that keep each message until it has its fate, whatever source it came from.

A route from a stream always does, and one from a subject if its messages are tried again or dead-lettered, if they go
by key, or if they may have to wait for a limit or a breaker. Which message is next is for the hand to say
(`in_hand.py`), when one may go for the limit and the breakers (`flow/`), and what its fate means at the source for the
keeper (`keeper.py`).

A route with a `key` or a `concurrency` has one message of each key active at a time, until its destinations have
confirmed it. One that failed holds back its key until it was tried again or is given up.
"""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Generic, TypeVar

import trio

from router_trio.routing.delivery import Batches, Delivery
from router_trio.routing.handler_tasks import HandlerTasks
from router_trio.routing.in_hand import InHand
from router_trio.routing.keeper import Keeper
from router_trio.routing.pipeline import Routing
from router_trio.routing.route import Route
from router_trio.routing.source import KeptSource
from router_trio.routing.turns import BATCH

D = TypeVar("D", bound=Delivery)


class KeptRoute(Route, Generic[D]):
    """A route that keeps its messages in hand: the `RouteToWake` of its keeper."""

    def __init__(self, routing: Routing, source: KeptSource[Keeper[D, InHand[D]]]) -> None:
        super().__init__(routing, source)
        plan, flow, keeper = routing.plan, routing.flow, source.keeper
        self._keeper: Keeper[D, InHand[D]] = keeper
        self._hand: InHand[D] = keeper.hand
        self._flow = flow
        self._keyed = plan.by_key
        self._tasks = HandlerTasks(plan.settings.concurrency, self._lead_on, self._begin_at_once)
        self._arrived = trio.Event()
        self._left_hand = trio.lowlevel.ParkingLot()
        self._nothing_comes = False
        if flow is not None:
            flow.follow(routing.needed, lambda: keeper.sent)
        keeper.routed_by(self)

    # --- routed ---

    async def _route_arriving(self) -> None:
        self._keeper.begin()
        await self._tasks.run()

    async def _lead_on(self) -> Awaitable[None]:
        """See `HandlerTasks`."""
        while True:
            await self._something_waits()
            if await self._some_may_go():
                blocked = self._begin_some()
                if blocked is not None:
                    return blocked
            self._left_hand.unpark_all()
            await self.routing.turn.pass_on()

    def _begin_at_once(self) -> Awaitable[None] | None:
        """See `HandlerTasks`."""
        blocked = self._begin_some() if self._keeper.has_room else None
        self._left_hand.unpark_all()
        return blocked

    async def _something_waits(self) -> None:
        """Wait until there is something to route: it arrived, or is due."""
        hand = self._hand
        while not hand.ready(trio.current_time()):
            self._arrived = trio.Event()
            with trio.CancelScope(deadline=hand.due_at):
                await self._arrived.wait()
            self.routing.turn.begin()

    async def _some_may_go(self) -> bool:
        """Return True if something may be routed now. If not, wait until it should be asked again what waits."""
        await self._keeper.room()  # last: what is routed in one go relies on it
        if self._flow is None or self._flow.may_go(1):
            return True
        if not (self._nothing_comes and self._keeper.return_unrouted()):
            await self._flow.wait_to_go(self._hand.waiting or 1)  # if none waits, it is one that is due
        return False

    def _begin_some(self) -> Awaitable[None] | None:
        """Route what may go now, one after the other. If a handler blocks, return what to await in this task."""
        keeper, flow, turn = self._keeper, self._flow, self.routing.turn
        if keeper.forward_waiting():
            return None
        for _ in range(BATCH):
            if flow is not None and not flow.may_go(1):
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

    def _begin(self, delivery: D) -> Awaitable[None] | None:
        """Route one message, which may go. If its handler blocks, return what to await."""
        routing, keeper = self.routing, self._keeper
        if self._keyed and routing.lacks_key(keeper.order_key(delivery)):
            routing.fail_without_key(delivery)
            return None
        if self._flow is not None:
            self._flow.going(1, self._hand.waiting)
        if routing.plan.handler is None:
            keeper.forward(delivery)
            return None
        try:
            blocked = routing.route_until_blocked(routing.plan.handler, delivery)
        except BaseException:
            keeper.not_sent(delivery)
            raise
        if blocked is None:
            return None
        self._hand.handler_blocks(delivery)
        return self._wait_for(blocked, delivery)

    async def _wait_for(self, blocked: Awaitable[None], delivery: D) -> None:
        """Wait for a handler. Cancelled in it, nothing was sent."""
        try:
            await blocked
        except BaseException:
            self._keeper.not_sent(delivery)
            raise
        finally:
            self._hand.handler_returned(delivery)

    def something_waits(self) -> None:
        self._arrived.set()

    def look(self) -> None:
        schedule = self._hand.schedule
        if schedule.waiting or schedule.may_begin:
            self._arrived.set()
        self._left_hand.unpark_all()
        self.source.look()

    # --- from one route to its successor ---

    def _take_back(self) -> Batches:
        # What is left here is looked at when nothing more is received: see `_all_routed`.
        return self._keeper.take_back()

    def _go_on_with(self, waiting: Batches) -> None:
        self._keeper.go_on_with(waiting)
        self._arrived.set()

    # --- the end ---

    async def _all_routed(self) -> None:
        """See `Route`. What waits for its turn is routed, unless nothing lets it go and the source takes it back."""
        self._nothing_comes = True
        self._arrived.set()
        if self._flow is not None:
            self._flow.wake()
        while not self._keeper.settle_rest():
            with trio.move_on_after(self.source.keep_lead()):
                await self._left_hand.park()

    def recall(self) -> None:
        self._keeper.recall()

    def _let_go(self) -> int:
        return self._keeper.let_go()

    def retire(self) -> None:
        super().retire()
        self._keeper.retire()
