"""Waiting for plain state that nobody signals."""

from __future__ import annotations

import inspect
from collections.abc import Callable

import trio


async def eventually(
    condition: Callable[[], object], within: float = 10.0, otherwise: Callable[[], object] | None = None
) -> None:
    """Wait until a condition, a function or an async one, holds: at most `within` seconds.

    Raises `AssertionError` with what `otherwise` says. It looks less often when it takes long: minutes on an autojump
    clock cost little.
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
