"""The lag of the event loop: the delay of a due task, on a clock that the test sets."""

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from router_trio.states import Histogram
from router_trio.telemetry.metrics.lag import LAG_BOUNDS, MEASURE_INTERVAL, measure_lag


async def test_an_idle_event_loop_has_no_lag(autojump_clock: MockClock) -> None:
    lags = Histogram(LAG_BOUNDS)
    with trio.move_on_after(MEASURE_INTERVAL * 10.5):
        await measure_lag(lags)
    assert lags.counts[0] == 10
    assert lags.total == pytest.approx(0, abs=1e-9)


async def test_a_blocked_event_loop_shows_as_lag(mock_clock: MockClock) -> None:
    lags = Histogram(LAG_BOUNDS)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(measure_lag, lags)
        await wait_all_tasks_blocked()
        mock_clock.jump(MEASURE_INTERVAL + 0.7)  # as if one task had blocked the loop for that long
        await wait_all_tasks_blocked()
        assert lags.total == pytest.approx(0.7)
        assert lags.counts[LAG_BOUNDS.index(1.0)] == 1
        mock_clock.jump(MEASURE_INTERVAL)
        await wait_all_tasks_blocked()
        assert sum(lags.counts) == 2
        assert lags.total == pytest.approx(0.7)
        nursery.cancel_scope.cancel()
