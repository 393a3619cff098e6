"""One ack for many on a real server: a durable with the ack policy all, killed servers, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import trio

from router_trio import Message, Reject, Router
from router_trio.errors import ConfigurationError
from tests.support.eventually import eventually
from tests.support.raw_jetstream import JetStream
from tests.support.raw_nats import connect
from tests.support.servers import NatsServer
from tests.support.settings import settings
from tests.support.watch import Watch, assert_alive, until_nothing_is_unacked, watched

SOURCE: dict[str, Any] = {"stream": "SOURCE", "durable": "router", "filter": "in.*", "ack": "all", "ack_wait": "2s"}
TO: list[dict[str, Any]] = [{"subject": "out.{{wildcard(1)}}", "jetstream": True}]


async def filled(stream: JetStream, count: int) -> None:
    await stream.create_stream("SOURCE", ["in.*"])
    await stream.create_stream("SINK", ["out.*"])
    await stream.publish_many([(f"in.{n % 3}", b"%d" % n, ()) for n in range(count)])


async def came(stream: JetStream) -> list[int]:
    return [int(message.payload) for message in await stream.stream_messages("SINK")]


async def test_all_arrive_once_in_order_over_kills_and_few_acks_are_for_them(server: NatsServer) -> None:
    count = 6_000
    async with connect(server.url) as client:
        await filled(JetStream(client), count)
    async with watched(settings(server.url, routes=[{"name": "all", "from": SOURCE, "to": TO}])) as watch:
        (route,) = watch.router.routes
        for part in (1, 2):
            await eventually(lambda part=part: route.settled["routed"] >= count * part // 3, 60)  # type: ignore[misc]
            await server.kill()
            await server.restart()
            await assert_alive(watch.router, 60)
        await eventually(lambda: route.settled["routed"] >= count, 60)
        async with connect(server.url) as client:
            stream = JetStream(client)
            await until_nothing_is_unacked(stream)
            info = await stream.api("CONSUMER.INFO.SOURCE.router")
            assert info["config"]["ack_policy"] == "all"
            assert info["ack_floor"]["stream_seq"] == count
            assert sorted(await came(stream)) == list(range(count))
            for subject in range(3):
                of_subject = [number for number in await came(stream) if number % 3 == subject]
                assert of_subject == sorted(of_subject)
        assert watch.metric("router_nats_ack_total") < count / 3


async def test_what_fails_is_tried_again_and_nothing_behind_it_is_acked_before_it(server: NatsServer) -> None:
    async with connect(server.url) as client:
        await filled(JetStream(client), 30)
    tried: list[int] = []
    watch = Watch()
    made = Router(settings(server.url), observers=[watch])

    @made.route(to=TO[0], name="all", retry={"initial": "300ms"}, **SOURCE)
    async def handler(message: Message) -> Message:
        number = int(message.payload)
        tried.append(number)
        if number == 20:
            raise Reject("never")
        if number == 10 and tried.count(10) < 3:
            raise ValueError("not yet")
        return message

    async with watched(made, watch), connect(server.url) as client:
        stream = JetStream(client)
        (route,) = watch.router.routes
        await eventually(lambda: route.settled["routed"] >= 28, 20)
        floor = 0
        with trio.fail_after(20):
            while floor < 10:  # the acks are on their way, on another connection
                floor = (await stream.api("CONSUMER.INFO.SOURCE.router"))["ack_floor"]["stream_seq"]
        assert floor in (10, 30), "what is before it, or all of it"
        await eventually(lambda: route.settled["routed"] >= 29, 20)
        await until_nothing_is_unacked(stream)
        assert route.settled["given_up"] == 1
        assert sorted(await came(stream)) == [number for number in range(30) if number != 20]
        assert tried.count(20) == 1


@pytest.mark.parametrize(
    ("changes", "source", "at"),
    [
        ({"retry": {"attempts": 3}}, {}, "retry.attempts"),
        ({"dead_letter": {"subject": "dead"}}, {}, "dead_letter"),
        ({"key": "subject"}, {}, "key"),
        ({"handler": "json:loads", "concurrency": 2}, {}, "concurrency"),
        ({}, {"standby": True}, "from.standby"),
    ],
)
def test_what_settles_out_of_order_is_refused(changes: dict[str, Any], source: dict[str, Any], at: str) -> None:
    with pytest.raises(ConfigurationError, match=f"routes\\[0\\].{at}: can't be combined with from.ack = 'all'"):
        settings("nats://x:4222", routes=[{"name": "all", "from": SOURCE | source, "to": TO, **changes}])


async def test_a_durable_that_acks_each_is_refused_and_the_other_way_round(server: NatsServer) -> None:
    async with connect(server.url) as client:
        stream = JetStream(client)
        await filled(stream, 1)
        for policy, wanted, told in (
            ("explicit", "all", "its ack policy is explicit, all is needed"),
            ("all", "each", 'its ack policy is all, explicit is needed (or `ack = "all"` in the route)'),
        ):
            config = {"durable_name": policy, "ack_policy": policy, "filter_subject": "in.*", "ack_wait": 2_000_000_000}
            await stream.api(f"CONSUMER.DURABLE.CREATE.SOURCE.{policy}", {"stream_name": "SOURCE", "config": config})
            source = SOURCE | {"durable": policy, "ack": wanted}
            routes = [{"name": "all", "from": source, "to": TO}]
            async with watched(settings(server.url, routes=routes)) as watch:
                event = await watch.until("NATS_SUBSCRIBE_ERROR")
                assert told in str(event)


@pytest.mark.parametrize("gone", ["deleted", "purged"])
async def test_what_is_gone_from_its_stream_holds_back_no_acks(server: NatsServer, gone: str) -> None:
    async with connect(server.url) as client:
        await filled(JetStream(client), 30)
    watch = Watch()
    made = Router(settings(server.url), observers=[watch])

    @made.route(to=TO[0], name="all", retry={"initial": "500ms", "max": "500ms"}, **SOURCE)
    async def handler(message: Message) -> Message:
        if int(message.payload) in (10, 11):
            raise ValueError("every time")
        return message

    async with watched(made, watch), connect(server.url) as client:
        stream = JetStream(client)
        (route,) = watch.router.routes
        await eventually(lambda: route.settled["routed"] >= 28, 20)
        if gone == "deleted":
            for sequence in (11, 12):
                await stream.api("STREAM.MSG.DELETE.SOURCE", {"seq": sequence})
        else:
            await stream.api("STREAM.PURGE.SOURCE", {"seq": 13})
        await until_nothing_is_unacked(stream)
        assert (await stream.api("CONSUMER.INFO.SOURCE.router"))["ack_floor"]["stream_seq"] == 30
        await eventually(lambda: route.in_hand == 0)


@pytest.mark.parametrize(("most", "told"), [(-1, "any number of messages"), (100_000, "100,000 messages")])
async def test_a_durable_with_more_than_a_route_knows_is_refused(server: NatsServer, most: int, told: str) -> None:
    async with connect(server.url) as client:
        stream = JetStream(client)
        await filled(stream, 1)
        await stream.create_consumer("SOURCE", "router", ack_policy="all", filter_subject="in.*", max_ack_pending=most)
        routes = [{"name": "all", "from": SOURCE, "to": TO}]
        async with watched(settings(server.url, routes=routes)) as watch:
            event = await watch.until("NATS_SUBSCRIBE_ERROR")
            assert f"lets {told} wait for an ack (max_ack_pending)" in str(event)
            assert event.reason == "consumer_mismatch"
            await stream.edit_consumer("SOURCE", "router", max_ack_pending=65_536)
            await eventually(lambda: watch.router.routes[0].settled["routed"] == 1, 20)
