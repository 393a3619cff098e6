"""Decide when a worker that ended by itself is restarted, and when its end is that of the router. Pure."""

from __future__ import annotations

from collections.abc import Callable

FIRST_DELAY = 0.2
LONGEST_DELAY = 30.0
"""Seconds. What ends at once, again and again, is started twice a minute."""

LONGEST_NAMED_DELAY = 1.0
"""Seconds before a worker that ended with a message in a handler starts: that message has few attempts."""

LIVES_WELL = 5.0
"""Seconds of routing after which the end of a worker has nothing to do with the one before it."""

ALWAYS_FATAL = frozenset({"ConnectionExhaustedError"})
"""The exit that the settings ask for: `on_reconnect_exhausted = "stop"`."""


class Restarts:
    """The delays of one worker: they double with each short life. `uniform` draws between two numbers."""

    def __init__(self, uniform: Callable[[float, float], float]) -> None:
        self._uniform = uniform
        self._short_lives = 0
        self.count: int = 0
        """How often it was started again."""

    def next_delay(self, lived: float, *, named: bool = False) -> float:
        """Return the seconds until a worker that routed for so long is started again, and count that.

        `named`: it had messages in handlers, one of which may have ended it.
        """
        if lived >= LIVES_WELL:
            self._short_lives = 0
        longest = min(LONGEST_NAMED_DELAY if named else LONGEST_DELAY, FIRST_DELAY * 2**self._short_lives)
        self._short_lives = min(self._short_lives + 1, 16)
        self.count += 1
        # Workers that one thing has ended are not started in the same moment.
        return self._uniform(longest / 2, longest)


def ends_router(error: str, *, first_life: bool) -> bool:
    """Return True if a worker that failed with this `RouterError` ends the router, as it would end one process.

    At its start that is a mistake to mend. Later it is an outage to wait out, but for what the settings want.
    """
    return first_life or error in ALWAYS_FATAL
