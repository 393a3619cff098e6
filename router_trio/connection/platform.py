"""Provide what a router takes from its platform: the wall clock and random bits.

Given to `Router` and handed down, never looked up: a simulation gives its own, and each of its runs is like the last.
The monotonic clock is not here, since it is Trio's.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random


@dataclass(frozen=True, slots=True)
class Platform:
    """`wall_clock` gives Unix time in seconds; `random` is for jitter, sampling and the mapping function `random`.

    `token_hex(n)` gives `n` bytes that nobody can guess, as hexadecimal digits.
    `stopwatch` gives seconds that pass while code runs, which Trio's clock in a test does not.
    `watch_loop` is false where the loop must have no thread beside it.
    """

    wall_clock: Callable[[], float] = time.time
    random: Random = field(default_factory=Random)
    token_hex: Callable[[int], str] = secrets.token_hex
    stopwatch: Callable[[], float] = time.perf_counter
    watch_loop: bool = True


REAL_PLATFORM = Platform()
"""The machine's clock and its entropy."""
