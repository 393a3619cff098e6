"""Signals that ask a command to end, for commands that run Trio.

Guarantees: from entry on, none of them ends the process by itself or raises KeyboardInterrupt somewhere in the middle,
and a `RouterError` of the job comes out bare, fit to be shown to people.
"""

from __future__ import annotations

import signal
from collections.abc import Awaitable, Callable
from contextlib import nullcontext
from typing import TypeVar

import trio

from router_trio.cli.service.kept_signals import KeptSignals
from router_trio.cli.service.last_resort import LastResort
from router_trio.errors import RouterError
from router_trio.events import Emit

T = TypeVar("T")

OTHERS = (signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)
"""Signals that process managers and terminals also send, which would end the process silently."""


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
