"""Messages that went astray with a link are redelivered at once, before anything new, and without affecting others."""

from __future__ import annotations

from typing import Any

import pytest

from router_trio import Live, Router
from router_trio.settings import Settings
from tests.resilience.chaos.load import numbers, payload, subject
from tests.resilience.chaos.spy import Spy
from tests.resilience.chaos.verdict import out_of_order
from tests.support.eventually import eventually
from tests.support.proxy import TcpProxy
from tests.support.raw_jetstream import JetStream
from tests.support.raw_nats import connect
from tests.support.servers import NatsServer
from tests.support.settings import settings, stream_route
from tests.support.watch import until_stored, watched

ACK_WAIT = 30.0
AT_ONCE = 10.0
"""Seconds; far less than the ack wait."""

MESSAGES = 300


@pytest.fixture
async def streams(server: NatsServer) -> NatsServer:
    """Return the server, with a source and a sink."""
    async with connect(server.url) as client:
        await JetStream(client).create_stream("SOURCE", ["source.*"])
        await JetStream(client).create_stream("SINK", ["sink.*"])
    return server


async def test_messages_delivered_into_a_dead_link_keep_their_order(streams: NatsServer, proxy: TcpProxy) -> None:
    async with watched(_settings(proxy)) as watch:
        live = watch.live
        assert live is not None
        await _publish(streams, range(100))
        await eventually(lambda: live.routes[0].received == 100)
        await _deliver_into_the_void(streams, proxy, range(100, 200))
        proxy.reset()
        proxy.clear()
        await _publish(streams, range(200, MESSAGES))
        await _stored_in_order(streams)
        assert live.routes[0].received == MESSAGES, "nothing is routed twice"


async def test_messages_left_in_an_outage_are_routed_before_new_ones(streams: NatsServer, proxy: TcpProxy) -> None:
    async with watched(_settings(proxy)) as watch:
        live = watch.live
        assert live is not None
        await _publish(streams, range(100))
        await eventually(lambda: live.routes[0].received == 100)
        await _deliver_into_the_void(streams, proxy, range(100, 200))
        proxy.refuse()
        proxy.reset()
    await _publish(streams, range(200, MESSAGES))
    proxy.clear()
    proxy.accept()
    async with watched(_settings(proxy)):
        await _stored_in_order(streams)


async def test_a_joining_router_takes_no_messages_from_a_busy_one(streams: NatsServer, proxy: TcpProxy) -> None:
    spy = Spy()
    # The first router is always at its limit: it sends slowly.
    busy = _settings(proxy, max_in_flight=32)
    async with watched(Router(busy, connect=spy.connect)) as first:
        assert first.live is not None
        route = first.live.routes[0]
        proxy.throttle(30_000, "to_server")
        await _publish(streams, range(MESSAGES))
        await eventually(lambda: route.received > 40, 20)
        async with watched(_settings(streams, max_in_flight=32)) as second:
            joined = second.live
            assert joined is not None
            await eventually(lambda: len(spy.acked_at) + _routed(joined) >= MESSAGES, 30)
            assert _routed(joined)
            assert (route.duplicates, joined.routes[0].duplicates) == (0, 0)
        proxy.clear()
    async with connect(streams.url) as client:
        assert (await JetStream(client).consumer_info("SOURCE", "router"))["num_redelivered"] == 0
    assert spy.suppressed == 0


def _settings(where: NatsServer | TcpProxy, **source: Any) -> Settings:
    route = stream_route("SOURCE", "sink.{{wildcard(1)}}", filter="source.*", ack_wait=ACK_WAIT, **source)
    given = settings(where.url, routes=[route])
    return given.model_copy(update={"router": given.router.model_copy(update={"shutdown_timeout": 0.5})})


async def _publish(server: NatsServer, chunk: range) -> None:
    async with connect(server.url) as client:
        await JetStream(client).publish_many(
            [(subject("source", n), payload(n), [("Nats-Msg-Id", f"id-{n}")]) for n in chunk]
        )


async def _deliver_into_the_void(server: NatsServer, proxy: TcpProxy, chunk: range) -> None:
    """Publish messages that the server delivers, and that no client receives."""
    proxy.blackhole("to_client")
    await _publish(server, chunk)
    async with connect(server.url) as client:
        stream = JetStream(client)

        async def all_delivered() -> bool:
            return bool((await stream.consumer_info("SOURCE", "router"))["num_pending"] == 0)

        await eventually(all_delivered, 5)


async def _stored_in_order(server: NatsServer) -> None:
    async with connect(server.url) as client:
        stream = JetStream(client)
        await until_stored(stream, "SINK", MESSAGES, AT_ONCE)
        arrived = [found for message in await stream.stream_messages("SINK") for found in numbers(message.payload)]
    assert sorted(arrived) == list(range(MESSAGES))
    assert out_of_order(range(MESSAGES), arrived) == []


def _routed(live: Live) -> int:
    return sum(live.routes[0].routed.values())
