"""The messages of streams that the router reports as given up, and the consequences for later messages.

A process gives up a message and terminates it at its source. If the server loses the termination and the process ends,
the next process gets the message once more and knows nothing of this: it is tried after messages that had stopped
waiting for it.

A dead letter may be larger than its server accepts. Then its message is neither delivered nor given up, forever, and
holds back the messages that wait for it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from math import inf

from router_trio.events import DeadLetterNotStored, Event, MessageDeadLettered, MessageGivenUp
from tests.simulation.failing import LEAST_FOR_DEAD_LETTERS
from tests.simulation.schedule import Plan, Schedule

Message = tuple[str, int]
"""Route, and number of the message."""


class GivenUp:
    """Messages of routes from streams, by their numbers."""

    def __init__(self, schedule: Schedule) -> None:
        self._max_payload = schedule.max_payload
        self._deleted = [(one.what["durable"], one.at) for one in schedule.steps if one.kind == "durable deleted"]
        self._began_at: dict[int, float] = {}
        self._by: dict[Message, tuple[int, float]] = {}
        self._done: set[Message] = set()
        self._too_large: set[Message] = set()

    # --- reports ---

    def process_begins(self, process: int, now: float) -> None:
        """Record the start of a process of the router; it knows nothing of earlier processes."""
        self._began_at[process] = now

    def reported(self, process: int, event: Event, number: int) -> None:
        """Record an event of a process about a message."""
        if isinstance(event, MessageGivenUp | MessageDeadLettered):
            self._by[event.route, number] = process, event.at
        elif isinstance(event, DeadLetterNotStored) and event.reason == "too_large":
            self._too_large.add((event.route, number))

    def done(self, route: str, number: int) -> None:
        """Record that the consumer of a route considers a message done."""
        self._done.add((route, number))

    # --- conclusions ---

    def retried_from(self, route: str, number: int, now: float) -> float:
        """Return the time from which a process has a message that an earlier process gave up; -inf if none has.

        A message that its consumer considers done is redelivered only by a durable created since then, and only to a
        process that did not know the deleted one.
        """
        by, at = self._by.get((route, number), (0, -inf))
        if at == -inf:
            return -inf
        if (route, number) not in self._done:
            return self._began_at.get(by + 1, -inf)
        deleted = min((gone for durable, gone in self._deleted if durable == route and at <= gone <= now), default=inf)
        later = [began for process, began in self._began_at.items() if process > by]
        if deleted == inf or not later:
            return -inf
        return min((began for began in later if began >= deleted), default=deleted)

    def stuck(
        self, plan: Plan, messages: Iterable[tuple[int, str]], holds_back: Callable[[int], bool]
    ) -> tuple[set[int], bool]:
        """Return which of these messages wait forever, and whether they use up all the room of their route.

        `messages` are those that a route takes: numbers and keys, in the order of their stream. `holds_back` returns
        True if others wait for the message.
        """
        found: set[int] = set()
        if plan.dead_letter is None or self._max_payload[plan.dead_letter[0]] >= LEAST_FOR_DEAD_LETTERS:
            return found, False
        waiting, groups = 0, set[str]()
        for number, key in messages:
            if (plan.name, number) in self._done:
                continue
            group = plan.group_of(key)
            too_large = (plan.name, number) in self._too_large
            if too_large and (plan.one_of_a_key or holds_back(number)):
                groups.add(group)
            if group in groups:
                waiting += 1
                found.add(number)
            elif too_large:
                found.add(number)
        return found, waiting >= plan.source["max_in_flight"]
