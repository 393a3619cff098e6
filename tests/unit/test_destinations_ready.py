"""State of destinations, and which of it makes a route unready."""

from __future__ import annotations

import gc
from types import SimpleNamespace
from typing import Any, cast

import pytest
import trio
from trio.testing import MockClock

from router_trio.connection.destinations import Destinations
from router_trio.connection.latch import Latch
from router_trio.events import DestinationUnconfirmed, Event
from router_trio.link import Link
from router_trio.states import DestinationState, RouteState
from tests.support.eventually import eventually
from tests.support.world import core, map_subjects, one_broker, to, two_brokers, world
from tests.unit.readiness import (
    STREAM,
    TO_STREAM,
    WITHIN,
    add_out,
    delete_out,
    fill_out,
    limit,
    probe,
    probe_arrives,
    until_ready,
    until_unready,
    why,
)


async def test_one_usable_stream_of_several_is_enough_until_a_publish_is_refused(
    autojump_clock: MockClock,
) -> None:
    brokers = one_broker()
    broker = brokers["main"]
    broker.delete_stream("OUT")
    broker.add_stream("A", ["out.a"])
    broker.add_stream("OLD", ["out.old.>"])
    broker.trouble.seal("OLD")
    async with world([TO_STREAM], brokers=brokers) as w:
        await trio.sleep(WITHIN)
        assert not why(w), "one that is sealed may be no business of this route"
        broker.publish("in.old.x")
        await until_unready(w, "jetstream_10109")


async def test_a_limit_lifted_before_the_first_lookup_is_over_all_the_same(autojump_clock: MockClock) -> None:
    """The first lookup of the stream after the refusal finds room: there never is more than that."""
    async with world([TO_STREAM], brokers=one_broker()) as w:
        fill_out(w)
        w.broker.publish("in.x")
        await until_unready(w, "limit")
        limit(None)(w)  # a destination that takes one message and refuses the next is not looked up each time
        await probe_arrives(w)
        fill_out(w)
        w.broker.publish("in.x")
        await until_unready(w, "limit")
        limit(None)(w)
        await until_ready(w)
        await probe_arrives(w)


async def test_a_destination_that_confirms_nothing_is_not_ready(autojump_clock: MockClock) -> None:
    async with world([STREAM], brokers=one_broker()) as w:
        await probe_arrives(w)
        w.broker.trouble.lose("puback", 1_000_000)
        w.broker.publish("in.x")
        await until_unready(w, "of route route does not confirm publishes")
        w.broker.trouble.lose("puback", 0)
        await until_ready(w)
        await probe_arrives(w)


async def test_a_destination_that_refused_and_then_confirms_nothing_is_not_ready(autojump_clock: MockClock) -> None:
    async with world([STREAM], brokers=one_broker()) as w:
        w.broker.trouble.elect("OUT", 1.0)
        w.broker.publish("in.x")
        await trio.sleep(0.5)
        w.broker.trouble.lose("puback", 1_000_000)
        await trio.sleep(WITHIN)
        await until_unready(w, "does not confirm publishes")
        w.broker.trouble.lose("puback", 0)
        await until_ready(w)


async def test_only_refusals_of_the_destination_count(autojump_clock: MockClock) -> None:
    async with world([TO_STREAM], brokers=one_broker()) as w:
        destinations = w.live.connections["main"].destinations
        destinations.publish_refused(b"out.x", "too_large", "of the message")
        destinations.publish_refused(b"out.x", "wrong_expectation", "of the message")
        destinations.publish_refused(b"elsewhere", "permission_denied", "of another destination")
        assert not why(w)
        assert not w.watch.of("NATS_DESTINATION_NOT_STORED")


async def test_an_unready_destination_is_reported_once_and_again_on_recovery(autojump_clock: MockClock) -> None:
    brokers = one_broker()
    brokers["main"].delete_stream("OUT")
    async with world([TO_STREAM], brokers=brokers) as w:
        event = await w.watch.until("NATS_DESTINATION_NOT_STORED")
        assert trio.current_time() < 1
        assert (event.route, event.connection, event.subject, event.reason) == ("stored", "main", "out.>", "no_stream")
        assert "create one" in event.detail
        w.broker.publish("in.x")
        await trio.sleep(60)
        assert len(w.watch.of("NATS_DESTINATION_NOT_STORED")) == 1
        add_out(w)
        await w.watch.until("NATS_DESTINATION_STORED")
        await trio.sleep(60)
        assert len(w.watch.of("NATS_DESTINATION_STORED")) == 1


async def test_the_first_publish_that_no_stream_takes_is_reported_at_once(autojump_clock: MockClock) -> None:
    async with world([TO_STREAM], brokers=one_broker()) as w:
        await trio.sleep(1)
        delete_out(w)
        began = trio.current_time()
        w.broker.publish("in.x")
        event = await w.watch.until("NATS_DESTINATION_NOT_STORED")
        assert event.at - began < 0.1
        assert event.reason == "no_responders"
        add_out(w)


async def test_without_permission_for_lookups_a_destination_is_ready_until_a_refusal(autojump_clock: MockClock) -> None:
    brokers = one_broker()
    brokers["main"].deny_publish("$JS.API.>")
    async with world([TO_STREAM], brokers=brokers) as w:
        assert not why(w)
        await probe_arrives(w)
        await trio.sleep(3600)
        assert not why(w)
        assert [event.reason for event in w.watch.of("NATS_DESTINATIONS_UNKNOWN")] == ["permission_denied"]
        delete_out(w)
        assert not await probe(w)
        await until_unready(w, "no_responders")
        add_out(w)
        await until_ready(w)
        await probe_arrives(w)


async def test_messages_stored_by_another_account_count_without_a_stream_here(autojump_clock: MockClock) -> None:
    """The messages are stored by a stream that is named, and that no lookup reveals."""
    brokers = one_broker()
    server = brokers["main"]._server
    find = server.state_of_stream
    server.state_of_stream = lambda name, now: None  # type: ignore[method-assign]
    named = to("out.{{wildcard(1)}}", jetstream=True) | {"stream": "OUT"}
    async with world([core("in.*", named)], brokers=brokers) as w:
        await until_unready(w, "names stream 'OUT', which does not exist")
        await probe_arrives(w)
        for _ in range(60):
            await trio.sleep(1)
            assert not why(w)
        server.state_of_stream = find  # type: ignore[method-assign]
        await trio.sleep(WITHIN)
        delete_out(w)
        await until_unready(w, "names stream 'OUT', which does not exist")


async def test_each_stream_is_looked_up_once_per_interval_for_all_its_routes(autojump_clock: MockClock) -> None:
    brokers = one_broker()
    server = brokers["main"]._server
    asked: list[str] = []
    state, find = server.state_of_stream, server.streams_of
    server.state_of_stream = lambda name, now: asked.append(name) or state(name, now)  # type: ignore[method-assign, func-returns-value]
    server.streams_of = lambda subject: asked.append(subject) or find(subject)  # type: ignore[method-assign, func-returns-value]
    routes = [core(f"in.{n}", to(f"out.{n}", jetstream=True), name=f"route{n}") for n in range(20)]
    async with world(routes, brokers=brokers) as w:
        await trio.sleep(1)
        asked.clear()
        await trio.sleep(50)
        assert asked == ["OUT"] * 10
        assert not why(w)


async def test_two_destinations_of_one_template_are_distinguished(autojump_clock: MockClock) -> None:
    both = [to("out.>", jetstream=True), to("out.>", "edge", jetstream=True)]
    brokers = two_brokers()
    brokers["main"].add_stream("HERE", ["out.>"])
    async with world([core("in.>", *both, name="both", connection="main")], brokers=brokers) as w:
        assert not why(w)
        brokers["edge"].delete_stream("OUT")
        for _ in range(10):
            w.broker.publish("in.x")
            await trio.sleep(1)
        assert "on edge" in why(w)
        assert "on main" not in why(w)
        brokers["edge"].add_stream("OUT", ["out.>"])
        await until_ready(w)


async def test_pubacks_that_do_not_count_make_a_destination_unready_until_they_do(autojump_clock: MockClock) -> None:
    brokers = one_broker()
    broker = brokers["main"]
    broker.add_stream("STORED", ["stored.>"])
    map_subjects(broker, "out", "stored")
    async with world([STREAM], brokers=brokers) as w:
        await trio.sleep(60)
        assert not why(w), "OUT takes the subject"
        w.broker.publish("in.x", b"kept")
        await until_unready(w, "other_stream: PubAcks from stream 'STORED' for 'out.x' don't count")
        await trio.sleep(20)
        assert "other_stream" in why(w)
        assert len(w.watch.of("NATS_DESTINATION_NOT_STORED")) == 1
        del broker._server.receive
        await eventually(lambda: w.payloads("OUT") == [b"kept"], 30)
        await until_ready(w)


async def test_the_stream_that_a_destination_names_is_looked_up_instead_of_its_subject(
    autojump_clock: MockClock,
) -> None:
    brokers = one_broker()
    broker = brokers["main"]
    broker.delete_stream("OUT")
    map_subjects(broker, "out", "stored")
    broker.deny_publish("$JS.API.STREAM.NAMES")
    route = FROM_STREAM | {"to": [{"subject": "out.{{wildcard(1)}}", "stream": "STORED"}]}
    async with world([route], brokers=brokers) as w:
        await until_unready(w, "no_stream: the destination names stream 'STORED', which does not exist")
        broker.add_stream("STORED", ["stored.>"])
        await until_ready(w)
        w.broker.publish("in.x", b"1")
        await eventually(lambda: w.payloads("STORED") == [b"1"])
        await eventually(lambda: w.route.settled["routed"] == 1)
        w.broker.trouble.limit("STORED", 1)
        w.broker.publish("in.x", b"2")
        await until_unready(w, "limit")
        w.broker.trouble.limit("STORED", None)
        await eventually(lambda: w.payloads("STORED") == [b"1", b"2"], 30)
        await until_ready(w)


@pytest.mark.parametrize(("denied", "times"), [(False, range(10, 16)), (True, range(1, 2))])
async def test_streams_outside_of_destinations_are_looked_up_regularly_unless_denied(
    denied: bool, times: range, autojump_clock: MockClock
) -> None:
    """A server logs each request that is denied."""
    brokers = one_broker()
    if denied:
        brokers["main"].deny_publish("$JS.API.STREAM.INFO.OUT")
    server = brokers["main"]._server
    asked: list[str] = []
    state = server.state_of_stream
    server.state_of_stream = lambda name, now: asked.append(name) or state(name, now)  # type: ignore[method-assign, func-returns-value]
    async with world([], brokers=brokers) as w:
        for _ in range(60):
            assert (await w.live.publish_with_ack("out.x", b"")).status == "acked"
            await trio.sleep(1)
    assert len(asked) in times


FROM_STREAM: dict[str, Any] = {"name": "copy", "from": {"stream": "IN", "durable": "router", "filter": "in.*"}}


async def test_a_stream_message_waits_for_its_puback_unless_configured_otherwise(
    autojump_clock: MockClock,
) -> None:
    """A full destination refuses the copy: the message stays in its stream."""
    brokers = one_broker()
    brokers["main"].trouble.limit("OUT", 0)
    route = FROM_STREAM | {"to": [{"subject": "out.{{wildcard(1)}}"}]}
    async with world([route], brokers=brokers) as w:
        w.broker.publish("in.x", b"kept")
        await until_unready(w, "limit")
        assert w.route.settled["routed"] == 0
        limit(None)(w)
        await eventually(lambda: w.payloads("OUT") == [b"kept"])


async def test_a_core_destination_stored_by_a_stream_is_reported_once(autojump_clock: MockClock) -> None:
    route = FROM_STREAM | {
        "to": [{"subject": "out.x", "jetstream": False}, {"subject": "elsewhere", "jetstream": False}]
    }
    async with world([route], brokers=one_broker()) as w:
        await eventually(lambda: bool(w.watch.of("NATS_DESTINATION_UNCONFIRMED")))
        await trio.sleep(60)
        await w.lose()
        await w.find()
        await trio.sleep(60)
        (event,) = w.watch.of("NATS_DESTINATION_UNCONFIRMED")
        assert (event.subject, event.stream) == ("out.x", "OUT")


async def test_a_destination_removed_by_a_reload_during_a_lookup_is_forgotten(
    autojump_clock: MockClock,
) -> None:
    events: list[Event] = []
    destinations = Destinations("main", events.append)
    routes = {name: RouteState(name, "main", [name]) for name in ("a", "b", "c")}
    for name, route in routes.items():
        route.redelivers = True
        destinations.add(DestinationState(route, "main", name, name, waits_for_puback=False, shown={}))
    looked_up = []

    async def find_streams(subject: str) -> list[str]:
        looked_up.append(subject)
        await trio.lowlevel.checkpoint()
        for name in ("a", "b") if subject == "a" else ():
            routes[name].is_over = True
            destinations.forget_route(routes[name])
        return ["STREAM"]

    async with trio.open_nursery() as nursery:
        link = cast(Link, SimpleNamespace(find_streams=find_streams))
        nursery.start_soon(destinations.serve, link, Latch())
        await trio.sleep(1)
        assert looked_up == ["a", "c"]
        assert [one.route for one in events if isinstance(one, DestinationUnconfirmed)] == ["c"]
        removed = id(routes.pop("b"))
        remembered = [one for one in gc.get_objects() if id(one) == removed and isinstance(one, RouteState)]
        assert not remembered, "nothing of a route that was removed is remembered"
        nursery.cancel_scope.cancel()


async def test_a_stream_that_confirms_before_it_writes_is_reported_once(autojump_clock: MockClock) -> None:
    brokers = one_broker()
    brokers["main"].trouble.persist_async("OUT")
    async with world([TO_STREAM], brokers=brokers) as w:
        await trio.sleep(60)
        await w.lose()
        await w.find()
        await trio.sleep(60)
        (event,) = w.watch.of("NATS_STREAM_ACKS_EARLY")
        assert (event.connection, event.stream) == ("main", "OUT")
        assert "persist_mode" in event.sentence()
        assert not why(w), "it is what its owner wanted"


async def test_a_router_without_streams_sends_no_jetstream_requests(autojump_clock: MockClock) -> None:
    async with world([core("in.>", "out.>")], brokers=one_broker()) as w:
        await trio.sleep(60)
        assert not w.watch.of("NATS_DESTINATION_UNCONFIRMED")


async def test_a_stream_without_a_leader_does_not_hide_the_state_of_others(autojump_clock: MockClock) -> None:
    brokers = one_broker()
    brokers["main"].add_stream("OTHER", ["other.>"])
    other = core("in.>", to("other.>", jetstream=True), name="other")
    async with world([TO_STREAM, other], brokers=brokers) as w:
        await until_ready(w)
        w.broker.trouble.elect("OUT", 1e6)
        w.broker.trouble.seal("OTHER")
        await until_unready(w, "no server answers for it")
        assert "'OTHER' is sealed" in why(w)
        assert not w.watch.of("NATS_DESTINATIONS_UNKNOWN")
        w.broker.trouble.elect("OUT", 0)


async def test_a_stream_is_not_leaderless_when_listing_streams_is_denied(
    autojump_clock: MockClock,
) -> None:
    """Whether JetStream answers at all is then unknown until a publish shows it. One request is sent per link."""
    brokers = one_broker()
    brokers["main"].deny_publish("$JS.API.STREAM.NAMES")
    named = core("in.>", to("out.>", jetstream=True) | {"stream": "OUT"}, name="stored")
    async with world([named], brokers=brokers) as w:
        await until_ready(w)
        w.broker.trouble.elect("OUT", 1e6)
        await trio.sleep(60)
        assert not why(w)
        assert [event.reason for event in w.watch.of("NATS_DESTINATIONS_UNKNOWN")] == ["timeout"]
        w.broker.trouble.elect("OUT", 0)
        await probe_arrives(w)


async def test_a_stream_without_a_leader_from_the_start_is_that_of_each_destination(autojump_clock: MockClock) -> None:
    """It is known only by the destinations that JetStream lists it for, and the second one is not without a stream."""
    brokers = one_broker()
    brokers["main"].trouble.elect("OUT", 1e6)
    routes = [core("in.>", to(f"out.{name}", jetstream=True), name=name) for name in "ab"]
    async with world(routes, brokers=brokers) as w:
        await eventually(lambda: len(w.watch.of("NATS_DESTINATION_NOT_STORED")) == 2)
        assert [one.reason for one in w.watch.of("NATS_DESTINATION_NOT_STORED")] == ["stream_cut_off"] * 2
        w.broker.trouble.elect("OUT", 0)
        await until_ready(w)
