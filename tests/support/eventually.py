"""Waiting for plain state that has no event."""

from __future__ import annotations

import inspect
from collections.abc import Callable

import trio


async def eventually(
    condition: Callable[[], object], within: float = 10.0, otherwise: Callable[[], object] | None = None
) -> None:
    """Wait at most `within` seconds until a condition, a function or an async one, holds.

    Raises `AssertionError` with the text that `otherwise` returns. Polls less often as time passes: minutes on an
    autojump clock cost little.
    """
    began = trio.current_time()
    with trio.move_on_after(within):
        while True:
            holds = condition()
            if inspect.isawaitable(holds):
                holds = await holds
            if holds:
                return
            await trio.sleep(min(max(0.005, (trio.current_time() - began) / 100), 0.1))
    raise AssertionError(f"not within {within:g} s" if otherwise is None else otherwise())
