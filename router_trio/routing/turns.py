"""Turns: how long a route runs before other tasks run.

Handlers that never await, and expressions, run in the event loop. A fast one costs no task switch for each message. A
slow one must not keep pages, fences and other routes waiting until all messages in hand are handled.
"""

from __future__ import annotations

from collections.abc import Callable
from math import inf

import trio

LONGEST_TURN = 0.05
"""Seconds after which other tasks run before the next call of a handler."""


TURNS_BETWEEN = 16
"""Checkpoints after a long turn: a page needs several, from its connection to its answer."""

BETWEEN_TWO_LOOKS = 64
"""Messages with expressions between two reads of the clock."""

BATCH = 256
"""Messages that a route sends before it checks its destinations for room: less than a usual limit."""


class Turn:
    """The turn of one route. It should end at `until`, on `clock`."""

    __slots__ = ("_was_long", "clock", "until")

    def __init__(self, clock: Callable[[], float]) -> None:
        self.clock: Callable[[], float] = clock
        self.until: float = inf
        self._was_long = False

    def begin(self) -> None:
        """Begin a new turn, since other tasks have just run."""
        self._was_long = False
        self.until = self.clock() + LONGEST_TURN

    @property
    def over(self) -> bool:
        """Return True if other tasks should run before the route continues."""
        if self.clock() < self.until:
            return False
        self._was_long = True
        return True

    async def pass_on(self) -> None:
        """Let other tasks run, with several checkpoints if the turn was found to be `over`. Can be cancelled."""
        for _ in range(TURNS_BETWEEN if self._was_long else 1):
            await trio.lowlevel.checkpoint()
        self.begin()

    async def give_way(self) -> None:
        """Let other tasks run, with several checkpoints, since the turn was long. Can be cancelled."""
        self._was_long = True
        await self.pass_on()
