"""Start, reloads and comparisons of settings grow as the number of routes does, not faster, and an idle route is small.

Instructions are counted: their number does not depend on the load of the machine. Memory is that of Python's allocator.
"""

from __future__ import annotations

import gc
import tracemalloc
from collections.abc import Callable
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from router_trio import Settings
from router_trio.router import reload_queue
from router_trio.routing.route_plans import compile_routes
from router_trio.settings.reload.difference import difference
from tests.performance.instructions import instructions
from tests.support.compiled import COMPILED
from tests.support.scheduling import deterministic
from tests.support.world import core, world

FEW, TIMES = 50, 4
GROWTH = 1.2 * TIMES
"""The largest factor by which instructions may grow from n to 4n routes."""

ORDERS = 4
"""Orders of tasks that are tried: a replaced route is counted twice if it ends only after it is looked at."""

OF_A_ROUTE = 18_200 if COMPILED else 17_000
"""Bytes that an idle core route may take, with its settings and its fake server.

It takes 16,700 with Python 3.11, and 17,900 compiled.
"""


def routes(count: int, changed: Callable[[int], bool] = lambda number: False) -> list[dict[str, Any]]:
    """Return core routes; those that are `changed` send to another subject."""
    return [core(f"in.{n}.*", f"new.{n}" if changed(n) else f"out.{n}", name=f"r{n}") for n in range(count)]


def settings_of(routes: list[dict[str, Any]]) -> Settings:
    """Return settings with these routes."""
    return Settings(connections={"main": {"servers": ["nats://127.0.0.1:4222"]}}, routes=routes)


def opened(count: int, *reloads: list[dict[str, Any]]) -> int:
    """Return the instructions of a router's start, of these reloads, and of its end."""

    async def run() -> None:
        async with world(routes(count)) as w:
            for one in reloads:
                await w.live.reload(w.configuration(*one))

    def counted(order: int) -> int:
        with deterministic(f"order {order}"):
            return instructions(lambda: trio.run(run, clock=MockClock(autojump_threshold=0)))

    return max(counted(order) for order in range(ORDERS))


def reloaded(count: int, *reloads: list[dict[str, Any]]) -> int:
    """Return the instructions of reloads alone, with those of their settings."""
    return opened(count, *reloads) - opened(count)


def compared(count: int) -> int:
    """Return the instructions to compare two configurations, which differ in one route."""
    one, other = settings_of(routes(count)), settings_of(routes(count, lambda n: n == count // 2))
    return instructions(lambda: difference(one, other))


PHASES: dict[str, Callable[[int], int]] = {
    "settings": lambda count: instructions(lambda: settings_of(routes(count))),
    "hash of the settings": lambda count: instructions(lambda: settings_of(routes(count)).content_hash),
    "difference": compared,
    "plans": lambda count: instructions(lambda: compile_routes(settings_of(routes(count)))),
    "start and end": opened,
    "reload of one route": lambda count: reloaded(count, routes(count, lambda n: n == count // 2)),
    "reload of all routes": lambda count: reloaded(count, routes(count, lambda n: True)),
    "reload that removes all routes and adds them again": lambda count: reloaded(count, [], routes(count)),
}


@pytest.mark.parametrize("phase", PHASES)
def test_a_phase_costs_no_more_a_route_with_many_routes_than_with_few(
    phase: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Not in a thread, which is not counted, and while which the clock jumps from timer to timer.
    monkeypatch.setattr(reload_queue, "FEW_ROUTES", TIMES * FEW)
    PHASES[phase](2)  # imports what is needed
    few, many = (PHASES[phase](count) for count in (FEW, TIMES * FEW))
    assert many < GROWTH * few, (
        f"{few / FEW:.0f} instructions a route for {FEW}, {many / FEW / TIMES:.0f} for {TIMES} times as many"
    )


def test_an_idle_route_takes_little_memory() -> None:
    async def taken(count: int) -> int:
        gc.collect()
        before = tracemalloc.get_traced_memory()[0]
        async with world(routes(count)):
            await trio.sleep(1)
            gc.collect()
            return tracemalloc.get_traced_memory()[0] - before

    async def run() -> float:
        await taken(FEW)  # imports what is needed
        tracemalloc.start(1)
        try:
            return (await taken(5 * FEW) - await taken(FEW)) / (4 * FEW)
        finally:
            tracemalloc.stop()

    taken_by_one = trio.run(run, clock=MockClock(autojump_threshold=0))
    assert taken_by_one < OF_A_ROUTE, f"{taken_by_one:.0f} bytes"
