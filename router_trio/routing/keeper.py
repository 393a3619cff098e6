"""Keepers hold the messages of a route until they are settled, and define what settling means at the source.

The other half of the interface in `source.py`. A `KeptRoute` asks its keeper for the next message to route, and reports
the result to it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, Generic, Protocol, TypeVar

from router_trio.routing.delivery import Delivery
from router_trio.routing.in_hand import InHand
from router_trio.routing.pipeline import Routing
from router_trio.states import Behind, Partitions, RouteState

D = TypeVar("D", bound=Delivery)
H = TypeVar("H", bound=InHand[Any], covariant=True)


class RouteToWake(Protocol):
    """The route of a keeper."""

    def something_waits(self) -> None:
        """Wake the route: there is a message to route."""

    def look(self) -> None:
        """Continue with messages that there is room for now: one has left the hand."""

    def left_hand(self) -> None:
        """Note that a message has left the hand."""


class Keeper(ABC, Generic[D, H]):
    """The `Holder` of the messages of one route: settles each, and carries that out at its source."""

    hand: H

    def __init__(self, routing: Routing, place_of: Callable[[D], int]) -> None:
        """`place_of` returns the place of a message in the order. No two messages in hand have the same place."""
        self.state: RouteState = routing.state
        self._routing = routing
        self._place_of = place_of
        self._keyed: bool = routing.plan.by_key
        self.routes: bool = False
        """True while its route runs."""
        self.settings_follow: bool = False
        """True while nothing new is routed, since the settings of the route are about to change."""
        self.is_over: bool = False
        """True from `let_go` on: nothing is routed any more."""
        self._unsettled = 0
        self.route: RouteToWake
        """The route that `routed_by` set."""

    def routed_by(self, route: RouteToWake) -> None:
        """Set the route to wake, which has just been created."""
        self.route = route

    # --- what pages show ---

    @property
    def in_hand(self) -> int | None:
        return None

    @property
    def uncounted(self) -> int:
        return 0

    @property
    @abstractmethod
    def retrying(self) -> tuple[int, float]: ...

    @property
    def behind(self) -> Behind | None:
        return None

    @property
    def partitions(self) -> Partitions | None:
        return None

    # --- routed ---

    def begin(self) -> None:
        """Record that the route runs."""
        self.routes, self.settings_follow = True, False

    def pause(self) -> None:
        """Record that nothing new is routed until `begin`, which is that of the keeper by other settings."""
        self.routes, self.settings_follow = False, True

    @property
    @abstractmethod
    def has_room(self) -> bool:
        """Return True if `room` would not wait."""

    @abstractmethod
    async def room(self) -> None:
        """Wait until a message may be sent. The source decides where messages wait while a destination is away."""

    def next(self, now: float) -> D | None:
        """Take out the next message to route; return None if none may be routed now."""
        delivery: D | None = self.hand.next(now)
        return delivery

    def order_key(self, delivery: D) -> bytes:
        """Return the key by which messages are ordered: the subject, or the value of the route's key. Never raises."""
        key = delivery.key
        if key is None:
            if not self._keyed:
                return delivery.raw[0]
            key = delivery.key = self._routing.order_key(delivery, self._place_of(delivery))
        return key

    @abstractmethod
    def forward(self, delivery: D) -> None:
        """Send a message to its destinations, without a handler. `has_room` is True."""

    @property
    def forwards_together(self) -> bool:
        """Return True if `forward_each` may be called: there is no handler, no limit, and no message probes."""
        return False

    def forward_each(self, deliveries: Sequence[D]) -> None:
        """Send messages as `forward` does, in this order, after all of them were taken out by `next`."""
        for delivery in deliveries:
            self.forward(delivery)

    @abstractmethod
    def handled_again(self, seconds: float, now: float) -> None:
        """Record how long the handler took for a message that had failed before."""

    def forward_waiting(self) -> bool:
        """Forward waiting messages together, if the source has a fast path. Return False if it has none."""
        return False

    @property
    @abstractmethod
    def sent(self) -> int:
        """Return the number of messages that were sent, or are being dead-lettered, and are not settled."""

    @property
    def limited(self) -> int:
        """Return the number of messages that wait for the limit of the route, or of their value."""
        flow = self._routing.flow
        if flow is None or flow.values is not None:
            return self.hand.limits.count
        return self.hand.waiting if flow.holds else 0

    # --- settled ---

    @abstractmethod
    def finished(self, delivery: D) -> None:
        """Settle a message that all its destinations have settled, or have it retried."""

    # --- the end ---

    def _end(self) -> None:
        """Record that nothing is routed any more."""
        self.routes, self.is_over = False, True

    @abstractmethod
    def settle_rest(self) -> bool:
        """Settle messages that wait for something that will not happen, since nothing more is received.

        Return True if there is nothing left to wait for.
        """

    @abstractmethod
    def return_unrouted(self) -> bool:
        """Return all waiting messages to the source: nothing more is received, and none may be sent.

        Return False if the source takes no messages back.
        """

    @abstractmethod
    def not_sent(self, delivery: D) -> None:
        """Keep a message until `let_go` whose handler was cancelled or ended the route."""

    @abstractmethod
    def let_go(self) -> int:
        """End without waiting: drop unrouted messages, or return them. Return the number of lost messages."""

    def recall(self) -> None:
        """Take unsent messages back from the outboxes, before `let_go`, if the source takes them back."""

    def retire(self) -> None:
        """Stop listening, since the route has ended and the router goes on."""

    # --- settings that change ---

    @property
    @abstractmethod
    def started(self) -> int:
        """Return the number of messages that were begun and are not settled, those in a handler included."""

    def take_unsettled(self) -> int:
        """Return how many messages `give_up_calls` and cancelled handlers have cost, once."""
        unsettled, self._unsettled = self._unsettled, 0
        return unsettled

    @abstractmethod
    def give_up_calls(self) -> None:
        """Return messages whose handlers have been cancelled and do not return, or lose them.

        What their handlers would send is ignored.
        """
