"""A destination that accepts nothing, or not all, beside others on the same connection: real servers, real time.

Publishes and routes that share only the connection continue at once; waiting messages are delivered in order later.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import pytest
import trio

from router_trio import Live
from router_trio.errors import PublishError
from tests.support.eventually import eventually
from tests.support.raw_jetstream import JetStream
from tests.support.raw_nats import RawClient, connect
from tests.support.servers import NatsServer
from tests.support.settings import core_route, settings, stream_route
from tests.support.watch import Watch, until_stored, watched

MESSAGES = 40_000
REFUSED = 12_000
"""Messages that fail one by one: seconds of one processor, in which the neighbours are checked."""

SUBJECTS = 1_000
AT_A_TIME = 1_500
"""Number of messages: more than a queue's usual limit."""

HEALTHY = [
    core_route("core.*", "fine.{{wildcard(1)}}", name="core"),
    stream_route("IN", "out.{{wildcard(1)}}", filter="in.*", name="stream"),
]


def _to_bad(name: str = "bad") -> dict[str, Any]:
    destination = {"subject": "bad.copy.{{wildcard(1)}}", "jetstream": True}
    return {"name": name, "from": {"subject": "bad.*"}, "to": [destination]}


@asynccontextmanager
async def beside(server: NatsServer, *routes: dict[str, Any], **bad: Any) -> AsyncIterator[tuple[Watch, JetStream]]:
    """Yield a router with healthy routes, and `routes`; with options, `bad.copy.>` has a stream."""
    async with connect(server.url) as client:
        stream = JetStream(client)
        await stream.create_stream("IN", ["in.*"])
        await stream.create_stream("OUT", ["out.>"])
        if bad:
            await stream.create_stream("BAD", ["bad.copy.>"], **bad)
        async with watched(settings(server.url, routes=[*HEALTHY, *routes])) as watch:
            yield watch, stream


async def flood(client: RawClient, first: int = 0, messages: int = MESSAGES) -> None:
    """Publish messages with consecutive numbers for the destination that accepts nothing."""
    numbers = range(first, first + messages)
    await client.publish_many((f"bad.{number % SUBJECTS}", b"%d" % number) for number in numbers)
    await client.ping()


async def flood_that_is_refused(client: RawClient, live: Live) -> None:
    """Publish messages that all fail, in portions that the machine processes within a part of a second.

    A neighbour's message is behind all that the server has sent before it, whatever the router does.
    """
    for first in range(0, REFUSED, AT_A_TIME):
        await flood(client, first, AT_A_TIME)
        await eventually(partial(_failed, live, first + AT_A_TIME), 30)


def _failed(live: Live, count: int) -> bool:
    return sum(live.routes[2].failed.values()) == count


async def _routed(live: Live, counts: list[int]) -> None:
    """Wait until the first routes have routed `counts` messages: a second at most."""
    await eventually(lambda: [sum(route.routed.values()) for route in live.routes[: len(counts)]] == counts, 1)


async def assert_neighbours_go_on(watch: Watch, client: RawClient, times: int = 5) -> None:
    live = watch.router
    for _ in range(times):
        before = [sum(route.routed.values()) for route in live.routes[:2]]
        with trio.fail_after(1):
            await live.publish("x", b"")
        with trio.fail_after(1):
            await live.publish_with_ack("out.published", b"")
        with trio.fail_after(1):
            await client.publish("core.1", b"")
            await client.publish("in.1", b"")
            await _routed(live, [number + 1 for number in before])
        await trio.sleep(0.3)


async def assert_whole_and_in_order(stream: JetStream) -> None:
    await until_stored(stream, "BAD", MESSAGES, within=25)
    last: dict[str, int] = {}
    for message in await stream.stream_messages("BAD"):
        number = int(message.payload)
        assert number > last.get(message.subject, -1)
        last[message.subject] = number


async def test_a_missing_stream_delays_no_other_destination(server: NatsServer) -> None:
    async with beside(server, _to_bad()) as (watch, stream), connect(server.url) as client:
        await flood(client)
        await assert_neighbours_go_on(watch, client)
        await stream.create_stream("BAD", ["bad.copy.>"])
        await assert_whole_and_in_order(stream)
        await eventually(lambda: watch.router.connections["main"].outbox.capacity.refusals() == [])


@pytest.mark.parametrize("state", ["sealed", "full"])
async def test_a_full_or_sealed_stream_delays_no_other_destination(server: NatsServer, state: str) -> None:
    options: dict[str, Any] = {"max_msgs": 1, "discard": "new"} if state == "full" else {"storage": "memory"}
    async with beside(server, _to_bad(), **options) as (watch, stream), connect(server.url) as client:
        await stream.publish("bad.copy.first", b"")
        if state == "sealed":
            config = (await stream.stream_info("BAD"))["config"]
            await stream.api("STREAM.UPDATE.BAD", {**config, "sealed": True})
        async with trio.open_nursery() as nursery:
            nursery.start_soon(flood_that_is_refused, client, watch.router)
            await assert_neighbours_go_on(watch, client)


async def test_a_subscriber_that_never_answers_delays_no_other_destination(server: NatsServer) -> None:
    async with beside(server, _to_bad()) as (watch, _), connect(server.url) as client, connect(server.url) as mute:
        await mute.subscribe("bad.copy.>")
        await mute.ping()
        await flood(client)
        await assert_neighbours_go_on(watch, client, 20)


async def test_a_programs_publishes_to_a_missing_stream_delay_no_others(server: NatsServer) -> None:
    async with beside(server) as (watch, _), connect(server.url) as client, trio.open_nursery() as nursery:
        for number in range(5_000):
            nursery.start_soon(partial(_refused, watch.router, f"bad.copy.{number % SUBJECTS}"))
        await trio.lowlevel.checkpoint()
        await assert_neighbours_go_on(watch, client)


async def _refused(live: Live, subject: str) -> None:
    with pytest.raises(PublishError) as caught:
        await live.publish_with_ack(subject, b"")
    assert caught.value.reason == "no_responders"
