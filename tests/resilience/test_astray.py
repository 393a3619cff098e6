"""Astray deliveries: a router requests only its own again, with sparse filters, many routes and full hands."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

from router_trio import Message, Router
from router_trio.embedded import HOST
from router_trio.settings import Settings
from router_trio.states import PAUSED
from tests.support.eventually import eventually
from tests.support.proxy import TcpProxy, tcp_proxy
from tests.support.raw_jetstream import JetStream
from tests.support.raw_nats import connect
from tests.support.servers import NatsServer, nats_server
from tests.support.settings import settings, stream_route
from tests.support.watch import Watch, until_stored, watched

FOREIGN = 70_000
"""Messages between two of a route's own: more than could be looked up one by one."""

AT_ONCE = 10.0
"""Seconds; far less than the usual ack wait."""


@pytest.fixture
async def streams(server: NatsServer) -> NatsServer:
    """Return the server, with a source and a sink."""
    await _add_streams(server)
    return server


async def test_a_joining_router_takes_no_messages_that_the_first_has_in_hand(streams: NatsServer) -> None:
    """The first router has all its room in use, and acks nothing for a while."""
    go_on = trio.Event()
    handled: list[tuple[str, int]] = []
    await _publish(streams, "a", range(4))
    async with watched(*_slow(streams, "first", handled, go_on)):
        await eventually(lambda: len(handled) == 1)
        await _until_delivered(streams, 4)
        async with watched(*_slow(streams, "second", handled, trio.Event(), stands=False)):
            await trio.sleep(2.0)  # nothing may happen
            assert handled == [("first", 0)]
            await _publish(streams, "a", range(4, 8))
            await eventually(lambda: len(handled) == 5)
            go_on.set()
            await _stored(streams, range(8), in_order=False)
    assert sorted(handled) == [("first", number) for number in range(4)] + [("second", n) for n in range(4, 8)]


async def test_a_kill_with_a_sparse_filter_keeps_the_order(streams: NatsServer, proxy: TcpProxy) -> None:
    async with watched(_settings(proxy.url, "a")):
        await _publish(streams, "a", range(2))
        await _stored(streams, range(2))
        await _sparse_into_the_void(streams, proxy, "a")
        proxy.refuse()
        proxy.reset()
    await _publish(streams, "a", range(4, 10))
    proxy.clear()
    proxy.accept()
    began = trio.current_time()
    async with watched(_settings(proxy.url, "a")):
        await _stored(streams, range(10))
    assert trio.current_time() - began < AT_ONCE


async def test_many_routes_with_sparse_filters_look_up_little_after_a_reconnect(
    streams: NatsServer, proxy: TcpProxy
) -> None:
    names = [f"r{number}" for number in range(30)]
    async with watched(_settings(proxy.url, *names)) as watch:
        for name in names:
            await _publish(streams, name, range(2))
        await _number_stored(streams, 60)
        await _all_acked(streams, names)
        proxy.blackhole("to_client")
        for numbers in (range(2, 4), range(4, 6)):
            for name in names:
                await _publish(streams, name, numbers)
            await _publish(streams, "foreign", range(FOREIGN))
        proxy.reset()
        proxy.clear()
        began = trio.current_time()
        await _number_stored(streams, 180)
        await _all_acked(streams, names)
        assert trio.current_time() - began < AT_ONCE
        assert watch.count("NATS_CONNECTION_LOST") == 1
        assert sum(route.duplicates for route in watch.router.routes) == 0


@pytest.mark.parametrize(
    ("denied", "waits"),
    [("publish: { deny: '$JS.API.STREAM.MSG.GET.>' }", False), ("subscribe: { deny: '$JS.ACK.>' }", True)],
    ids=["may not look into the stream", "may not listen"],
)
async def test_astray_messages_are_redelivered_even_if_lookups_are_denied(
    tmp_path: Path, denied: str, waits: bool
) -> None:
    """They keep their order, before any new message. Without lookups all in between are requested; without answers the
    route waits.
    """
    users = f"{{ user: router, password: p, permissions: {{ {denied} }} }}, {{ user: u, password: p }}"
    config = f"authorization {{ users: [ {users} ] }}\n"
    async with nats_server(tmp_path, config=config) as server, tcp_proxy(HOST, server.port) as proxy:
        await _add_streams(server)
        given: dict[str, Any] = {"user": "router", "password": "p"}
        ack_wait = 3.0 if waits else 30.0
        async with watched(_settings(proxy.url, "a", ack_wait=ack_wait, **given)):
            await _publish(server, "a", range(2))
            await _stored(server, range(2))
            await _sparse_into_the_void(server, proxy, "a", foreign=100)
            proxy.refuse()
            proxy.reset()
        await _publish(server, "a", range(4, 10))
        proxy.clear()
        proxy.accept()
        async with watched(_settings(proxy.url, "a", ack_wait=ack_wait, **given)) as watch:
            route = watch.router.routes[0]
            if waits:
                await eventually(lambda: route.state == PAUSED and "must be redelivered first" in (route.reason or ""))
            await _stored(server, range(10))
            await eventually(lambda: route.reason is None)


def _settings(url: str, *names: str, ack_wait: float = 30.0, **connection: Any) -> Settings:
    """Return settings with a route for each name, from that subject."""
    routes = [
        stream_route("SOURCE", f"sink.{name}", name=name, durable=name, filter=f"source.{name}", ack_wait=ack_wait)
        for name in names
    ]
    # Long: a link that a test silences must live until the server has delivered into it.
    given = settings(url, routes=routes, **{"liveness_interval": "30s", **connection})
    return given.model_copy(update={"router": given.router.model_copy(update={"shutdown_timeout": 0.5})})


def _slow(
    server: NatsServer, name: str, handled: list[tuple[str, int]], go_on: trio.Event, *, stands: bool = True
) -> tuple[Router, Watch]:
    """Return a router with a handler that blocks until `go_on`, and four messages in hand."""
    watch = Watch()
    router = Router(settings(server.url), observers=[watch])

    @router.route(
        to={"subject": "sink.a", "jetstream": True},
        stream="SOURCE",
        durable="a",
        filter="source.a",
        name="route",
        max_in_flight=4,
    )
    async def work(message: Message) -> Message:
        handled.append((name, int(message.payload)))
        if stands:
            await go_on.wait()
        return message

    return router, watch


@asynccontextmanager
async def _jetstream(server: NatsServer) -> AsyncIterator[JetStream]:
    async with connect(server.url, user="u", password="p") as client:
        yield JetStream(client)


async def _add_streams(server: NatsServer) -> None:
    async with _jetstream(server) as stream:
        await stream.create_stream("SOURCE", ["source.*"])
        await stream.create_stream("SINK", ["sink.*"])


async def _publish(server: NatsServer, name: str, numbers: Iterable[int]) -> None:
    async with _jetstream(server) as stream:
        await stream.publish_many([(f"source.{name}", b"%d" % number, None) for number in numbers])


async def _sparse_into_the_void(server: NatsServer, proxy: TcpProxy, name: str, foreign: int = FOREIGN) -> None:
    """Have the server deliver two messages that no client receives, with `foreign` others between them."""
    proxy.blackhole("to_client")
    await _publish(server, name, [2])
    await _publish(server, "foreign", range(foreign))
    await _publish(server, name, [3])
    await _until_delivered(server, 2, name)


async def _until_delivered(server: NatsServer, count: int, name: str = "a") -> None:
    async with _jetstream(server) as stream:

        async def delivered() -> bool:
            return bool((await stream.consumer_info("SOURCE", name))["num_ack_pending"] >= count)

        await eventually(delivered, 20)


async def _all_acked(server: NatsServer, names: list[str]) -> None:
    async with _jetstream(server) as stream:

        async def acked() -> bool:
            return not sum([(await stream.consumer_info("SOURCE", name))["num_ack_pending"] for name in names])

        await eventually(acked, 20)


async def _number_stored(server: NatsServer, count: int) -> None:
    async with _jetstream(server) as stream:
        await until_stored(stream, "SINK", count, within=40)


async def _stored(server: NatsServer, numbers: range, *, in_order: bool = True) -> None:
    """Wait until the sink has exactly these."""
    await _number_stored(server, len(numbers))
    async with _jetstream(server) as stream:
        stored = [int(message.payload) for message in await stream.stream_messages("SINK")]
    assert (stored if in_order else sorted(stored)) == list(numbers)
