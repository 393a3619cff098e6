"""How long a route goes on before all others have their turn.

Handlers that never await, and expressions, run in the event loop. A quick one costs no switch of tasks for each
message; a slow one must not keep pages, fences and other routes waiting until all that is in hand is handled.
"""

from __future__ import annotations

from collections.abc import Callable
from math import inf

import trio

LONGEST_TURN = 0.05
"""Seconds after which the loop turns before the next call of a handler."""


class Turn:
    """The turn of one route. `until` is when it has lasted long enough, on `clock`."""

    __slots__ = ("clock", "until")

    def __init__(self, clock: Callable[[], float]) -> None:
        self.clock: Callable[[], float] = clock
        self.until: float = inf

    def begin(self) -> None:
        """Begin another one: the loop has turned just now."""
        self.until = self.clock() + LONGEST_TURN

    @property
    def over(self) -> bool:
        """Return True if the loop should turn before anything else is done."""
        return self.clock() >= self.until

    async def pass_on(self) -> None:
        """Let the loop turn. Can be cancelled."""
        await trio.lowlevel.checkpoint()
        self.begin()
