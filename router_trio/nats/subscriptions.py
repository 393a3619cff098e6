"""The subscriptions of a wire: where the messages of each are delivered, and whether the server denied it.

A server answers a SUB only if it refuses it, and if that was one too many it does not report which.
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


class _Group(list[SubscriptionBatch]):
    """The subscriptions that received messages, out of those that are delivered together."""

    __slots__ = ("deliver",)

    def __init__(self, deliver: DeliverShared) -> None:
        super().__init__()
        self.deliver = deliver


class _Buffer(SubscriptionBatch):
    """A `framing.MessageBuffer` that knows the group with which it is delivered."""

    __slots__ = ("group",)

    def __init__(self, key: Any, group: _Group) -> None:
        super().__init__(key)
        self.group = group


class Subscriptions:
    """The subscriptions of one wire. They fill the buffers of its parser, from which the wire delivers."""

    def __init__(
        self, parser: framing.FrameParser, send: Callable[[bytes], None], fence: Callable[[], Awaitable[None]]
    ) -> None:
        self._buffers = parser.buffers
        self._send = send
        self._fence = fence
        self._groups: dict[DeliverShared, _Group] = {}
        self._subjects: dict[bytes, tuple[bytes, bytes]] = {}
        """Subject and queue of each subscription, by its id."""
        self._next_sid = 0
        self._asked: Counter[tuple[bytes, bytes]] = Counter()
        self._denied: dict[tuple[bytes, bytes], list[str]] = {}
        self._optional: dict[bytes, bytes] = {}
        """The ids of subscriptions on which nothing depends, by subject."""
        self._refused: dict[bytes, str] = {}
        """The subjects among those that the server refused, with its words."""
        self.too_many: int = 0
        """Number of times that the server refused a subscription because there were too many."""
        self._too_many_words = ""
        self._one_at_a_time = trio.Lock()

    async def subscribe(
        self, subject: str, deliver: Deliver | SharedDelivery, *, queue: str | None = None
    ) -> WireSubscription:
        """Subscribe as `link.Link.subscribe` does: return when the server has accepted it, raise if it refuses."""
        asked = raw, group = framing.wire(subject), framing.wire(queue or "")
        refused = self.too_many
        sid = self.add(raw, deliver, group)
        self._asked[asked] += 1
        try:
            await self._fence()
            if self.too_many > refused:
                # The server does not report which SUB it refused: try this one again, alone.
                async with self._one_at_a_time:
                    refused = self.too_many
                    self.remove(sid)
                    sid = self.add(raw, deliver, group)
                    await self._fence()
                    if self.too_many > refused:
                        raise self.no_room(repr(subject))
            denied = self._denied.get(asked)
            if denied:
                words = denied.pop()
                raise SourceError(
                    f"the server refused the subscription to {quoted(subject)}: {words}; grant the permission",
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

    async def listen(self, subjects: Sequence[str], deliver: Deliver) -> list[tuple[str, str]]:
        """Subscribe as `link.Link.listen` does."""
        asked = {framing.wire(subject): subject for subject in subjects}
        for raw in asked:
            if raw not in self._optional:
                self._optional[raw] = self.add(raw, deliver)
        await self._fence()
        return [(subject, self._refused.pop(raw)) for raw, subject in asked.items() if raw in self._refused]

    def stop_listening(self, subjects: Sequence[str]) -> None:
        """End subscriptions of `listen`."""
        for subject in subjects:
            sid = self._optional.pop(framing.wire(subject), None)
            if sid is not None:
                self.remove(sid)

    def no_room(self, what: str) -> SourceError:
        """Return the error for a subscription refused because there are too many."""
        return SourceError(
            f"the server refused the subscription to {what}: {self._too_many_words}; raise max_subscriptions of the "
            "server or of the account",
            reason=reasons.MAX_SUBSCRIPTIONS,
        )

    def add(self, subject: bytes, deliver: Deliver | SharedDelivery, queue: bytes = b"") -> bytes:
        """Send a SUB and deliver its messages to `deliver` from now on. Returns the subscription id."""
        self._next_sid += 1
        sid = b"%d" % self._next_sid
        self._buffers[sid] = self._buffer_for(deliver)
        self._subjects[sid] = (subject, queue)
        self._send(framing.subscribe(subject, sid, queue))
        return sid

    def deliver_to(self, sid: bytes, deliver: Deliver | SharedDelivery) -> None:
        """Deliver the messages of a subscription to `deliver` from now on. Called between reads."""
        if sid in self._subjects:
            self._buffers[sid] = self._buffer_for(deliver)

    def _buffer_for(self, deliver: Deliver | SharedDelivery) -> _Buffer:
        if isinstance(deliver, SharedDelivery):
            return _Buffer(deliver.key, self._groups.setdefault(deliver.deliver, _Group(deliver.deliver)))
        return _Buffer(deliver, _Group(_deliver_each))

    def remove(self, sid: bytes) -> None:
        """Send an UNSUB, and ignore messages still on their way. Does nothing for an ended subscription."""
        if sid in self._subjects:
            self._forget(sid)
            self._send(framing.unsubscribe(sid))

    async def drain(self, sid: bytes) -> None:
        """Send an UNSUB and deliver messages until the server has processed it. Can be cancelled."""
        if sid in self._subjects:
            self._send(framing.unsubscribe(sid))
            await self._fence()
            self._forget(sid)

    def _forget(self, sid: bytes) -> None:
        buffer = self._buffers.pop(sid, None)
        if buffer is not None:
            buffer.clear()
            del self._subjects[sid]

    # --- reports of the server ---

    def was_denied(self, subject: bytes, queue: bytes, words: str) -> bool:
        """Record that the server denied a subscription. Return True if it is being made just now, or is optional."""
        if not self._asked[subject, queue]:
            sid = self._optional.pop(subject, None) if not queue else None
            if sid is None:
                return False
            self._forget(sid)
            self._refused[subject] = words
            return True
        self._denied.setdefault((subject, queue), []).append(words)
        return True

    def had_too_many(self, words: str) -> None:
        """Record that the server refused a subscription because there are too many."""
        self.too_many += 1
        self._too_many_words = words
        # They make room: a route or the answers of JetStream may be what the server refused.
        for sid in self._optional.values():
            self.remove(sid)
        self._optional.clear()

    def subscribed(self, subject: bytes, queue: bytes, sid: bytes | None) -> bool:
        """Return True if we have a subscription to exactly this subject and queue, with this id if it is known."""
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
        if arrivals:  # empty if its subscription has ended in the meantime
            arrivals.key(arrivals)
