"""Restores the signal handlers of the process when a route's handler, or a library that it uses, replaces them.

A signal has one handler in a process, and the last one that was set counts. A library that ignores SIGTERM, or handles
it in its own way, would keep the process from draining: nothing but SIGKILL would end it. A program that opens a router
decides about its own signals; this is for processes that `router-trio` has started.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Collection, Iterator

import trio

from router_trio.events import Emit, SignalRestored
from router_trio.routing.raised import place_of

LOOK_EVERY = 0.5
"""Seconds between two checks of the signal handlers. A signal that is ignored meanwhile is lost."""

SAID_EVERY = 60.0
"""Seconds between two log lines about one signal: a handler may take it each time that it is called."""


class KeptSignals:
    """Remember the handlers of these signals, and restore them while `keep` runs.

    `emit` returns where to report that a handler was restored, None before a router has begun.
    """

    def __init__(self, numbers: Collection[int], emit: Callable[[], Emit | None]) -> None:
        self._kept = {number: signal.getsignal(number) for number in numbers}
        self._emit = emit
        self._said: dict[int, float] = {}

    async def keep(self) -> None:
        """Restore replaced handlers, until cancelled. Call it in the main thread: Python lets no other set them."""
        while True:
            await trio.sleep(LOOK_EVERY)
            for number, taken_by in self._take_back():
                self._tell(number, taken_by)

    def _take_back(self) -> Iterator[tuple[int, object]]:
        for number, ours in self._kept.items():
            taken_by = signal.getsignal(number)
            if taken_by is not ours:
                signal.signal(number, ours)
                yield number, taken_by

    def _tell(self, number: int, taken_by: object) -> None:
        emit, now = self._emit(), trio.current_time()
        if emit is None or now - self._said.get(number, -SAID_EVERY) < SAID_EVERY:
            return
        self._said[number] = now
        emit(SignalRestored(at=now, signal=signal.Signals(number).name, taken_by=_name_of(taken_by)))


def _name_of(receiver: object) -> str:
    if isinstance(receiver, signal.Handlers):
        return receiver.name
    if receiver is signal.default_int_handler:
        return "Python's own handler"
    return place_of(receiver) or "code that is not of Python"
