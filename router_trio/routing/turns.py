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


TURNS_BETWEEN = 16
"""Turns that the loop has after a long one: a page takes several, from the connection to the answer."""

BETWEEN_TWO_LOOKS = 64
"""Messages with expressions between two looks at the clock."""

BATCH = 256
"""Messages that a route sends in one go, before it looks for room at its destinations: less than a usual limit."""


class Turn:
    """The turn of one route. `until` is when it has lasted long enough, on `clock`."""

    __slots__ = ("_was_long", "clock", "until")

    def __init__(self, clock: Callable[[], float]) -> None:
        self.clock: Callable[[], float] = clock
        self.until: float = inf
        self._was_long = False

    def begin(self) -> None:
        """Begin another one: the loop has turned just now."""
        self._was_long = False
        self.until = self.clock() + LONGEST_TURN

    @property
    def over(self) -> bool:
        """Return True if the loop should turn before anything else is done."""
        if self.clock() < self.until:
            return False
        self._was_long = True
        return True

    async def pass_on(self) -> None:
        """Let the loop turn: several times if the turn was found to be `over`. Can be cancelled."""
        for _ in range(TURNS_BETWEEN if self._was_long else 1):
            await trio.lowlevel.checkpoint()
        self.begin()

    async def give_way(self) -> None:
        """Let the loop turn several times: the turn was long."""
        self._was_long = True
        await self.pass_on()
