"""Several processes share the partitions of a route on the fake broker: who leads what, and in which order."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from router_trio import Message
from router_trio.errors import ConfigurationError
from router_trio.events import Level
from router_trio.link import Announced, Group
from router_trio.states import PAUSED, RUNNING, Partitions, RouteState
from router_trio.telemetry.http.status import readiness
from router_trio.testing import FakeBroker
from tests.support.eventually import eventually
from tests.support.recorder import Recorder
from tests.support.world import World, handled, to, world

KEYS = 20
PARTITIONS = 8


def group_broker() -> FakeBroker:
    broker = FakeBroker()
    broker.add_stream("ORDERS", ["orders.>"])
    broker.add_stream("OUT", ["out.>"])
    return broker


def route(**source: Any) -> dict[str, Any]:
    keys = {"stream": "ORDERS", "durable": "router", "filter": "orders.*.*", "partitions": PARTITIONS}
    return {
        "name": "route",
        "from": keys | {"partition_by": [1]} | source,
        "to": [to("out.{{wildcard(1)}}.{{wildcard(2)}}", jetstream=True)],
    }


def publish(broker: FakeBroker, count: int, first: int = 0) -> None:
    """Publish numbered messages, each of the next key, and each key with several subjects."""
    for number in range(first, first + count):
        broker.publish(f"orders.{number % KEYS}.{number % 3}", b"%d" % number)


def shown(one: RouteState) -> Partitions:
    partitions = one.partitions
    assert partitions is not None
    return partitions


def stored(broker: FakeBroker) -> dict[str, list[int]]:
    """Return the numbers in the destination by key, in order."""
    found = defaultdict(list)
    for message in broker.messages("OUT"):
        found[message.subject.split(".")[1]].append(int(message.payload))
    return found


def assert_all_in_order(broker: FakeBroker, count: int) -> None:
    found = stored(broker)
    for key, numbers in found.items():
        assert numbers == [number for number in range(count) if str(number % KEYS) == key], key
    assert sum(map(len, found.values())) == count


@asynccontextmanager
async def processes(broker: FakeBroker, count: int, **options: Any) -> AsyncIterator[list[World]]:
    async with AsyncExitStack() as stack:
        yield [
            await stack.enter_async_context(world([route()], brokers={"main": broker}, **options)) for _ in range(count)
        ]


@pytest.mark.parametrize("stream", ["ORDERS", "ORDERS-router"])
async def test_a_rolled_back_stream_and_a_rolled_back_copy_route_each_message_once(
    stream: str, autojump_clock: MockClock
) -> None:
    published = 0

    def publish_some(count: int) -> None:
        nonlocal published
        publish(broker, count, published)
        published += count

    broker = group_broker()
    async with processes(broker, 2) as both:
        publish_some(100)
        await eventually(lambda: len(broker.messages("OUT")) == 100)
        publish_some(100)
        await eventually(lambda: len(broker.messages("OUT")) == 200)
        broker.trouble.restore(stream, 100)
        if stream == "ORDERS":
            await eventually(lambda: any(w.watch.count("STREAM_WENT_BACK") for w in both))
        publish_some(60)
        await eventually(lambda: len(broker.messages("OUT")) == 260)
        await trio.sleep(60)
        assert len(broker.messages("OUT")) == 260


async def test_a_lone_process_leads_all_partitions(autojump_clock: MockClock) -> None:
    broker = group_broker()
    publish(broker, 100)
    async with processes(broker, 1) as (one,):
        await eventually(lambda: len(broker.messages("OUT")) == 100)
        publish(broker, 100, first=100)
        await eventually(lambda: len(broker.messages("OUT")) == 200)
        assert_all_in_order(broker, 200)
        partitions = shown(one.route)
        assert partitions.led == tuple(range(PARTITIONS))
        assert partitions.members == {partitions.member}
        assert readiness(one.live, trio.current_time())[0] == 200
        assert next(one.subject for one in broker.messages("OUT")).startswith("out.")


async def test_processes_share_the_partitions_fairly_and_keep_the_order(autojump_clock: MockClock) -> None:
    broker = group_broker()
    async with processes(broker, 3) as worlds:
        for number in range(0, 600, 20):
            publish(broker, 20, first=number)
            await trio.sleep(0.5)
        await eventually(lambda: len(broker.messages("OUT")) == 600)
        assert_all_in_order(broker, 600)
        led = [shown(one.route).led for one in worlds]
        assert sorted(number for some in led for number in some) == list(range(PARTITIONS))
        assert {len(some) for some in led} <= {2, 3}
        assert all(one.route.settled["routed"] for one in worlds)


async def test_a_process_that_ends_leaves_its_partitions_to_others_at_once(autojump_clock: MockClock) -> None:
    broker = group_broker()
    async with processes(broker, 1) as (stays,):
        async with processes(broker, 1) as (leaves,):
            publish(broker, 200)
            await eventually(lambda: len(broker.messages("OUT")) == 200 and len(shown(leaves.route).led) == 4)
        left_at = trio.current_time()
        publish(broker, 200, first=200)
        await eventually(lambda: len(broker.messages("OUT")) == 400, 2.5)
        assert trio.current_time() - left_at < 2.5
        assert_all_in_order(broker, 400)
        assert len(shown(stays.route).led) == PARTITIONS


async def test_a_handler_has_one_call_of_each_key_over_all_processes(autojump_clock: MockClock) -> None:
    broker = group_broker()
    active: dict[str, int] = defaultdict(int)
    overlaps: list[str] = []

    async def handle(message: Message) -> Message:
        key = message.subject.split(".")[1]
        active[key] += 1
        if active[key] > 1:
            overlaps.append(key)
        await trio.sleep(0.05)
        active[key] -= 1
        return message.replace(subject=f"out.{key}.x")

    def process() -> Any:
        source = route()["from"]
        one = handled(handle, to=to("out.{{wildcard(1)}}.{{wildcard(2)}}", jetstream=True), concurrency=8, **source)
        return world(handlers=[one], brokers={"main": broker})

    async with process():
        publish(broker, 300)
        async with process():
            await trio.sleep(4)
        async with process():
            await trio.sleep(4)
            publish(broker, 100, first=300)
            await eventually(lambda: len(broker.messages("OUT")) == 400, 60)
    assert not overlaps
    assert_all_in_order(broker, 400)


async def test_a_reload_that_changes_the_route_keeps_order_and_counts(autojump_clock: MockClock) -> None:
    broker = group_broker()
    async with processes(broker, 2) as (one, other):
        publish(broker, 100)
        await eventually(lambda: len(broker.messages("OUT")) == 100)
        member = shown(one.route).member
        changed = route(max_in_flight=16)
        await one.live.reload(one.configuration(changed))
        publish(broker, 100, first=100)
        await eventually(lambda: len(broker.messages("OUT")) == 200)
        assert_all_in_order(broker, 200)
        assert shown(one.route).member == member
        await eventually(lambda: {len(shown(w.route).led) for w in (one, other)} == {PARTITIONS // 2})


async def test_a_reload_with_other_partitions_is_refused_and_changes_nothing(autojump_clock: MockClock) -> None:
    broker = group_broker()
    async with processes(broker, 1) as (one,):
        for changes in ({"partitions": 4}, {"partition_by": [2]}, {"filter": "orders.*.*.*"}):
            with pytest.raises(ConfigurationError, match="router-trio partitions CONFIG route --change"):
                await one.live.reload(one.configuration(route(**changes)))
        publish(broker, 50)
        await eventually(lambda: len(broker.messages("OUT")) == 50)
        assert shown(one.route).count == PARTITIONS
        # With another durable it is another route.
        await one.live.reload(one.configuration(route(partitions=4, durable="other", deliver="new")))
        await eventually(lambda: shown(one.route).count == 4)


async def test_a_route_reads_a_stream_that_has_the_partitions_itself(autojump_clock: MockClock) -> None:
    broker = FakeBroker()
    broker.add_stream("OUT", ["out.>"])
    entry = {"connection": "main", "name": "ORDERS", "subjects": ["orders.*.*"], "partitions": PARTITIONS}
    streams = [entry | {"partition_by": [1]}]
    async with AsyncExitStack() as stack:
        worlds = [
            await stack.enter_async_context(world([route()], brokers={"main": broker}, streams=streams))
            for _ in range(2)
        ]
        await eventually(lambda: [len(shown(one.route).led) for one in worlds] == [PARTITIONS // 2] * 2)
        publish(broker, 100)
        await eventually(lambda: len(broker.messages("OUT")) == 100)
        assert_all_in_order(broker, 100)
        assert broker.messages("ORDERS")[0].subject.split(".")[1:] == ["orders", "0", "0"]
        with pytest.raises(KeyError):
            broker.messages("ORDERS-router")


async def test_messages_that_are_copied_late_are_counted_as_behind(autojump_clock: MockClock) -> None:
    broker = group_broker()
    async with processes(broker, 1) as (one,):
        publish(broker, 10)
        await eventually(lambda: len(broker.messages("OUT")) == 10)
        broker.trouble.stall_copying("ORDERS-router", 40.0)
        publish(broker, 30, first=10)
        await eventually(lambda: shown(one.route).uncopied == 30)
        await eventually(lambda: "heard of it" in str(readiness(one.live, trio.current_time())), 60)
        await eventually(lambda: len(broker.messages("OUT")) == 40, 60)
        await eventually(lambda: shown(one.route).uncopied == 0)
        await eventually(lambda: readiness(one.live, trio.current_time())[0] == 200)
        assert_all_in_order(broker, 40)


async def test_messages_in_hand_at_the_loss_of_a_link_are_stored_once_and_in_order(autojump_clock: MockClock) -> None:
    broker = group_broker()
    calls: dict[bytes, int] = defaultdict(int)

    async def handle(message: Message) -> Message:
        calls[message.payload] += 1
        await trio.sleep(0.1)
        return message.replace(subject=f"out.{message.subject.split('.')[1]}.x")

    source = route()["from"]
    one = handled(handle, to=to("out.{{wildcard(1)}}.{{wildcard(2)}}", jetstream=True), concurrency=4, **source)
    async with world(handlers=[one], brokers={"main": broker}) as w:
        publish(broker, 200)
        await trio.sleep(1)
        for seconds in (0.5, 10.0):
            broker.down()
            await trio.sleep(seconds)
            broker.up()
            await trio.sleep(1)
        await eventually(lambda: len(broker.messages("OUT")) == 200, 60)
        assert_all_in_order(broker, 200)
        assert w.route.in_hand == 0


async def test_a_partition_whose_destination_is_away_is_handed_over(autojump_clock: MockClock) -> None:
    """Messages that wait for the destination are taken back: another process may reach it."""
    brokers = {"main": group_broker(), "edge": FakeBroker()}
    brokers["edge"].add_stream("OUT", ["out.>"])
    elsewhere = route(connection="main") | {"to": [to("out.{{wildcard(1)}}.{{wildcard(2)}}", "edge", jetstream=True)]}
    away = {"main": brokers["main"], "edge": FakeBroker()}
    away["edge"].add_stream("OUT", ["out.>"])
    async with world([elsewhere], brokers=away) as first:
        publish(brokers["main"], 100)
        await eventually(lambda: len(away["edge"].messages("OUT")) == 100)
        await first.lose("edge")
        publish(brokers["main"], 100, first=100)
        await trio.sleep(1)
        async with world([elsewhere], brokers=brokers) as second:
            await eventually(lambda: len(shown(second.route).led) == PARTITIONS // 2, 5)
            assert brokers["edge"].messages("OUT")
        await first.find("edge")
        await eventually(lambda: len(away["edge"].messages("OUT")) + len(brokers["edge"].messages("OUT")) == 200)


# --- members that do not lead ---


async def announce(broker: FakeBroker, *ids: str, seconds: float = 1e6) -> None:
    """Announce members that lead nothing."""
    async with broker.machine().connect("nats://other:4222", b"_INBOX.other", Recorder()) as link:
        for member in ids:
            await (await link.members(Group("ORDERS", "router", member))).announce(Announced("", "", ()), seconds)


def routed(broker: FakeBroker, count: int) -> Callable[[], bool]:
    return lambda: len(broker.messages("OUT")) == count


@pytest.mark.parametrize("forged", [1, 40])
async def test_messages_of_partitions_that_no_member_leads_are_routed_and_reported(
    forged: int, autojump_clock: MockClock
) -> None:
    broker = group_broker()
    async with processes(broker, 2) as both:
        await announce(broker, *(f"{number:016x}" for number in range(forged)))
        await eventually(lambda: sum(len(shown(w.route).led) for w in both) < PARTITIONS, 10)
        publish(broker, 100)
        await eventually(
            lambda: any("no process leads" in str(readiness(w.live, trio.current_time())) for w in both), 15
        )
        warned = next(one for w in both for one in w.watch.of("ROUTE_PARTITIONS_UNLED"))
        assert warned.level is Level.WARN
        assert "0000000000000000" in warned.detail or forged > 1
        await eventually(routed(broker, 100), 15)
        await eventually(lambda: all(readiness(w.live, trio.current_time())[0] == 200 for w in both))
        assert_all_in_order(broker, 100)
        assert sum(len(shown(w.route).led) for w in both) == PARTITIONS
        # The leads are given up now and then, for a member that was only slow.
        for number in range(100, 1000, 20):
            publish(broker, 20, first=number)
            await trio.sleep(5)
        await eventually(routed(broker, 1000), 30)
        assert_all_in_order(broker, 1000)


async def test_a_process_that_stands_in_goes_on_through_a_reload(autojump_clock: MockClock) -> None:
    broker = group_broker()
    async with processes(broker, 1) as (one,):
        await announce(broker, "0" * 16)
        await eventually(lambda: len(shown(one.route).led) == PARTITIONS // 2, 10)
        publish(broker, 100)
        await eventually(lambda: len(shown(one.route).led) == PARTITIONS, 20)
        await one.live.reload(one.configuration(route(max_in_flight=16)))
        publish(broker, 100, first=100)
        await eventually(routed(broker, 200), 5)
        assert_all_in_order(broker, 200)


async def test_a_partition_without_messages_is_not_unled(autojump_clock: MockClock) -> None:
    broker = group_broker()
    async with processes(broker, 1) as (one,):
        publish(broker, 100)
        await eventually(routed(broker, 100))
        await announce(broker, "0" * 16)
        await eventually(lambda: len(shown(one.route).led) == PARTITIONS // 2, 10)
        await trio.sleep(60)
        assert not one.watch.of("ROUTE_PARTITIONS_UNLED")
        assert readiness(one.live, trio.current_time())[0] == 200


async def test_without_the_permission_to_look_leads_up_no_process_stands_in(autojump_clock: MockClock) -> None:
    broker = group_broker()
    async with processes(broker, 1) as (one,):
        publish(broker, 100)
        await eventually(routed(broker, 100))
        await announce(broker, "0" * 16)
        await eventually(lambda: len(shown(one.route).led) == PARTITIONS // 2, 10)
        broker.deny_publish("$JS.API.CONSUMER.INFO.>")
        publish(broker, 100, first=100)
        await trio.sleep(60)
        assert not one.watch.of("ROUTE_PARTITIONS_UNLED")
        assert not routed(broker, 200)()


@pytest.mark.parametrize("lost", [4, 6], ids=["two of each", "three of each"])
async def test_two_announcements_in_a_row_may_be_lost(lost: int, autojump_clock: MockClock) -> None:
    """The answer that does not come is waited for, and the next announcement is not late for that."""
    broker = group_broker()
    async with processes(broker, 2) as both:
        await eventually(lambda: all(len(shown(w.route).led) == PARTITIONS // 2 for w in both), 10)
        before = [w.watch.count("ROUTE_MEMBERS_CHANGED") for w in both]
        broker.trouble.lose("announce", lost)
        await trio.sleep(12)
        changed = [w.watch.count("ROUTE_MEMBERS_CHANGED") for w in both] != before
        assert changed == (lost > 4)
        assert all(len(shown(w.route).led) == PARTITIONS // 2 for w in both)


def pause(broker: FakeBroker, seconds: float, numbers: Iterable[int] = range(PARTITIONS)) -> None:
    for number in numbers:
        broker.trouble.pause_consumer("ORDERS-router", f"router-{number}", seconds)


def ready(w: World) -> bool:
    return readiness(w.live, trio.current_time())[0] == 200


@pytest.mark.parametrize("members", ["forged", "other processes"])
async def test_a_process_without_a_share_is_not_ready_while_the_partitions_are_paused(
    members: str, autojump_clock: MockClock
) -> None:
    broker = group_broker()
    async with processes(broker, 1):
        publish(broker, 100)
        await eventually(routed(broker, 100))
    if members == "forged":
        await announce(broker, *(f"{number:016x}" for number in range(40 * PARTITIONS)))
    pause(broker, 600)
    publish(broker, 100, first=100)
    async with processes(broker, 1 if members == "forged" else PARTITIONS + 1) as worlds:
        for _ in range(80):
            await trio.sleep(0.1)
            assert not any(w.route.state == RUNNING for w in worlds)
        without = [w for w in worlds if not any(owner == shown(w.route).member for owner in shown(w.route).owners)]
        assert without
        for _ in range(20):
            await trio.sleep(6)
            assert [(w.route.state, "is paused" in str(w.route.reason)) for w in worlds] == [(PAUSED, True)] * len(
                worlds
            )
        assert routed(broker, 100)()
        pause(broker, 0)
        await eventually(lambda: all(w.route.state == RUNNING for w in worlds), 8)
        await eventually(routed(broker, 200), 30)
        await eventually(lambda: all(ready(w) for w in worlds))


async def test_a_partition_that_stays_paused_when_others_are_resumed_is_reported_by_each_process(
    autojump_clock: MockClock,
) -> None:
    broker = group_broker()
    async with processes(broker, 2) as both:
        publish(broker, 100)
        await eventually(routed(broker, 100))
        pause(broker, 600)
        await eventually(lambda: all(w.route.state == PAUSED for w in both), 8)
        pause(broker, 0, range(PARTITIONS - 1))
        await trio.sleep(20)
        for w in both:
            assert w.route.state == PAUSED
            assert str(w.route.reason).startswith(f"partition {PARTITIONS - 1}: ")
        assert not any(w.watch.of("ROUTE_PARTITIONS_UNLED") for w in both)
        pause(broker, 0)
        await eventually(lambda: all(ready(w) for w in both), 8)


async def test_max_in_flight_is_that_of_all_partitions(autojump_clock: MockClock) -> None:
    broker = group_broker()
    ends = trio.Event()

    async def handle(message: Message) -> None:
        await ends.wait()

    source = route(max_in_flight=16)["from"]
    one = handled(handle, to=to("out.x", jetstream=True), concurrency=4, **source)
    async with world(handlers=[one], brokers={"main": broker}) as w:
        publish(broker, 400)
        await trio.sleep(5)
        # Each partition may hold as many again behind others of their keys.
        assert w.route.in_hand <= 2 * 16
        ends.set()
        await eventually(lambda: w.route.settled["filtered"] == 400)
