"""Provides the parts of the platform that a router uses: the wall clock and random bits.

Passed to `Router` and from there downwards, never looked up. A simulation passes its own, and so can repeat a run
exactly.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from random import Random
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from asyncio import AbstractEventLoop

OpenLoop = Callable[[], "AbstractAsyncContextManager[AbstractEventLoop]"]
"""Opens an asyncio loop that runs while the context is entered, in any thread. It is entered and left in one Trio task.
"""


@dataclass(frozen=True, slots=True)
class Platform:
    """`wall_clock` returns Unix time in seconds; `random` is for jitter, sampling and the mapping function `random`.

    `token_hex(n)` returns `n` unguessable bytes as hexadecimal digits. `stopwatch` returns seconds that pass while code
    runs, which is not true of Trio's clock in a test. `watch_loop` is False where no thread may run beside the event
    loop.

    `open_asyncio_loop` opens the loop on which async handlers with `loop = "asyncio"` run; None opens one in a thread
    of its own. `shares_asyncio_loop`: other code has tasks on that loop too, which are left alone. Python before 3.12
    can't distinguish these from tasks that handlers leave behind, which are then not cancelled either.
    """

    wall_clock: Callable[[], float] = time.time
    random: Random = field(default_factory=Random)
    token_hex: Callable[[int], str] = secrets.token_hex
    stopwatch: Callable[[], float] = time.perf_counter
    watch_loop: bool = True
    open_asyncio_loop: OpenLoop | None = None
    shares_asyncio_loop: bool = False


REAL_PLATFORM = Platform()
"""The clock and the entropy of this machine."""
