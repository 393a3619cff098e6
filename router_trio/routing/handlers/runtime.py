"""The runtime of handlers: the asyncio loop, if one of them runs there."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

from router_trio.connection.platform import Platform
from router_trio.routing.handlers.asyncio_loop import AsyncioLoop
from router_trio.settings.sections import HandlerLoop, RouterSettings


class HandlerRuntime:
    """The runtime of the handlers of one router, which are called while `lasting` is entered."""

    def __init__(self, settings: RouterSettings, platform: Platform) -> None:
        self.loop: HandlerLoop = settings.loop
        """Where async handlers run whose routes do not name a loop. A reload does not change it."""
        self.asyncio: AsyncioLoop = AsyncioLoop(platform.open_asyncio_loop, is_shared=platform.shares_asyncio_loop)

    @asynccontextmanager
    async def lasting(
        self, left_behind: Callable[[Sequence[str]], object] = lambda places: None
    ) -> AsyncIterator[None]:
        """Provide the runtime while this is entered, even if cancelled. `left_behind`: see `AsyncioLoop.lasting`."""
        async with self.asyncio.lasting(left_behind):
            yield
