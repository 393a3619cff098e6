"""Pages are rendered one at a time for all waiting requests, never older than a request, with pauses in between."""

from __future__ import annotations

import time

import pytest
import trio
import trio.testing

from router_trio.telemetry.http.rendering import REST, Rendering, SharedPage


class Page:
    """A page that counts how often it is rendered; rendering blocks the loop for `takes` seconds."""

    def __init__(self, takes: float = 0.0) -> None:
        self.made = 0
        self.takes = takes
        self.fails = False

    def __call__(self) -> int:
        if self.fails:
            raise ValueError("no page")
        time.sleep(self.takes)  # blocks the loop on purpose
        self.made += 1
        return self.made


async def test_requests_that_wait_together_share_one_page() -> None:
    page = Page()
    shared = SharedPage(Rendering(), page)
    got: list[int] = []

    async def ask() -> None:
        got.append(await shared.get())

    async with trio.open_nursery() as nursery:
        for _ in range(100):
            nursery.start_soon(ask)
    assert len(got) == 100
    assert page.made <= 2


async def test_a_page_is_never_older_than_its_request() -> None:
    page = Page(takes=0.001)
    shared = SharedPage(Rendering(), page)

    async def ask() -> None:
        for _ in range(20):
            made_before = page.made
            assert await shared.get() > made_before

    async with trio.open_nursery() as nursery:
        for _ in range(10):
            nursery.start_soon(ask)


async def test_the_event_loop_is_left_to_other_tasks_between_two_pages() -> None:
    page = Page(takes=0.02)
    rendering = Rendering()
    first, second = SharedPage(rendering, page), SharedPage(rendering, page)
    await first.get()
    made_at = trio.current_time()
    await second.get()
    assert trio.current_time() - made_at >= REST * 0.02


async def test_a_cancelled_request_does_not_affect_the_others(autojump_clock: trio.testing.MockClock) -> None:
    page = Page()
    rendering = Rendering()
    shared = SharedPage(rendering, page)
    got: list[int] = []

    async def ask() -> None:
        got.append(await shared.get())

    async with trio.open_nursery() as nursery, rendering.turn:
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
    shared = SharedPage(Rendering(), page)
    page.fails = True
    with pytest.raises(ValueError, match="no page"):
        await shared.get()
    page.fails = False
    assert await shared.get() == 1
