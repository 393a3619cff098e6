"""Handlers on asyncio against the same handlers on Trio, through a router on a fake broker.

`python -m tests.performance.test_handler_loops` prints calls a second and processor time for each call, which includes
publishing, routing and a publish to the destination. The nightly test compares the rates of calls that wait 10 ms.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from statistics import median
from typing import Any, NamedTuple

import pytest
import trio

from router_trio import Message, Router, Settings
from router_trio.testing import FakeBroker
from tests.support.measured import needs_full_speed

ROUNDS = 5
WAITS = 0.01
AT_ONCE = (1, 64)
SLEEP: dict[str, Callable[[float], Awaitable[object]]] = {"trio": trio.sleep, "asyncio": asyncio.sleep}


class Figures(NamedTuple):
    """Calls a second, and microseconds of processor time for each."""

    rate: float
    microseconds: float


async def measure(loop: str, seconds: float, at_once: int, count: int) -> Figures:
    """Route messages of a core subject through an async handler that waits for `seconds`, and 0 is one turn."""
    sleep = SLEEP[loop]

    async def handler(message: Message) -> Message:
        await sleep(seconds)
        return message

    broker = FakeBroker()
    settings = Settings(telemetry={"listen": ""}, connections={"main": {"servers": ["nats://fake:4222"]}})
    router = Router(settings, connect=lambda name, own: broker.connect, log=False)
    options: dict[str, Any] = {"loop": loop, "key": "subject", "concurrency": at_once}
    router.route("in.*", to="out.{{wildcard(1)}}", **options)(handler)
    async with router.open() as live:
        (route,) = live.routes
        expected = [0]

        async def send(first: int, last: int) -> None:
            for begin in range(first, last, 1_000):
                for number in range(begin, min(begin + 1_000, last)):
                    broker.publish(f"in.{number % 1_000}", b"x" * 100)
                    expected[0] += 1
                while sum(route.settled.values()) < expected[0]:
                    await trio.sleep(seconds or 0.001)  # no event reports it

        await send(0, at_once)  # opens the loop
        began, used = time.perf_counter(), time.process_time()
        await send(0, count)
        took, used = time.perf_counter() - began, time.process_time() - used
        assert sum(route.routed.values()) == count + at_once
    return Figures(count / took, used / count * 1e6)


def compare(seconds: float, at_once: int, rounds: int = ROUNDS) -> dict[str, Figures]:
    """Return the medians of both loops, which are measured in turns."""
    count = at_once * 50 if seconds else 5_000 if at_once == 1 else 20_000
    found: dict[str, list[Figures]] = {loop: [] for loop in SLEEP}
    for _ in range(rounds):
        for loop, figures in found.items():
            figures.append(trio.run(measure, loop, seconds, at_once, count))
    return {
        loop: Figures(median(one.rate for one in figures), median(one.microseconds for one in figures))
        for loop, figures in found.items()
    }


@needs_full_speed
@pytest.mark.nightly
def test_64_calls_that_wait_keep_four_fifths_of_the_rate_on_trio() -> None:
    """Nine tenths, where nothing else runs."""
    figures = compare(WAITS, 64)
    assert figures["asyncio"].rate > 0.8 * figures["trio"].rate, figures


def main() -> None:
    """Print a table."""
    print(f"{'at once':>7} {'waits':>6}  {'Trio':>10} {'CPU us':>7}  {'asyncio':>10} {'CPU us':>7}  {'rate':>5}")
    for seconds in (WAITS, 0.0):
        for at_once in AT_ONCE:
            figures = compare(seconds, at_once)
            one, other = figures["trio"], figures["asyncio"]
            print(
                f"{at_once:7} {seconds * 1000:3.0f} ms  {one.rate:10,.0f} {one.microseconds:7.1f}"
                f"  {other.rate:10,.0f} {other.microseconds:7.1f}  {other.rate / one.rate:5.2f}"
            )


if __name__ == "__main__":
    main()
