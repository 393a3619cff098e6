"""A subscription on the wire of one link."""

from __future__ import annotations

from router_trio.nats.wire import Wire


class WireSubscription:
    """See `link.Subscription`."""

    def __init__(self, wire: Wire, sid: bytes) -> None:
        self._wire = wire
        self._sid = sid

    def close(self) -> None:
        """See `link.Subscription.close`."""
        self._wire.unsubscribe(self._sid)

    async def drain(self) -> None:
        """See `link.Subscription.drain`."""
        await self._wire.drain(self._sid)
