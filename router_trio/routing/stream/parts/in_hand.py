"""The messages in hand of all parts of a route, as one route takes them. Synchronous."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from math import inf

import trio

from router_trio.routing import moves
from router_trio.routing.in_hand import InHand
from router_trio.routing.schedule import ArrivalOrder, NoValueLimit
from router_trio.routing.stream.delivery import StreamDelivery
from router_trio.routing.stream.in_hand import place_of
from router_trio.routing.stream.keeper import StreamKeeper


class PartsInHand(InHand[StreamDelivery]):
    """The messages in hand of all parts. Its own schedule and limits have none."""

    def __init__(self) -> None:
        super().__init__(moves.STREAM, ArrivalOrder(lambda delivery: delivery.order_key, place_of), NoValueLimit())
        self.keepers: list[StreamKeeper] = []
        self._turns: deque[StreamKeeper] = deque()
        """Keepers that may have a message to route, the next one first."""

    def add(self, keeper: StreamKeeper) -> None:
        """Add the keeper of a part."""
        self.keepers.append(keeper)

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
        """Take out the next message, of another part than the last one if others have any."""
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
        keeper_of(delivery).hand.handler_blocks(delivery)

    def handler_returned(self, delivery: StreamDelivery) -> None:
        keeper_of(delivery).hand.handler_returned(delivery)


def keeper_of(delivery: StreamDelivery) -> StreamKeeper:
    """Return the keeper of the part of a message."""
    keeper = delivery.keeper
    assert isinstance(keeper, StreamKeeper), "each part has one"
    return keeper


def _ready(keeper: StreamKeeper, now: float) -> bool:
    return keeper.may_begin(now) and keeper.hand.ready(now)
