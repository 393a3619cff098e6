"""A subject as the source of a route: a core subscription, shared with other routes of the same subject.

Received messages are not stored anywhere else: nothing is acked, and nothing redelivered. A route whose subscription
stays hands it to its successor between two messages.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

from router_trio.connection.latch import Latch
from router_trio.connection.shared_subscription import Member, SharedSubscription
from router_trio.connection.supervisor import Connection
from router_trio.events import Emit
from router_trio.link import Deliver, Link, SharedDelivery
from router_trio.routing.pipeline import Routing
from router_trio.routing.source import Source
from router_trio.states import RUNNING

if TYPE_CHECKING:
    from router_trio.routing.route_plans import RoutePlan


class SubjectSource(Source):
    """The subscription of one route."""

    __slots__ = (
        "_member",
        "_shared",
        "_subscribing",
        "deliver",
    )

    def __init__(self, routing: Routing, connection: Connection, emit: Emit, shared: SharedSubscription) -> None:
        """`shared` is the subscription shared with routes of the same subject."""
        super().__init__(routing, connection, emit)
        self._shared = shared
        self._member: Member | None = None
        self._subscribing: trio.CancelScope | None = None
        self.deliver: Deliver | SharedDelivery
        """The receiver of messages: see `deliver_to`."""

    def deliver_to(self, deliver: Deliver | SharedDelivery) -> None:
        """Set the receiver of messages, before any is received."""
        self.deliver = deliver

    async def _receive(self, link: Link, tried: Latch) -> None:
        source = self._routing.plan.settings.source
        assert source.subject is not None
        self._receiving_begins()
        try:
            if self._member is None or self._member.link is not link:
                self._member = None
                # A server that does not answer must not hold up the end.
                with trio.CancelScope() as self._subscribing:
                    self._member = await self._shared.join(link, self.deliver)
                self._subscribing = None
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
        finally:
            self._receiving_ends("no subscription, because the connection is down")

    def close(self) -> None:
        super().close()
        if self._subscribing is not None:
            self._subscribing.cancel()

    def retire(self) -> None:
        """Close the subscription, which stays open if the server did not answer its drain."""
        super().retire()
        if self._member is not None:
            self._member.close()

    def reads(self, plan: RoutePlan) -> bool:
        """Return True if a route with this plan has the same subscription, perhaps on another connection."""
        ours, theirs = self._routing.plan.settings.source, plan.settings.source
        return theirs.kind.subscription(theirs) == ours.kind.subscription(ours)

    def hand_over(self, successor: SubjectSource) -> bool:
        """Have another source receive in place of this one from now on, without a gap.

        Without a link there is no subscription, and the other one subscribes on the next link. Return False if it reads
        from another connection, so that this one receives until it is closed.
        """
        if successor.connection is not self._connection:
            return False
        member, self._member = self._member, None
        if member is not None and member.link is self._connection.link:
            successor._take_over(member)
        return True

    def _take_over(self, member: Member) -> None:
        self._member = member
        member.deliver_to(self.deliver)
        self.state.enter(RUNNING)
