"""Subscribing on one link, and finding out whether the server has refused that.

A server answers a SUB only if it refuses it, and of one that is too many it does not say which it was.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable

import trio

from router_trio.errors import SourceError, reasons
from router_trio.errors.quotes import quoted
from router_trio.link import Deliver, SharedDelivery
from router_trio.nats.subscriptions import Subscriptions, WireSubscription
from router_trio.protocol import framing


class Subscribing:
    """Subscribes, for whoever wants messages of a link."""

    def __init__(self, subscriptions: Subscriptions, fence: Callable[[], Awaitable[None]]) -> None:
        self._subscriptions = subscriptions
        self._fence = fence
        self._asked: Counter[tuple[bytes, bytes]] = Counter()
        self._denied: dict[tuple[bytes, bytes], list[str]] = {}
        self.too_many: int = 0
        """How often the server refused a subscription because there were too many."""
        self._told_too_many = ""
        self._one_at_a_time = trio.Lock()

    async def subscribe(
        self, subject: str, deliver: Deliver | SharedDelivery, *, queue: str | None = None
    ) -> WireSubscription:
        """See `link.Link.subscribe`."""
        asked = raw, group = framing.wire(subject), framing.wire(queue or "")
        subscriptions = self._subscriptions
        refused = self.too_many
        sid = subscriptions.subscribe(raw, deliver, group)
        self._asked[asked] += 1
        try:
            await self._fence()
            if self.too_many > refused:
                # Which SUB it was the server doesn't say: once more, alone.
                async with self._one_at_a_time:
                    refused = self.too_many
                    subscriptions.unsubscribe(sid)
                    sid = subscriptions.subscribe(raw, deliver, group)
                    await self._fence()
                    if self.too_many > refused:
                        raise self.no_room(repr(subject))
            denied = self._denied.get(asked)
            if denied:
                told = denied.pop()
                raise SourceError(
                    f"the server refused the subscription to {quoted(subject)}: {told}; give this user the permission",
                    reason=reasons.PERMISSION_DENIED,
                )
        except BaseException:
            subscriptions.unsubscribe(sid)
            raise
        finally:
            self._asked[asked] -= 1
            if not self._asked[asked]:
                del self._asked[asked]
                self._denied.pop(asked, None)
        return WireSubscription(subscriptions, sid)

    def no_room(self, what: str) -> SourceError:
        """Return the error of a subscription that was one too many."""
        return SourceError(
            f"the server refused the subscription to {what}: {self._told_too_many}; raise max_subscriptions of the "
            "server or of the account",
            reason=reasons.MAX_SUBSCRIPTIONS,
        )

    # --- what the server says ---

    def was_denied(self, subject: bytes, queue: bytes, told: str) -> bool:
        """The server refused a subscription. Return True if that is for one that is being made."""
        if not self._asked[subject, queue]:
            return False
        self._denied.setdefault((subject, queue), []).append(told)
        return True

    def had_too_many(self, told: str) -> None:
        """The server refused a subscription because there are too many."""
        self.too_many += 1
        self._told_too_many = told
