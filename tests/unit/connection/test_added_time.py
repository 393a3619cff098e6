"""How much longer than its server a router is away, for outages of drawn lengths, with and without the limit of delays.

`python -m tests.unit.connection.test_added_time` prints the tables of docs/explanation/connections.md.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from math import sqrt
from pathlib import Path
from statistics import median, quantiles

import pytest

from router_trio.connection.backoff import ReconnectPlan, full_jitter
from router_trio.settings import ConnectionSettings

OUTAGES = (1, 10, 60, 600)
"""Seconds."""

ROUTERS = 1000

BUCKET = 0.1
"""Seconds."""

PAGE = Path("docs/explanation/connections.md")

DEFAULTS = ConnectionSettings()

Returns = Callable[[float, random.Random], float]


def by_the_plan(outage: float, dice: random.Random) -> float:
    """Return when a router is back whose only server is away from 0 to `outage`, and refuses attempts at once."""
    plan = ReconnectPlan(
        ["nats://a:4222"],
        attempts=DEFAULTS.reconnect_attempts,
        base=DEFAULTS.reconnect_delay,
        maximum=DEFAULTS.max_reconnect_delay,
        stable_after=DEFAULTS.liveness_interval,
        uniform=dice.uniform,
    )
    plan.next(-3600.0)
    plan.connected("nats://a:4222")
    plan.lost(3600.0, 0.0)
    now = 0.0
    while True:
        now += plan.next(now).delay
        if now >= outage:
            return now
        if plan.exhausted:
            plan.new_round()


def by_backoff_alone(outage: float, dice: random.Random) -> float:
    """Return the same for delays that only double."""
    now, step = 0.0, 0
    while now < outage:
        if step == DEFAULTS.reconnect_attempts:
            step = 100  # the next round has the longest delay
        now += full_jitter(step, DEFAULTS.reconnect_delay, DEFAULTS.max_reconnect_delay, dice.uniform)
        step += 1
    return now


def added(returns: Returns, outage: float) -> list[float]:
    """Return the seconds by which each router was away longer than its server."""
    dice = random.Random(f"outage of {outage} s")
    return [returns(outage, dice) - outage for _ in range(ROUTERS)]


def herd(found: list[float]) -> tuple[int, float]:
    """Return the highest number of routers that are back within one bucket, and its ratio to the mean."""
    counts = Counter(int(each / BUCKET) for each in found)
    peak = max(counts.values())
    return peak, peak / (ROUTERS / (max(counts) + 1))


def figures(returns: Returns, outage: float) -> tuple[float, float]:
    """Return the median and the 99th percentile of the seconds that were added."""
    found = added(returns, outage)
    return median(found), quantiles(found, n=100)[98]


def table() -> list[str]:
    """Return the rows of the page."""
    rows = []
    for outage in OUTAGES:
        numbers = (*figures(by_backoff_alone, outage), *figures(by_the_plan, outage))
        rows.append(f"| {outage} s | " + " | ".join(f"{number:.1f} s" for number in numbers) + " |")
    return rows


def herds() -> list[str]:
    """Return the rows of the page about many routers."""
    rows = []
    for outage in (10, 60):
        cells = (herd(added(returns, outage)) for returns in (by_backoff_alone, by_the_plan))
        rows.append(f"| {outage} s | " + " | ".join(f"{peak} | {ratio:.1f}" for peak, ratio in cells) + " |")
    return rows


@pytest.mark.parametrize("outage", OUTAGES)
def test_a_router_is_away_for_at_most_half_of_the_outage_longer(outage: int) -> None:
    found = added(by_the_plan, outage)
    assert min(found) >= 0
    assert max(found) <= min(DEFAULTS.max_reconnect_delay, max(1.0, outage / 2))


@pytest.mark.parametrize("outage", [10, 60])
def test_routers_that_lost_one_server_are_not_back_at_the_same_moment(outage: int) -> None:
    peak, _ = herd(added(by_the_plan, outage))
    # A delay that the return of the server meets began after two thirds of the outage, so its limit is a third of it or
    # more. The mean of such delays is half of that.
    expected = ROUTERS * BUCKET / (outage / 6)
    assert peak <= expected + 5 * sqrt(expected)


def test_the_page_has_the_figures() -> None:
    page = PAGE.read_text().splitlines()
    assert [row for row in (*table(), *herds()) if row not in page] == []


if __name__ == "__main__":
    print("\n".join((*table(), "", *herds())))
