"""An autojump clock that waits for threads."""

from __future__ import annotations

from typing import Any

import pytest
import trio
from trio.testing import MockClock

_IDLE = 0.05
"""Real seconds without events after which the clock jumps although a thread works: the thread may wait for it."""


def waits_for_threads(clock: MockClock, monkeypatch: pytest.MonkeyPatch) -> MockClock:
    """Make a clock jump at once as long as no thread works for a task, and hardly while one does.

    Trio takes a task that waits for a thread for idle. So the clock would jump from timeout to timeout while a busy
    machine starts the thread, and whatever waits for its result at most ten seconds would give up within milliseconds.
    """
    run_sync, at_work = trio.to_thread.run_sync, 0

    async def run_in_thread(*args: Any, **options: Any) -> Any:
        nonlocal at_work
        at_work += 1
        clock.autojump_threshold = _IDLE
        try:
            return await run_sync(*args, **options)
        finally:
            at_work -= 1
            if not at_work:
                clock.autojump_threshold = 0

    clock.autojump_threshold = 0
    monkeypatch.setattr(trio.to_thread, "run_sync", run_in_thread)
    return clock
