"""Keep the messages of all partitions of a route that this process leads: one route around several stream keepers.

Each partition has a `StreamKeeper` of its own, which settles its messages. The next message is taken from the
partitions in turn, and only from those whose lease holds. What concerns one message is passed to the keeper of its
partition.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from math import inf

import trio

from router_trio.routing.hand_over import Batches
from router_trio.routing.in_hand import InHand
from router_trio.routing.keeper import Keeper, RouteToWake
from router_trio.routing.pipeline import Routing
from router_trio.routing.schedule import ArrivalOrder, NoValueLimit
from router_trio.routing.stream.delivery import StreamDelivery
from router_trio.routing.stream.in_hand import place_of
from router_trio.routing.stream.keeper import StreamKeeper
from router_trio.states import Behind, Holder, Partitions


class PartitionsInHand(InHand[StreamDelivery]):
    """The messages in hand of all partitions. Its own schedule and limits have none."""

    def __init__(self) -> None:
        super().__init__(ArrivalOrder(lambda delivery: delivery.order_key, place_of), NoValueLimit())
        self.keepers: list[StreamKeeper] = []
        self._turns: deque[StreamKeeper] = deque()
        """Keepers that may have a message to route, the next one first."""

    def add(self, keeper: StreamKeeper) -> None:
        """Add the keeper of a partition."""
        self.keepers.append(keeper)

    @property
    def total(self) -> int:
        """The number of messages."""
        return sum(keeper.hand.count for keeper in self.keepers)

    @property
    def waiting(self) -> int:
        return sum(keeper.hand.waiting for keeper in self.keepers)

    @property
    def behind(self) -> int:
        return sum(keeper.hand.behind for keeper in self.keepers)

    @property
    def held(self) -> int:
        return sum(keeper.hand.held for keeper in self.keepers)

    @property
    def active(self) -> int:
        return sum(keeper.hand.active for keeper in self.keepers)

    @property
    def due_at(self) -> float:
        now = trio.current_time()
        return min((keeper.hand.due_at for keeper in self.keepers if keeper.may_begin(now)), default=inf)

    def ready(self, now: float) -> bool:
        return self._find_turns(now)

    def _find_turns(self, now: float) -> bool:
        """Return True if a keeper may have a message to route."""
        turns = self._turns
        while turns and not _ready(turns[0], now):
            turns.popleft()
        if not turns:
            turns.extend(keeper for keeper in self.keepers if _ready(keeper, now))
        return bool(turns)

    def next(self, now: float) -> StreamDelivery | None:
        """Take out the next message, of another partition than the last one if others have any."""
        for _ in range(len(self.keepers)):
            if not self._find_turns(now):
                return None
            keeper = self._turns.popleft()
            delivery = keeper.next(now)
            if _ready(keeper, now):
                self._turns.append(keeper)
            if delivery is not None:
                return delivery
        return None

    def take_turns(self, now: float) -> Iterable[StreamKeeper]:
        """Yield each keeper that has a message to route, once."""
        for _ in range(len(self.keepers)):
            if not self._find_turns(now):
                return
            yield self._turns.popleft()

    # --- in a handler ---

    def handler_blocks(self, delivery: StreamDelivery) -> None:
        _keeper_of(delivery).hand.handler_blocks(delivery)

    def handler_returned(self, delivery: StreamDelivery) -> None:
        _keeper_of(delivery).hand.handler_returned(delivery)


class PartitionsKeeper(Keeper[StreamDelivery, PartitionsInHand]):
    """The messages of one route, in all partitions that this process leads. All but `room` is synchronous."""

    def __init__(
        self,
        routing: Routing,
        behind: Callable[[], Behind | None],
        partitions: Callable[[], Partitions],
    ) -> None:
        """`behind` and `partitions` return what pages show."""
        super().__init__(routing, place_of)
        self.hand: PartitionsInHand = PartitionsInHand()
        self._behind = behind
        self._partitions = partitions
        self._is_routed = False

        self._looks: list[tuple[StreamKeeper, Callable[[], None]]] = []
        """Keepers that were added before the route was known."""

    def add(self, keeper: StreamKeeper, look: Callable[[], None]) -> None:
        """Add the keeper of a partition, which is routed from now on. `look` requests more of its messages."""
        self.hand.add(keeper)
        if self._is_routed:
            keeper.routed_by(PartitionRoute(self.route, keeper, look))
        else:
            self._looks.append((keeper, look))
        if self.routes:
            keeper.begin()

    def routed_by(self, route: RouteToWake) -> None:
        super().routed_by(route)
        self._is_routed = True
        for keeper, look in self._looks:
            keeper.routed_by(PartitionRoute(route, keeper, look))
        self._looks.clear()

    # --- what pages show ---

    @property
    def in_hand(self) -> int:
        return sum(keeper.in_hand for keeper in self.hand.keepers)

    @property
    def uncounted(self) -> int:
        return sum(keeper.uncounted for keeper in self.hand.keepers)

    @property
    def retrying(self) -> tuple[int, float]:
        each = [keeper.retrying for keeper in self.hand.keepers]
        return sum(count for count, _ in each), max((oldest for _, oldest in each), default=0.0)

    @property
    def behind(self) -> Behind | None:
        return self._behind()

    @property
    def partitions(self) -> Partitions:
        return self._partitions()

    @property
    def limited(self) -> int:
        return sum(keeper.limited for keeper in self.hand.keepers)

    # --- routed ---

    def begin(self) -> None:
        super().begin()
        for keeper in self.hand.keepers:
            keeper.begin()

    @property
    def has_room(self) -> bool:
        return self._routing.is_ready

    async def room(self) -> None:
        """Wait until a message may be sent. Messages for a destination that is away wait in the stream."""
        await self._routing.ready()

    def order_key(self, delivery: StreamDelivery) -> bytes:
        return _keeper_of(delivery).order_key(delivery)

    def forward(self, delivery: StreamDelivery) -> None:
        _keeper_of(delivery).forward(delivery)

    def handled_again(self, seconds: float, now: float) -> None:
        # Retries slow down the same handler, whichever partition the message is in.
        for keeper in self.hand.keepers:
            keeper.handled_again(seconds, now)

    def forward_waiting(self) -> bool:
        if not any(keeper.forwards_on_arrival for keeper in self.hand.keepers):
            return False
        routing = self._routing
        for keeper in self.hand.take_turns(trio.current_time()):
            keeper.forward_waiting()
            if not routing.is_ready or routing.turn.over:
                break
        return True

    @property
    def sent(self) -> int:
        return self.hand.active

    # --- settled ---

    def finished(self, delivery: StreamDelivery) -> None:
        _keeper_of(delivery).finished(delivery)

    # --- the end ---

    def settle_rest(self) -> bool:
        """Drop what is not begun: another process gets it. Return True if nothing is left in hand."""
        left = [keeper for keeper in self.hand.keepers if not keeper.lead_ends()]
        return not left

    def return_unrouted(self) -> bool:
        for keeper in self.hand.keepers:
            keeper.return_unrouted()
        return True

    def not_sent(self, delivery: StreamDelivery) -> None:
        _keeper_of(delivery).not_sent(delivery)

    def let_go(self) -> int:
        self._end()
        return sum(keeper.let_go() for keeper in self.hand.keepers)

    def recall(self) -> None:
        for keeper in self.hand.keepers:
            keeper.recall()

    def retire(self) -> None:
        for keeper in self.hand.keepers:
            keeper.retire()


class HeldByEach:
    """The `Holder` of messages that an earlier generation of a route has left in several partitions."""

    limited = 0
    retrying: tuple[int, float] = (0, 0.0)
    uncounted = 0
    behind = None
    partitions = None

    def __init__(self, holders: Sequence[Holder]) -> None:
        self._holders = holders

    @property
    def in_hand(self) -> int:
        return sum(one.in_hand or 0 for one in self._holders)


class PartitionRoute:
    """The `RouteToWake` of one partition: wakes the route only for messages of its own."""

    def __init__(self, route: RouteToWake, keeper: StreamKeeper, look: Callable[[], None]) -> None:
        """`look` requests more messages of the partition."""
        self._route = route
        self._keeper = keeper
        self._look = look

    def something_waits(self) -> None:
        """Wake the route: there is a message to route."""
        self._route.something_waits()

    def look(self) -> None:
        """Request more messages if there is room, and wake the route if one waits."""
        self._look()
        if self._keeper.hand.schedule.ready:
            self._route.something_waits()
        self._route.left_hand()

    def left_hand(self) -> None:
        """Note that a message has left the hand."""
        self._route.left_hand()

    def pass_on(self, waiting: Batches) -> bool:
        """Return False: what fails is redelivered by the stream."""
        return False


def _keeper_of(delivery: StreamDelivery) -> StreamKeeper:
    keeper = delivery.keeper
    assert isinstance(keeper, StreamKeeper), "each partition has one"
    return keeper


def _ready(keeper: StreamKeeper, now: float) -> bool:
    return keeper.may_begin(now) and keeper.hand.ready(now)
