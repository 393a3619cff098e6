"""Measure the lag of the event loop. A handler that does not await, or a machine without spare CPU, delays every task.

A task sleeps until a given time, ten times a second, and records how much later it was resumed. That costs nothing per
message. Trio's timer itself is up to a millisecond late.
"""

from __future__ import annotations

import trio

from router_trio.states import Histogram

LAG_BOUNDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
"""Bucket bounds in seconds, from the resolution of the timer to a hanging event loop."""

MEASURE_INTERVAL = 0.1
"""Seconds between two measurements. A blockage shorter than this may be missed."""


async def measure_lag(lags: Histogram) -> None:
    """Record the lag in seconds into `lags`, until cancelled."""
    while True:
        due = trio.current_time() + MEASURE_INTERVAL
        await trio.sleep_until(due)
        lags.record(max(0.0, trio.current_time() - due))
