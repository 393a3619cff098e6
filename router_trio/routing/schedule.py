"""Schedules: which waiting message of a route is routed next. Synchronous, without I/O.

A schedule is an order (`ArrivalOrder` or `KeyOrder`) and a limit (`NoValueLimit` or `ValueLimit`). A message whose turn
has come is routed if the limit of its value admits it. Otherwise it waits for that limit.

A route without a limit has an object that lets everything pass, not a `None` that has to be checked for each message.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from heapq import heappop, heappush, heappushpop
from math import inf
from typing import Generic, Protocol, TypeVar, cast

from router_trio.errors import EvaluationError
from router_trio.routing.policy.key_queues import ActiveKeys, KeyQueues, KeyQueuesOfMany
from router_trio.routing.policy.limit import ValueLimits
from router_trio.routing.policy.value_queues import ValueQueues

D = TypeVar("D")


class Order(Protocol[D]):
    """The order in which waiting messages get their turn."""

    waiting: deque[D]
    """Messages that were added and not sorted yet. In order of arrival, all waiting messages."""

    @property
    def ready(self) -> bool:
        """Return True if `take` may return a message."""
        ...

    @property
    def count(self) -> int:
        """Return the number of waiting messages."""
        ...

    @property
    def behind(self) -> int:
        """Return the number of messages that wait for another message of their key."""
        ...

    @property
    def may_begin(self) -> int:
        """Return the number of sorted messages that need not wait for another message of their key."""
        ...

    @property
    def keys(self) -> int:
        """Return the number of keys with a waiting or active message; 0 if messages have no keys."""
        ...

    def take(self) -> D | None:
        """Take out the message whose turn it is, and make it active."""
        ...

    @property
    def as_added(self) -> bool:
        """Return True if `take` would return exactly `waiting`, from left to right."""
        ...

    def release(self, messages: Sequence[D]) -> None:
        """Add messages that were held back, sorted by place. Each is taken before later messages of its key."""
        ...

    @property
    def active(self) -> Sequence[D]:
        """Return the active messages, as far as they keep others of their keys from being taken."""
        ...

    def activate(self, message: D) -> None:
        """Record that a message is active that was begun before this order was made. None waits yet."""

    def finished(self, message: D) -> None:
        """Record that a message is no longer active, so that the next one of its key may be taken."""

    def all_finished(self, messages: Sequence[D]) -> None:
        """Record the same for several messages at once, which is cheaper."""
        ...

    def clear(self) -> list[D]:
        """Take out all waiting messages, in order. Active ones stay active."""
        ...


class _Turn:
    """In place of a message that was released: a turn of its key, for the first of the key's messages by then."""

    __slots__ = ("key",)

    def __init__(self, key: bytes) -> None:
        self.key: bytes = key


class ArrivalOrder(Generic[D]):
    """An `Order` in which the message that arrived first is taken first; any number may be active.

    When a message is released, later messages of its key may already be waiting. They are not searched for. Instead,
    until every released message of a key was taken, each turn of that key is given to the earliest message among the
    released ones and those whose turn has come.
    """

    # Read for each message, so these are no properties.
    behind = 0
    may_begin = 0
    keys = 0
    active: Sequence[D] = ()

    def __init__(self, key_of: Callable[[D], bytes], place_of: Callable[[D], int]) -> None:
        """`key_of` does not raise. No two messages of a key have the same place."""
        self.waiting: deque[D] = deque()
        self._key_of = key_of
        self._place_of = place_of
        self._released: dict[bytes, list[tuple[int, D]]] = {}
        """By key, a heap with as many messages as `waiting` has turns of that key."""
        self.as_added: bool = True

    @property
    def ready(self) -> bool:
        return bool(self.waiting)

    @property
    def count(self) -> int:
        return len(self.waiting)

    def take(self) -> D | None:
        if not self.waiting:
            return None
        message = self.waiting.popleft()
        return message if self.as_added else self._first_of_key(message)

    def _first_of_key(self, turn: D) -> D:
        """Return the message that goes now: `turn` is a message, or a turn of its key."""
        if isinstance(turn, _Turn):
            heap = self._released[turn.key]
            _, message = heappop(heap)
            if not heap:
                del self._released[turn.key]
                self.as_added = not self._released
            return message
        released = self._released.get(self._key_of(turn))
        return turn if released is None else heappushpop(released, (self._place_of(turn), turn))[1]

    def release(self, messages: Sequence[D]) -> None:
        for message in messages:
            key = self._key_of(message)
            heappush(self._released.setdefault(key, []), (self._place_of(message), message))
            self.waiting.append(cast(D, _Turn(key)))
            self.as_added = False

    def activate(self, message: D) -> None: ...

    def finished(self, message: D) -> None: ...

    def all_finished(self, messages: Sequence[D]) -> None: ...

    def clear(self) -> list[D]:
        waiting = []
        while (message := self.take()) is not None:
            waiting.append(message)
        return waiting


class KeyOrder(Generic[D]):
    """An `Order` with one active message of each key. Keys with a message that may start take turns."""

    def __init__(
        self,
        key_of: Callable[[D], bytes],
        place_of: Callable[[D], int],
        most_of_a_key: float = inf,
        too_many: Callable[[D], None] = lambda message: None,
        shared: ActiveKeys[D] | None = None,
    ) -> None:
        """`key_of` does not raise. Messages of a key are ordered by their places, then by arrival.

        `too_many` is called with each message that is added while `most_of_a_key` messages of its key wait. With
        `shared`, a key has one active message among all orders that share it.
        """
        self.waiting: deque[D] = deque()
        self._key_of = key_of
        self._place_of = place_of
        self._most_of_a_key = most_of_a_key
        self._too_many = too_many
        self._keys: KeyQueues[D] = KeyQueues() if shared is None else KeyQueuesOfMany(shared)

    @property
    def ready(self) -> bool:
        """Return True if `take` may return a message. Computes no key, so it may be called anywhere."""
        return bool(self.waiting or self.may_begin)

    @property
    def count(self) -> int:
        return len(self.waiting) + self._keys.count

    @property
    def behind(self) -> int:
        """Return the number of messages that wait for another of their key, without those not sorted yet."""
        return self._keys.behind

    @property
    def may_begin(self) -> int:
        return self._keys.may_begin

    @property
    def keys(self) -> int:
        return len(self._keys)

    @property
    def as_added(self) -> bool:
        return False

    def take(self) -> D | None:
        self._sort()
        return self._keys.take_next()

    def release(self, messages: Sequence[D]) -> None:
        """Add messages that were held back, and sort all messages of their keys by place."""
        self.waiting += messages

    @property
    def active(self) -> list[D]:
        return self._keys.active

    def activate(self, message: D) -> None:
        self._keys.activate(self._key_of(message), message)

    def finished(self, message: D) -> None:
        self._keys.finished(self._key_of(message), message)

    def all_finished(self, messages: Sequence[D]) -> None:
        for message in messages:
            self._keys.finished(self._key_of(message), message)

    def clear(self) -> list[D]:
        """Take out all waiting messages in order, those whose key was not computed yet last."""
        waiting = [*self._keys.clear(), *self.waiting]
        self.waiting.clear()
        return waiting

    def _sort(self) -> None:
        """Sort added messages into the queues of their keys. Called in the route's task, which computes the keys."""
        waiting = self.waiting
        while waiting:
            message = waiting.popleft()
            key = self._key_of(message)
            if self._keys.waiting_of(key) >= self._most_of_a_key:
                self._too_many(message)
            else:
                self._keys.add(key, self._place_of(message), message)


class Limits(Protocol[D]):
    """The limits of values, and the messages that wait for them."""

    @property
    def count(self) -> int:
        """Return the number of messages that wait for the limit of their value."""
        ...

    @property
    def due_at(self) -> float:
        """Return when one of them may be sent; infinite if none waits."""
        ...

    def admits(self, message: D, now: float) -> bool:
        """Return True if a message may be sent now. Otherwise it waits here, or it has no value and has failed."""
        ...

    def pop_due(self, now: float) -> D | None:
        """Take out a waiting message that may be sent now."""
        ...

    def clear(self) -> list[D]:
        """Take out all waiting messages."""
        ...


class NoValueLimit(Generic[D]):
    """The `Limits` of a route without limits for values: admits every message."""

    count = 0
    due_at = inf

    def admits(self, message: D, now: float) -> bool:
        return True

    def pop_due(self, now: float) -> D | None:
        return None

    def clear(self) -> list[D]:
        return []


class ValueLimit(Generic[D]):
    """`Limits` with one limit for each value: messages over it wait, and messages of other values pass them."""

    def __init__(
        self,
        limits: ValueLimits,
        value_of: Callable[[D], bytes | None],
        place_of: Callable[[D], int],
        has_no_value: Callable[[D, EvaluationError], None],
        held_back: Callable[[], None],
        none_waits: Callable[[], None],
    ) -> None:
        """`value_of` returns None for a message without a limit.

        If it raises `EvaluationError`, `has_no_value` is called, which has to fail the message. `held_back` is called
        for each message that has to wait, and `none_waits` when `pop_due` finds that none waits any more.
        """
        self._queues: ValueQueues[D] = ValueQueues(limits)
        self._value_of = value_of
        self._place_of = place_of
        self._has_no_value = has_no_value
        self._held_back = held_back
        self._none_waits = none_waits

    @property
    def count(self) -> int:
        return self._queues.count

    @property
    def due_at(self) -> float:
        return self._queues.due_at

    def admits(self, message: D, now: float) -> bool:
        try:
            value = self._value_of(message)
        except EvaluationError as error:
            self._has_no_value(message, error)
            return False
        if value is None or self._queues.admit(value, self._place_of(message), message, now):
            return True
        self._held_back()
        return False

    def pop_due(self, now: float) -> D | None:
        message = self._queues.pop_due(now)
        if message is None and not self._queues.count:
            self._none_waits()
        return message

    def clear(self) -> list[D]:
        return self._queues.clear()
