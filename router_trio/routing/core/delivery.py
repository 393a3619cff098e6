"""Follow a message of a core subscription that its route keeps until it is settled."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import trio

from router_trio.errors.reasons import OUT_OF_TURN
from router_trio.protocol.framing import RawMessage
from router_trio.routing.delivery import Delivery
from router_trio.routing.policy.failed_messages import Failed
from router_trio.routing.policy.retry import Failure
from router_trio.routing.route_plans import RoutePlan
from router_trio.states import RouteState


class Keeper(Protocol):
    """The keeper of a delivery, with the methods that the delivery calls: see `routing.keeper`."""

    def finished(self, delivery: CoreDelivery) -> None:
        """Settle or retry a message that all destinations have settled."""


class CoreDelivery(Delivery):
    """A message that its route keeps. `failed` counts its failures, `place` is its place in the order of arrival.

    `message_id`, set before the first attempt, is the same for each attempt, so a stream that already has a copy
    recognizes it. `key` is the value of its route's key, once that is known, and `due` the time of its next attempt, if
    it has failed.
    """

    due: float

    __slots__ = (
        "_accepted",
        "_choices",
        "_copies",
        "_keeper",
        "_report_given_up",
        "due",
        "failed",
        "key",
        "message_id",
        "place",
        "recalled",
        "refused",
    )

    def __init__(self, keeper: Keeper, state: RouteState, raw: RawMessage, received_at: float, place: int) -> None:
        super().__init__(state, raw, received_at)
        self._keeper = keeper
        # Created on first use, since thousands of messages may wait.
        self._copies: set[int] | None = None
        self._choices: dict[int, Sequence[int]] | None = None
        self._report_given_up: Callable[[], None] | None = None
        self._accepted = True
        """False if its route has another condition now, which its next attempt has to meet."""
        self.failed: Failed | None = None
        self.recalled: bool = False
        """True if it has to wait for its destination, which is no failure."""
        self.refused = False
        self.key = None
        self.message_id = None
        self.place: int = place

    def start_again(self) -> None:
        super().start_again()
        self.recalled = False
        self._report_given_up = None

    def fail(self, reason: str, failure: Failure | None = None) -> None:
        if reason == OUT_OF_TURN:
            self.recalled = True
        else:
            super().fail(reason, failure)

    def when_given_up(self, report: Callable[[], None]) -> None:
        self._report_given_up = report

    def report_given_up(self) -> None:
        if self._report_given_up is not None:
            self._report_given_up()

    @property
    def attempt(self) -> int:
        return 1 if self.failed is None else self.failed.attempts + 1

    @property
    def known(self) -> Failed:
        """Return what is known of it as a message that has failed."""
        if self.failed is None:
            self.failed = Failed()
        return self.failed

    @property
    def was_tried(self) -> bool:
        return self.failed is not None

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
        self._accepted = True

    @property
    def was_accepted(self) -> bool:
        return self._accepted and super().was_accepted

    def done(self, now: float | None = None) -> None:
        """Record that an operation, or the routing, is done. `settle_as` records the duration."""
        self.remaining -= 1
        if self.remaining:
            return
        if self.failure is not None:
            self.count_failure(self.failure)
        if self.trace is not None:
            seconds = (trio.current_time() if now is None else now) - self.received_at
            self.route.elapsed.keep(self.trace.end(seconds))
        self._keeper.finished(self)

    def settle_as(self, fate: str) -> None:
        """Count the fate of the message and its duration, and report the fate to its trace."""
        self.route.elapsed.record(trio.current_time() - self.received_at)
        super().settle_as(fate)

    def go_by(self, keeper: Keeper, state: RouteState, before: RoutePlan, plan: RoutePlan) -> None:
        """Be routed by `plan` from the next attempt on. Its attempts, its id and its copies continue.

        `before` is the plan of its route until now.
        """
        self._keeper, self.route, self.key = keeper, state, None
        known = self.failed
        if known is not None:
            known.tried, known.numbering = True, before.numbering
            known.delivered, known.choices = self._copies or set(), self._choices or {}
            known.renumber(plan.numbering)
            self._copies, self._choices = known.delivered, known.choices
            # Another condition applies to it, unless a copy was already delivered.
            same = self._accepted and before.settings.when == plan.settings.when
            self._accepted = same or self.has_copies
