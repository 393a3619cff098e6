"""Sources of a session: when they are served, and for how long others wait for them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from contextvars import ContextVar

import pytest
import trio
import trio.testing
from trio.testing import MockClock

from router_trio.client.receipt import Receipt
from router_trio.connection.latch import Latch
from router_trio.connection.session import SOURCES_FIRST_WITHIN, STREAMS_FIRST_WITHIN
from router_trio.errors import LinkError
from router_trio.link import Link, LinkListener
from router_trio.protocol.framing import publish
from tests.unit.connection.sessions import SessionSetup, StubLink, StubSource, serving


async def test_sources_are_served_and_end_with_the_link(autojump_clock: MockClock) -> None:
    setup = SessionSetup()
    sources = StubSource(), StubSource()
    async with serving(setup, *sources) as session:
        await trio.testing.wait_all_tasks_blocked()
        assert [one.served for one in sources] == [[setup.link]] * 2
        setup.die(LinkError("gone"))
        await session.ended.wait()
        assert [one.ended for one in sources] == [1, 1]


SURROUNDINGS: ContextVar[str] = ContextVar("surroundings", default="elsewhere")


class SurroundedSource(StubSource):
    """A source that records the context in which it is served."""

    async def serve(self, link: Link, tried: Latch) -> None:
        self.surroundings = SURROUNDINGS.get()
        await super().serve(link, tried)


async def test_a_source_added_later_is_served_in_the_context_of_the_link(autojump_clock: MockClock) -> None:
    setup = SessionSetup()
    first, later = SurroundedSource(), SurroundedSource()
    connect = setup.connect

    @asynccontextmanager
    async def surrounded(server: str, inbox: bytes, listener: LinkListener) -> AsyncIterator[StubLink]:
        async with connect(server, inbox, listener) as link:
            SURROUNDINGS.set("of the link")
            yield link

    setup.connect = surrounded  # type: ignore[method-assign]
    async with serving(setup, first) as session:
        await trio.testing.wait_all_tasks_blocked()
        tried = session.serve_also(later)
        assert tried is not None
        await tried.wait()
        assert (first.surroundings, later.surroundings) == ("of the link", "of the link")
        session.stop_serving(first)
        await trio.testing.wait_all_tasks_blocked()
        assert (first.ended, later.ended) == (1, 0)
        setup.die(LinkError("gone"))
        await session.ended.wait()
        assert later.ended == 1
    assert session.serve_also(later) is None


async def test_a_source_added_while_a_dead_link_is_closed_waits_for_the_next_link(autojump_clock: MockClock) -> None:
    setup = SessionSetup()
    connect = setup.connect

    @asynccontextmanager
    async def slow_to_close(server: str, inbox: bytes, listener: LinkListener) -> AsyncIterator[StubLink]:
        async with connect(server, inbox, listener) as link:
            try:
                yield link
            finally:
                with trio.CancelScope(shield=True):
                    await trio.sleep(1.0)

    setup.connect = slow_to_close  # type: ignore[method-assign]
    async with serving(setup) as session:
        await trio.testing.wait_all_tasks_blocked()
        setup.die(LinkError("gone"))
        await trio.sleep(0.5)
        assert not session.ended.is_set()
        assert session.serve_also(StubSource()) is None
        await session.ended.wait()


async def test_a_source_added_before_the_link_serves_is_served_with_the_others(autojump_clock: MockClock) -> None:
    setup = SessionSetup()
    assert setup.session.serve_also(StubSource()) is None


@pytest.mark.parametrize(("tries", "sent_at"), [(0.5, 0.5), (100.0, SOURCES_FIRST_WITHIN)])
async def test_sources_are_served_before_publishes_are_sent_but_not_for_long(
    tries: float, sent_at: float, autojump_clock: MockClock
) -> None:
    setup = SessionSetup()
    receipt = Receipt()
    setup.outbox.offer(publish(b"out", b"kept"), owner=receipt)
    async with serving(setup, StubSource(tries)):
        await receipt.settled()
        assert trio.current_time() == sent_at


@pytest.mark.parametrize(("tries", "served_at"), [(0.5, 0.5), (100.0, STREAMS_FIRST_WITHIN)])
async def test_sources_to_be_served_first_are_waited_for_but_not_for_long(
    tries: float, served_at: float, autojump_clock: MockClock
) -> None:
    setup = SessionSetup()
    source = StubSource()
    async with serving(setup, source, first=[StubSource(tries)]):
        await trio.sleep(served_at - 0.01)
        assert not source.served
        await trio.sleep(0.02)
        assert source.served


TWO_AT_ONCE = 2


@pytest.fixture
def two_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("router_trio.connection.session.TRYING_AT_ONCE", TWO_AT_ONCE)


def served_at(*sources: StubSource) -> list[list[float]]:
    """Return when each source was served."""
    return [one.served_at for one in sources]


@pytest.mark.usefixtures("two_at_once")
async def test_a_source_waits_while_as_many_try_as_may_at_once(autojump_clock: MockClock) -> None:
    slow, *others = sources = [StubSource(0.5), *(StubSource(0.125) for _ in range(4))]
    last = StubSource()
    async with serving(SessionSetup(), *sources, last=[last]):
        await trio.sleep(1.0)
        assert served_at(slow, *others, last) == [[0.0], [0.0], [0.125], [0.25], [0.375], [0.5]]


@pytest.mark.usefixtures("two_at_once")
async def test_sources_that_take_long_hold_up_others_for_a_bounded_time(autojump_clock: MockClock) -> None:
    sources = [*(StubSource(100.0) for _ in range(TWO_AT_ONCE)), *(StubSource(0.25) for _ in range(4))]
    setup = SessionSetup()
    receipt = setup.publish()
    last = StubSource()
    async with serving(setup, *sources, last=[last]):
        await receipt.settled()
        assert trio.current_time() == SOURCES_FIRST_WITHIN
        await trio.sleep(10.0)
        first, then = SOURCES_FIRST_WITHIN, SOURCES_FIRST_WITHIN + 0.25
        assert served_at(*sources) == [[0.0], [0.0], [first], [first], [then], [then]]
        assert last.served_at == [then + SOURCES_FIRST_WITHIN]


@pytest.mark.usefixtures("two_at_once")
async def test_a_source_that_waits_is_not_served_twice_and_not_once_it_was_removed(autojump_clock: MockClock) -> None:
    trying, removed, again, after = [StubSource(0.5), StubSource(0.5)], StubSource(), StubSource(), StubSource()
    async with serving(SessionSetup(), *trying, removed, again, after) as session:
        await trio.sleep(0.25)
        session.stop_serving(removed)
        session.serve_again(again)
        await trio.sleep(5.0)
        assert served_at(removed, again, after) == [[], [0.25], [0.5]]


async def test_a_dead_link_found_by_a_source_ends_the_session(autojump_clock: MockClock) -> None:
    setup = SessionSetup()
    found = LinkError("the link is dead", reason="closed")
    async with serving(setup, StubSource(0.5, fails=found)) as session:
        await session.ended.wait()
    assert session.error is found
