"""The warning after a reconnect about messages that a stream may store twice."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from router_trio.link import StreamState
from router_trio.testing import FakeBroker
from router_trio.testing.links import FakeLink
from tests.support.eventually import eventually
from tests.support.world import World, core, map_subjects, to, world

CODE = "NATS_DUPLICATES_POSSIBLE"
TO_OUT = core("in.>", to("out.>", jetstream=True), name="stored")


@asynccontextmanager
async def routing(
    *denied: str, window: float = 120.0, routes: Sequence[dict[str, Any]] = (TO_OUT,)
) -> AsyncIterator[World]:
    broker = FakeBroker()
    broker.add_stream("OUT", ["out.>"], duplicate_window=window)
    for subject in denied:
        broker.deny_publish(subject)
    async with world(routes, brokers={"main": broker}) as w:
        await trio.sleep(1)
        yield w


async def unanswered(w: World, count: int) -> None:
    """Have the stream store messages whose PubAcks are lost."""
    w.broker.trouble.lose("puback", count)
    for number in range(count):
        w.broker.publish(f"in.{number}")
    await eventually(lambda: w.entry()["in_flight"] == count)
    await trio.sleep(1)


async def away(w: World, seconds: float) -> None:
    """Have an outage of at least `seconds`; return when everything that was kept is settled."""
    await w.lose()
    await trio.sleep(seconds)
    await w.find()
    await eventually(lambda: not w.entry()["pending"] and not w.entry()["in_flight"])
    await trio.sleep(20)


async def test_after_an_outage_longer_than_the_window_possible_duplicates_are_reported(
    autojump_clock: MockClock,
) -> None:
    async with routing() as w:
        await unanswered(w, 3)
        await away(w, 180)
        (event,) = w.watch.of(CODE)
        assert (event.connection, event.stream, event.count) == ("main", "OUT", 3)
        (restored,) = w.watch.of("NATS_CONNECTION_RESTORED")
        assert event.outage_seconds == pytest.approx(restored.outage_seconds, abs=0.001)
        assert event.unanswered_seconds == pytest.approx(event.outage_seconds + 1, abs=0.1)
        assert (event.window_seconds, event.window_assumed) == (120.0, False)
        assert len(w.payloads("OUT")) == 6, "the stream did store them twice"
        text = event.sentence()
        for part in ("main", "stream OUT", "3 messages twice", f"{event.outage_seconds:.1f} s", "window of 120 s"):
            assert part in text
        assert "at least" not in text


async def test_no_duplicates_are_reported_if_the_stream_still_knows_the_ids(autojump_clock: MockClock) -> None:
    async with routing(window=600.0) as w:
        await unanswered(w, 3)
        await away(w, 180)
        assert not w.watch.of(CODE)
        assert len(w.payloads("OUT")) == 3


async def test_the_window_is_that_of_the_stream_named_by_the_destination(autojump_clock: MockClock) -> None:
    route = core("in.>", to("out.>", jetstream=True) | {"stream": "STORED"}, name="stored")
    async with routing(routes=[]) as w:
        w.broker.add_stream("STORED", ["stored.>"], duplicate_window=600.0)
        map_subjects(w.broker, "out", "stored")
        await w.live.reload(w.configuration(route))
        await trio.sleep(1)
        await unanswered(w, 3)
        await away(w, 180)
        assert not w.watch.of(CODE)
        assert len(w.payloads("STORED")) == 3


async def test_publishes_only_queued_during_the_outage_are_not_reported(autojump_clock: MockClock) -> None:
    async with routing() as w:
        await w.lose()
        for number in range(5):
            await w.live.publish_with_ack(f"out.{number}", b"queued")
        await trio.sleep(180)
        await w.find()
        await trio.sleep(20)
        assert not w.watch.of(CODE)
        assert len(w.payloads("OUT")) == 5


async def test_the_time_counts_from_the_first_write_and_not_from_the_loss(autojump_clock: MockClock) -> None:
    """Flapping or half-open links: each outage is shorter than the window, and both together are longer."""
    async with routing() as w:
        await unanswered(w, 1)
        w.broker.trouble.lose("puback", 1)
        await w.lose()
        await trio.sleep(70)
        await w.find()
        await trio.sleep(1)
        assert not w.watch.of(CODE)
        await away(w, 70)
        (event,) = w.watch.of(CODE)
        assert event.count == 1
        assert event.outage_seconds < 120 < event.unanswered_seconds
        assert len(w.payloads("OUT")) == 2


async def test_a_flapping_link_after_a_long_outage_reports_duplicates_only_once(
    autojump_clock: MockClock,
) -> None:
    async with routing() as w:
        await unanswered(w, 1)
        w.broker.trouble.lose("puback", 2)
        await w.lose()
        await trio.sleep(180)
        for _ in range(2):
            await w.find()
            await trio.sleep(1)
            await w.lose()
        await w.find()
        await trio.sleep(20)
        assert len(w.watch.of(CODE)) == 1


@pytest.mark.parametrize(
    ("denied", "stream"),
    [(("$JS.API.STREAM.INFO.OUT",), "OUT"), (("$JS.API.>",), None), (("$JS.API.STREAM.NAMES",), None)],
)
async def test_a_window_that_may_not_be_looked_up_counts_as_the_default_and_the_event_says_at_least(
    denied: tuple[str, ...], stream: str | None, autojump_clock: MockClock
) -> None:
    async with routing(*denied, window=600.0) as w:
        await unanswered(w, 2)
        await away(w, 100)
        assert not w.watch.of(CODE), "within the default window"
        await unanswered(w, 2)
        await away(w, 180)
        (event,) = w.watch.of(CODE)
        assert (event.stream, event.count) == (stream, 2)
        assert (event.window_seconds, event.window_assumed) == (120.0, True)
        assert "at least 2 messages" in event.sentence()


async def test_the_stream_of_a_programs_publish_is_looked_up_by_its_subject(autojump_clock: MockClock) -> None:
    """These streams are not a destination of any route."""
    async with routing(routes=[core("in.>", "plain.>")]) as w:
        w.broker.add_stream("SHORT", ["short.*"], duplicate_window=10.0)
        w.broker.add_stream("LONG", ["long.*"], duplicate_window=3600.0)
        w.broker.trouble.lose("puback", 5)
        async with trio.open_nursery() as publishers:
            for subject in ("short.a", "short.b", "long.a", "out.x", "short.a"):
                publishers.start_soon(w.live.publish_with_ack, subject, b"")
            await trio.sleep(1)
            await away(w, 60)
        (event,) = w.watch.of(CODE)
        assert (event.stream, event.count, event.window_seconds) == ("SHORT", 3, 10.0)


async def test_each_stream_is_reported_separately(autojump_clock: MockClock) -> None:
    both = core("in.>", to("out.>", jetstream=True), to("more.>", jetstream=True))
    async with routing(routes=[both]) as w:
        w.broker.add_stream("MORE", ["more.>"], duplicate_window=60.0)
        await trio.sleep(10)
        w.broker.trouble.lose("puback", 4)
        w.broker.publish("in.x")
        w.broker.publish("in.y")
        await trio.sleep(1)
        await away(w, 180)
        assert {(one.stream, one.count, one.window_seconds) for one in w.watch.of(CODE)} == {
            ("OUT", 2, 120.0),
            ("MORE", 2, 60.0),
        }


async def test_duplicates_are_still_reported_if_the_next_link_is_lost_before_the_lookup(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock
) -> None:
    """Resent publishes are settled by then: the stream of another destination keeps the lookup busy."""
    other = core("other.>", to("more.>", jetstream=True), name="other")
    async with routing(routes=[TO_OUT, other]) as w:
        w.broker.add_stream("MORE", ["more.>"])
        await trio.sleep(10)
        await unanswered(w, 2)
        with monkeypatch.context() as busy:
            busy.setattr(FakeLink, "stream_state", without_an_answer_for_more)
            await w.lose()
            await trio.sleep(180)
            await w.find()
            await eventually(lambda: w.entry()["settled"] == {"acked": 2})
            assert not w.watch.of(CODE)
            await w.lose()
        await w.find()
        await trio.sleep(20)
        (event,) = w.watch.of(CODE)
        assert (event.stream, event.count, event.window_seconds) == ("OUT", 2, 120.0)


async def without_an_answer_for_more(link: FakeLink, name: str) -> StreamState | None:
    if name == "MORE":
        await trio.sleep_forever()
    return await link.look_up(lambda now: link._network.server.state_of_stream(name, now))
