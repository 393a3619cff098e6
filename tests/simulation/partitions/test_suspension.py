"""Suspended tasks take no step while time passes, and find all that has happened when they go on."""

from __future__ import annotations

import trio
from trio.testing import MockClock

from tests.support.suspension import Suspendable, Suspensions


def test_tasks_of_a_suspended_process_wait_and_others_do_not() -> None:
    ticks: list[tuple[str, float]] = []
    process = Suspendable()

    async def tick(name: str) -> None:
        while True:
            await trio.sleep(1.0)
            ticks.append((name, trio.current_time()))

    async def in_a_nursery_of_its_own() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(tick, "inside")

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            with process.inside():
                nursery.start_soon(in_a_nursery_of_its_own)
            nursery.start_soon(tick, "outside")
            await trio.sleep(1.5)
            process.suspend()
            await trio.sleep(2.0)
            process.resume()
            await trio.sleep(0.25)
            nursery.cancel_scope.cancel()

    trio.run(main, clock=MockClock(autojump_threshold=0), instruments=[Suspensions()])
    assert [at for name, at in ticks if name == "outside"] == [1.0, 2.0, 3.0]
    assert [at for name, at in ticks if name == "inside"] == [1.0, 3.5]


def test_a_suspended_task_finds_later_that_its_event_happened_or_that_time_is_over() -> None:
    found: list[bool] = []
    process = Suspendable()

    async def wait(event: trio.Event) -> None:
        with trio.move_on_after(2.0):
            await event.wait()
        found.append(event.is_set())

    async def main() -> None:
        happens, too_late = trio.Event(), trio.Event()
        async with trio.open_nursery() as nursery:
            with process.inside():
                nursery.start_soon(wait, happens)
                nursery.start_soon(wait, too_late)
            await trio.sleep(1.0)
            process.suspend()
            await trio.sleep(0.5)
            happens.set()
            await trio.sleep(5.0)
            assert not found
            process.resume()

    trio.run(main, clock=MockClock(autojump_threshold=0), instruments=[Suspensions()])
    assert sorted(found) == [False, True]


def test_a_suspended_process_that_is_cancelled_ends_when_it_goes_on() -> None:
    process = Suspendable()
    scope = trio.CancelScope()

    async def live() -> None:
        with scope:
            await trio.sleep_forever()

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            with process.inside():
                nursery.start_soon(live)
            await trio.sleep(1.0)
            process.suspend()
            scope.cancel()
            await trio.sleep(1.0)
            process.resume()

    trio.run(main, clock=MockClock(autojump_threshold=0), instruments=[Suspensions()])
    assert scope.cancelled_caught
