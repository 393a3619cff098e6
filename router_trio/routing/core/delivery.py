"""Follow a message of a core subscription that its route keeps until it is settled."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import trio

from router_trio.protocol.framing import RawMessage
from router_trio.routing.delivery import Delivery
from router_trio.states import RouteState


class Keeper(Protocol):
    """The keeper of a delivery, with the methods that the delivery calls: see `routing.keeper`."""

    def finished(self, delivery: CoreDelivery) -> None:
        """Settle or retry a message that all destinations have settled."""


class CoreDelivery(Delivery):
    """A message that its route keeps. `attempts` counts failed attempts, `place` is its place in the order of arrival.

    `message_id`, set before the first attempt, is the same for each attempt, so a stream that already has a copy
    recognizes it. `key` is the value of its route's key, once that is known.
    """

    remaining: int

    __slots__ = ("_choices", "_copies", "_keeper", "_report_given_up", "attempts", "key", "message_id", "place")

    def __init__(self, keeper: Keeper, state: RouteState, raw: RawMessage, received_at: float, place: int) -> None:
        super().__init__(state, raw, received_at)
        self._keeper = keeper
        # Created on first use, since thousands of messages may wait.
        self._copies: set[int] | None = None
        self._choices: dict[int, Sequence[int]] | None = None
        self._report_given_up: Callable[[], None] | None = None
        self.attempts: int = 0
        self.key: bytes | None = None
        self.message_id: bytes | None = None
        self.place: int = place

    def start_again(self) -> None:
        super().start_again()
        self._report_given_up = None

    def when_given_up(self, report: Callable[[], None]) -> None:
        self._report_given_up = report

    def report_given_up(self) -> None:
        if self._report_given_up is not None:
            self._report_given_up()

    @property
    def attempt(self) -> int:
        return self.attempts + 1

    @property
    def was_tried(self) -> bool:
        return self.attempts > 0

    def copied(self, copy: int) -> None:
        if self._copies is None:
            self._copies = set()
        self._copies.add(copy)

    def has_copied(self, copy: int) -> bool:
        return self._copies is not None and copy in self._copies

    @property
    def has_copies(self) -> bool:
        return bool(self._copies)

    def choice(self, number: int) -> Sequence[int] | None:
        return None if self._choices is None else self._choices.get(number)

    def keep_choice(self, number: int, chosen: Sequence[int]) -> None:
        if self._choices is None:
            self._choices = {}
        self._choices[number] = chosen

    def done(self, now: float | None = None) -> None:
        """Record that an operation, or the routing, is done. `settle_as` records the duration."""
        self.remaining -= 1
        if self.remaining:
            return
        if self.failure is not None:
            self.count_failure(self.failure)
        if self.trace is not None:
            self.trace.end()
        self._keeper.finished(self)

    def settle_as(self, fate: str) -> None:
        """Record the fate of the message and its duration."""
        self.route.elapsed.record(trio.current_time() - self.received_at)
        self.route.fates[fate] += 1
