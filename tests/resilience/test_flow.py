"""Limits and breakers against a real server: outages of destinations, lost servers, several values."""

from __future__ import annotations

import itertools
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio

from router_trio import Message, Router, Settings
from tests.integration.pages import get
from tests.support.eventually import eventually
from tests.support.raw_jetstream import JetStream
from tests.support.raw_nats import connect
from tests.support.servers import NatsServer
from tests.support.streams import ROUTE, assert_sink_is_whole, numbers_in, publish_numbered, source_and_sink
from tests.support.watch import Watch, assert_survived, until_nothing_is_unacked, until_stored, watched
from tests.unit.routing.policy.test_limit import assert_bounded

OUTAGE = 10.0
"""Seconds; five probes of the breaker."""
BREAKER = {"failures": 3, "pause": "2s"}

LATE = 0.1
"""Seconds until a handler is called once the limit has released its message, on a busy machine."""

called: list[tuple[float, int]] = []


def note(message: Message) -> Message:
    """Record the time of the call."""
    called.append((trio.current_time(), int(message.payload)))
    return message


def served(url: str, *routes: dict[str, Any]) -> Settings:
    """Open a router with an HTTP side."""
    quick = {"reconnect_delay": "50ms", "max_reconnect_delay": "300ms", "liveness_interval": "1s"}
    return Settings(
        telemetry={"listen": "127.0.0.1:0"}, connections={"main": {"servers": [url], **quick}}, routes=list(routes)
    )


def guarded(**source: Any) -> dict[str, Any]:
    """Return `ROUTE` with a breaker."""
    [to] = ROUTE["to"]
    return {**ROUTE, "from": {**ROUTE["from"], **source}, "to": [to | {"breaker": BREAKER}]}


async def readyz(watch: Watch) -> tuple[int, list[str]]:
    address = watch.router.http_address
    assert address is not None
    code, _, body = await get(address, "/readyz")
    return code, [one["reason"] for one in json.loads(body)["reasons"]]


@asynccontextmanager
async def opened(settings: Settings) -> AsyncIterator[Watch]:
    watch = Watch()
    async with watched(Router(settings, observers=[watch]), watch):
        yield watch


async def deliveries(stream: JetStream) -> int:
    """Return how many deliveries the consumer has made."""
    info = await stream.consumer_info("SOURCE", "router")
    sequence: int = info["delivered"]["consumer_seq"]
    return sequence


async def end_outage(stream: JetStream, how: str) -> None:
    if how == "sealed":
        await stream.delete_stream("SINK")  # a sealed stream can't be unsealed
    await stream.create_stream("SINK", ["sink.*"])


@pytest.mark.parametrize("how", ["missing", "sealed"])
async def test_a_long_outage_of_a_destination_stream_fails_no_message(server: NatsServer, how: str) -> None:
    """Nothing fails finally, almost nothing is redelivered, and the outage is reported everywhere."""
    before, count = 200, 1_000
    async with connect(server.url) as client, opened(served(server.url, guarded(max_in_flight=100))) as watch:
        stream = await source_and_sink(client, before)
        await until_stored(stream, "SINK", before)
        await until_nothing_is_unacked(stream)
        if how == "missing":
            await stream.delete_stream("SINK")
        else:
            await stream.edit_stream("SINK", sealed=True)
        await publish_numbered(stream, range(before, count))
        began = trio.current_time()
        told = await watch.until("ROUTE_BREAKER_OPENED")
        assert (told.route, told.subject, told.failed_count) == ("route", "sink.{{wildcard(1)}}", 3)
        assert told.reason == ("no_responders" if how == "missing" else "jetstream_10109")
        code, reasons = await readyz(watch)
        assert code == 503
        assert any(
            "the circuit breaker of destination 'sink.{{wildcard(1)}}' on connection main is open" in one
            for one in reasons
        )
        failed = watch.metric("router_nats_publish_with_ack_failures_total")
        while trio.current_time() < began + OUTAGE:
            await trio.sleep(0.5)
            assert await deliveries(stream) <= before + 200 + 3
        # One probe each two seconds, and the messages under way at the beginning.
        assert watch.metric("router_nats_publish_with_ack_failures_total") - failed <= 200 + 2 * OUTAGE / 2
        assert watch.metric("router_breaker_state", route="route") in (0.5, 1.0)
        await end_outage(stream, how)
        await watch.until("ROUTE_BREAKER_CLOSED", within=8)
        await eventually(lambda: watch.metric("router_messages_routed_total") == count, within=20)
        await until_nothing_is_unacked(stream)
        assert await deliveries(stream) <= count + 2, "what failed before it opened, and nothing else"

        async def ready() -> bool:
            return (await readyz(watch))[0] == 200

        await eventually(ready, within=10)
        assert len(watch.of("ROUTE_BREAKER_OPENED")) == len(watch.of("ROUTE_BREAKER_CLOSED")) == 1
        assert watch.metric("router_breaker_opened_total", route="route") == 1
        [route] = watch.router.routes
        assert route.settled["routed"] == count
        assert route.settled["given_up"] == route.settled["lost"] == 0
        await assert_survived(watch, losses=0, seen=["ROUTE_BREAKER_OPENED", "ROUTE_BREAKER_CLOSED"])
    numbers = await numbers_in(server.url)
    assert sorted(numbers) == list(range(before, count))
    for subject in range(10):
        own = [number for number in numbers if number % 10 == subject]
        assert own == sorted(own)


async def test_fallback_takes_over_at_once(server: NatsServer) -> None:
    count = 1_000
    first = {"subject": "sink.{{wildcard(1)}}", "jetstream": True, "breaker": BREAKER | {"failures": 1}}
    second = {"subject": "spare.{{wildcard(1)}}", "jetstream": True}
    route = {**ROUTE, "to": [first, second], "strategy": "fallback"}
    async with connect(server.url) as client, opened(served(server.url, route)) as watch:
        stream = await source_and_sink(client, 100)
        await stream.create_stream("SPARE", ["spare.*"])
        await until_stored(stream, "SINK", 100)
        await stream.edit_stream("SINK", sealed=True)
        began = trio.current_time()
        await publish_numbered(stream, range(100, count))
        await until_stored(stream, "SPARE", count - 100)
        assert trio.current_time() - began < 5
        await until_nothing_is_unacked(stream)
        assert await deliveries(stream) == count, "nothing was given back"
        code, reasons = await readyz(watch)
        assert not any("breaker" in reason for reason in reasons), (code, reasons)
        await end_outage(stream, "sealed")

        more = itertools.count(count)

        async def used_again() -> bool:
            await publish_numbered(stream, [next(more)])
            return bool(watch.of("ROUTE_BREAKER_CLOSED"))

        await eventually(used_again, within=15)
    numbers = sorted(await numbers_in(server.url, "SPARE"))
    assert numbers[: count - 100] == list(range(100, count))


def limited(rate: str, burst: int, **limit: Any) -> dict[str, Any]:
    return {**ROUTE, "handler": f"{__name__}:note", "limit": {"rate": rate, "burst": burst, **limit}}


async def test_a_limit_holds_while_the_server_is_killed(server: NatsServer) -> None:
    count = 600
    called.clear()
    async with connect(server.url) as client:
        await source_and_sink(client, count)
    async with opened(served(server.url, limited("100/s", 50))) as watch:
        for _ in range(2):
            await trio.sleep(1.5)
            losses = len(watch.of("NATS_CONNECTION_LOST"))
            await server.kill()
            await watch.until("NATS_CONNECTION_LOST", losses + 1)
            await trio.sleep(0.2)
            await server.restart()
        await eventually(lambda: watch.metric("router_messages_routed_total") >= count, within=30)
        assert watch.router.routes[0].limited > 0
        assert watch.of("ROUTE_LIMITED")
    assert_bounded([at for at, _ in called], 100, 1, 50 + 100 * LATE)
    assert {number for _, number in called} == set(range(count))
    await assert_sink_is_whole(server.url, count)


async def test_each_value_has_its_own_limit(server: NatsServer) -> None:
    """Of ten subjects, one receives nine tenths of the messages."""
    called.clear()
    async with connect(server.url) as client:
        stream = await source_and_sink(client)
        hot = [("source.0", b"%d" % (10 * n), None) for n in range(180)]
        cold = [(f"source.{n % 9 + 1}", b"%d" % (10 * n + n % 9 + 1), None) for n in range(90)]
        await stream.publish_many([*hot, *cold])
        async with opened(served(server.url, limited("40/s", 20, per="tokens[1]"))) as watch:
            await until_stored(stream, "SINK", 20 + 90, within=3)
            times = {value: [at for at, number in called if number % 10 == value] for value in range(10)}
            assert [len(times[value]) for value in range(1, 10)] == [10] * 9, "others pass"
            await until_stored(stream, "SINK", 270, within=15)
            await until_nothing_is_unacked(stream)
            assert await deliveries(stream) == 270
            assert watch.router.routes[0].settled["returned"] == 0
    for value in range(10):
        own = [(at, number) for at, number in called if number % 10 == value]
        assert_bounded([at for at, _ in own], 40, 1, 20 + 40 * LATE)
        assert [number for _, number in own] == sorted(number for _, number in own)
