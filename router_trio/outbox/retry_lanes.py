"""Lanes: JetStream publishes that a stream can't take right now, held back with what is in order with them.

When a stream has no leader (or doesn't exist) its publishes are answered "no responders". Trying the whole queue again
would lose the order, and waiting at its head would stop every other stream. So its subject gets a lane, or on a route
by key the value of that: its later publishes queue behind the refused one, everything else goes on. One publish a lane
is tried at a time; when one is acked the lane dissolves and its operations return to the head of the queue.

Lanes belong to destinations: one of a route, or for what a program publishes the first token of the subject. However
many subjects a destination has lanes for, only so many publishes are tried at a time, and destinations take turns: one
with thousands of subjects holds up neither the others nor the wire.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from heapq import heappop, heappush

from router_trio.errors import reasons
from router_trio.outbox.operation import Operation, OperationWithAck

TURN = 0.25
"""Seconds of a turn of tries."""

TRIES_A_TURN = 256
"""Held publishes of one connection that are tried in one turn without being acked."""

TRIED_AT_ONCE = 64
"""Held publishes of one destination that are under way at once: what does not answer has no more of the wire."""


class _Lane:
    """`key` is the `lane` of what is in it, `subject` that of the publish for which it was made."""

    __slots__ = ("_orders", "destination", "key", "operations", "probing", "refused", "retry_at", "subject")

    def __init__(self, key: Hashable, destination: Destination, subject: bytes) -> None:
        self.key = key
        self.destination = destination
        self.subject = subject
        self.operations: dict[int, OperationWithAck] = {}
        self.probing: int | None = None
        self.retry_at = 0.0
        self.refused = False
        self._orders: list[int] = []

    def add(self, operation: OperationWithAck) -> None:
        self.operations[operation.order] = operation
        heappush(self._orders, operation.order)

    @property
    def oldest(self) -> OperationWithAck:
        # What was taken out leaves the heap when it gets to its top.
        orders, operations = self._orders, self.operations
        while orders[0] not in operations:
            heappop(orders)
        return operations[orders[0]]


class Destination:
    """A destination of which something is held: `held` operations with frames of `held_bytes` bytes.

    It has refused since `since`, for `reason`. `slow`: it has so much unanswered that nothing more is tried.
    """

    __slots__ = ("held", "held_bytes", "idle", "key", "lanes", "ready", "reason", "since", "slow", "trying")

    def __init__(self, key: Hashable, since: float) -> None:
        self.key: Hashable = key
        self.since: float = since
        self.reason: str = reasons.UNANSWERED
        self.held: int = 0
        self.held_bytes: int = 0
        self.lanes: int = 0
        self.idle: bool = False
        self.slow: bool = False
        self.trying: int = 0
        self.ready: dict[Hashable, _Lane] = {}
        """Lanes that hold something and have nothing under way, in the order in which they are tried."""

    @property
    def to_try(self) -> Iterable[_Lane]:
        """Return the lanes that may be tried, if their time has come."""
        return () if self.slow or self.trying >= TRIED_AT_ONCE else self.ready.values()


class RetryLanes:
    """All lanes of one connection. `held` operations are in them and not being tried, frames of `held_bytes` bytes.

    `lanes` are there, by their keys, also those whose only operation is under way; `destinations` have lanes, or had
    some a moment ago.
    """

    __slots__ = ("_held", "_tries", "_turn_ends", "destinations", "held_bytes", "lanes")

    def __init__(self) -> None:
        self.lanes: dict[Hashable, _Lane] = {}
        self.destinations: dict[Hashable, Destination] = {}
        self.held_bytes: int = 0
        self._held: dict[int, OperationWithAck] = {}
        self._tries = TRIES_A_TURN
        self._turn_ends = 0.0

    @property
    def held(self) -> int:
        """Operations that are held."""
        return len(self._held)

    @property
    def oldest_accepted_at(self) -> float | None:
        """When the oldest held operation was accepted; None when nothing is held."""
        held = (lane.oldest.accepted_at for lane in self.lanes.values() if lane.operations)
        return min(held, default=None)

    def __contains__(self, key: Hashable) -> bool:
        return key in self.lanes

    # --- in ---

    def hold(self, operation: OperationWithAck, retry_at: float | None = None, *, now: float = 0.0) -> None:
        """Hold an operation in its lane, made if there is none. A refused one says when to try again."""
        key = operation.lane
        lane = self.lanes.get(key)
        if lane is None:
            lane = _Lane(key, self.destination_for(operation.capacity_key, now), operation.subject)
            self.lanes[key] = lane
            lane.destination.lanes += 1
        destination = lane.destination
        lane.add(operation)
        self._held[operation.order] = operation
        size = len(operation.frame)
        self.held_bytes += size
        destination.held += 1
        destination.held_bytes += size
        if lane.probing == operation.order:
            self._not_under_way(lane)
        if retry_at is not None:
            lane.retry_at = retry_at
            lane.refused = True
            destination.ready.pop(key, None)
            destination.reason = reasons.UNANSWERED if operation.refused_for is None else operation.refused_for[0]
        if lane.probing is None:
            destination.ready[key] = lane

    def destination_for(self, key: Hashable, now: float) -> Destination:
        """Return the destination with this key, a new one if nothing of it is held."""
        destination = self.destinations.get(key)
        if destination is None:
            destination = self.destinations[key] = Destination(key, now)
        return destination

    # --- tries ---

    def take_due(self, now: float, must_wait: Callable[[OperationWithAck], bool]) -> list[OperationWithAck]:
        """Take the oldest operations of lanes whose time has come and that have none under way.

        `must_wait` says that one would overtake an older one elsewhere: that one will come to the lane first.
        """
        if now >= self._turn_ends:
            self._tries, self._turn_ends = TRIES_A_TURN, now + TURN
        due: list[OperationWithAck] = []
        destinations = [destination for destination in self.destinations.values() if destination.ready]
        while destinations and self._tries > 0:
            # One of each, until none has any more or the tries are used up.
            going_on = []
            for destination in destinations:
                operation = self._try(destination, now, must_wait) if self._tries > 0 else None
                if operation is not None:
                    due.append(operation)
                    going_on.append(destination)
            destinations = going_on
        return due

    def _try(
        self, destination: Destination, now: float, must_wait: Callable[[OperationWithAck], bool]
    ) -> OperationWithAck | None:
        for lane in destination.to_try:
            if lane.retry_at > now:
                break
            operation = lane.oldest
            if not must_wait(operation):
                self._remove(lane, operation)
                lane.probing = operation.order
                destination.ready.pop(lane.key, None)
                destination.trying += 1
                self._tries -= 1
                # Who had a try is the last to have one in the next turn.
                self.destinations[destination.key] = self.destinations.pop(destination.key)
                return operation
        return None

    def next_try_at(self, must_wait: Callable[[OperationWithAck], bool]) -> float | None:
        """Return when `take_due` will return something; None if nothing waits for a time."""
        first = None
        for destination in self.destinations.values():
            for lane in destination.to_try:
                if not must_wait(lane.oldest):
                    first = lane.retry_at if first is None else min(first, lane.retry_at)
                    break
        if first is None:
            return None
        return first if self._tries > 0 else max(first, self._turn_ends)

    def release(self, operation: Operation, *, accepted: bool, now: float = 0.0) -> list[OperationWithAck]:
        """Return what the lane of an operation releases that was acked or given up: all if acked, else nothing."""
        lane = self.lanes.get(operation.lane)
        if lane is None or not (accepted or lane.probing == operation.order):
            return []
        destination = lane.destination
        if lane.probing is not None:
            self._not_under_way(lane)
            self._tries += accepted
        if accepted:
            destination.since = now
            if destination.slow and lane.operations:
                # Let go now, all of it would be back at once.
                lane.refused = False
                destination.ready[lane.key] = lane
                return []
        elif lane.operations:
            destination.ready[lane.key] = lane
            return []
        released = self._release(lane)
        if accepted and not destination.lanes and not destination.slow:
            self._forget(destination)
        return released

    # --- out ---

    def find(self, order: int) -> OperationWithAck | None:
        """Return the held operation with this number, or None."""
        return self._held.get(order)

    def withdraw(self, operation: Operation) -> bool:
        """Take out a held operation. Returns whether it was here."""
        held = self._held.get(operation.order)
        if held is None:
            return False
        lane = self.lanes[held.lane]
        self._remove(lane, held)
        if not lane.operations:
            lane.destination.ready.pop(lane.key, None)
            if lane.probing is None:
                self._dissolve(lane)
        return True

    def drop_oldest(self, key: Hashable, destination: Destination) -> OperationWithAck | None:
        """Take out the oldest that is held in a lane, or if there is no such lane in the one that waits longest.

        None if there is none. The lane stays: another one is about to be held.
        """
        lane = self.lanes.get(key)
        if lane is None:
            longest = next(iter(destination.ready.values()), None)
            oldest = None if longest is None else longest.oldest
            if oldest is not None:
                self.withdraw(oldest)
            return oldest
        if not lane.operations:
            return None
        oldest = lane.oldest
        self._remove(lane, oldest)
        if not lane.operations:
            lane.destination.ready.pop(key, None)
        return oldest

    def wanted(self, wanted: Callable[[OperationWithAck], bool]) -> list[OperationWithAck]:
        """Return of what is held all that is wanted."""
        return [held for held in self._held.values() if wanted(held)]

    def take_out(self, wanted: Callable[[OperationWithAck], bool]) -> list[OperationWithAck]:
        """Take out from what is held all that is wanted."""
        found = self.wanted(wanted)
        for operation in found:
            self.withdraw(operation)
        return found

    def clear(self) -> list[OperationWithAck]:
        """Take out everything that is held: the link died, or the router stops."""
        held = [*self._held.values()]
        self.lanes.clear()
        self.destinations.clear()
        self._held.clear()
        self.held_bytes = 0
        return held

    # --- inside ---

    def _not_under_way(self, lane: _Lane) -> None:
        assert lane.probing is not None
        lane.probing = None
        lane.destination.trying -= 1
        assert lane.destination.trying >= 0

    def _remove(self, lane: _Lane, operation: OperationWithAck) -> None:
        size = len(operation.frame)
        del lane.operations[operation.order]
        del self._held[operation.order]
        self.held_bytes -= size
        lane.destination.held -= 1
        lane.destination.held_bytes -= size

    def _release(self, lane: _Lane) -> list[OperationWithAck]:
        released = list(lane.operations.values())
        for held in released:
            self._remove(lane, held)
        self._dissolve(lane)
        return released

    def _dissolve(self, lane: _Lane) -> None:
        assert not lane.operations, "what is held is released before its lane dissolves"
        assert lane.probing is None, "the lane stays while one of it is under way"
        destination = lane.destination
        del self.lanes[lane.key]
        destination.ready.pop(lane.key, None)
        destination.lanes -= 1

    def _forget(self, destination: Destination) -> None:
        assert not destination.held + destination.held_bytes + destination.trying, "what it has is in lanes"
        del self.destinations[destination.key]

    def not_slow(self, keys: Iterable[Hashable]) -> list[OperationWithAck]:
        """Mark destinations as not slow: they answer again, or too little of them is unanswered.

        Returns what was held because they were slow.
        """
        released = []
        for key in keys:
            destination = self.destinations.get(key)
            if destination is not None:
                destination.slow = False
                for lane in [*destination.ready.values()]:
                    if not lane.refused:
                        released += self._release(lane)
        return released

    def clear_idle(self) -> None:
        """Forget destinations of which nothing was held when this was asked before: they refuse nothing any more.

        What has failed there does not show that: the next publish is refused as well, and `since` stays what it is.
        """
        for destination in [*self.destinations.values()]:
            if destination.lanes or destination.slow:
                destination.idle = False
            elif destination.idle:
                self._forget(destination)
            else:
                destination.idle = True
