"""Keep the messages of a route until they have their fate, and say what settling one means at its source.

The other half of the seam of `source.py`. A `KeptRoute` asks its keeper what it may route, and says what came of it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, Generic, Protocol, TypeVar

from router_trio.routing.delivery import Batches, Delivery
from router_trio.routing.in_hand import InHand
from router_trio.routing.pipeline import Routing
from router_trio.states import RouteState

D = TypeVar("D", bound=Delivery)
H = TypeVar("H", bound=InHand[Any], covariant=True)


class RouteToWake(Protocol):
    """The route of a keeper."""

    def something_waits(self) -> None:
        """Go on: there is something to route."""

    def look(self) -> None:
        """Go on with what there is room for: something has left its place."""


class Keeper(ABC, Generic[D, H]):
    """Keeps the messages of one route until they have their fate, and says what that means at their source."""

    hand: H

    def __init__(self, routing: Routing, place_of: Callable[[D], int]) -> None:
        """`place_of` gives the order of messages. No two that are in hand have the same place."""
        self.state: RouteState = routing.state
        self._routing = routing
        self._place_of = place_of
        self._keyed: bool = routing.plan.by_key
        self.routes: bool = False
        """True while its route runs."""
        self.is_over: bool = False
        """True from `let_go` on: nobody routes any more."""
        self.route: RouteToWake
        """See `routed_by`."""
        self.state.held_by(self)

    def routed_by(self, route: RouteToWake) -> None:
        """Wake this route, which has just been made."""
        self.route = route

    # --- what pages show ---

    @property
    def in_hand(self) -> int | None:
        """See `Holder`."""
        return None

    @property
    def uncounted(self) -> int:
        """See `Holder`."""
        return 0

    @property
    @abstractmethod
    def retrying(self) -> tuple[int, float]:
        """See `Holder`."""

    # --- routed ---

    def begin(self) -> None:
        """Record that the route runs."""
        self.routes = True

    @property
    @abstractmethod
    def has_room(self) -> bool:
        """Return True if `room` would not wait."""

    @abstractmethod
    async def room(self) -> None:
        """Wait until a message may be sent: where it waits while a destination is away is for the source to say."""

    def next(self, now: float) -> D | None:
        """Take out the next message to route; None if none may go now."""
        delivery: D | None = self.hand.next(now)
        return delivery

    def order_key(self, delivery: D) -> bytes:
        """Return what a message is in order with: its subject, or the value of the route's key. Does not raise."""
        if not self._keyed:
            return delivery.raw[0]
        key = delivery.key
        if key is None:
            key = delivery.key = self._routing.order_key(delivery, self._place_of(delivery))
        return key

    @abstractmethod
    def forward(self, delivery: D) -> None:
        """Take a message to its destinations, without a handler. `has_room` holds."""

    def forward_waiting(self) -> bool:
        """Forward what waits in one go, if the source has a fast path. Return False if messages go one by one."""
        return False

    @property
    @abstractmethod
    def sent(self) -> int:
        """Return how many messages were sent, or are being dead-lettered, and have no fate."""

    @property
    def limited(self) -> int:
        """Return how many messages wait for the limit of the route, or of their value."""
        flow = self._routing.flow
        if flow is None or flow.values is not None:
            return self.hand.limits.count
        return self.hand.waiting if flow.holds else 0

    # --- settled ---

    @abstractmethod
    def finished(self, delivery: D) -> None:
        """Settle a message that all its destinations have settled, or have it tried again."""

    # --- the end ---

    def _end(self) -> None:
        """Record that nobody routes any more."""
        self.routes, self.is_over = False, True

    @abstractmethod
    def settle_rest(self) -> bool:
        """Settle what waits for something that will not happen: nothing more is received.

        Return True if there is nothing left to wait for.
        """

    @abstractmethod
    def return_unrouted(self) -> bool:
        """Return everything that waits to the source: nothing more is received, and nothing may go.

        Return False if the source takes nothing back.
        """

    @abstractmethod
    def not_sent(self, delivery: D) -> None:
        """Keep a message whose handler was cancelled, or has ended the route, until `let_go`."""

    @abstractmethod
    def let_go(self) -> int:
        """End without waiting: drop what was not routed, or return it. Return how many messages are lost."""

    def recall(self) -> None:
        """Take back what the outboxes have not sent, before `let_go`, if the source takes it back."""

    def retire(self) -> None:
        """The route is over, and the router goes on: listen to nothing any more."""

    # --- from one route to its successor ---

    def take_back(self) -> Batches:
        """Take out all that was not begun, for a route that receives in this one's place: see `Route.hand_over`."""
        raise NotImplementedError

    def go_on_with(self, waiting: Batches) -> None:
        """Route these before anything else: a route before this one has accepted them."""
        raise NotImplementedError
