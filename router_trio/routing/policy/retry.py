"""When a message that failed is tried again, and when it is given up. Pure: time and random numbers are given.

Messages that fail for what they are must not keep the others out. So the retries are spread: however many fail, no
more come again in a second, or in the first delay if that is shorter, than half of what a route may have in hand.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass

from router_trio.errors.reasons import HANDLER_ERROR, NEVER_AGAIN
from router_trio.settings import RouteSettings
from router_trio.settings.retry import RetrySettings

LONGEST_SPREAD = 60.0
"""Seconds by which many retries may be spread, besides their delays."""

_POWERS = 64
"""Powers of the factor that are computed: the longest delay is reached long before."""


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a message failed: a short word for metrics, and a text for people.

    `error` is what its handler raised, `place` where. `after`: the handler wants another attempt after so many seconds.
    `quotes`: the text is a handler's, and may quote the message; it is for the dead letter alone.
    """

    reason: str
    detail: str = ""
    error: type[BaseException] | None = None
    after: float | None = None
    place: str | None = None
    quotes: bool = False

    @property
    def shown(self) -> str | None:
        """Return the text if it may be shown outside of a dead letter, None if it may not or there is none."""
        return None if self.quotes else self.detail or None


@dataclass(slots=True)
class GivenUp:
    """A message that is not tried again: how it failed the last time, and after how many attempts.

    `refused`: what is behind it in its stream waits for it. `tries`: how often its dead letter could not be stored.
    """

    failure: Failure
    attempts: int
    refused: bool = False
    tries: int = 0


class RetryPolicy:
    """The `[routes.retry]` of one route at work."""

    def __init__(self, settings: RetrySettings, most_in_hand: int, uniform: Callable[[float, float], float]) -> None:
        """`most_in_hand` is what the route may have in hand, `uniform(a, b)` draws a number between two."""
        self.initial: float = settings.initial
        self._factor = settings.factor
        self.longest: float = settings.max
        self._attempts = settings.attempts
        self._never = frozenset(settings.never)
        self._uniform = uniform
        self._spacing = min(settings.initial, 1.0) / max(1.0, most_in_hand / 2)
        self._next = 0.0

    @property
    def gives_up(self) -> bool:
        """True if some failures are the last."""
        return self._attempts > 0 or bool(self._never)

    def over(self, failure: Failure, attempts: int) -> bool:
        """Return True if there is no further attempt after so many, the last of which failed like this."""
        if 0 < self._attempts <= attempts or failure.reason in NEVER_AGAIN:
            return True
        return bool(self._never) and _is_among(failure, self._never)

    def delay(self, failure: Failure, attempts: int, now: float) -> float:
        """Return the seconds until the next attempt, after so many, the last of which failed like this."""
        return self.backoff(attempts, now) if failure.after is None else failure.after

    def backoff(self, attempts: int, now: float) -> float:
        """Return the seconds until what was tried so often is tried again."""
        backoff = min(self.initial * self._factor ** min(attempts - 1, _POWERS), self.longest)
        self._next = min(max(now, self._next + self._spacing), now + LONGEST_SPREAD)
        return self._uniform(0.0, backoff) + self._next - now


def policy_for(route: RouteSettings, uniform: Callable[[float, float], float]) -> RetryPolicy:
    """Return a new policy of a route: without `[routes.retry]` as its source has it."""
    return RetryPolicy(route.retry_or_default, route.source.max_in_flight, uniform)


def _is_among(failure: Failure, reasons: Collection[str]) -> bool:
    """Return True if a failure has one of these reasons: of an error, its class and those that it is made of count."""
    if failure.reason in reasons:
        return True
    if failure.error is None or failure.reason != HANDLER_ERROR:
        return False
    names = {name for kind in failure.error.__mro__ for name in (kind.__name__, kind.__qualname__)}
    return any(f"{HANDLER_ERROR}:{name}" in reasons for name in names)
