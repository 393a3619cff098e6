"""Pages are rendered one at a time for all waiting requests, never older than a request, with pauses in between."""

from __future__ import annotations

import time
import weakref

import pytest
import trio
import trio.testing

from router_trio.telemetry.http.rendering import REST, SharedPage
from router_trio.telemetry.pieces import PIECE, Pieces


class Page:
    """A page that counts how often it is rendered, in `pieces` that block the loop for `takes` seconds each."""

    def __init__(self, takes: float = 0.0, pieces: int = 1) -> None:
        self.made = 0
        self.takes = takes
        self.pieces = pieces
        self.fails = False

    def __call__(self) -> Pieces[int]:
        if self.fails:
            raise ValueError("no page")
        for _ in range(self.pieces):
            time.sleep(self.takes)  # blocks the loop on purpose
            yield
        self.made += 1
        return self.made


async def test_requests_that_wait_together_share_one_page() -> None:
    page = Page()
    shared = SharedPage(trio.Lock(), page)
    got: list[int] = []

    async def ask() -> None:
        got.append(await shared.get())

    async with trio.open_nursery() as nursery:
        for _ in range(100):
            nursery.start_soon(ask)
    assert len(got) == 100
    assert page.made <= 2


async def test_a_page_is_forgotten_when_all_its_requests_have_it() -> None:
    """A page of thousands of routes is large, and too old for any later request."""

    class Large:
        pass

    def render() -> Pieces[Large]:
        yield
        return Large()

    shared = SharedPage(trio.Lock(), render)
    async with trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(shared.get)
    found = weakref.ref(await shared.get())
    assert found() is None


async def test_a_page_is_never_older_than_its_request() -> None:
    page = Page(takes=0.001)
    shared = SharedPage(trio.Lock(), page)

    async def ask() -> None:
        for _ in range(20):
            made_before = page.made
            assert await shared.get() > made_before

    async with trio.open_nursery() as nursery:
        for _ in range(10):
            nursery.start_soon(ask)


async def test_the_event_loop_is_left_to_other_tasks_between_two_pages() -> None:
    page = Page(takes=0.02)
    turn = trio.Lock()
    first, second = SharedPage(turn, page), SharedPage(turn, page)
    await first.get()
    made_at = trio.current_time()
    await second.get()
    assert trio.current_time() - made_at >= REST * 0.02


async def test_the_event_loop_is_left_to_other_tasks_between_the_pieces_of_a_page() -> None:
    """Routing gets three quarters of the time, in turns no further apart than a piece."""
    takes = PIECE / 4
    page, turns = Page(takes, pieces=40), 0
    shared = SharedPage(trio.Lock(), page)

    async def take_turns() -> None:
        nonlocal turns
        while True:
            turns += 1
            await trio.lowlevel.checkpoint()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(take_turns)
        began_at = trio.current_time()
        assert await shared.get() == 1
        took = trio.current_time() - began_at
        nursery.cancel_scope.cancel()
    assert turns >= 40 * takes / (PIECE + takes)
    assert took >= (1 + REST) * 40 * takes


async def test_a_cancelled_request_does_not_affect_the_others(autojump_clock: trio.testing.MockClock) -> None:
    page = Page()
    turn = trio.Lock()
    shared = SharedPage(turn, page)
    got: list[int] = []

    async def ask() -> None:
        got.append(await shared.get())

    async with trio.open_nursery() as nursery, turn:
        leaving = trio.CancelScope()

        async def ask_and_leave() -> None:
            with leaving:
                await ask()

        nursery.start_soon(ask_and_leave)
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(ask)
        await trio.testing.wait_all_tasks_blocked()
        leaving.cancel()
        await trio.testing.wait_all_tasks_blocked()
    assert got == [1]


async def test_a_page_that_fails_is_rendered_again_for_the_next_request() -> None:
    page = Page()
    shared = SharedPage(trio.Lock(), page)
    page.fails = True
    with pytest.raises(ValueError, match="no page"):
        await shared.get()
    page.fails = False
    assert await shared.get() == 1
