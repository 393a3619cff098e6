"""Measure how late the event loop is: a handler that never awaits, or a machine without CPU, delays everyone.

A task that is due has to wait until the others give it its turn. This one is due ten times a second and notes how much
later it ran; it costs nothing for a message. Trio's timer itself is up to a millisecond late.
"""

from __future__ import annotations

import trio

from router_trio.states import Histogram

LAG_BOUNDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
"""Seconds: from the timer's own grain to a loop that hangs."""

MEASURE_INTERVAL = 0.1
"""Seconds between two measurements. A loop that is blocked for less may go unnoticed."""


async def measure_lag(lags: Histogram) -> None:
    """Record into `lags`, in seconds, until cancelled."""
    while True:
        due = trio.current_time() + MEASURE_INTERVAL
        await trio.sleep_until(due)
        lags.record(max(0.0, trio.current_time() - due))
