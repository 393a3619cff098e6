"""The streams configured for a connection, on the fake broker: when they are created, and what is reported."""

from __future__ import annotations

import trio
from trio.testing import MockClock

from router_trio import Settings
from router_trio.telemetry.http.status import readiness
from router_trio.testing import FakeBroker
from tests.support.eventually import eventually
from tests.support.settings import settings
from tests.support.world import World, core, stream, to, world
from tests.unit.connection.network import A, Network, opened

IN = {"name": "IN", "subjects": ["in.*"]}
OUT = {"name": "OUT", "subjects": ["out.>"]}


def reasons(w: World) -> list[str]:
    """Return the reasons that `/readyz` reports."""
    return [one["reason"] for one in readiness(w.live, trio.current_time())[1]["reasons"]]


async def test_streams_are_created_before_the_routes_that_need_them_begin(autojump_clock: MockClock) -> None:
    async with world([stream("IN", "out.{{wildcard(1)}}", filter="in.*")], streams=[IN, OUT]) as w:
        assert not w.watch.of("NATS_SUBSCRIBE_ERROR")
        assert [event.stream for event in w.watch.of("NATS_STREAM_CREATED")] == ["IN", "OUT"]
        assert not reasons(w)
        w.broker.publish("in.x", b"1")
        await eventually(lambda: w.payloads("OUT") == [b"1"])
        assert not w.failures("publish_with_ack")


async def test_a_publish_that_waited_for_a_connection_finds_its_stream_created(autojump_clock: MockClock) -> None:
    edge = FakeBroker()
    edge.down()
    route = core("in.*", to("out.{{wildcard(1)}}", "edge", jetstream=True), connection="main")
    there = OUT | {"connection": "edge"}
    async with world([route], brokers={"main": FakeBroker(), "edge": edge}, streams=[there]) as w:
        w.broker.publish("in.x", b"1")
        await w.find("edge")
        await eventually(lambda: w.payloads("OUT", "edge") == [b"1"])
        assert w.failures("publish_with_ack", "edge") == {"not_connected": 1}


async def test_an_existing_stream_is_compared_and_left_unchanged(autojump_clock: MockClock) -> None:
    broker = FakeBroker()
    broker.add_stream("OUT", ["out.>"], max_messages=9, duplicate_window=5.0)
    wanted = OUT | {"duplicate_window": "1m"}
    async with world(brokers={"main": broker}, streams=[wanted]) as w:
        (event,) = w.watch.of("NATS_STREAM_DIFFERS")
        assert event.stream == "OUT"
        for part in ("max_messages is 9 there and none here", "duplicate_window is 5s there and 60s here"):
            assert part in event.detail
        assert not reasons(w)
        await w.lose()
        await w.find()
        await trio.sleep(1.0)
        assert len(w.watch.of("NATS_STREAM_DIFFERS")) == 1, "reported once"
        assert not w.watch.of("NATS_STREAM_CREATED")


async def test_with_a_refused_stream_the_router_is_not_ready_until_it_is_created(autojump_clock: MockClock) -> None:
    broker = FakeBroker()
    broker.deny_publish("$JS.API.STREAM.CREATE.OUT")
    async with world([core("in.*", "heard.x")], brokers={"main": broker}, streams=[OUT]) as w:
        (event,) = w.watch.of("NATS_STREAM_NOT_MADE")
        assert (event.stream, event.reason) == ("OUT", "permission_denied")
        assert "or create it yourself" in event.detail
        (reason,) = reasons(w)
        assert reason.startswith("stream 'OUT' can't be looked up or created: permission_denied")
        w.broker.publish("in.x", b"1")
        await eventually(lambda: w.subjects() == ["heard.x"])
        await trio.sleep(30.0)
        assert len(w.watch.of("NATS_STREAM_NOT_MADE")) == 1, "reported once"
        broker.allow_publish("$JS.API.STREAM.CREATE.OUT")
        await eventually(lambda: not reasons(w), 60)
        assert w.watch.of("NATS_STREAM_CREATED")


async def test_without_jetstream_the_router_is_not_ready(autojump_clock: MockClock) -> None:
    broker = FakeBroker()
    broker.trouble.switch_off_jetstream()
    async with world(brokers={"main": broker}, streams=[OUT]) as w:
        (reason,) = reasons(w)
        assert "no_jetstream" in reason
        assert "enable JetStream there" in reason
        broker.trouble.switch_off_jetstream(False)
        await w.lose()
        await w.find()
        await eventually(lambda: not reasons(w), 2.0)


async def test_a_deleted_stream_is_recreated_on_the_next_link(autojump_clock: MockClock) -> None:
    async with world(streams=[OUT]) as w:
        w.broker.delete_stream("OUT")
        await w.lose()
        await w.find()
        await eventually(lambda: len(w.watch.of("NATS_STREAM_CREATED")) == 2)
        assert w.payloads("OUT") == []


# --- a reload while a link is new ------------------------------------------------------------------------------------


async def test_a_stream_that_a_reload_adds_during_a_dial_is_created_on_that_link(
    network: Network, autojump_clock: MockClock
) -> None:
    before = settings(A)
    after = Settings(**(before.model_dump(exclude_unset=True) | {"streams": [OUT]}))
    async with opened(network, before) as (watch, live):
        network.delays[A] = 0.5
        network.broker.cut()
        await eventually(lambda: len(network.dials) == 2)
        with trio.move_on_after(0.1):
            await live.reload(after)
        await eventually(lambda: live.connections["main"].connected)
        await eventually(lambda: len(watch.of("NATS_STREAM_CREATED")) == 1, 10.0)


async def test_a_stream_that_a_reload_adds_while_others_are_being_created_is_created_too(
    autojump_clock: MockClock,
) -> None:
    async with world(streams=[OUT]) as w:
        w.broker.delete_stream("OUT")
        await w.lose()
        w.broker.trouble.travel(lambda: 0.2)
        await w.find()
        assert len(w.watch.of("NATS_STREAM_CREATED")) == 1, "the second lookup is under way"
        await w.live.reload(w.configuration(streams=[IN, OUT]))
        await eventually(
            lambda: [one.stream for one in w.watch.of("NATS_STREAM_CREATED")] == ["OUT", "OUT", "IN"], 10.0
        )


async def test_a_stream_that_a_reload_removes_while_it_is_tried_is_not_reported(autojump_clock: MockClock) -> None:
    async with world(streams=[OUT]) as w:
        w.broker.delete_stream("OUT")
        w.broker.deny_publish("$JS.API.STREAM.CREATE.OUT")
        await w.lose()
        w.broker.trouble.travel(lambda: 0.2)
        await w.find()
        await w.live.reload(w.configuration(streams=[]))
        await trio.sleep(10.0)
        assert not reasons(w)
        assert not w.watch.of("NATS_STREAM_NOT_MADE")
