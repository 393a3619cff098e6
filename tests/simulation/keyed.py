"""Drawn routes by key, and the check of handlers: no more calls at a time than the route allows, and one per key.

Some keys correspond to a subject; others are shared by several subjects. On such a route a failed message holds back
its key, so a message that fails forever is given up.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import replace
from inspect import isawaitable, iscoroutinefunction
from random import Random
from typing import Any

from router_trio import Message
from tests.simulation.handlers import FAILS_EACH_TIME, SLOW
from tests.simulation.schedule import KEYS, PAIRS, Plan

SHARE = 0.35
"""Share of the seeds in which routes are by key."""

GIVEN_UP = ["too_large", "mapping", "invalid_subject", "wrong_expectation", "expression"]
"""Reasons of failures that would recur on each attempt."""


def keyed(plan: Plan, random: Random) -> Plan:
    """Return the route with a key, several concurrent calls of its handler, or both."""
    handler = plan.handler
    if handler is None and plan.strategy == "all" and plan.when is None and plan.limit is None:
        # Routes with handlers are added by a decorator, which leaves the choice to the destinations.
        handler = random.choice((None, *SLOW))
    if handler in FAILS_EACH_TIME:
        handler = random.choice([*SLOW])
    key = random.choice((None, "subject", PAIRS))
    concurrency = random.choice((1, 2, 8)) if handler is not None else 1
    if key is None and concurrency == 1:
        key = PAIRS
    never = [*plan.retry.get("not", []), *GIVEN_UP]
    source = plan.source
    if plan.stream and plan.dead_letter is not None:
        # A message that has no dead letter either holds back its key forever, and uses room.
        source = {**source, "max_in_flight": max(source["max_in_flight"], 5)}
    retry = {"initial": 0.1} | plan.retry | {"not": never}
    return replace(plan, handler=handler, key=key, concurrency=concurrency, retry=retry, source=source)


class Calls:
    """The running handler calls of one route, in one process. Reports too many of them to `broken`."""

    def __init__(self, plan: Plan, broken: Callable[[str, str], None]) -> None:
        self._plan = plan
        self._broken = broken
        self._at_work: list[str] = []

    def watched(self, handler: Callable[[Message], Any]) -> Callable[[Message], Any]:
        """Return the handler, with its calls counted for as long as they block."""

        async def call_async(message: Message) -> Any:
            return await self._wait(handler(message), message)

        def call(message: Message) -> Any:
            answer = handler(message)
            return self._wait(answer, message) if isawaitable(answer) else answer

        return call_async if iscoroutinefunction(handler) else call

    async def _wait(self, answer: Awaitable[Any], message: Message) -> Any:
        plan, key = self._plan, self._plan.group_of(message.subject.rpartition(".")[2])
        if plan.one_of_a_key and key in self._at_work:
            self._broken("one of a key", f"{plan.name} handles {message.subject} while another one of {key} is at work")
        self._at_work.append(key)
        if len(self._at_work) > plan.concurrency:
            self._broken("concurrency", f"{plan.name} has {len(self._at_work)} calls at work")
        try:
            return await answer
        finally:
            self._at_work.remove(key)


assert KEYS == ("k0", "k1", "k2", "k3"), "which `PAIRS` takes together"
