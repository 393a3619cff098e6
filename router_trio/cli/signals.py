"""Signals that ask a command to end, for commands that run Trio.

Guarantees: from entry on, none of them ends the process by itself or raises KeyboardInterrupt somewhere in the middle,
and a `RouterError` of the job comes out bare, fit to be shown to people.

A signal has one handler in a process, and the last one that was set counts. A library that ignores SIGTERM, or handles
it in its own way, would keep the process from draining: nothing but SIGKILL would end it. A program that opens a router
decides about its own signals; `KeptSignals` restores those of processes that `router-trio` has started.
"""

from __future__ import annotations

import signal
from collections.abc import Awaitable, Callable, Collection, Iterator
from contextlib import nullcontext
from typing import TypeVar

import trio

from router_trio.cli.last_resort import LastResort
from router_trio.errors import RouterError
from router_trio.events import Emit, SignalRestored
from router_trio.routing.tracebacks import place_of

T = TypeVar("T")

OTHERS = (signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)
"""Signals that process managers and terminals also send, which would end the process silently."""

LOOK_EVERY = 0.5
"""Seconds between two checks of the signal handlers. A signal that is ignored meanwhile is lost."""

SAID_EVERY = 60.0
"""Seconds between two log lines about one signal: a handler may take it each time that it is called."""


async def run_with_signals(
    job: Callable[[], Awaitable[T]],
    on_signal: Callable[[int], None],
    on_hangup: Callable[[], None] | None = None,
    last_resort: LastResort | None = None,
    emit: Callable[[], Emit | None] | None = None,
) -> T:
    """Run `job` and return what it returns; call `on_signal(n)` when the n-th signal comes.

    `on_signal` is synchronous. It decides what a signal means: usually it sets an event or cancels a scope of the job.
    `last_resort` ends the process if signals are not heeded. With `on_hangup`, SIGHUP does not count as one: it calls
    that. With `emit`, signals that code in the job takes away are taken back, and that is told: see `KeptSignals`.

    A signal that was ignored when the process started stays ignored (SIGHUP under `nohup`, SIGINT in the background of
    a script), except SIGTERM: without it nothing but SIGKILL would end the process.
    """
    result: list[T] = []
    failure: RouterError | None = None

    async def watch() -> None:
        number = 0
        async for one in signals:
            if one == signal.SIGHUP and on_hangup is not None:
                on_hangup()
                continue
            number += 1
            on_signal(number)
            if last_resort is not None:
                last_resort.heed(number)

    handled = (one for one in (signal.SIGINT, *OTHERS) if signal.getsignal(one) is not signal.SIG_IGN)
    heeded = [signal.SIGTERM, *handled]
    ends = [one for one in heeded if one != signal.SIGHUP or on_hangup is None]
    watching = nullcontext() if last_resort is None else last_resort.watching(ends)
    with trio.open_signal_receiver(*heeded) as signals, watching:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(watch)
            if emit is not None:
                nursery.start_soon(KeptSignals(heeded, emit).keep)
            # An error that leaves the nursery would be wrapped in a group.
            try:
                result.append(await job())
            except RouterError as error:
                failure = error
            nursery.cancel_scope.cancel()
    if failure is not None:
        raise failure
    return result[0]


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
