"""Render expensive pages one at a time, and share each with all requests that wait for it.

However many requests there are, the event loop is blocked for one page at a time, and is then left to the data plane
for `REST` times as long before the next page.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from math import inf
from typing import Generic, TypeVar

import trio

REST = 3.0
"""Pause after a page, as a multiple of the time that it took to render: pages get at most a quarter of the loop."""

T = TypeVar("T")


class Rendering:
    """Takes turns rendering pages, in the order of requests."""

    def __init__(self) -> None:
        self.turn: trio.Lock = trio.Lock()
        self._not_before = -inf

    async def make(self, page: Callable[[], T]) -> T:
        """Render a page after the pause that the last one requires. Call it only while holding `turn`."""
        # A checkpoint even if the pause is over.
        await trio.sleep_until(max(self._not_before, trio.current_time()))
        began_at = time.perf_counter()
        try:
            return page()
        finally:
            self._not_before = trio.current_time() + REST * (time.perf_counter() - began_at)


class SharedPage(Generic[T]):
    """A page that is rendered once for all requests that wait for it. `page` renders it, synchronously."""

    def __init__(self, rendering: Rendering, page: Callable[[], T]) -> None:
        self._rendering = rendering
        self._page = page
        self._begun = 0
        self._made: tuple[int, T] | None = None

    async def get(self) -> T:
        """Return a page whose rendering began after this call, possibly for another request. Can be cancelled."""
        begun = self._begun
        async with self._rendering.turn:
            if self._made is None or self._made[0] <= begun:
                self._made = await self._rendering.make(self._numbered)
            return self._made[1]

    def _numbered(self) -> tuple[int, T]:
        self._begun += 1
        return self._begun, self._page()
