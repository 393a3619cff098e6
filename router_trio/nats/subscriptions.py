"""The subscriptions that a wire itself reads: who gets the messages of each, and whether the server refused it.

A server answers a SUB only if it refuses it, and of one that is too many it does not say which it was.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import trio

from router_trio.errors import SourceError, reasons
from router_trio.errors.quotes import quoted
from router_trio.link import Deliver, DeliverShared, SharedDelivery, SubscriptionBatch
from router_trio.protocol import framing

FIRST_SID = 1_000_000
"""nats-py numbers its own subscriptions from 1."""


class _Group(list[SubscriptionBatch]):
    """The subscriptions that received something, of those that are delivered together."""

    __slots__ = ("deliver",)

    def __init__(self, deliver: DeliverShared) -> None:
        super().__init__()
        self.deliver = deliver


class _Buffer(SubscriptionBatch):
    """A `framing.MessageBuffer` that knows the group it is delivered with."""

    __slots__ = ("group",)

    def __init__(self, key: Any, group: _Group) -> None:
        super().__init__(key)
        self.group = group


class Subscriptions:
    """The subscriptions of one wire. They fill the buffers of its parser, from which it delivers."""

    def __init__(
        self, parser: framing.FrameParser, send: Callable[[bytes], None], fence: Callable[[], Awaitable[None]]
    ) -> None:
        self._buffers = parser.buffers
        self._send = send
        self._fence = fence
        self._groups: dict[DeliverShared, _Group] = {}
        self._subjects: dict[bytes, tuple[bytes, bytes]] = {}
        """Subject and queue of each, by its id."""
        self._next_sid = FIRST_SID
        self._asked: Counter[tuple[bytes, bytes]] = Counter()
        self._denied: dict[tuple[bytes, bytes], list[str]] = {}
        self.too_many: int = 0
        """How often the server refused a subscription because there were too many."""
        self._told_too_many = ""
        self._one_at_a_time = trio.Lock()

    async def subscribe(
        self, subject: str, deliver: Deliver | SharedDelivery, *, queue: str | None = None
    ) -> WireSubscription:
        """Subscribe as `link.Link.subscribe` does: return when the server has it, raise if it refuses."""
        asked = raw, group = framing.wire(subject), framing.wire(queue or "")
        refused = self.too_many
        sid = self.add(raw, deliver, group)
        self._asked[asked] += 1
        try:
            await self._fence()
            if self.too_many > refused:
                # Which SUB it was the server doesn't say: once more, alone.
                async with self._one_at_a_time:
                    refused = self.too_many
                    self.remove(sid)
                    sid = self.add(raw, deliver, group)
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
            self.remove(sid)
            raise
        finally:
            self._asked[asked] -= 1
            if not self._asked[asked]:
                del self._asked[asked]
                self._denied.pop(asked, None)
        return WireSubscription(self, sid)

    def no_room(self, what: str) -> SourceError:
        """Return the error of a subscription that was one too many."""
        return SourceError(
            f"the server refused the subscription to {what}: {self._told_too_many}; raise max_subscriptions of the "
            "server or of the account",
            reason=reasons.MAX_SUBSCRIPTIONS,
        )

    def add(self, subject: bytes, deliver: Deliver | SharedDelivery, queue: bytes = b"") -> bytes:
        """Send a SUB and give its messages to `deliver` from now on. Returns the subscription id."""
        self._next_sid += 1
        sid = b"%d" % self._next_sid
        self._buffers[sid] = self._buffer_for(deliver)
        self._subjects[sid] = (subject, queue)
        self._send(framing.subscribe(subject, sid, queue))
        return sid

    def deliver_to(self, sid: bytes, deliver: Deliver | SharedDelivery) -> None:
        """Give the messages of a subscription to `deliver` from now on. Between two reads: what came is delivered."""
        if sid in self._subjects:
            self._buffers[sid] = self._buffer_for(deliver)

    def _buffer_for(self, deliver: Deliver | SharedDelivery) -> _Buffer:
        if isinstance(deliver, SharedDelivery):
            return _Buffer(deliver.key, self._groups.setdefault(deliver.deliver, _Group(deliver.deliver)))
        return _Buffer(deliver, _Group(_deliver_each))

    def remove(self, sid: bytes) -> None:
        """Send an UNSUB; what is still under way for it is ignored. Does nothing for an ended subscription."""
        if sid in self._subjects:
            self._forget(sid)
            self._send(framing.unsubscribe(sid))

    async def drain(self, sid: bytes) -> None:
        """Send an UNSUB and take what comes until the server has seen it. Can be cancelled."""
        if sid in self._subjects:
            self._send(framing.unsubscribe(sid))
            await self._fence()
            self._forget(sid)

    def _forget(self, sid: bytes) -> None:
        buffer = self._buffers.pop(sid, None)
        if buffer is not None:
            buffer.clear()
            del self._subjects[sid]

    # --- what the server says ---

    def was_denied(self, subject: bytes, queue: bytes, told: str) -> bool:
        """Note that the server refused a subscription. Return True if that is for one that is being made."""
        if not self._asked[subject, queue]:
            return False
        self._denied.setdefault((subject, queue), []).append(told)
        return True

    def had_too_many(self, told: str) -> None:
        """Note that the server refused a subscription because there are too many."""
        self.too_many += 1
        self._told_too_many = told

    def subscribed(self, subject: bytes, queue: bytes, sid: bytes | None) -> bool:
        """Return True if there is a subscription of ours to exactly this, with this id if it is known."""
        if sid is not None:
            return sid in self._subjects
        return (subject, queue) in self._subjects.values()


class WireSubscription:
    """A subscription on the wire, as `link.CoreSubscription`."""

    def __init__(self, subscriptions: Subscriptions, sid: bytes) -> None:
        self._subscriptions = subscriptions
        self._sid = sid

    def deliver_to(self, deliver: Deliver | SharedDelivery) -> None:
        self._subscriptions.deliver_to(self._sid, deliver)

    def close(self) -> None:
        self._subscriptions.remove(self._sid)

    async def drain(self) -> None:
        await self._subscriptions.drain(self._sid)


def _deliver_each(group: Sequence[SubscriptionBatch]) -> None:
    for arrivals in group:
        if arrivals:  # or its subscription has ended meanwhile
            arrivals.key(arrivals)
