"""Keep the messages of all parts of a route: one route around several stream keepers.

Each part has a `StreamKeeper` of its own, which settles its messages. The next message is taken from the parts in turn,
and only from those whose lease holds. What concerns one message is passed to the keeper of its part.
"""

from __future__ import annotations

from collections.abc import Callable

import trio

from router_trio.routing.keeper import Keeper, RouteToWake
from router_trio.routing.pipeline import Routing
from router_trio.routing.stream.delivery import StreamDelivery
from router_trio.routing.stream.in_hand import place_of
from router_trio.routing.stream.keeper import StreamKeeper
from router_trio.routing.stream.parts.in_hand import PartsInHand, keeper_of
from router_trio.states import Behind, Partitions


class PartsKeeper(Keeper[StreamDelivery, PartsInHand]):
    """The messages of one route, in all of its parts. All but `room` is synchronous."""

    def __init__(
        self,
        routing: Routing,
        behind: Callable[[], Behind | None],
        settle_rest: Callable[[StreamKeeper], bool],
        partitions: Callable[[], Partitions | None] | None = None,
    ) -> None:
        """`behind` and `partitions` return what pages show; by default the parts are no partitions.

        `settle_rest` settles what waits in one part when nothing more is received, and returns True if nothing is left.
        """
        super().__init__(routing, place_of)
        self.hand: PartsInHand = PartsInHand()
        self._behind = behind
        self._settle_rest = settle_rest
        self._partitions = partitions
        self._is_routed = False

        self._looks: list[tuple[StreamKeeper, Callable[[], None]]] = []
        """Keepers that were added before the route was known."""

    def add(self, keeper: StreamKeeper, look: Callable[[], None]) -> None:
        """Add the keeper of a part, which is routed from now on. `look` requests more of its messages."""
        self.hand.add(keeper)
        if self._is_routed:
            keeper.routed_by(PartRoute(self.route, keeper, look))
        else:
            self._looks.append((keeper, look))
        if self.routes:
            keeper.begin()

    def routed_by(self, route: RouteToWake) -> None:
        super().routed_by(route)
        self._is_routed = True
        for keeper, look in self._looks:
            keeper.routed_by(PartRoute(route, keeper, look))
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
    def partitions(self) -> Partitions | None:
        return None if self._partitions is None else self._partitions()

    @property
    def limited(self) -> int:
        return sum(keeper.limited for keeper in self.hand.keepers)

    # --- routed ---

    def begin(self) -> None:
        super().begin()
        for keeper in self.hand.keepers:
            keeper.begin()

    def pause(self) -> None:
        super().pause()
        for keeper in self.hand.keepers:
            keeper.pause()

    @property
    def has_room(self) -> bool:
        return self._routing.is_ready

    async def room(self) -> None:
        """Wait until a message may be sent. Messages for a destination that is away wait in the stream."""
        await self._routing.ready()

    def order_key(self, delivery: StreamDelivery) -> bytes:
        return keeper_of(delivery).order_key(delivery)

    def forward(self, delivery: StreamDelivery) -> None:
        keeper_of(delivery).forward(delivery)

    def handled_again(self, seconds: float, now: float) -> None:
        # Retries slow down the same handler, whichever part the message is in.
        for keeper in self.hand.keepers:
            keeper.handled_again(seconds, now)

    def forward_waiting(self) -> bool:
        if not all(keeper.forwards_on_arrival for keeper in self.hand.keepers):
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
        keeper_of(delivery).finished(delivery)

    # --- the end ---

    def settle_rest(self) -> bool:
        left = [keeper for keeper in self.hand.keepers if not self._settle_rest(keeper)]
        return not left

    def return_unrouted(self) -> bool:
        for keeper in self.hand.keepers:
            keeper.return_unrouted()
        return True

    def not_sent(self, delivery: StreamDelivery) -> None:
        keeper_of(delivery).not_sent(delivery)

    def let_go(self) -> int:
        self._end()
        return sum(keeper.let_go() for keeper in self.hand.keepers)

    def recall(self) -> None:
        for keeper in self.hand.keepers:
            keeper.recall()

    @property
    def started(self) -> int:
        return self.state.in_hand

    def give_up_calls(self) -> None:
        self._end()
        for keeper in self.hand.keepers:
            if keeper.has_left:
                keeper.give_up_calls()
            else:  # its consumer is read no more
                keeper.let_go()

    def retire(self) -> None:
        for keeper in self.hand.keepers:
            keeper.retire()


class PartRoute:
    """The `RouteToWake` of one part: wakes the route only for messages of its own."""

    def __init__(self, route: RouteToWake, keeper: StreamKeeper, look: Callable[[], None]) -> None:
        """`look` requests more messages of the part."""
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
