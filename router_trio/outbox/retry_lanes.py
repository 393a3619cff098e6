"""Retry lanes: JetStream publishes that a stream can't take right now, held back in order.

If a stream has no leader (or doesn't exist), its publishes are answered with "no responders". Retrying the entire queue
would lose the order, and waiting at its head would stop every other stream. So the subject gets a lane, or on a route
by key the value of the key does: later publishes of the lane queue behind the refused one, and everything else
continues. One publish of a lane is retried at a time; when it is acked, the lane dissolves and its operations return to
the head of the queue.

Each lane belongs to a destination: one of a route, or for the publishes of a program the first token of the subject.
However many lanes a destination has, a bounded number of its publishes is retried at a time, and destinations take
turns: one with thousands of subjects delays neither the others nor the wire.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping
from heapq import heappop, heappush
from typing import NamedTuple

from router_trio.errors import reasons
from router_trio.outbox.operation import Operation, OperationWithAck

TURN = 0.25
"""Length of a turn of retries, in seconds."""

TRIES_A_TURN = 256
"""Held publishes of one connection that are retried in one turn without being acked."""

TRIED_AT_ONCE = 64
"""Held publishes of one destination that may be retried at once. A destination that does not answer gets no more of the
wire."""


class Shut(NamedTuple):
    """Why nothing is sent to a destination. With `fails`, what waits for it fails after a while."""

    reason: str
    fails: bool = False


class _Lane:
    """The lane with this `key`, shared by its operations; `subject` is that of the publish for which it was created.

    `refused_for` has reason and detail of the last refusal of one of its publishes; None if the last one to be tried
    was not answered.
    """

    __slots__ = (
        "_orders",
        "destination",
        "idle",
        "key",
        "operations",
        "probing",
        "refused",
        "refused_for",
        "retry_at",
        "subject",
    )

    def __init__(self, key: Hashable, destination: Destination, subject: bytes) -> None:
        self.key = key
        self.destination = destination
        self.subject = subject
        self.operations: dict[int, OperationWithAck] = {}
        self.probing: int | None = None
        self.retry_at = 0.0
        self.refused = False
        self.refused_for: tuple[str, str] | None = None
        self.idle = False
        self._orders: list[int] = []

    def add(self, operation: OperationWithAck) -> None:
        self.idle = False
        self.operations[operation.order] = operation
        heappush(self._orders, operation.order)

    @property
    def oldest(self) -> OperationWithAck:
        # Numbers of operations that were taken out leave the heap when they reach its top.
        orders, operations = self._orders, self.operations
        while orders[0] not in operations:
            heappop(orders)
        return operations[orders[0]]


class Destination:
    """A destination with held publishes: `held` operations, whose frames have `held_bytes` bytes.

    It has refused publishes since `since`, for `reason`. While `slow`, too many of its publishes are unanswered, and no
    more are tried.
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
        """Lanes that hold operations and have none in flight, in the order in which they are tried."""

    @property
    def waiting(self) -> int:
        """Number of operations that wait for the destination: the held ones, and those that are being retried."""
        return self.held + self.trying

    @property
    def to_try(self) -> Iterable[_Lane]:
        """Return the lanes that may be tried once their time has come."""
        return () if self.slow or self.trying >= TRIED_AT_ONCE else self.ready.values()


class RetryLanes:
    """All lanes of one connection. `held` operations wait in them for their turn, with frames of `held_bytes` bytes.

    `lanes` are all lanes by key, including those whose only operation is in flight; `destinations` have lanes, or had
    some a moment ago. Nothing of the destinations in `shut` is tried.
    """

    __slots__ = ("_held", "_tries", "_turn_ends", "destinations", "held_bytes", "lanes", "shut")

    def __init__(self) -> None:
        self.lanes: dict[Hashable, _Lane] = {}
        self.destinations: dict[Hashable, Destination] = {}
        self.held_bytes: int = 0
        self.shut: dict[Hashable, Shut] = {}
        self._held: dict[int, OperationWithAck] = {}
        self._tries = TRIES_A_TURN
        self._turn_ends = 0.0

    @property
    def held(self) -> int:
        """Number of held operations."""
        return len(self._held)

    @property
    def oldest_accepted_at(self) -> float | None:
        """When the oldest held operation was accepted; None when nothing is held."""
        held = (lane.oldest.accepted_at for lane in self.lanes.values() if lane.operations)
        return min(held, default=None)

    def __contains__(self, key: Hashable) -> bool:
        return key in self.lanes

    # --- holding ---

    def hold(self, operation: OperationWithAck, retry_at: float | None = None, *, now: float = 0.0) -> None:
        """Hold an operation in its lane, creating the lane if necessary. `retry_at` is set if it was refused."""
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
            lane.refused_for = operation.refused_for
            destination.ready.pop(key, None)
            destination.reason = reasons.UNANSWERED if operation.refused_for is None else operation.refused_for[0]
        if destination.key in self.shut:
            destination.reason = self.shut[destination.key].reason
        if lane.probing is None:
            destination.ready[key] = lane

    def destination_for(self, key: Hashable, now: float) -> Destination:
        """Return the destination with this key, creating it if nothing of it is held."""
        destination = self.destinations.get(key)
        if destination is None:
            destination = self.destinations[key] = Destination(key, now)
        return destination

    # --- retrying ---

    def take_due(self, now: float, must_wait: Callable[[OperationWithAck], bool]) -> list[OperationWithAck]:
        """Take the oldest operation of each lane whose time has come and that has none in flight.

        `must_wait` returns True for an operation that would overtake an older one still in the queue, which has to join
        the lane first.
        """
        if now >= self._turn_ends:
            self._tries, self._turn_ends = TRIES_A_TURN, now + TURN
        due: list[OperationWithAck] = []
        destinations = [one for one in self.destinations.values() if one.ready and one.key not in self.shut]
        while destinations and self._tries > 0:
            # Take one from each destination in turn, until none is due or the tries of this turn are used up.
            continuing = []
            for destination in destinations:
                operation = self._try(destination, now, must_wait) if self._tries > 0 else None
                if operation is not None:
                    due.append(operation)
                    continuing.append(destination)
            destinations = continuing
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
                # A destination that had a try is the last one in the next turn.
                self.destinations[destination.key] = self.destinations.pop(destination.key)
                return operation
        return None

    def next_try_at(self, must_wait: Callable[[OperationWithAck], bool]) -> float | None:
        """Return when `take_due` will return an operation; None if none waits for a time."""
        first = None
        for destination in self.destinations.values():
            if destination.key in self.shut:
                continue
            for lane in destination.to_try:
                if not must_wait(lane.oldest):
                    first = lane.retry_at if first is None else min(first, lane.retry_at)
                    break
        if first is None:
            return None
        return first if self._tries > 0 else max(first, self._turn_ends)

    def release(self, operation: Operation, *, accepted: bool, now: float = 0.0) -> list[OperationWithAck]:
        """Record that an operation was acked or failed. Returns what its lane releases: all if acked, else nothing."""
        lane = self.lanes.get(operation.lane)
        if lane is None or not (accepted or lane.probing == operation.order):
            return []
        destination = lane.destination
        if lane.probing is not None:
            self._not_under_way(lane)
            self._tries += accepted
        if accepted:
            destination.since = now
            if (destination.slow or destination.key in self.shut) and lane.operations:
                # Released now, all of these operations would be held again at once.
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

    # --- taking out ---

    def find(self, order: int) -> OperationWithAck | None:
        """Return the held operation with this number, or None."""
        return self._held.get(order)

    def refused_for(self, operation: OperationWithAck) -> tuple[str, str] | None:
        """Return reason and detail of the last refusal in the lane that holds an operation; None without one."""
        return self.lanes[operation.lane].refused_for if operation.order in self._held else None

    def withdraw(self, operation: Operation) -> bool:
        """Take out a held operation. Returns True if it was here."""
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
        """Take out the oldest operation of a lane; without such a lane, of the one that has waited longest.

        Returns None if there is no such operation. The lane stays, since another operation is about to be held in it.
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
        """Return the held operations for which `wanted` returns True."""
        return [held for held in self._held.values() if wanted(held)]

    def take_out(self, wanted: Callable[[OperationWithAck], bool]) -> list[OperationWithAck]:
        """Take out the held operations for which `wanted` returns True."""
        found = self.wanted(wanted)
        for operation in found:
            self.withdraw(operation)
        return found

    def clear(self) -> list[OperationWithAck]:
        """Take out all held operations: the link was lost, or the router stops."""
        held = [*self._held.values()]
        self.lanes.clear()
        self.destinations.clear()
        self._held.clear()
        self.held_bytes = 0
        return held

    # --- internals ---

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
        """Mark destinations as no longer slow: they answer again, or few of their publishes are unanswered.

        Returns the operations that were held only because their destination was slow.
        """
        keys = [*keys]
        for key in keys:
            if key in self.destinations:
                self.destinations[key].slow = False
        return self._release_unrefused(keys)

    def change_shut(self, changes: Mapping[Hashable, Shut | None]) -> list[OperationWithAck]:
        """Shut or open destinations: see `Outbox.change_shut`. Return what was held only because one was shut."""
        for key, why in changes.items():
            if why is None:
                self.shut.pop(key, None)
            else:
                self.shut[key] = why
        return self._release_unrefused([key for key, why in changes.items() if why is None])

    def _release_unrefused(self, keys: Iterable[Hashable]) -> list[OperationWithAck]:
        """Take out what the lanes of these destinations hold that were not refused, unless it has to wait still."""
        released = []
        for key in keys:
            destination = self.destinations.get(key)
            if destination is not None and not destination.slow and key not in self.shut:
                for lane in [*destination.ready.values()]:
                    if not lane.refused:
                        released += self._release(lane)
        return released

    def clear_idle(self) -> None:
        """Forget destinations that held nothing at the previous call either: they no longer refuse anything.

        Holding nothing for a moment does not prove that, since publishes that fail are not held: the next one may be
        refused as well, and `since` must not start over. Lanes that `drop_oldest` emptied are forgotten likewise, if
        the publish for which it made room is not held after all.
        """
        for lane in [*self.lanes.values()]:
            if lane.operations or lane.probing is not None:
                continue
            if lane.idle:
                self._dissolve(lane)
            lane.idle = True
        for destination in [*self.destinations.values()]:
            if destination.lanes or destination.slow:
                destination.idle = False
            elif destination.idle:
                self._forget(destination)
            else:
                destination.idle = True
