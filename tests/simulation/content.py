"""Decisions of drawn routes by content, as expressions and as the same in Python: where each message may arrive.

The harness knows the number of every message, the last token of its subject, its headers and its size, and so the value
of each predicate. `all` and `first_match` follow from that. `sticky` is held to one destination for each key, before
and after a restart. `weighted` and `fallback` are held to one destination, unless the router can't know that a copy is
stored: see `Plan.may_choose_anew`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from random import Random
from typing import Any, NamedTuple

from tests.simulation.schedule import KEYS, Plan, Target

CHANGED = b" changed"
"""The text that a transform appends to a payload."""

STRATEGIES = ("all", "all", "first_match", "weighted", "sticky", "fallback")


class Sent(NamedTuple):
    """A message as strangers published it."""

    key: str
    headers: str
    size: int


@dataclass(frozen=True, slots=True)
class Test:
    """A predicate: `kind` is the property that it tests, `values` are those for which it holds."""

    __test__ = False

    kind: str
    values: tuple[Any, ...]

    @property
    def expression(self) -> str:
        """The predicate as an expression of a route."""
        if self.kind == "number":
            digits = "".join(map(str, self.values))
            return f'string(payload).matches("^[0-9]*[{digits}]([ /]|$)")'
        if self.kind == "key":
            return f"tokens[size(tokens) - 1] in {list(self.values)}"
        if self.kind == "header":
            return '"X-Kind" in headers'
        return "size < 200"

    def holds(self, number: int, sent: Sent) -> bool:
        """Return True if the predicate holds for a message."""
        if self.kind == "number":
            return number % 10 in self.values
        if self.kind == "key":
            return sent.key in self.values
        if self.kind == "header":
            return sent.headers == "plain"
        return sent.size < 200

    def __str__(self) -> str:
        return self.expression


def places(plan: Plan, number: int, sent: Sent) -> tuple[int, ...]:
    """Return the destinations, without mirrors. A message must arrive at one of them, or with `all` at each."""
    if plan.when is not None and not plan.when.holds(number, sent):
        return ()
    real = [index for index, target in enumerate(plan.targets) if target.mirror is None]
    hold = [index for index in real if (test := plan.targets[index].when) is None or test.holds(number, sent)]
    return tuple(hold[:1] if plan.strategy == "first_match" else hold)


def decided(plan: Plan, connections: list[str], random: Random) -> Plan:
    """Return the route with drawn decisions."""
    count = random.choice((2, 2, 3))
    targets = [*plan.targets[:count]]
    while len(targets) < count:
        like = random.choice(plan.targets)
        targets.append(Target(random.choice(connections), like.jetstream))
    # Routes with handlers are added by a decorator, which leaves the choice to the destinations.
    strategy = "all" if plan.handler else random.choice(STRATEGIES)
    when = _test(random) if not plan.handler and random.random() < 0.5 else None
    chosen = []
    for index, target in enumerate(targets):
        last = index == count - 1
        share = {"all": 0.6, "first_match": 0.4 if last else 1.0}.get(strategy, 0.0)
        test = _test(random) if random.random() < share else None
        weight = random.choice((1, 2, 5)) if strategy == "weighted" else 1
        changed = random.random() < 0.3
        chosen.append(Target(target.broker, target.jetstream, when=test, weight=weight, changed=changed))
    if random.random() < 0.35:
        mirror = Target(random.choice(connections), random.random() < 0.5, mirror=random.choice((0.1, 0.5, 1.0)))
        chosen.append(mirror)
    return replace(plan, targets=tuple(chosen), when=when, strategy=strategy)


def _test(random: Random) -> Test:
    kind = random.choice(("number", "number", "number", "key", "header", "size"))
    if kind == "number":
        return Test(kind, tuple(sorted(random.sample(range(10), random.choice((3, 5, 9))))))
    if kind == "key":
        return Test(kind, tuple(sorted(random.sample(KEYS, random.choice((1, 2, 3))))))
    return Test(kind, ())
