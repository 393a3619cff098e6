"""A subscription that the wire itself reads."""

from __future__ import annotations

from router_trio.link import Deliver, SharedDelivery
from router_trio.nats.wire import Wire


class WireSubscription:
    """See `link.Subscription`."""

    def __init__(self, wire: Wire, sid: bytes) -> None:
        self._wire = wire
        self._sid = sid

    def deliver_to(self, deliver: Deliver | SharedDelivery) -> None:
        """See `link.Subscription.deliver_to`."""
        self._wire.deliver_to(self._sid, deliver)

    def close(self) -> None:
        """See `link.Subscription.close`."""
        self._wire.unsubscribe(self._sid)

    async def drain(self) -> None:
        """See `link.Subscription.drain`."""
        await self._wire.drain(self._sid)
