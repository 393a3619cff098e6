"""All callers that wait for an ack share one timer; each is notified at its deadline unless it stopped waiting."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio
from trio.testing import MockClock

from router_trio.client import ack_deadlines as module
from router_trio.client.ack_deadlines import Deadlines


@asynccontextmanager
async def running() -> AsyncIterator[tuple[Deadlines, list[tuple[float, int, float]]]]:
    """Yield deadlines, and those that expired: when, which, and the timeout that each had been given."""
    expired: list[tuple[float, int, float]] = []
    began = trio.current_time()
    deadlines = Deadlines(lambda number, given: expired.append((round(trio.current_time() - began, 6), number, given)))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(deadlines.run)
        yield deadlines, expired
        nursery.cancel_scope.cancel()


async def test_each_deadline_expires_at_its_time_in_any_order(autojump_clock: MockClock) -> None:
    async with running() as (deadlines, expired):
        for number, seconds in ((1, 5.0), (2, 1.0), (3, 5.0), (4, 0.0)):
            deadlines.add(number, seconds)
        await trio.sleep(0.5)
        deadlines.add(5, 0.25)
        await trio.sleep(100)
    assert expired == [(0.0, 4, 0.0), (0.75, 5, 0.25), (1.0, 2, 1.0), (5.0, 1, 5.0), (5.0, 3, 5.0)]


async def test_a_removed_deadline_does_not_expire(autojump_clock: MockClock) -> None:
    async with running() as (deadlines, expired):
        for number in range(4):
            deadlines.add(number, 1.0)
        deadlines.remove(0)
        deadlines.remove(2)
        await trio.sleep(2)
        deadlines.remove(1)
        assert [number for _, number, _ in expired] == [1, 3]


async def test_after_a_clear_only_new_deadlines_expire(autojump_clock: MockClock) -> None:
    async with running() as (deadlines, expired):
        for number in range(3):
            deadlines.add(number, 1.0)
        deadlines.clear()
        deadlines.add(3, 2.0)
        deadlines.remove(1)
        await trio.sleep(3)
    assert expired == [(2.0, 3, 2.0)]


async def test_entries_behind_a_late_deadline_are_freed(autojump_clock: MockClock) -> None:
    async with running() as (deadlines, expired):
        deadlines.add(0, 60.0)
        for number in range(1, 10 * module.SLACK):
            deadlines.add(number, 60.0)
            deadlines.remove(number)
        assert len(deadlines._heap) <= module.SLACK + 2
        await trio.sleep(61)
    assert expired == [(60.0, 0, 60.0)]


async def test_deadlines_agree_with_a_simple_model(autojump_clock: MockClock) -> None:
    choose = random.Random(5)
    due: dict[int, float] = {}
    async with running() as (deadlines, expired):
        now = 0.0
        for number in range(500):
            seconds = choose.choice((0.5, 2.0, 5.0))
            deadlines.add(number, seconds)
            due[number] = now + seconds
            if choose.random() < 0.6:
                gone = choose.choice([one for one, at in due.items() if at > now])
                deadlines.remove(gone)
                del due[gone]
            await trio.sleep(0.25)
            now += 0.25
        await trio.sleep(10)
    assert [(at, number) for at, number, _ in expired] == sorted((at, number) for number, at in due.items())
