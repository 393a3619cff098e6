"""Make expensive pages one at a time, and share each with all requests that wait for it.

Whatever is asked for, and by however many, the event loop is held for one page at a time, and is left to the data plane
for `REST` times as long before the next one.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from math import inf
from typing import Generic, TypeVar

import trio

REST = 3.0
"""The loop is free of pages for this many times what the last one took: pages get a quarter of it at most."""

T = TypeVar("T")


class Rendering:
    """Take turns in making pages, in the order of asking."""

    def __init__(self) -> None:
        self.turn: trio.Lock = trio.Lock()
        self._not_before = -inf

    async def make(self, page: Callable[[], T]) -> T:
        """Make a page when the loop has had its rest. Call it in `turn` only."""
        # A checkpoint even if there is nothing to wait for.
        await trio.sleep_until(max(self._not_before, trio.current_time()))
        began_at = time.perf_counter()
        try:
            return page()
        finally:
            self._not_before = trio.current_time() + REST * (time.perf_counter() - began_at)


class SharedPage(Generic[T]):
    """A page that is made for all who wait for it. `page` makes it, without waiting for anything."""

    def __init__(self, rendering: Rendering, page: Callable[[], T]) -> None:
        self._rendering = rendering
        self._page = page
        self._begun = 0
        self._made: tuple[int, T] | None = None

    async def get(self) -> T:
        """Return the page as it was made after this call, whoever it was made for. Can be cancelled."""
        begun = self._begun
        async with self._rendering.turn:
            if self._made is None or self._made[0] <= begun:
                self._made = await self._rendering.make(self._numbered)
            return self._made[1]

    def _numbered(self) -> tuple[int, T]:
        self._begun += 1
        return self._begun, self._page()
