"""Render expensive pages one at a time, and share each with all requests that wait for it.

However many requests there are, one page is rendered at a time, in pieces. After each piece the event loop is left to
the data plane for `REST` times as long.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

import trio

from router_trio.telemetry.pieces import Pieces, in_pieces

REST = 3.0
"""Pause after a piece, as a multiple of the time that it took: pages get at most a quarter of the loop."""

T = TypeVar("T")


class SharedPage(Generic[T]):
    """A page that is rendered once for all requests that wait for it. `page` renders it.

    Pages with the same `turn` are rendered one at a time, in the order of requests.
    """

    def __init__(self, turn: trio.Lock, page: Callable[[], Pieces[T]]) -> None:
        self._turn = turn
        self._page = page
        self._begun = 0
        self._waiting = 0
        self._made: tuple[int, T] | None = None

    async def get(self) -> T:
        """Return a page whose rendering began after this call, possibly for another request. Can be cancelled."""
        begun = self._begun
        self._waiting += 1
        try:
            async with self._turn:
                if self._made is None or self._made[0] <= begun:
                    self._begun += 1
                    self._made = self._begun, await in_pieces(self._page(), REST)
                return self._made[1]
        finally:
            self._waiting -= 1
            if not self._waiting:
                self._made = None  # may be large, and would be too old for the next request
