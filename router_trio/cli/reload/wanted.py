"""Reloads that are asked for while a router runs: by a signal, or by a file that has changed."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress

import trio

from router_trio.errors import ConfigurationError
from router_trio.settings import Settings

Watch = Callable[[Callable[[], None]], Awaitable[None]]
"""Calls what it is given each time that the configuration has changed, until cancelled."""


class Wanted:
    """That a reload is wanted, said at any time: once, however often it was said since the last one began."""

    def __init__(self) -> None:
        self._said = trio.Event()

    def say(self) -> None:
        """Reload, as soon as may be."""
        self._said.set()

    async def until_said(self) -> None:
        """Return when it was said, and forget that."""
        await self._said.wait()
        self._said = trio.Event()


async def reload_when_wanted(
    reload: Callable[[Callable[[], Settings]], Awaitable[object]],
    load: Callable[[], Settings],
    wanted: Wanted,
    watch: Watch | None,
    early: Sequence[int],
) -> None:
    """Reload, one at a time, what `load` reads: when it is wanted, and when `watch` says so. Until cancelled.

    `early` are the SIGHUPs that came before anybody could reload.
    """
    if early:
        wanted.say()
    async with trio.open_nursery() as nursery:
        if watch is not None:
            nursery.start_soon(watch, wanted.say)
        while True:
            await wanted.until_said()
            with suppress(ConfigurationError):  # it is logged, and nothing has changed
                await reload(load)
