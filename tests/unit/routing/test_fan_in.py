"""Many subjects to one: a literal destination, and routes from a stream with several filters."""

from __future__ import annotations

from trio.testing import MockClock

from router_trio.testing import FakeBroker
from tests.support.eventually import eventually
from tests.support.world import all_acked, core, stream, to, world


async def test_all_subjects_of_a_subscription_are_sent_to_one(autojump_clock: MockClock) -> None:
    async with world([core("in.>", to("all"))]) as w:
        for subject in ("in.a", "in.b.c", "in.d.e.f"):
            w.broker.publish(subject, subject.encode())
        await eventually(lambda: w.subjects().count("all") == 3)
        assert [one.payload for one in w.broker.published if one.subject == "all"] == [b"in.a", b"in.b.c", b"in.d.e.f"]


async def test_a_message_of_a_stream_is_mapped_by_the_filter_that_matches(autojump_clock: MockClock) -> None:
    broker = FakeBroker()
    broker.add_stream("IN", ["in.>", "back.>"])
    broker.add_stream("OUT", ["out.>"])
    route = stream("IN", to("out.{{wildcard(1)}}", jetstream=True), filter=["in.*.new", "back.*"])
    async with world([route], brokers={"main": broker}) as w:
        for subject in ("in.7.new", "in.8.old", "back.9", "back.9.x"):
            broker.publish(subject, subject.encode())
        await all_acked(w, 2)
        assert w.payloads("OUT") == [b"in.7.new", b"back.9"]
        assert [one.subject for one in broker.messages("OUT")] == ["out.7", "out.9"]
