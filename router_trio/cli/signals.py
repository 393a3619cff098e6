"""Handle the signals that stop a command which runs Trio.

Guarantees: once `run_with_signals` has begun, none of these signals ends the process directly or raises
KeyboardInterrupt at an arbitrary point. A `RouterError` of the job is raised without an exception group around it.

A process has one handler for each signal, the one that was set last. A handler or a library that ignores SIGTERM, or
handles it differently, would keep the process from draining, so that only SIGKILL would end it. `KeptSignals` therefore
restores the signal handlers of processes that `router-trio` has started. A program that opens a router decides about
its own signals.
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
from router_trio.routing.handlers.tracebacks import place_of

T = TypeVar("T")

OTHERS = (signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)
"""Signals of process managers and terminals that would end the process silently."""

LOOK_EVERY = 0.5
"""Seconds between two checks of the signal handlers. A signal that is ignored in between is lost."""

REPORT_EVERY = 60.0
"""Seconds between two log lines about one signal: a handler may replace its signal handler on each call."""


async def run_with_signals(
    job: Callable[[], Awaitable[T]],
    on_signal: Callable[[int], None],
    on_hangup: Callable[[], None] | None = None,
    last_resort: LastResort | None = None,
    emit: Callable[[], Emit | None] | None = None,
) -> T:
    """Run `job` and return its result; call `on_signal(n)` on the n-th signal.

    `on_signal` is synchronous and decides what a signal means: usually it sets an event or cancels a scope of the job.
    With `on_hangup`, SIGHUP is not counted but calls `on_hangup`. `last_resort` ends the process if it does not respond
    to signals. With `emit`, signal handlers that code in the job replaces are restored and reported: see `KeptSignals`.

    A signal that was ignored when the process started stays ignored (SIGHUP under `nohup`, SIGINT in the background of
    a script), except SIGTERM: without it, only SIGKILL would end the process.
    """
    result: list[T] = []
    failure: RouterError | None = None

    async def watch() -> None:
        number = 0
        async for received in signals:
            if received == signal.SIGHUP and on_hangup is not None:
                on_hangup()
                continue
            number += 1
            on_signal(number)
            if last_resort is not None:
                last_resort.handled(number)

    not_ignored = (number for number in (signal.SIGINT, *OTHERS) if signal.getsignal(number) is not signal.SIG_IGN)
    handled = [signal.SIGTERM, *not_ignored]
    stopping = [number for number in handled if number != signal.SIGHUP or on_hangup is None]
    watching = nullcontext() if last_resort is None else last_resort.watching(stopping)
    with trio.open_signal_receiver(*handled) as signals, watching:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(watch)
            if emit is not None:
                nursery.start_soon(KeptSignals(handled, emit).keep)
            # An error that leaves the nursery would be wrapped in an exception group.
            try:
                result.append(await job())
            except RouterError as error:
                failure = error
            nursery.cancel_scope.cancel()
    if failure is not None:
        raise failure
    return result[0]


class KeptSignals:
    """Remembers the handlers of these signals, and restores them while `keep` runs.

    `emit` returns the function that reports a restored handler as an event, or None before a router has been opened.
    """

    def __init__(self, numbers: Collection[int], emit: Callable[[], Emit | None]) -> None:
        self._kept = {number: signal.getsignal(number) for number in numbers}
        self._emit = emit
        self._reported: dict[int, float] = {}

    async def keep(self) -> None:
        """Restore replaced handlers until cancelled. Call it in the main thread: Python allows no other to set them."""
        while True:
            await trio.sleep(LOOK_EVERY)
            for number, taken_by in self._restore():
                self._report(number, taken_by)

    def _restore(self) -> Iterator[tuple[int, object]]:
        for number, ours in self._kept.items():
            taken_by = signal.getsignal(number)
            if taken_by is not ours:
                signal.signal(number, ours)
                yield number, taken_by

    def _report(self, number: int, taken_by: object) -> None:
        emit, now = self._emit(), trio.current_time()
        if emit is None or now - self._reported.get(number, -REPORT_EVERY) < REPORT_EVERY:
            return
        self._reported[number] = now
        emit(SignalRestored(at=now, signal=signal.Signals(number).name, taken_by=_name_of(taken_by)))


def _name_of(receiver: object) -> str:
    if isinstance(receiver, signal.Handlers):
        return receiver.name
    if receiver is signal.default_int_handler:
        return "Python's own handler"
    return place_of(receiver) or "code that is not Python"
