"""Messages of subjects that hold back their key for ever: they fail at each attempt, and are never given up.

No server accepts a publish that exceeds its limits, however often it is sent. Messages of a stream are in `given_up`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping
from math import inf

from router_trio.errors import reasons
from router_trio.events import Event, MessageFailed
from tests.simulation.content import Sent
from tests.simulation.schedule import Plan, Schedule


class HeldBack:
    """Messages of routes from subjects, by their numbers."""

    def __init__(
        self,
        schedule: Schedule,
        published_at: Mapping[int, float],
        sent: Mapping[int, Sent],
        too_long: Collection[int],
    ) -> None:
        """`published_at` and `sent` hold, by number, when each message was published, and its content; `too_long` are
        the numbers of messages whose subjects are too long for any destination.
        """
        self._plans = {(plan.broker, f"core.{plan.name}"): plan for plan in schedule.routes if not plan.stream}
        self._max_payload = schedule.max_payload
        self._published_at = published_at
        self._sent = sent
        self._too_long = too_long
        self._numbers: defaultdict[str, list[int]] = defaultdict(list)
        self._began_at: dict[int, float] = {}
        self._failed_at: dict[tuple[int, str, str], float] = {}

    # --- reports ---

    def published(self, broker: str, subject: str, number: int) -> None:
        """Record that a stranger published a message; `subject` is without its last token."""
        plan = self._plans.get((broker, subject))
        if plan is not None and plan.filter in ("*", self._sent[number].key):
            self._numbers[plan.name].append(number)

    def process_begins(self, process: int, now: float) -> None:
        """Record the start of a process of the router; it has no messages of earlier processes."""
        self._began_at[process] = now

    def reported(self, process: int, event: Event) -> None:
        """Record an event of a process. It shows no more than the beginning of a long subject."""
        if not isinstance(event, MessageFailed) or event.reason != reasons.TOO_LARGE or event.subject is None:
            return
        shown = event.subject.rpartition(".")[2]
        beginning = shown.removesuffix("…")
        for key in {self._sent[number].key for number in self._numbers[event.route]}:
            if key == shown or (beginning != shown and key.startswith(beginning)):
                self._failed_at[process, event.route, key] = event.at

    # --- conclusions ---

    def waits(self, process: int, plan: Plan, number: int) -> bool:
        """Return True if a message waits for another one of its key, which has failed once more in the meantime."""
        if number not in self.held(process, plan):
            return False
        failed_at = self._holding(process, plan)[plan.group_of(self._sent[number].key)]
        return failed_at >= self._published_at[number]

    def held(self, process: int, plan: Plan) -> set[int]:
        """Return the messages of a route that may be in hand for ever: those that hold back a key, and those behind."""
        holding = self._holding(process, plan)
        found, groups = set[int](), set[str]()
        for number in self._numbers[plan.name] if holding else ():
            group = plan.group_of(self._sent[number].key)
            if self._published_at[number] < self._began_at[process] or group not in holding:
                continue
            if self._is_too_large(plan, number):
                groups.add(group)
            if group in groups:
                found.add(number)
        return found

    def _holding(self, process: int, plan: Plan) -> dict[str, float]:
        """Return the keys that a message holds back for ever, with the time of its last failure."""
        retry = plan.retry
        if plan.stream or not plan.one_of_a_key or not retry:
            return {}
        if retry.get("attempts") or reasons.TOO_LARGE in retry.get("not", ()):
            return {}
        found: dict[str, float] = {}
        for (by, route, key), at in self._failed_at.items():
            if (by, route) == (process, plan.name):
                found[plan.group_of(key)] = max(at, found.get(plan.group_of(key), -inf))
        return found

    def _is_too_large(self, plan: Plan, number: int) -> bool:
        """Return True if a message is too large for a destination. Those of a key all have the same one."""
        smallest = min(self._max_payload[target.broker[0]] for target in plan.targets)
        return number in self._too_long or self._sent[number].size > smallest
