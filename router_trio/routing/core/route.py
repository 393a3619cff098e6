"""Routes from a core subscription: where their messages come from, and how a route hands them to its successor.

What is received is routed, and nothing is acked. A `BatchRoute` keeps nothing: its messages are forwarded, or go
through a handler, in batches. A `KeptRoute` keeps each message until it has its fate: to try it again, in the order of
its key, or within a limit.
"""

from __future__ import annotations

from abc import abstractmethod

import trio

from router_trio.connection.shared_subscription import Member, SharedSubscription
from router_trio.connection.supervisor import Connection
from router_trio.errors import reasons
from router_trio.events import Emit
from router_trio.link import Deliver, Link, SharedDelivery
from router_trio.protocol.framing import RawMessage
from router_trio.routing.pipeline import Routing
from router_trio.routing.route import Batches, Route
from router_trio.states import RUNNING


class CoreRoute(Route):
    """One route from a core subscription."""

    def __init__(self, routing: Routing, connection: Connection, emit: Emit, shared: SharedSubscription) -> None:
        """`shared` is with routes of the same subject."""
        super().__init__(routing, connection, emit)
        self._shared = shared
        self._deliver: Deliver | SharedDelivery = self._received
        self._member: Member | None = None
        self._subscribing = trio.CancelScope()

    async def _receive(self, link: Link, tried: trio.Event) -> None:
        """See `Route`."""
        source = self.routing.plan.settings.source
        assert source.subject is not None
        self._subscribing = trio.CancelScope()
        with self._receiving("no subscription: the connection is away"):
            if self._member is None or self._member.link is not link:
                self._member = None
                # A server that doesn't answer must not hold up the end.
                with self._subscribing:
                    self._member = await self._shared.take_part(link, self._deliver)
            if self._member is None:
                self._retry.tried(tried)
                return
            self._retry.succeeded()
            self.state.enter(RUNNING)
            self._retry.ready(source.subject)
            self._retry.tried(tried)
            await self._closing.wait()
            if self._member is not None:
                await self._member.drain()

    @abstractmethod
    def _received(self, batch: list[RawMessage]) -> None:
        """See `link.Deliver`."""

    # --- from one route to its successor ---

    def hand_over(self, successor: Route) -> None:
        """Hand the subscription, and everything that waits, to a route of the same subject. What was begun is routed.

        Messages that arrive from now on wait for `run` of the successor, so that the order is kept.
        """
        member = None
        if self._member is not None and self._member.link is self._connection.link:
            member, self._member = self._member, None
        waiting = self._take_back()
        self.state.received -= _count(waiting)
        successor.take_over(member, waiting)
        self.close_intake()

    def take_over(self, member: Member | None, waiting: Batches) -> None:
        """See `Route`."""
        if member is not None:
            self._member = member
            member.deliver_to(self._deliver)
            self.state.enter(RUNNING)
        self.state.received += _count(waiting)
        self._go_on_with(waiting)

    @abstractmethod
    def _take_back(self) -> Batches:
        """Take out all that was not begun."""

    @abstractmethod
    def _go_on_with(self, waiting: Batches) -> None:
        """Route these first, which were received, and accepted, before anything else. Nothing passes them by."""

    # --- the end ---

    def close_intake(self) -> None:
        """See `Route`."""
        super().close_intake()
        self._subscribing.cancel()

    def recall(self) -> None:
        """See `Route`. There is no stream: what the outboxes have is still sent."""

    def abandon(self) -> int:
        """See `Route`."""
        self._scope.cancel()
        left = self._drop_unrouted()
        if left:
            self.state.failed[reasons.SHUTDOWN] += left
            self._never_routed(left)
            self.routing.emit_failure(reasons.SHUTDOWN, "received, and not routed before the shutdown", count=left)
        return left

    @abstractmethod
    def _drop_unrouted(self) -> int:
        """Forget all that was not routed, what is in a handler included. Return how many messages that are."""

    def _never_routed(self, count: int) -> None:
        self.state.never_routed += count
        self.state.fates["lost"] += count

    def _overflow(self, count: int) -> None:
        self.state.failed[reasons.SLOW_CONSUMER] += count
        self._never_routed(count)
        self.routing.emit_failure(reasons.SLOW_CONSUMER, "more came than the destinations took", count=count)


def _count(waiting: Batches) -> int:
    return sum(len(batch) for _, batch in waiting)
