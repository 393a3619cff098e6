"""One link's life, with a link that does what the test says and a clock that jumps."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from contextvars import ContextVar
from functools import partial
from typing import Any, NoReturn, cast

import pytest
import trio
import trio.testing
from trio.testing import MockClock

from router_trio.client.receipt import Receipt
from router_trio.connection.session import FENCE_EVERY, SOURCES_FIRST_WITHIN, STREAMS_FIRST_WITHIN, Session, Source
from router_trio.errors import LinkError
from router_trio.events import Event
from router_trio.link import Connect, Link, LinkListener, Refusal
from router_trio.message import Fate
from router_trio.outbox.operation import FrameOwners, Operation
from router_trio.outbox.outbox import Outbox
from router_trio.protocol.framing import publish

INTERVAL = 4.0


class StubLink:
    """Answers each fence `latency` seconds later, and refuses what is to be refused."""

    def __init__(self) -> None:
        self.latency = 0.0
        self.fences: list[float] = []
        self.sent: list[bytes] = []
        self.refuse: Callable[[Operation], bool] = lambda _: False
        self.send_takes = 0.0

    async def fence(self) -> None:
        self.fences.append(trio.current_time())
        await trio.sleep(self.latency)

    async def ping(self) -> None:
        await self.fence()

    @property
    def can_send_at_once(self) -> bool:
        return False

    def send_at_once(self, operations: Sequence[Operation], *, fenced: bool = False) -> Sequence[Refusal]:
        raise AssertionError("it can't")

    async def send(self, operations: Sequence[Operation], *, fenced: bool = False) -> Sequence[Refusal]:
        await trio.sleep(self.send_takes)
        self.sent.extend(one.frame for one in operations if not self.refuse(one))
        return [Refusal(one, "too_large", "too much") for one in operations if self.refuse(one)]


class SessionSetup:
    """A session with its outbox, and a network that the test rules."""

    def __init__(self) -> None:
        self.link = StubLink()
        self.events: list[Event] = []
        self.fenced: list[float] = []
        self.room = trio.lowlevel.ParkingLot()
        self.outbox = Outbox(
            "main",
            emit=self.events.append,
            clock=trio.current_time,
            wake=lambda: self.session.work.set(),
            fail_open=False,
            max_operations=100,
            max_bytes=10_000,
            on_full="reject",
            max_age=0.0,
        )
        self.session = Session(
            "nats://a:4222", b"_INBOX.x", self.outbox, fenced=self.fenced.append, progress=self._progress
        )
        self.dial_takes = 0.0
        self.dial_error: Exception | None = None
        self.death: Exception | None = None
        self.dying = trio.Event()
        self.closed = False

    def _progress(self) -> None:
        self.room.unpark()

    @asynccontextmanager
    async def connect(self, server: str, inbox: bytes, listener: LinkListener) -> AsyncIterator[StubLink]:
        try:
            await trio.sleep(self.dial_takes)
            if self.dial_error is not None:
                raise self.dial_error
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._live)
                yield self.link
                nursery.cancel_scope.cancel()
        finally:
            self.closed = True

    async def _live(self) -> None:
        await self.dying.wait()
        if self.death is not None:
            raise self.death

    def die(self, error: Exception) -> None:
        self.death = error
        self.dying.set()

    async def run(self, *sources: Source, first: Sequence[Source] = ()) -> None:
        connect = cast(Connect, self.connect)
        listener = cast(LinkListener, None)
        await self.session.run(connect, listener, sources, first=first, connect_timeout=2.0, liveness_interval=INTERVAL)

    def publish(self, payload: bytes = b"x") -> Receipt:
        receipt = Receipt()
        receipt.status = self.outbox.offer(publish(b"out", payload), owner=receipt)
        return receipt


@asynccontextmanager
async def serving(setup: SessionSetup, *sources: Source, first: Sequence[Source] = ()) -> AsyncIterator[Session]:
    """A session that is connected and serves; it is ended behind the body."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(partial(setup.run, *sources, first=first))
        await setup.session.connected.wait()
        setup.outbox.link_up()
        setup.session.serve()
        yield setup.session
        setup.session.end()


# --- the dial ---


async def test_a_dial_that_fails_is_told_and_nothing_is_left(autojump_clock: MockClock) -> None:
    setup = SessionSetup()
    setup.dial_error = LinkError("nobody listens")
    await setup.run()
    assert setup.session.error is setup.dial_error
    assert setup.session.ended.is_set()
    assert not setup.session.connected.is_set()


async def test_a_dial_is_bounded(autojump_clock: MockClock) -> None:
    setup = SessionSetup()
    setup.dial_takes = 10.0
    await setup.run()
    assert trio.current_time() == 2.0
    assert setup.session.error is not None
    assert setup.session.error.reason == "timeout"
    assert setup.closed


async def test_a_session_may_be_ended_before_it_is_connected(autojump_clock: MockClock) -> None:
    setup = SessionSetup()
    setup.dial_takes = 1.0
    async with trio.open_nursery() as nursery:
        nursery.start_soon(setup.run)
        await trio.sleep(0.5)
        setup.session.end()
        await setup.session.ended.wait()
        assert trio.current_time() == 0.5
    assert setup.session.error is None
    assert not setup.session.connected.is_set()


async def test_a_session_may_be_ended_before_it_began() -> None:
    setup = SessionSetup()
    setup.session.end()
    await setup.run()
    assert setup.session.ended.is_set()
    assert setup.session.link is None


async def test_a_link_that_dies_before_it_serves_is_told(autojump_clock: MockClock) -> None:
    setup = SessionSetup()
    death = LinkError("gone")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(setup.run)
        await setup.session.connected.wait()
        setup.die(death)
        await setup.session.ended.wait()
    assert setup.session.error is death
    assert setup.session.link is None


async def test_another_error_is_not_swallowed(autojump_clock: MockClock) -> None:
    setup = SessionSetup()
    setup.dial_error = ZeroDivisionError()
    with pytest.raises(ZeroDivisionError):
        await setup.run()
    assert setup.session.ended.is_set()


# --- the liveness fence ---


async def test_an_idle_link_is_fenced_at_even_intervals(autojump_clock: MockClock) -> None:
    setup = SessionSetup()
    async with serving(setup):
        await trio.sleep(10 * INTERVAL)
    due = [round(FENCE_EVERY * INTERVAL * number, 6) for number in range(1, 14)]
    assert setup.link.fences == due
    assert setup.fenced == due


async def test_a_busy_link_needs_no_fence_of_its_own(autojump_clock: MockClock) -> None:
    setup = SessionSetup()
    async with serving(setup):
        published = 0
        while trio.current_time() < 10 * INTERVAL:
            setup.publish()
            published += 1
            await trio.sleep(0.5)
    assert len(setup.link.fences) == published


@pytest.mark.parametrize("latency", [0.1, 0.49, 0.51, 0.75, 0.95])
async def test_a_slow_answer_is_an_answer(latency: float, autojump_clock: MockClock) -> None:
    """Also when it comes after the next fence was sent."""
    setup = SessionSetup()
    setup.link.latency = latency * INTERVAL
    async with serving(setup) as session:
        await trio.sleep(50 * INTERVAL)
        assert not session.ended.is_set()
    assert session.error is None


async def test_no_answer_to_either_of_two_fences_ends_the_link(autojump_clock: MockClock) -> None:
    setup = SessionSetup()
    async with serving(setup) as session:
        await trio.sleep(1.0)
        setup.link.latency = 1000.0
        await session.ended.wait()
        assert trio.current_time() == 1.75 * INTERVAL
        assert len(setup.link.fences) == 2
    assert session.error is not None
    assert session.error.reason == "liveness"
    assert "no answer to a fence for 7.0 s" in str(session.error)
    assert setup.closed


async def test_a_blocked_writer_does_not_hide_a_dead_link(autojump_clock: MockClock) -> None:
    setup = SessionSetup()
    setup.link.send_takes = setup.link.latency = 1000.0
    async with serving(setup) as session:
        receipt = setup.publish()
        await session.ended.wait()
        assert trio.current_time() == 1.75 * INTERVAL
        setup.outbox.link_down()
    assert receipt.fate is None
    assert (setup.outbox.pending, setup.outbox.in_flight) == (1, 0)


# --- sending ---


async def test_what_is_published_is_sent_and_confirmed(autojump_clock: MockClock) -> None:
    setup = SessionSetup()
    async with serving(setup):
        receipts = [setup.publish(b"%d" % number) for number in range(10)]
        assert {(await one.settled()).name for one in receipts} == {"fenced"}
    assert setup.link.sent == [publish(b"out", b"%d" % number) for number in range(10)]
    assert len(setup.link.fences) == 1


async def test_nothing_is_confirmed_by_a_fence_that_was_sent_before_it(autojump_clock: MockClock) -> None:
    setup = SessionSetup()
    setup.link.latency = 1.0
    async with serving(setup):
        first = setup.publish()
        await trio.sleep(0.5)
        second = setup.publish()
        await first.settled()
        assert trio.current_time() == 1.0
        assert second.fate is None
        await second.settled()
        assert trio.current_time() == 2.0


async def test_what_the_link_refuses_fails_and_the_rest_goes_through(autojump_clock: MockClock) -> None:
    setup = SessionSetup()
    setup.link.refuse = lambda operation: b"large" in operation.frame
    async with serving(setup):
        receipts = [setup.publish(payload) for payload in (b"1", b"large", b"2")]
        assert [(await one.settled()).name for one in receipts] == ["fenced", "failed", "fenced"]
    assert receipts[1].fate is not None
    assert receipts[1].fate.reason == "too_large"


async def test_who_waits_for_room_is_woken_by_each_batch_that_is_taken(autojump_clock: MockClock) -> None:
    setup = SessionSetup()
    setup.link.send_takes = 1.0
    async with serving(setup), trio.open_nursery() as nursery:
        for _ in range(2):
            setup.publish()
            nursery.start_soon(setup.room.park)
            await trio.testing.wait_all_tasks_blocked()
        assert len(setup.room) == 1, "the second waits while the first batch is written"
        await trio.sleep(1.1)
        assert len(setup.room) == 0


async def test_who_waits_for_room_is_woken_when_something_fails(autojump_clock: MockClock) -> None:
    setup = SessionSetup()
    async with serving(setup), trio.open_nursery() as nursery:
        order = setup.outbox.next_order
        setup.outbox.offer(publish(b"stored", b"x", reply=b"_INBOX.x.%d" % order), with_ack=True)
        await trio.sleep(1.0)
        nursery.start_soon(setup.room.park)
        await trio.testing.wait_all_tasks_blocked()
        setup.outbox.refusals.ack_refused(order, "limit", "the stream is full", retriable=False)
        await trio.testing.wait_all_tasks_blocked()
        assert len(setup.room) == 0


async def test_a_link_that_is_left_gets_nothing_more_and_confirms_what_it_has(autojump_clock: MockClock) -> None:
    setup = SessionSetup()
    setup.link.latency = 1.0
    async with serving(setup) as session:
        first = setup.publish(b"1")
        await trio.sleep(0.1)
        session.leave()
        second = setup.publish(b"2")
        await trio.sleep(5.0)
        assert first.fate is not None
        assert first.fate.name == "fenced"
        assert second.fate is None
    assert setup.link.sent == [publish(b"out", b"1")]


# --- sources ---


class StubSource:
    """Notes when it is served; tries for as long as it is told."""

    def __init__(self, tries: float = 0.0, fails: Exception | None = None) -> None:
        self.served: list[Any] = []
        self.ended = 0
        self._tries = tries
        self._fails = fails

    async def serve(self, link: Link, tried: trio.Event) -> None:
        self.served.append(link)
        try:
            await trio.sleep(self._tries)
            tried.set()
            if self._fails is not None:
                raise self._fails
            await trio.sleep_forever()
        finally:
            self.ended += 1


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
    """Notes in which surroundings it is served."""

    async def serve(self, link: Link, tried: trio.Event) -> None:
        self.surroundings = SURROUNDINGS.get()
        await super().serve(link, tried)


async def test_a_source_that_comes_later_is_served_in_the_surroundings_of_the_link(autojump_clock: MockClock) -> None:
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
        session.serve_no_more(first)
        await trio.testing.wait_all_tasks_blocked()
        assert (first.ended, later.ended) == (1, 0)
        setup.die(LinkError("gone"))
        await session.ended.wait()
        assert later.ended == 1
    assert session.serve_also(later) is None


async def test_a_source_that_comes_before_the_link_serves_is_among_the_others(autojump_clock: MockClock) -> None:
    setup = SessionSetup()
    assert setup.session.serve_also(StubSource()) is None


@pytest.mark.parametrize(("tries", "sent_at"), [(0.5, 0.5), (100.0, SOURCES_FIRST_WITHIN)])
async def test_sources_go_first_but_not_for_long(tries: float, sent_at: float, autojump_clock: MockClock) -> None:
    setup = SessionSetup()
    receipt = Receipt()
    setup.outbox.offer(publish(b"out", b"kept"), owner=receipt)
    async with serving(setup, StubSource(tries)):
        await receipt.settled()
        assert trio.current_time() == sent_at


@pytest.mark.parametrize(("tries", "served_at"), [(0.5, 0.5), (100.0, STREAMS_FIRST_WITHIN)])
async def test_what_goes_first_is_waited_for_but_not_for_long(
    tries: float, served_at: float, autojump_clock: MockClock
) -> None:
    setup = SessionSetup()
    source = StubSource()
    async with serving(setup, source, first=[StubSource(tries)]):
        await trio.sleep(served_at - 0.01)
        assert not source.served
        await trio.sleep(0.02)
        assert source.served


async def test_a_dead_link_that_a_source_meets_first_ends_the_session(autojump_clock: MockClock) -> None:
    setup = SessionSetup()
    met = LinkError("the link is dead", reason="closed")
    async with serving(setup, StubSource(0.5, fails=met)) as session:
        await session.ended.wait()
    assert session.error is met


# --- the end ---


async def test_several_tasks_that_meet_the_dead_link_make_one_loss(autojump_clock: MockClock) -> None:
    setup = SessionSetup()
    setup.die(LinkError("gone"))
    async with serving(setup, StubSource(fails=LinkError("dead"))) as session:
        await session.ended.wait()
    assert str(session.error) in ("gone", "dead")


async def test_a_link_that_dies_when_the_session_is_cancelled_raises_nothing(autojump_clock: MockClock) -> None:
    """Some tasks meet the cancellation and some the dead link: what is left of both is the cancellation."""
    setup = SessionSetup()

    class DiesWhenCancelled:
        async def serve(self, link: Link, tried: trio.Event) -> NoReturn:
            tried.set()
            try:
                await trio.sleep_forever()
            except trio.Cancelled:
                raise LinkError("it died first") from None

    with trio.CancelScope() as scope:
        async with serving(setup, DiesWhenCancelled(), StubSource()):
            await trio.testing.wait_all_tasks_blocked()
            scope.cancel()
            await trio.sleep_forever()
    assert scope.cancelled_caught
    assert setup.session.ended.is_set()
    assert setup.closed


# --- fences that are shared ---


class ForwardedOwner:
    """Whose fates nobody waits for."""

    def settle(self, operation: Operation, count: int, fate: Fate, now: float) -> None:
        """See `operation.Owner`."""


def forward(setup: SessionSetup) -> None:
    """Publish as a route that forwards from a subject."""
    setup.outbox.offer_frames([publish(b"out", b"x")], FrameOwners([ForwardedOwner()], [1]))


async def test_what_is_forwarded_at_about_one_time_shares_the_fence_of_the_next(autojump_clock: MockClock) -> None:
    setup = SessionSetup()
    async with serving(setup):
        for number in range(20):
            forward(setup)
            await trio.sleep(0.0002)
            assert setup.outbox.in_flight <= 6, number
        assert len(setup.link.sent) == 20
        # The first of each millisecond has a fence of its own.
        assert 4 <= len(setup.link.fences) <= 6
        await trio.sleep(1)
        assert setup.outbox.in_flight == 0
        assert len(setup.link.fences) <= 7


async def test_a_lone_publish_that_is_forwarded_is_fenced_at_once(autojump_clock: MockClock) -> None:
    setup = SessionSetup()
    async with serving(setup):
        for _ in range(3):
            forward(setup)
            await trio.testing.wait_all_tasks_blocked()
            assert setup.outbox.in_flight == 0
            await trio.sleep(0.01)
        assert len(setup.link.fences) == 3


async def test_what_is_forwarded_and_followed_by_nothing_is_fenced_soon(autojump_clock: MockClock) -> None:
    setup = SessionSetup()
    async with serving(setup):
        forward(setup)
        await trio.testing.wait_all_tasks_blocked()
        forward(setup)
        await trio.testing.wait_all_tasks_blocked()
        assert setup.outbox.in_flight == 1
        await trio.sleep(0.0025)
        assert setup.outbox.in_flight == 0


async def test_many_that_are_forwarded_together_are_fenced_at_once(autojump_clock: MockClock) -> None:
    setup = SessionSetup()
    async with serving(setup):
        forward(setup)
        await trio.testing.wait_all_tasks_blocked()
        for _ in range(16):
            forward(setup)
        await trio.testing.wait_all_tasks_blocked()
        assert setup.outbox.in_flight == 0


async def test_what_a_program_publishes_is_fenced_at_once(autojump_clock: MockClock) -> None:
    setup = SessionSetup()
    async with serving(setup):
        for _ in range(3):
            setup.publish()
            await trio.testing.wait_all_tasks_blocked()
            assert setup.outbox.in_flight == 0
