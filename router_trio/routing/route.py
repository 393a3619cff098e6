"""Route the messages of one source. The end of a route leaves nothing uncounted."""

from __future__ import annotations

from abc import ABC, abstractmethod

import trio

from router_trio.errors import reasons
from router_trio.routing.delivery import Batches
from router_trio.routing.pipeline import Routing
from router_trio.routing.source import Source
from router_trio.states import RouteState


class Route(ABC):
    """Routes what a source receives. `run` lasts as long as the router lives, or until `abandon`.

    Two kinds: a `KeptRoute` keeps each message until it has its fate; a `BatchRoute` keeps nothing, and is fast.
    """

    def __init__(self, routing: Routing, source: Source) -> None:
        self.routing = routing
        self.state: RouteState = routing.state
        self.source = source
        self._scope = trio.CancelScope()

    async def run(self) -> None:
        """Route what arrives, until cancelled or abandoned."""
        with self._scope:
            self.routing.turn.begin()
            await self._route_arriving()

    @abstractmethod
    async def _route_arriving(self) -> None:
        """Route what arrives, for ever."""

    # --- from one route to its successor ---

    def hand_over(self, successor: Route) -> None:
        """Hand the source, and everything that was not begun, to a route of the same subject. What was begun is routed.

        Messages that arrive from now on wait for `run` of the successor, so that the order is kept. A route from a
        stream hands nothing over: it ends, and the source of its successor goes on from there (`Source.go_on`).
        """
        waiting = self._take_back()
        count = sum(len(batch) for _, batch in waiting)
        self.state.received -= count
        successor.state.received += count
        self.source.hand_over(successor.source)
        successor._go_on_with(waiting)
        self.close_intake()

    @abstractmethod
    def _take_back(self) -> Batches:
        """Take out all that was not begun."""

    @abstractmethod
    def _go_on_with(self, waiting: Batches) -> None:
        """Route these first, which were received, and accepted, before anything else. Nothing passes them by."""

    # --- the end ---

    def close_intake(self) -> None:
        """Receive nothing more; what was received is still routed."""
        self.source.close()

    async def idle(self) -> None:
        """Wait until nothing more is received, and all that was is routed, or returned to its source if it can't be."""
        await self.source.over()
        await self._all_routed()
        self.source.give_up_lead()

    @abstractmethod
    async def _all_routed(self) -> None:
        """Wait until all that was received is routed: nothing more is."""

    @abstractmethod
    def recall(self) -> None:
        """Take back what the outboxes have not sent, before `abandon`, if the source redelivers it."""

    def abandon(self) -> int:
        """End without waiting. Return how many messages were received and never routed, and count them as failed."""
        self._scope.cancel()
        left = self._let_go()
        if left:
            self.routing.lose_unrouted(reasons.SHUTDOWN, "received, and not routed before the shutdown", left)
        return left

    @abstractmethod
    def _let_go(self) -> int:
        """Drop all that was not routed, or return it to its source. Return how many messages are lost."""

    def retire(self) -> None:
        """The route is over, and the router goes on: read from no link, and listen to nothing any more."""
        self.source.retire()
        if self.routing.flow is not None:
            self.routing.flow.retire()
