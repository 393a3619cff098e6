"""A latch wakes all waiting tasks, like an event."""

from __future__ import annotations

import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from router_trio.connection.latch import Latch


async def test_a_latch_wakes_every_waiting_task_and_no_later_one_waits(autojump_clock: MockClock) -> None:
    latch = Latch()
    woken = []

    async def wait(name: str) -> None:
        await latch.wait()
        woken.append(name)

    async with trio.open_nursery() as nursery:
        for name in "abc":
            nursery.start_soon(wait, name)
        await wait_all_tasks_blocked()
        assert not latch.is_set()
        assert not woken
        latch.set()
        latch.set()
    assert sorted(woken) == ["a", "b", "c"]
    assert latch.is_set()
    with trio.testing.assert_checkpoints():
        await latch.wait()


async def test_a_cancelled_task_is_not_woken_again(autojump_clock: MockClock) -> None:
    latch = Latch()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(latch.wait)
        with trio.move_on_after(1) as scope:
            await latch.wait()
        assert scope.cancelled_caught
        latch.set()
        await trio.sleep(1)
