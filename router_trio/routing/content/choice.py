"""Decide by the content of a message whether a route accepts it, and which destinations get it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from router_trio.expressions.body import BodyReader
from router_trio.expressions.message import Arrived, Facts
from router_trio.protocol import framing
from router_trio.protocol.framing import RawMessage
from router_trio.routing.delivery import Delivery
from router_trio.routing.policy import hops
from router_trio.routing.policy.strategies import Choice, Fixed
from router_trio.routing.route_plans import RoutePlan


class Parts(NamedTuple):
    """The decisions about each message of a core subscription, in order.

    `when` and `choose` are called with an `Arrived` that has this `reader`, or without a reader with the raw message.
    Without `choose`, all messages are sent to the `chosen` destinations.
    """

    reader: BodyReader | None
    when: Callable[[Any], Any] | None
    choose: Callable[[Any], Choice] | None
    chosen: Choice


class Content:
    """Evaluates the expressions and the strategy of one route. If it raises `EvaluationError`, the message fails."""

    def __init__(self, plan: RoutePlan, healthy: Callable[[int], bool]) -> None:
        """`healthy` returns whether the destination at a place is connected and accepts messages."""
        self._when = None if plan.when is None else plan.when.evaluate
        if plan.settings.hop_limit:
            self._when = hops.checked(plan.settings.hop_limit, self._when)
        if plan.schema is not None:
            self._when = plan.schema.checked(self._when)
        self._strategy = plan.strategy(healthy)
        self.looks: bool = bool(plan.expressions) or plan.transforms or plan.checks
        """True if expressions or transforms read messages, which then need facts."""
        self._reader = plan.reader()
        self._hidden = plan.hidden
        self.parts: Parts = self._parts(plan)
        """An attribute, for callers in a loop."""
        self.mirrors: frozenset[int] = frozenset(
            place for place, one in enumerate(plan.destinations) if one.mirror is not None
        )
        """The places of mirrors: their copies never fail a message."""

    def facts(self, raw: RawMessage, delivery: Delivery | None = None) -> Facts:
        """Return the facts of a raw message for expressions; with a `delivery` from a stream, also its position."""
        if delivery is None or not delivery.from_stream:
            return Arrived(raw, self._reader)
        return self.facts_of(
            framing.text(raw[0])[self._hidden :], framing.header_block(raw), framing.payload(raw), delivery
        )

    def facts_of(self, subject: str, block: bytes, payload: bytes, delivery: Delivery | None) -> Facts:
        """Return the facts of a message with these contents, as returned by a handler."""
        if delivery is None:
            return Facts(subject, block, payload, self._reader)
        return Facts(subject, block, payload, self._reader, **delivery.in_stream())

    def _parts(self, plan: RoutePlan) -> Parts:
        fixed = isinstance(self._strategy, Fixed)
        chosen = self._strategy.choose(None) if fixed else ()
        when = None if plan.when is None else plan.when.header_test
        choose = None if fixed else self._strategy.choose_raw
        if plan.checks or plan.transforms or (when is None) != (plan.when is None) or not (fixed or choose):
            reader = self._reader if self.looks else None
            return Parts(reader, self._when, None if fixed else self._strategy.choose, chosen)
        return Parts(None, when, choose, chosen)

    def takes(self, facts: Facts) -> bool:
        """Return True if the route accepts the message. Raises `EvaluationError`."""
        return self._when is None or bool(self._when(facts))

    @property
    def falls_back_to(self) -> int:
        """The place of the destination that gets new messages at present, with the strategy `fallback`."""
        return self._strategy.choose_again(())[0]

    def choose_for(self, facts: Facts, delivery: Delivery, number: int) -> Choice:
        """Return the places of the destinations of a message. Raises `EvaluationError`.

        `number` is that of one of several messages that a handler returned for one, else 0. A message with an earlier
        choice keeps its destinations if one of them has its copy.
        """
        before: Sequence[int] | None = delivery.choice(number)
        if before is None:
            chosen = self._strategy.choose(facts)
            delivery.keep_choice(number, chosen)
            return chosen
        if not delivery.has_copies:
            before = self._strategy.choose_again(before)
            delivery.keep_choice(number, before)
        # Mirrors got their copy the first time.
        return [place for place in before if place not in self.mirrors]
