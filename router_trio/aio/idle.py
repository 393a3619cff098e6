"""Lets an idle guest wait for I/O in the selector of its host loop, instead of in a thread.

Guest mode waits for I/O in a thread. Each wait then costs two switches of threads, and while the host loop is busy the
thread gets the interpreter only every `sys.getswitchinterval()`. So the clock of this guest never lets Trio wait. The
next turn of an idle Trio is kept back instead, until its selector, which the host loop watches, is ready.

Trio has no interface for that: a version whose internals differ waits in a thread.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from math import inf
from typing import Any

import trio

Turn = Callable[[], object]
"""Runs the tasks of Trio that can run, and looks for I/O without waiting."""


class Idle(trio.abc.Clock):
    """The clock of a guest, which also keeps its next turn while it is idle."""

    def __init__(self, loop: asyncio.AbstractEventLoop, run: Callable[[Turn], object]) -> None:
        """`run` runs a turn that was kept."""
        self._loop = loop
        self._run = run
        self._until = inf
        self._state: Any = None
        self._watched: int | None = None
        self._kept: Turn | None = None
        self._timer: asyncio.TimerHandle | None = None

    @property
    def needs_thread(self) -> bool:
        """True if Trio waits in a thread."""
        return self._watched is None

    def watch(self, turn: Turn) -> None:
        """Let the host loop watch the selector of Trio, whose first turn is given."""
        try:
            state: Any = turn.__self__  # type: ignore[attr-defined]
            selector = getattr(state.runner.io_manager, "_epoll", None) or state.runner.io_manager._kqueue
            _ = state.runner.runq, state.runner.waiting_for_idle, state.unrolled_run_next_send.value
            assert state.runner.guest_tick_scheduled is True
            self._loop.add_reader(selector.fileno(), self._ready)
        except (AttributeError, AssertionError, NotImplementedError):
            return
        self._state = state
        self._watched = selector.fileno()

    def keep(self, turn: Turn) -> bool:
        """Keep a turn until there is something to do. Returns False if there is now, or if Trio waits in a thread."""
        state = self._state
        # The outcome of looking for I/O may also be an error, which the turn raises.
        if self._watched is None or state.runner.runq or getattr(state.unrolled_run_next_send, "value", True):
            return False
        self._kept = turn
        # Code of the host may schedule a task of Trio, or change a deadline. Then Trio makes its selector ready.
        state.runner.guest_tick_scheduled = False
        if self._until < inf:
            self._timer = self._loop.call_later(self._until - self.current_time(), self._ready)
        return True

    def close(self) -> None:
        """Watch no longer. Trio waits in a thread until its end."""
        if self._watched is not None:
            self._loop.remove_reader(self._watched)
            self._watched = None

    def _ready(self) -> None:
        turn, self._kept = self._kept, None
        if turn is None:
            return  # the next turn is scheduled already
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._state.runner.guest_tick_scheduled = True
        self._run(turn)

    # --- the clock ---

    def start_clock(self) -> None:
        """Do nothing: the clock of the machine runs."""

    def current_time(self) -> float:
        """Return seconds."""
        return time.perf_counter()

    def deadline_to_sleep_time(self, deadline: float) -> float:
        """Note until when Trio may be idle, and return the seconds that it may wait by itself."""
        self._until = deadline
        if self._watched is None or self._state.runner.waiting_for_idle:
            return deadline - self.current_time()
        return 0.0
