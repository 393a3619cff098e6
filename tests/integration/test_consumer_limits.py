"""Limits set on a durable by a stream or an administrator: those that can be lifted are, and the others are named."""

from __future__ import annotations

from typing import Any

import pytest
import trio

from router_trio.telemetry.http.status import readiness
from tests.support.eventually import eventually
from tests.support.raw_jetstream import JetStream
from tests.support.raw_nats import connect
from tests.support.servers import NatsServer
from tests.support.settings import settings, stream_route
from tests.support.streams import assert_sink_is_whole, publish_numbered, source_and_sink
from tests.support.watch import Watch, until_stored, watched

ROUTE: dict[str, Any] = {"stream": "SOURCE", "to": "sink.{{wildcard(1)}}", "filter": "source.*"}


def reasons(watch: Watch) -> str:
    """Return the reasons in `/readyz`."""
    return str(readiness(watch.router, trio.current_time())[1]["reasons"])


async def consumer_config(stream: JetStream) -> dict[str, Any]:
    config: dict[str, Any] = (await stream.consumer_info("SOURCE", "router"))["config"]
    return config


@pytest.mark.parametrize("most", [1, 2])
async def test_a_durable_with_few_waiting_requests_delivers_everything(server: NatsServer, most: int) -> None:
    async with connect(server.url) as client:
        stream = await source_and_sink(client, 20_000)
        durable = {"ack_policy": "explicit", "filter_subject": "source.*", "max_waiting": most}
        await stream.create_consumer("SOURCE", "router", **durable)
        async with watched(settings(server.url, routes=[stream_route(**ROUTE)])) as watch:
            await until_stored(stream, "SINK", 20_000)
            assert not watch.of("NATS_SUBSCRIBE_ERROR")
    await assert_sink_is_whole(server.url, 20_000)


async def test_the_expiry_of_a_durable_is_lifted(server: NatsServer) -> None:
    async with connect(server.url) as client:
        stream = await source_and_sink(client, 10)
        durable = {"ack_policy": "explicit", "filter_subject": "source.*", "inactive_threshold": 2 * 10**9}
        await stream.create_consumer("SOURCE", "router", **durable)

        async def lifted() -> bool:
            return bool((await consumer_config(stream))["inactive_threshold"] > 10**9 * 10**8)

        async with watched(settings(server.url, routes=[stream_route(**ROUTE)])) as watch:
            await until_stored(stream, "SINK", 10)
            assert await lifted()
            (event,) = watch.of("ROUTE_CONSUMER_LIMITS_REMOVED")
            assert event.detail == "inactive_threshold = 2s"
            # The same holds for one that is edited while the route runs.
            await stream.edit_consumer("SOURCE", "router", inactive_threshold=2 * 10**9)
            await eventually(lifted, 20)
            await eventually(lambda: watch.count("ROUTE_CONSUMER_LIMITS_REMOVED") == 2)
            assert watch.count("ROUTE_READY") == 1
            assert "inactive_threshold" not in str(watch.of("ROUTE_CONSUMER_DIFFERS"))
        await trio.sleep(5)  # it would have expired by now
        async with watched(settings(server.url, routes=[stream_route(**ROUTE)])) as watch:
            await publish_numbered(stream, range(10, 20))
            await until_stored(stream, "SINK", 20)
            assert watch.metric("router_messages_received_total") == 10
            assert "inactive_threshold" not in str(watch.of("ROUTE_CONSUMER_DIFFERS"))


@pytest.mark.parametrize("exists", [True, False])
async def test_a_stream_limit_that_makes_a_durable_expire_soon_is_refused_by_name(
    server: NatsServer, exists: bool
) -> None:
    async with connect(server.url) as client:
        stream = await source_and_sink(client, 10)
        await stream.edit_stream("SOURCE", consumer_limits={"inactive_threshold": 60 * 10**9})
        if exists:
            durable = {"ack_policy": "explicit", "filter_subject": "source.*"}
            await stream.create_consumer("SOURCE", "router", **durable)
        async with watched(settings(server.url, routes=[stream_route(**ROUTE)])) as watch:
            refused = await watch.until("NATS_SUBSCRIBE_ERROR")
            assert refused.reason == "consumer_expires"
            assert "60 s (inactive_threshold)" in reasons(watch)
            assert "consumer_limits of the stream" in reasons(watch)
            await stream.edit_stream("SOURCE", consumer_limits={"inactive_threshold": 2 * 86_400 * 10**9})
            await stream.delete_consumer("SOURCE", "router")
            differs = await watch.until("ROUTE_CONSUMER_DIFFERS")
            assert "inactive_threshold in seconds is 172800 there and 0 here" in differs.detail
            await until_stored(stream, "SINK", 10)


async def test_a_lower_limit_of_unacked_messages_needs_a_lower_max_in_flight_which_is_named(server: NatsServer) -> None:
    async with connect(server.url) as client:
        stream = await source_and_sink(client, 100)
        await stream.edit_stream("SOURCE", consumer_limits={"max_ack_pending": 50})
        async with watched(settings(server.url, routes=[stream_route(**ROUTE)])) as watch:
            await watch.until("NATS_SUBSCRIBE_ERROR")
            found = reasons(watch)
            assert "at most 50 unacked messages" in found
            assert "(max_ack_pending)" in found
            assert "set max_in_flight = 50 in [routes.from]" in found
        async with watched(settings(server.url, routes=[stream_route(**ROUTE, max_in_flight=50)])) as watch:
            await until_stored(stream, "SINK", 100)
            assert (await consumer_config(stream))["max_ack_pending"] == 50
            assert not watch.of("NATS_SUBSCRIBE_ERROR")
            differs = await watch.until("ROUTE_CONSUMER_DIFFERS")
            assert differs.detail.endswith(
                "max_ack_pending is 50 there and 100 here; max_in_flight = 25 in [routes.from] would suit that"
            )
