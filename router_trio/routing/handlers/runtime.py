"""The runtime of handlers: the asyncio loop, if one of them runs there, and the lifespan of the router."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from contextvars import Context, copy_context

import trio

from router_trio.connection.platform import Platform
from router_trio.routing.handlers.asyncio_calls import CALLER
from router_trio.routing.handlers.asyncio_loop import AsyncioLoop, Watching
from router_trio.routing.handlers.lifespan import Lifespan, LifespanFunction
from router_trio.settings.sections import HandlerLoop, RouterSettings


class HandlerRuntime:
    """The runtime of the handlers of one router, which are called while `lasting` and `entered` are entered."""

    def __init__(self, settings: RouterSettings, platform: Platform, lifespan: LifespanFunction | None = None) -> None:
        """`lifespan` is the function that the settings name, or one from code."""
        self.loop: HandlerLoop = settings.loop
        """Where async handlers run whose routes do not name a loop. A reload does not change it."""
        self.context: Context = copy_context()
        """The context of the program, and while `entered` is, with the variables that the lifespan has set.

        Tasks that call handlers run in copies of it, and each call in a copy of theirs.
        """
        self.asyncio: AsyncioLoop = AsyncioLoop(platform.open_asyncio_loop, is_shared=platform.shares_asyncio_loop)
        self.lifespan: Lifespan | None = None
        if lifespan is not None:
            name = settings.lifespan or f"{lifespan.__module__}:{getattr(lifespan, '__qualname__', '')}"
            self.lifespan = Lifespan(lifespan, name, self.asyncio if settings.loop == "asyncio" else None)

    @asynccontextmanager
    async def lasting(
        self, left_behind: Callable[[Sequence[str]], object] = lambda places: None, watching: Watching | None = None
    ) -> AsyncIterator[None]:
        """Provide the asyncio loop while this is entered, also when cancelled.

        `left_behind` and `watching`: see `AsyncioLoop.lasting`.
        """
        async with self.asyncio.lasting(left_behind, watching):
            yield

    @asynccontextmanager
    async def entered(self, stop: trio.Event | None, leave_by: Callable[[], float]) -> AsyncIterator[bool]:
        """Enter the lifespan, if there is one: see `Lifespan.entered`."""
        if self.lifespan is None:
            yield True
            return
        async with self.lifespan.entered(stop, leave_by) as is_entered:
            if self.lifespan.context is not None:
                self.context.run(_set_all, self.lifespan.context)
            yield is_entered

    @asynccontextmanager
    async def opened(self, settings: RouterSettings) -> AsyncIterator[None]:
        """Provide loop and lifespan for a command, whose task calls handlers. Raises `LifespanError`."""
        async with self.lasting(), self.entered(None, lambda: trio.current_time() + settings.shutdown_timeout):
            _set_all(self.context)
            yield


def _set_all(context: Context) -> None:
    """Set the variables of another context in this one."""
    for variable, value in context.items():
        if variable is not CALLER:  # it marks tasks that calls create, and not those of the router
            variable.set(value)
