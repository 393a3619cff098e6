"""Routes from streams with a backlog of large messages: they are delivered, and no other user of the connection is
harmed.
"""

from __future__ import annotations

from pathlib import Path
from random import Random
from typing import Any

import pytest
import trio

from router_trio import Settings
from tests.support.eventually import eventually
from tests.support.raw_jetstream import JetStream
from tests.support.raw_nats import connect
from tests.support.servers import nats_server
from tests.support.settings import core_route, settings, stream_route
from tests.support.watch import watched

LARGE = 1_000_000
MESSAGES = 120


def routes(count: int) -> list[dict[str, Any]]:
    """Return routes from BACKLOG, each with its own durable, and one from a core subject on the same connection."""
    streams: list[dict[str, Any]] = [
        {
            "name": f"stream-{number}",
            "from": {"stream": "BACKLOG", "durable": f"router-{number}"},
            "to": [{"subject": f"copy.{number}", "jetstream": False}],
        }
        for number in range(count)
    ]
    return [*streams, core_route("in.*", "out.{{wildcard(1)}}", name="core")]


@pytest.mark.parametrize(("sizes", "count"), [("large", 3), ("mixed", 3), ("large", 100)])
async def test_a_backlog_of_large_messages_does_not_cost_the_connection(tmp_path: Path, sizes: str, count: int) -> None:
    dice = Random(7)
    messages = MESSAGES if count == 3 else 5
    payloads = [LARGE if sizes == "large" else dice.choice((10, 300, 30_000, LARGE)) for _ in range(messages)]
    async with nats_server(tmp_path) as server, connect(server.url) as client:
        stream = JetStream(client)
        await stream.create_stream("BACKLOG", ["backlog"], storage="memory")
        for size in payloads:
            await stream.publish("backlog", b"x" * size)
        others = await client.subscribe("out.*")
        config = Settings(
            telemetry={"listen": ""}, connections={"main": {"servers": [server.url]}}, routes=routes(count)
        )
        async with watched(config) as watch:
            live = watch.router
            for number in range(20):
                await client.publish("in.a", b"%d" % number)
                assert (await others.next()).payload == b"%d" % number
                await trio.sleep(0.02)
            streams = [route for route in live.routes if route.name != "core"]
            await eventually(
                lambda: all(sum(route.routed.values()) == messages for route in streams),
                20,
                lambda: [(route.name, route.routed, route.failed) for route in streams],
            )
            assert not watch.of("NATS_CONNECTION_LOST")
            assert all(route.duplicates == 0 for route in streams)
        assert (await server.varz())["slow_consumers"] == 0


async def test_messages_in_hand_and_requested_are_bounded_in_bytes(tmp_path: Path) -> None:
    """While nothing can be sent on, no more than the bound is taken from the stream; then it continues."""
    async with nats_server(tmp_path) as server, connect(server.url) as client:
        stream = JetStream(client)
        await stream.create_stream("BACKLOG", ["backlog"], storage="memory")
        for _ in range(30):
            await stream.publish("backlog", b"x" * LARGE)
        route = stream_route("BACKLOG", "nobody", max_in_flight_bytes="5MiB")
        async with watched(settings(server.url, routes=[route])) as watch:
            state = watch.router.routes[0]
            await eventually(lambda: state.received >= 5, 10, lambda: state.received)
            for _ in range(20):
                assert (await stream.consumer_info("BACKLOG", "router"))["num_ack_pending"] == 5
            await stream.create_stream("SINK", ["nobody"], storage="memory")
            await eventually(lambda: sum(state.routed.values()) == 30, 30, lambda: (state.routed, state.failed))
            assert state.received == 30


async def test_a_message_larger_than_the_bound_is_routed_alone(tmp_path: Path) -> None:
    async with nats_server(tmp_path, config="max_payload: 8MB") as server, connect(server.url) as client:
        stream = JetStream(client)
        await stream.create_stream("BACKLOG", ["backlog"], storage="memory")
        sizes = [10, 7 * LARGE, 10, 10, LARGE, 5 * LARGE, 10]
        for size in sizes:
            await stream.publish("backlog", b"x" * size)
        copies = await client.subscribe("copy")
        route = stream_route("BACKLOG", "copy", max_in_flight_bytes="100KiB")
        route["to"][0]["jetstream"] = False
        async with watched(settings(server.url, routes=[route])) as watch:
            assert [len((await copies.next()).payload) for _ in sizes] == sizes
            assert not watch.of("NATS_SUBSCRIBE_ERROR")


async def test_a_server_with_a_lower_max_pending_is_asked_for_less_until_it_copes(tmp_path: Path) -> None:
    """`max_pending` is far below the size of the first requests."""
    async with nats_server(tmp_path, config="max_pending: 4MB") as server, connect(server.url) as client:
        stream = JetStream(client)
        await stream.create_stream("BACKLOG", ["backlog"], storage="memory")
        for _ in range(60):
            await stream.publish("backlog", b"x" * LARGE)
        config = settings(server.url, routes=routes(3))
        async with watched(config) as watch:
            streams = [route for route in watch.router.routes if route.name != "core"]
            await eventually(
                lambda: all(sum(route.routed.values()) == 60 for route in streams),
                60,
                lambda: [(route.name, route.routed, route.failed) for route in streams],
            )
            assert len(watch.of("NATS_CONNECTION_LOST")) <= 5
