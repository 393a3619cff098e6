"""When a copy is due that a stream publishes later."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from router_trio.expressions.values import Duration, Timestamp

_NS = 1_000_000_000

LAST_NS = 9_223_372_036 * _NS
"""The last second that nats-server can count, in the year 2262: it would publish a copy with a later time at once."""


class Delay:
    """The delay of the copies for one destination, and the subject below which their schedules are stored."""

    __slots__ = ("_evaluate", "_ns", "prefix")

    def __init__(self, prefix: str, *, seconds: float = 0.0, evaluate: Callable[[Any], Any] | None = None) -> None:
        """`evaluate` returns the duration or the timestamp for the facts of a message; by default it is `seconds`."""
        self.prefix: bytes = prefix.encode()
        self._ns: int = round(seconds * _NS)
        self._evaluate = evaluate

    def due_ns(self, facts: Any, now_ns: int) -> int:
        """Return when the copy of a message is due, in nanoseconds since 1970. Raises `EvaluationError`.

        A time in the past is returned as 1970 at the earliest: the stream then publishes the copy at once. A time after
        2262 is returned as 2262.
        """
        if self._evaluate is None:
            return now_ns + self._ns
        value = self._evaluate(facts)
        assert isinstance(value, Duration | Timestamp), "the expression was checked"
        due = value.ns if isinstance(value, Timestamp) else now_ns + value.ns
        return min(max(due, 0), LAST_NS)
