"""A route is stopped if its stream takes what it sends: each of its messages would return for ever."""

from __future__ import annotations

from typing import Any

import pytest
import trio
from trio.testing import MockClock

from router_trio.telemetry.http.status import readiness
from router_trio.testing import FakeBroker
from tests.support.eventually import eventually
from tests.support.world import World, fill, numbers, one_broker, stream, to, two_brokers, world


def fed_by(taken: str) -> FakeBroker:
    """Return a broker with `OUT`, and with `IN` that takes `taken` as well and holds five messages."""
    broker = FakeBroker()
    broker.add_stream("IN", ["in.*", taken])
    broker.add_stream("OUT", ["out.>"])
    fill(broker, 5)
    return broker


def move(broker: FakeBroker, taken: str, where: str) -> None:
    """Have the other stream take a subject from now on."""
    subjects = {"IN": ["in.*"], "OUT": ["out.>"]}
    subjects[where].append(taken)
    for name, each in subjects.items():
        broker.trouble.edit_subjects(name, *each)


def why_not_ready(w: World) -> list[str]:
    return [one["reason"] for one in readiness(w.live, trio.current_time())[1]["reasons"]]


@pytest.mark.parametrize(
    ("ends", "keys"),
    [
        (("copy.x",), {}),
        (("out.x", "copy.x"), {}),
        ((to("copy.x"),), {}),
        (("copy.{{random(3)}}",), {}),
        (("copy.x",), {"when": "size > 7"}),
        (("out.x",), {"dead_letter": {"subject": "copy.dead"}}),
        (("out.x",), {"dead_letter": {"subject": "copy.dead"}, "hop_limit": 3}),
    ],
)
async def test_a_route_that_its_stream_would_feed_reads_nothing_until_that_is_fixed(
    ends: tuple[Any, ...], keys: dict[str, Any], autojump_clock: MockClock
) -> None:
    broker = fed_by("copy.*")
    beside = stream("IN", "out.beside", route="beside", durable="beside")
    async with world([stream("IN", *ends, durable="fed") | keys, beside], brokers={"main": broker}) as w:
        refused = await w.watch.until("NATS_SUBSCRIBE_ERROR")
        assert (refused.route, refused.reason) == ("route", "feeds_itself")
        await trio.sleep(30)
        assert w.route_ledger()[0] == 0
        (reason,) = why_not_ready(w)
        assert "route 'route' would feed itself: " in reason
        assert "on connection 'main', and the stream 'IN' that it reads takes 'copy.*'; send to" in reason
        assert "set `filter` to the subjects that the route should read" in reason
        assert ("hop_limit" in reason) is ("dead_letter" not in keys)
        assert w.payloads("OUT") == numbers(5), "another route continues"
        move(broker, "copy.*", "OUT")
        await eventually(lambda: w.route_ledger()[0] == 5, 60)
        await eventually(lambda: readiness(w.live, trio.current_time())[0] == 200, 60)


@pytest.mark.parametrize("denied", [False, True])
@pytest.mark.parametrize("end", ["copy.x", to("copy.x")])
async def test_a_stream_that_later_takes_what_a_route_sends_is_noticed(
    end: Any, denied: bool, autojump_clock: MockClock
) -> None:
    broker = fed_by("other.*")
    move(broker, "copy.*", "OUT")
    async with world([stream("IN", end)], brokers={"main": broker}) as w:
        await eventually(lambda: w.payloads("OUT") == numbers(5))
        if denied:
            broker.deny_publish("$JS.API.STREAM.NAMES")
            await w.lose()
            await w.find()
        await trio.sleep(10)
        assert not w.watch.of("NATS_SUBSCRIBE_ERROR")
        move(broker, "copy.*", "IN")
        began = trio.current_time()
        refused = await w.watch.until("NATS_SUBSCRIBE_ERROR")
        assert refused.reason == "feeds_itself"
        assert trio.current_time() - began <= 5.1
        fill(broker, 5)
        received = w.route_ledger()[0]
        await trio.sleep(30)
        assert w.route_ledger()[0] == received
        move(broker, "copy.*", "OUT")
        await eventually(lambda: w.route_ledger()[0] == received + 5, 60)


async def test_a_differently_named_connection_to_the_same_stream_is_recognized(autojump_clock: MockClock) -> None:
    broker = fed_by("other.*")
    move(broker, "copy.*", "OUT")
    route = stream("IN", to("copy.x", "edge", jetstream=True), connection="main")
    async with world([route], brokers={"main": broker, "edge": broker}) as w:
        await eventually(lambda: w.payloads("OUT") == numbers(5))
        move(broker, "copy.*", "IN")
        refused = await w.watch.until("NATS_SUBSCRIBE_ERROR")
        assert refused.reason == "feeds_itself"
        assert "on connection 'edge'" in refused.detail
        await trio.sleep(30)
        received = w.route_ledger()[0]
        fill(broker, 5)
        await trio.sleep(30)
        assert w.route_ledger()[0] == received
        move(broker, "copy.*", "OUT")
        await eventually(lambda: w.route_ledger()[0] == received + 5, 60)


async def test_a_stream_of_the_same_name_on_another_server_feeds_nothing(autojump_clock: MockClock) -> None:
    brokers = two_brokers()
    brokers["edge"].add_stream("IN", ["in.*"])
    fill(brokers["main"], 5)
    route = stream("IN", to("in.x", "edge", jetstream=True), connection="main")
    async with world([route], brokers=brokers) as w:
        await eventually(lambda: w.payloads("IN", "edge") == numbers(5))
        await trio.sleep(30)
        assert not w.watch.of("NATS_SUBSCRIBE_ERROR")


async def test_subjects_that_the_filter_excludes_may_be_sent_to_the_same_stream(autojump_clock: MockClock) -> None:
    brokers = one_broker()
    fill(brokers["main"], 5)
    async with world([stream("IN", "in.copy", filter="in.x")], brokers=brokers) as w:
        await eventually(lambda: w.payloads("IN") == numbers(5) * 2)
        await trio.sleep(30)
        assert w.payloads("IN") == numbers(5) * 2
        assert not w.watch.of("NATS_SUBSCRIBE_ERROR")


async def test_an_intended_circle_runs_up_to_its_hop_limit(autojump_clock: MockClock) -> None:
    brokers = one_broker()
    fill(brokers["main"], 5)
    route = stream("IN", "in.copy", retry={"attempts": 1}, dead_letter={"subject": "out.dead"}) | {"hop_limit": 3}
    async with world([route], brokers=brokers) as w:
        await eventually(lambda: len(w.payloads("OUT")) == 5)
        await trio.sleep(30)
        assert sorted(w.payloads("IN")) == sorted(numbers(5) * 4)
        assert not w.watch.of("NATS_SUBSCRIBE_ERROR")


async def test_a_replaced_route_no_longer_watches_its_stream(autojump_clock: MockClock) -> None:
    broker = fed_by("other.*")
    async with world([stream("IN", "out.x")], brokers={"main": broker}) as w:
        await eventually(lambda: w.payloads("OUT") == numbers(5))
        for number in range(3):
            await w.live.reload(w.configuration(stream("IN", f"out.{number}")))
        watched = w.live.connections["main"].destinations.sources._readers
        assert [len(one) for one in watched.values()] == [1]
        await w.live.reload(w.configuration())
        assert not watched
