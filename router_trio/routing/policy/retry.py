"""Decide when a failed message is retried, and when it is given up. Pure: the caller passes time and random numbers.

Messages that fail because of their content must not keep others out. So retries are spread: within a second, or within
the first delay if that is shorter, no more messages are retried than half of what the route may have in hand. On a
route with a limit they use up at most half of it, and on a route with a handler at most half of the time for its calls.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any, Protocol

from router_trio.errors.reasons import HANDLER_ERROR, NEVER_AGAIN, counts_as_attempt
from router_trio.message import Fate
from router_trio.routing.policy.breaker import LONGEST_PAUSE
from router_trio.routing.policy.limit import MOST_VALUES, kept_value
from router_trio.settings import LimitSettings, RouteSettings
from router_trio.settings.retry import RetrySettings

LONGEST_SPREAD = 60.0
"""Seconds by which spreading may delay a retry, in addition to its own delay."""

LONGEST_SPREAD_BY_LIMIT = 3600.0
"""Seconds by which the limit of a route may delay a retry: half of a low limit admits few retries in a minute."""

LONGEST_SPREAD_BY_HANDLER = 3600.0
"""Seconds by which the calls of a handler may delay a retry: few calls that take long fit into half of a minute."""

_POWERS = 64
"""The highest power of the factor that is computed; the longest delay is reached long before."""


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a message failed: a short word for metrics, and a text for people.

    `error` is the class of what its handler raised, and `place` where that was raised. `after` is the delay in seconds
    that the handler asked for. With `quotes` the text is that of an error which was not written to be shown, and may
    quote the message, so it is put into the dead letter only.
    """

    reason: str
    detail: str = ""
    error: type[BaseException] | None = None
    after: float | None = None
    place: str | None = None
    quotes: bool = False

    @property
    def shown(self) -> str | None:
        """Return the text if there is one that may be shown outside of a dead letter, else None."""
        return None if self.quotes else self.detail or None


@dataclass(slots=True)
class GivenUp:
    """A message that is not retried, with its last failure and the number of its attempts.

    `refused`: later messages in its stream wait for it. `tries`: failed attempts to store its dead letter.
    `taken_over`: the server gave it up, so other processes of the route may store the same dead letter.
    """

    failure: Failure
    attempts: int
    refused: bool = False
    tries: int = 0
    taken_over: bool = False


class HalfOfLimit:
    """Half of the limit of a route, or of the limit of each value, in which failed messages are retried.

    A stream redelivers before it delivers new messages, and waiting messages of a value are sent in their order. So
    without this, failed messages would use up the limit if more of them were due than it admits.
    """

    __slots__ = ("_at_once", "_free_at", "_shared", "_spacing")

    def __init__(self, limit: LimitSettings) -> None:
        rate = limit.rate
        self._spacing = 2 * rate.seconds / rate.messages
        self._at_once = max(0.0, limit.most_at_once / 2 - 1) * self._spacing
        # By value, the time from which on none of the planned retries uses the limit. Ordered by last use.
        self._free_at: OrderedDict[bytes, float] = OrderedDict()
        self._shared = 0.0

    def __len__(self) -> int:
        """Return the number of values with retries that are not over."""
        return len(self._free_at)

    def wait(self, value: bytes, now: float) -> float:
        """Return the seconds until another message of a value may be retried, and plan that retry.

        The value is empty if the route has one limit for all messages.
        """
        known, value = self._free_at, kept_value(value)
        free_at = known.pop(value, None)
        own = free_at is not None
        if free_at is None:
            self._forget(now)
            own = len(known) < MOST_VALUES
            free_at = self._shared
        free_at = min(max(free_at, now), now + LONGEST_SPREAD_BY_LIMIT)
        if own:
            known[value] = free_at + self._spacing
        else:
            self._shared = free_at + self._spacing
        return max(0.0, free_at - self._at_once - now)

    def _forget(self, now: float) -> None:
        """Forget up to two values without planned retries, more than the one that may be added."""
        known = self._free_at
        for _ in range(2):
            value = next(iter(known), None)
            if value is None or known[value] > now:
                return
            del known[value]


class HalfOfHandler:
    """Half of the time in which the handler of a route can be called, in which failed messages are retried.

    A stream redelivers before it delivers new messages, and a message of a subject that is due goes before those that
    arrive. So without this, the handler would be busy with failed messages only, if their calls took longer than the
    delay before the next attempt.
    """

    __slots__ = ("_concurrency", "_free_at")

    def __init__(self, concurrency: int) -> None:
        """`concurrency`: calls that may run at the same time."""
        self._concurrency = concurrency
        self._free_at = 0.0

    def used(self, seconds: float, now: float) -> None:
        """Record that a call for a message that had failed before took this long."""
        free_at = max(self._free_at, now) + 2 * seconds / self._concurrency
        self._free_at = min(free_at, now + LONGEST_SPREAD_BY_HANDLER)

    def wait(self, now: float) -> float:
        """Return the seconds until another message may be retried."""
        return max(0.0, self._free_at - now)


class RetryStore(Protocol):
    """Keeps messages in another stream until their next attempt, as schedules."""

    after: float
    """Seconds: attempts that are further away are scheduled."""

    @property
    def reachable(self) -> bool:
        """Return True if the connection has a link."""
        ...

    def store(self, delivery: Any, delay: float, report: Callable[[Fate], None]) -> None:
        """Publish the schedule of a message. `report` is called once with its fate, possibly before this returns.

        Raises `RouterError` if it can't be sent at all.
        """


class RetryPolicy:
    """The retry policy of one route, from its `[routes.retry]`."""

    def __init__(
        self,
        settings: RetrySettings,
        most_in_hand: int,
        uniform: Callable[[float, float], float],
        limit: LimitSettings | None = None,
        concurrency: int = 1,
        *,
        has_schema: bool = False,
        once: bool = False,
    ) -> None:
        """`most_in_hand`: messages that the route may have in hand. `uniform(a, b)` draws a number from that range.

        `limit` is that of the route, if it has one. `concurrency`: calls of its handler that may run at the same time.
        `has_schema`: bodies that do not fit the schema of the route are given up. `once`: nothing is ever retried.
        """
        self._has_schema = has_schema
        self._once = once
        self.initial: float = settings.initial
        self._factor = settings.factor
        self.longest: float = settings.max
        self._attempts = settings.attempts
        self._never = frozenset(settings.never)
        self._uniform = uniform
        self._spacing = min(settings.initial, 1.0) / max(1.0, most_in_hand / 2)
        self._next = 0.0
        self._half = None if limit is None else HalfOfLimit(limit)
        self.of_handler: HalfOfHandler = HalfOfHandler(concurrency)

    @property
    def gives_up(self) -> bool:
        """Return True if messages are ever given up."""
        return self._attempts > 0 or bool(self._never) or self._has_schema

    def over(self, failure: Failure, attempts: int) -> bool:
        """Return True if there is no further attempt after `attempts`, with `failure` as the last one.

        A failure that no message can cause ends them only if `[routes.retry] not` names it.
        """
        if (
            self._once
            or failure.reason in NEVER_AGAIN
            or (0 < self._attempts <= attempts and counts_as_attempt(failure.reason))
        ):
            return True
        return bool(self._never) and _is_among(failure, self._never)

    def delay(self, failure: Failure, failures: int, now: float, value: bytes | None = None) -> float:
        """Return the seconds until the next attempt, after that many `failures`, with `failure` as the last one.

        Only failures that use up an attempt count, or only the others, as for the last one. After one of the others the
        next attempt is at most `LONGEST_PAUSE` seconds away, and some for the spread: it tests the destination.
        `value`: whose limit that attempt uses up, empty if the route has one limit; None if it uses up none.
        """
        if failure.after is not None:
            return failure.after
        wait = self.of_handler.wait(now)
        if not counts_as_attempt(failure.reason):
            return self.backoff(failures, now, value, wait, longest=min(self.longest, LONGEST_PAUSE))
        return self.backoff(failures, now, value, wait)

    def backoff(
        self,
        attempts: int,
        now: float,
        value: bytes | None = None,
        spread: float = 0.0,
        *,
        longest: float | None = None,
    ) -> float:
        """Return the seconds until a message with that many attempts is retried, spread by at least `spread`.

        `value`: see `delay`. An attempt to store a dead letter calls no handler, so it need not be spread for that.
        """
        backoff = min(
            self.initial * self._factor ** min(attempts - 1, _POWERS), self.longest if longest is None else longest
        )
        self._next = min(max(now, self._next + self._spacing), now + LONGEST_SPREAD)
        spread = max(spread, self._next - now)
        if self._half is not None and value is not None:
            spread = max(spread, self._half.wait(value, now))
        return self._uniform(0.0, backoff) + spread


def policy_for(route: RouteSettings, uniform: Callable[[float, float], float]) -> RetryPolicy:
    """Return a new policy for a route: without `[routes.retry]`, the default of its source."""
    return RetryPolicy(
        route.retry_or_default,
        route.source.max_in_flight,
        uniform,
        route.limit,
        route.concurrency,
        has_schema=route.schema_file is not None,
        once=not route.holds_failed_messages,
    )


def _is_among(failure: Failure, reasons: Collection[str]) -> bool:
    """Return True if a failure has one of these reasons; for an error, its class and all base classes count."""
    if failure.reason in reasons:
        return True
    if failure.error is None or failure.reason != HANDLER_ERROR:
        return False
    names = {name for kind in failure.error.__mro__ for name in (kind.__name__, kind.__qualname__)}
    return any(f"{HANDLER_ERROR}:{name}" in reasons for name in names)
