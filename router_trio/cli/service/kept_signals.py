"""Keeps the signals of the process: what code of a handler, or a library of its, takes away is taken back.

A signal has one receiver in a process, and whoever asks last has it. A library that ignores SIGTERM, or has work of its
own to do on it, would keep the process from draining: nothing but SIGKILL would end it. A program that opens a router
has its signals to itself; this is for processes that `router-trio` has started.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Collection, Iterator

import trio

from router_trio.events import Emit, SignalRestored
from router_trio.routing.raised import place_of

LOOK_EVERY = 0.5
"""Seconds between two looks at who has the signals. One that is ignored meanwhile is lost."""

SAID_EVERY = 60.0
"""Seconds between two log lines about one signal: a handler may take it each time that it is called."""


class KeptSignals:
    """Who has these signals when this is made, and is to have them. `keep` runs beside the rest.

    `emit` is asked for each time that there is something to tell: until a router has begun there is none.
    """

    def __init__(self, numbers: Collection[int], emit: Callable[[], Emit | None]) -> None:
        self._kept = {number: signal.getsignal(number) for number in numbers}
        self._emit = emit
        self._said: dict[int, float] = {}

    async def keep(self) -> None:
        """Take back what was taken, until cancelled. In the main thread: no other one may set who has a signal."""
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
