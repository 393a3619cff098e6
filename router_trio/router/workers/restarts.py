"""Decides when a worker that ended by itself is restarted, and when its end also ends the router. Pure."""

from __future__ import annotations

from collections.abc import Callable

FIRST_DELAY = 0.2
LONGEST_DELAY = 30.0
"""Seconds. A worker that ends at once, again and again, is started twice a minute."""

LONGEST_NAMED_DELAY = 1.0
"""Longest delay, in seconds, after a worker that ended with a message in a handler: that message has few attempts."""

STABLE_AFTER = 5.0
"""Seconds of routing after which the end of a worker is unrelated to that of its predecessor."""

ALWAYS_FATAL = frozenset({"ConnectionExhaustedError"})
"""Failures that always end the router, because the settings require it: `on_reconnect_exhausted = "stop"`."""


RAISED_AT_THE_END = frozenset({"LifespanError"})
"""Failures while the router stops that it raises when it has stopped, as a single process does."""


class Restarts:
    """The restart delays of one worker, which double with each short run. `uniform` draws between two numbers."""

    def __init__(self, uniform: Callable[[float, float], float]) -> None:
        self._uniform = uniform
        self._short_runs = 0
        self.count: int = 0
        """Number of restarts."""

    def next_delay(self, lasted: float, *, named: bool = False) -> float:
        """Return the seconds until a worker that routed for `lasted` seconds is restarted, and count the restart.

        `named`: messages were in its handlers, and one of them may have ended it.
        """
        if lasted >= STABLE_AFTER:
            self._short_runs = 0
        longest = min(LONGEST_NAMED_DELAY if named else LONGEST_DELAY, FIRST_DELAY * 2**self._short_runs)
        self._short_runs = min(self._short_runs + 1, 16)
        self.count += 1
        # Workers that ended for the same cause are not restarted at the same moment.
        return self._uniform(longest / 2, longest)


def ends_router(error: str, *, first_run: bool, stopping: bool = False) -> bool:
    """Return True if a worker that failed with this `RouterError` ends the router, as it would end a single process.

    At the start the error is a mistake to correct. Later it is an outage to wait for, unless it is in `ALWAYS_FATAL`.
    If the router is `stopping`, it ends with an error that is in `RAISED_AT_THE_END`.
    """
    return first_run or error in ALWAYS_FATAL or (stopping and error in RAISED_AT_THE_END)
