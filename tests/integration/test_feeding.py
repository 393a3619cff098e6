"""A route from an entire stream that stores the route's own messages is stopped by name, and does not loop forever."""

from __future__ import annotations

from typing import Any

import pytest
import trio

from router_trio import Settings
from router_trio.telemetry.http.status import readiness
from tests.support.eventually import eventually
from tests.support.raw_jetstream import JetStream
from tests.support.raw_nats import connect
from tests.support.servers import NatsServer
from tests.support.settings import settings
from tests.support.streams import publish_numbered, source_and_sink
from tests.support.watch import Watch, until_stored, watched


def whole(to: str, **keys: Any) -> dict[str, Any]:
    """Return a route from all of `SOURCE`, with one destination."""
    return {"name": "round", "from": {"stream": "SOURCE", "durable": "router"}, "to": [{"subject": to}], **keys}


async def stored(stream: JetStream, name: str = "SOURCE") -> int:
    return int((await stream.stream_info(name))["state"]["messages"])


async def refused(watch: Watch) -> str:
    """Wait until the route is stopped for feeding itself. Return its reason in `/readyz`, which is the only one.

    Two streams are edited one after the other, and no stream takes the destination in between. If it is looked up just
    then, that is reported as well until its next lookup, a second later.
    """
    event = await watch.until("NATS_SUBSCRIBE_ERROR")
    assert (event.route, event.reason) == ("round", "feeds_itself")

    def reasons() -> list[dict[str, str]]:
        return list(readiness(watch.router, trio.current_time())[1]["reasons"])

    await eventually(lambda: len(reasons()) == 1)
    (reason,) = reasons()
    assert reason["route"] == "round"
    return str(reason["reason"])


@pytest.mark.parametrize("keys", [{}, {"to": [{"subject": "source.copy", "jetstream": False}]}])
async def test_a_route_that_its_stream_would_feed_is_stopped_before_it_reads(
    server: NatsServer, keys: dict[str, Any]
) -> None:
    async with connect(server.url) as client:
        stream = await source_and_sink(client, 10)
        async with watched(settings(server.url, routes=[whole("source.copy") | keys])) as watch:
            assert await refused(watch) == (
                "route 'round' would feed itself: it sends to 'source.copy' on connection 'main', and the "
                "stream 'SOURCE' that it reads takes 'source.*'; send to other subjects, set `filter` to the "
                "subjects that the route should read, or set hop_limit if it is intended"
            )
            await trio.sleep(2)
            assert await stored(stream) == 10
            assert watch.metric("router_messages_received_total") == 0
            # Its subject belongs to another stream now.
            await stream.edit_stream("SOURCE", subjects=["source.a", "source.b"])
            await stream.edit_stream("SINK", subjects=["sink.>", "source.copy"])
            await until_stored(stream, "SINK", 10)


async def test_editing_a_stream_to_take_what_a_route_sends_is_noticed(server: NatsServer) -> None:
    async with connect(server.url) as client:
        stream = await source_and_sink(client, 10)
        async with watched(settings(server.url, routes=[whole("sink.copy")])) as watch:
            await until_stored(stream, "SINK", 10)
            await stream.edit_stream("SINK", subjects=["other"])
            await stream.edit_stream("SOURCE", subjects=["source.*", "sink.*"])
            assert "that it reads takes 'sink.*'" in await refused(watch)
            await publish_numbered(stream, range(10, 20))
            await trio.sleep(2)
            assert await stored(stream) == 20, "none came back: nothing was published before it was noticed"
            await stream.edit_stream("SOURCE", subjects=["source.*"])
            await stream.edit_stream("SINK", subjects=["sink.*"])
            await until_stored(stream, "SINK", 20)


async def test_a_stream_that_is_fed_over_another_connection_is_recognised(server: NatsServer) -> None:
    async with connect(server.url) as client:
        stream = await source_and_sink(client)
        here, there = server.url, server.url.replace("127.0.0.1", "localhost")
        route = whole("source.copy")
        route["from"]["connection"] = "here"
        route["to"][0]["connection"] = "there"
        connections = {"here": {"servers": [here]}, "there": {"servers": [there]}}
        configured = Settings(telemetry={"listen": ""}, connections=connections, routes=[route])
        async with watched(configured) as watch:
            assert "on connection 'there'" in await refused(watch)
            await publish_numbered(stream, range(10))
            await trio.sleep(2)
            assert await stored(stream) == 10


@pytest.mark.parametrize(("filter", "fed"), [("held.*", True), ("held.a", False), ("source.*", False), (None, True)])
async def test_the_subject_under_which_a_stream_stores_counts(
    server: NatsServer, filter: str | None, fed: bool
) -> None:
    async with connect(server.url) as client:
        stream = await source_and_sink(client)
        mapping = {"src": "source.*", "dest": "held.{{wildcard(1)}}"}
        await stream.edit_stream("SOURCE", subject_transform=mapping)
        # Messages to its own filter are refused before the server is asked.
        route = whole("sink.copy" if filter == "source.*" else "source.copy")
        if filter is not None:
            route["from"]["filter"] = filter
        async with watched(settings(server.url, routes=[route])) as watch:
            if fed:
                assert "that it reads takes 'source.*'" in await refused(watch)
                return
            await watch.until("ROUTE_READY")
            await stream.publish("source.a", b"1")
            await eventually(lambda: filter == "source.*" or watch.router.routes[0].settled["routed"] == 1)
            await trio.sleep(1)
            assert await stored(stream) == (1 if filter == "source.*" else 2)
            assert not watch.of("NATS_SUBSCRIBE_ERROR")


async def test_an_intended_circle_ends_at_its_limit(server: NatsServer) -> None:
    async with connect(server.url) as client:
        stream = await source_and_sink(client, 10)
        route = whole("source.copy", hop_limit=3, retry={"attempts": 1}, dead_letter={"subject": "sink.dead"})
        async with watched(settings(server.url, routes=[route])):
            await until_stored(stream, "SINK", 10)
            assert await stored(stream) == 40


LIMITED: dict[str, Any] = {"hop_limit": 3, "retry": {"attempts": 1}, "dead_letter": {"subject": "dead.letter"}}
"""Settings that end an undetected circle, and each of its messages."""


async def ended(watch: Watch) -> None:
    """Wait until ten messages have gone round three times and are given up."""
    await eventually(lambda: watch.router.routes[0].settled["dead_lettered"] == 10)
    assert watch.router.routes[0].settled["routed"] == 30


async def test_a_circle_over_two_streams_that_only_the_server_knows_ends_at_its_limit(server: NatsServer) -> None:
    async with connect(server.url) as client:
        stream = await source_and_sink(client, 10)
        await stream.create_stream("DEAD", ["dead.*"])
        back = whole("source.back", name="back") | {"from": {"stream": "SINK", "durable": "router"}}
        back["hop_limit"] = 0
        async with watched(settings(server.url, routes=[whole("sink.copy", **LIMITED), back])) as watch:
            await until_stored(stream, "DEAD", 10)
            await ended(watch)
            assert (await stored(stream), await stored(stream, "SINK")) == (40, 30)


COPIES: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "the source copies from the sink": ({"sources": [{"name": "SINK"}], "subjects": ["source.*"]}, {}, "source.a"),
    "the source is a mirror of the sink": (
        {"mirror": {"name": "SINK"}, "subjects": [], "duplicate_window": 0},
        {},
        "sink.a",
    ),
    "the sink republishes to the source": (
        {"subjects": ["source.*"]},
        {"republish": {"src": "sink.*", "dest": "source.{{wildcard(1)}}"}},
        "source.a",
    ),
}


@pytest.mark.parametrize("way", COPIES)
async def test_a_circle_over_what_a_server_copies_ends_at_its_limit(server: NatsServer, way: str) -> None:
    source, sink, subject = COPIES[way]
    async with connect(server.url) as client:
        stream = JetStream(client)
        await stream.create_stream("SINK", ["sink.*"], **sink)
        await stream.create_stream("SOURCE", **source)
        await stream.create_stream("DEAD", ["dead.*"])
        for number in range(10):
            await stream.publish(subject, b"%d" % number)
        async with watched(settings(server.url, routes=[whole("sink.copy", **LIMITED)])) as watch:
            await until_stored(stream, "DEAD", 10)
            await ended(watch)
            assert await stored(stream) == 40
