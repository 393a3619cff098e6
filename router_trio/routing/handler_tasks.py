"""The tasks in which the handler of a route is called: as many calls at a time as its `concurrency` says.

Trio ties what a handler waits for to the task that has called it. So it is not the call that moves to another task when
it blocks, but the work of the route: one task leads, which waits for messages and calls the handler. When a call
blocks, the task stays with it, and another one leads. A task whose call is over begins with what waits already, if
anything does, before it waits for the lead. A handler that never blocks costs no switch of tasks.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import trio

Lead = Callable[[], Awaitable[Awaitable[None]]]
"""Waits for messages and calls the handler until it blocks. Returns what to await then, in the same task."""

Begin = Callable[[], Awaitable[None] | None]
"""Route messages that have arrived, without waiting. Return what a call blocks on, None if none does."""


class HandlerTasks:
    """The tasks of one route, at most `most`. `run` is their lifetime."""

    def __init__(self, most: int, lead: Lead, begin: Begin) -> None:
        self._most = most
        self._lead = lead
        self._begin = begin
        self._waits = 0
        self._led = True
        self._idle = trio.lowlevel.ParkingLot()

    async def run(self) -> None:
        """Lead, and wait for handlers, until cancelled."""
        async with trio.open_nursery() as nursery:
            await self._work(nursery)

    async def _work(self, nursery: trio.Nursery) -> None:
        """Lead until a call blocks; lead again after that call, unless another task does."""
        while True:
            blocked: Awaitable[None] | None = await self._lead()
            self._waits += 1
            self._pass_lead(nursery)
            while blocked is not None:
                await blocked
                blocked = self._begin()
            self._waits -= 1
            if self._led:
                await self._idle.park()
            self._led = True

    def _pass_lead(self, nursery: trio.Nursery) -> None:
        if self._waits == self._most:
            self._led = False  # whose call is over first
        elif self._idle:
            self._idle.unpark()
        else:
            nursery.start_soon(self._work, nursery)
