"""SIGINT and SIGTERM for commands that run Trio.

Guarantees: from entry on, no signal raises KeyboardInterrupt somewhere in the middle, and a `RouterError` of the job
comes out bare, fit to be shown to people.
"""

from __future__ import annotations

import signal
from collections.abc import Awaitable, Callable
from typing import TypeVar

import trio

from router_trio.errors import RouterError

T = TypeVar("T")


async def run_with_signals(job: Callable[[], Awaitable[T]], on_signal: Callable[[int], None]) -> T:
    """Run `job` and return what it returns; call `on_signal(n)` when the n-th signal comes.

    `on_signal` is synchronous. It decides what a signal means: usually it sets an event or cancels a scope of the job.
    """
    result: list[T] = []
    failure: RouterError | None = None

    async def watch() -> None:
        number = 0
        async for _ in signals:
            number += 1
            on_signal(number)

    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(watch)
            # An error that leaves the nursery would be wrapped in a group.
            try:
                result.append(await job())
            except RouterError as error:
                failure = error
            nursery.cancel_scope.cancel()
    if failure is not None:
        raise failure
    return result[0]
