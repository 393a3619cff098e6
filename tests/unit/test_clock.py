"""The clock that the other tests rely on."""

from __future__ import annotations

import time

import trio
from trio.testing import MockClock


async def test_a_slow_thread_is_awaited_although_the_clock_jumps(autojump_clock: MockClock) -> None:
    done = False

    async def work() -> None:
        nonlocal done
        await trio.to_thread.run_sync(time.sleep, 0.2)
        done = True

    async with trio.open_nursery() as nursery:
        nursery.start_soon(work)
        for _ in range(1000):
            if done:
                break
            await trio.sleep(0.01)
        assert done
        await trio.sleep(50_000)  # it jumps again once no thread works


async def test_a_thread_that_waits_for_the_clock_does_not_stop_it(autojump_clock: MockClock) -> None:
    async def later() -> None:
        await trio.sleep(1)

    await trio.to_thread.run_sync(trio.from_thread.run, later)
