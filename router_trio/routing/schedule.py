"""Which of the messages that wait in a route may be routed next. Synchronous, without I/O.

A schedule is an order (`ArrivalOrder` or `KeyOrder`) and a limit (`NoValueLimit` or `ValueLimit`). A message is added
once, and taken once:

    add ──> waiting ──> its turn ──> within the limit of its value ──> next
                                              │
                                              └──> limited, until the limit allows it

What a route lacks is an object that lets everything pass, not a `None` that each message asks about.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from heapq import heappop, heappush, heappushpop
from math import inf
from typing import Generic, Protocol, TypeVar, cast

from router_trio.errors import EvaluationError
from router_trio.routing.policy.key_queues import KeyQueues
from router_trio.routing.policy.limit import ValueLimits
from router_trio.routing.policy.value_queues import ValueQueues

D = TypeVar("D")


class Order(Protocol[D]):
    """The order in which waiting messages get their turn."""

    waiting: deque[D]
    """Messages that were added and not looked at yet. Of a route in order of arrival, all that wait."""

    @property
    def ready(self) -> bool:
        """Return True if `take` may return a message."""
        ...

    @property
    def count(self) -> int:
        """Return how many messages wait."""
        ...

    @property
    def behind(self) -> int:
        """Return how many of them wait for another message of their key."""
        ...

    @property
    def may_begin(self) -> int:
        """Return how many of them were looked at, and need not wait for another message of their key."""
        ...

    @property
    def keys(self) -> int:
        """Return how many keys have something that waits or is active; 0 where messages have none."""
        ...

    def take(self) -> D | None:
        """Take out the message whose turn it is, which is active from then on."""
        ...

    @property
    def as_added(self) -> bool:
        """Return True if `take` would return exactly `waiting`, from left to right."""
        ...

    def release(self, messages: Sequence[D]) -> None:
        """Add messages that were held back, sorted by place. Each goes before the later ones of its key."""
        ...

    def finished(self, message: D) -> None:
        """Record that a message is no longer active: the next one of its key may be."""

    def all_finished(self, messages: Sequence[D]) -> None:
        """Record the same for several messages, which may be most of what passes through a route."""
        ...

    def clear(self) -> list[D]:
        """Take out everything that waits, in order. What is active stays so."""
        ...


class _Turn:
    """In place of a message that was released: a turn of its key, for the first of the key's messages by then."""

    __slots__ = ("key",)

    def __init__(self, key: bytes) -> None:
        self.key: bytes = key


class ArrivalOrder(Generic[D]):
    """An `Order` in which the message that arrived first goes first; any number may be active.

    Of the key of a released message, later messages may already be waiting. They are not searched for. Until every
    message that was released has had a turn, each turn of its key is for the first of the released messages and of
    those whose turn it would have been.
    """

    # Asked for each message, so no properties.
    behind = 0
    may_begin = 0
    keys = 0

    def __init__(self, key_of: Callable[[D], bytes], place_of: Callable[[D], int]) -> None:
        """`key_of` does not raise. No two messages of a key have the same place."""
        self.waiting: deque[D] = deque()
        self._key_of = key_of
        self._place_of = place_of
        self._released: dict[bytes, list[tuple[int, D]]] = {}
        """By key, a heap with as many messages as there are turns of that key in `waiting`."""

    @property
    def ready(self) -> bool:
        return bool(self.waiting)

    @property
    def count(self) -> int:
        return len(self.waiting)

    @property
    def as_added(self) -> bool:
        return not self._released

    def take(self) -> D | None:
        if not self.waiting:
            return None
        message = self.waiting.popleft()
        return self._first_of_key(message) if self._released else message

    def _first_of_key(self, turn: D) -> D:
        """Return the message that goes now: `turn` is a message, or a turn of its key."""
        if isinstance(turn, _Turn):
            heap = self._released[turn.key]
            _, message = heappop(heap)
            if not heap:
                del self._released[turn.key]
            return message
        released = self._released.get(self._key_of(turn))
        return turn if released is None else heappushpop(released, (self._place_of(turn), turn))[1]

    def release(self, messages: Sequence[D]) -> None:
        for message in messages:
            key = self._key_of(message)
            heappush(self._released.setdefault(key, []), (self._place_of(message), message))
            self.waiting.append(cast(D, _Turn(key)))

    def finished(self, message: D) -> None:
        """See `Order`."""

    def all_finished(self, messages: Sequence[D]) -> None:
        """See `Order`."""

    def clear(self) -> list[D]:
        waiting = []
        while (message := self.take()) is not None:
            waiting.append(message)
        return waiting


class KeyOrder(Generic[D]):
    """An `Order` with one active message of each key. Keys that have something to begin with take turns."""

    def __init__(
        self,
        key_of: Callable[[D], bytes],
        place_of: Callable[[D], int],
        most_of_a_key: float = inf,
        too_many: Callable[[D], None] = lambda message: None,
    ) -> None:
        """`key_of` does not raise. Of one key, messages go in the order of their places, then of their arrival.

        `too_many` takes each message of a key of which `most_of_a_key` wait.
        """
        self.waiting: deque[D] = deque()
        self._key_of = key_of
        self._place_of = place_of
        self._most_of_a_key = most_of_a_key
        self._too_many = too_many
        self._keys: KeyQueues[D] = KeyQueues()

    @property
    def ready(self) -> bool:
        """See `Order`. Computes no key, so that it may be asked anywhere."""
        return bool(self.waiting or self.may_begin)

    @property
    def count(self) -> int:
        return len(self.waiting) + self._keys.count

    @property
    def behind(self) -> int:
        """See `Order`. What was not looked at yet is not among them."""
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
        """See `Order`. All messages of a key are sorted by their places."""
        self.waiting += messages

    def finished(self, message: D) -> None:
        self._keys.finished(self._key_of(message), message)

    def all_finished(self, messages: Sequence[D]) -> None:
        for message in messages:
            self._keys.finished(self._key_of(message), message)

    def clear(self) -> list[D]:
        """See `Order`. Messages of which the key was not computed come last."""
        waiting = [*self._keys.clear(), *self.waiting]
        self.waiting.clear()
        return waiting

    def _sort(self) -> None:
        """Put what was added behind what is there of its key. Here, so that keys are computed in the route's task."""
        waiting = self.waiting
        while waiting:
            message = waiting.popleft()
            key = self._key_of(message)
            if self._keys.waiting_of(key) >= self._most_of_a_key:
                self._too_many(message)
            else:
                self._keys.add(key, self._place_of(message), message)


class Limits(Protocol[D]):
    """Whether the limit of its value lets a message go."""

    @property
    def count(self) -> int:
        """Return how many messages wait for it."""
        ...

    @property
    def due_at(self) -> float:
        """Return when one of them may go; infinite if none waits."""
        ...

    def admits(self, message: D, now: float) -> bool:
        """Return True if a message may go now. Otherwise it waits here, or it has no value and has failed."""
        ...

    def pop_due(self, now: float) -> D | None:
        """Take out a message that waited and may go now."""
        ...

    def clear(self) -> list[D]:
        """Take out everything that waits."""
        ...


class NoValueLimit(Generic[D]):
    """The `Limits` of a route whose values have none: lets everything go."""

    count = 0
    due_at = inf

    def admits(self, message: D, now: float) -> bool:
        return True

    def pop_due(self, now: float) -> D | None:
        return None

    def clear(self) -> list[D]:
        return []


class ValueLimit(Generic[D]):
    """The `Limits` of each value: messages over it wait, and messages of other values pass them."""

    def __init__(
        self,
        limits: ValueLimits,
        value_of: Callable[[D], bytes | None],
        place_of: Callable[[D], int],
        has_no_value: Callable[[D, EvaluationError], None],
        held_back: Callable[[], None],
        none_waits: Callable[[], None],
    ) -> None:
        """`value_of` returns None for a message that no limit is for.

        If it raises `EvaluationError`, `has_no_value` is called, which has to fail the message. `held_back` is called
        for each message that has to wait, `none_waits` when a look finds that none does any more.
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
