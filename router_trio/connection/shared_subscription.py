"""Shares one subscription among routes of a connection that read the same subject in the same queue group.

Without it a server would send a copy of every message to each of them. In a queue group it would send each message to
only one of them, though others may be the ones that want it. Routes may join and leave while it lasts. A single route
gets its messages directly, as from a subscription of its own.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio

from router_trio.link import CoreSubscription, Deliver, Link, SharedDelivery, SubscriptionBatch
from router_trio.protocol.framing import RawMessage


class SharedSubscription:
    """Subscribes once on each link for all members. Each of them gets every message, in the order of arrival."""

    __slots__ = (
        "__weakref__",
        "_link",
        "_lock",
        "_members",
        "_queue",
        "_subject",
        "_subscription",
    )

    def __init__(self, subject: str, queue: str | None) -> None:
        self._subject = subject
        self._queue = queue
        self._link: Link | None = None
        self._members: list[Member] = []
        self._subscription: CoreSubscription | None = None
        self._lock: trio.Lock | None = None

    async def join(self, link: Link, deliver: Deliver | SharedDelivery) -> Member:
        """Subscribe, or join the existing subscription on this link. Raises as `Link.subscribe` does."""
        async with self._one_at_a_time():
            if link is not self._link:
                self._link, self._members, self._subscription = link, [], None
            member = Member(self, link, deliver)
            self._members.append(member)
            if self._subscription is None:
                try:
                    self._subscription = await link.subscribe(self._subject, deliver, queue=self._queue)
                except BaseException:
                    self._members.clear()
                    raise
            else:
                self.deliver_to_members()
            return member

    @asynccontextmanager
    async def _one_at_a_time(self) -> AsyncIterator[None]:
        """Hold the lock, which exists only while it is used: a subscription hardly ever changes."""
        if self._lock is None:
            self._lock = trio.Lock()
        lock = self._lock
        try:
            async with lock:
                yield
        finally:
            if not lock.locked():
                self._lock = None

    def deliver_to_members(self) -> None:
        """Deliver to the current members, by `link.CoreSubscription.deliver_to`."""
        if self._subscription is not None and self._members:
            alone = len(self._members) == 1
            self._subscription.deliver_to(self._members[0].deliver if alone else self._deliver)

    def _deliver(self, batch: list[RawMessage]) -> None:
        for member in self._members:
            deliver = member.deliver
            if isinstance(deliver, SharedDelivery):
                deliver.deliver([SubscriptionBatch(deliver.key, batch)])
            else:
                deliver(batch)

    def _leave(self, member: Member) -> None:
        """Stop delivering to a member; unsubscribe if it was the last one."""
        if member in self._members:
            self._members.remove(member)
            if not self._members and self._subscription is not None:
                self._subscription.close()
                self._subscription = None
            self.deliver_to_members()

    async def _drain(self, member: Member) -> None:
        """Remove a member once it has everything that the server sent before now. The last ones drain together."""
        if member not in self._members:
            return
        member.leaving = True
        if not self._all_are_leaving:
            await member.link.fence()
        async with self._one_at_a_time():
            if member in self._members and self._all_are_leaving and self._subscription is not None:
                # Messages that arrive until the server has unsubscribed are for all remaining members.
                await self._subscription.drain()
                for one in tuple(self._members):
                    self._leave(one)
            self._leave(member)

    @property
    def _all_are_leaving(self) -> bool:
        return all(member.leaving for member in self._members)


class Member:
    """The subscription of one route to a `SharedSubscription`, as a `link.CoreSubscription`."""

    __slots__ = (
        "_shared",
        "deliver",
        "leaving",
        "link",
    )

    def __init__(self, shared: SharedSubscription, link: Link, deliver: Deliver | SharedDelivery) -> None:
        self.link: Link = link
        self.deliver = deliver
        self.leaving: bool = False
        self._shared = shared

    def deliver_to(self, deliver: Deliver | SharedDelivery) -> None:
        self.deliver = deliver
        self._shared.deliver_to_members()

    def close(self) -> None:
        self._shared._leave(self)

    async def drain(self) -> None:
        await self._shared._drain(self)
