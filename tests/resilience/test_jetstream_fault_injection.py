"""Faults injected under a route from a stream to a stream: whatever fails, each message is stored once.

Against a real server, with `router_trio.faults` around the real links. docs/testing.md has the list of scenarios.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio

from router_trio import Fate
from router_trio.errors import PublishError
from router_trio.faults import Fault, Faults, close_connection, delay, error, timeout
from router_trio.router import real_network
from router_trio.states import FAILED
from tests.support.eventually import eventually
from tests.support.links import close_link
from tests.support.raw_jetstream import JetStream
from tests.support.raw_nats import connect
from tests.support.servers import NatsServer
from tests.support.settings import settings
from tests.support.streams import assert_sink_is_whole, publish_numbered, route, source_and_sink
from tests.support.watch import Watch, assert_survived, until_nothing_is_unacked, until_stored, watched

COUNT = 300

QUICK = route(ack_wait="1s", retry={"initial": "50ms"})
"""Redelivery delays that are short enough for a test."""


@pytest.fixture
def faults() -> Faults:
    return Faults()


@asynccontextmanager
async def routing(
    server: NatsServer, faults: Faults, count: int = COUNT, **connection: Any
) -> AsyncIterator[tuple[Watch, JetStream]]:
    """Yield a router with one route under these faults; at the end SINK must hold each message once."""
    async with connect(server.url) as client:
        stream = await source_and_sink(client, count)
        config = settings(server.url, routes=[QUICK], **connection)
        async with watched(config, connect=faults.around_factory(real_network)) as watch:
            yield watch, stream
    await assert_sink_is_whole(server.url, count, in_order=False)


# --- connect ---


async def assert_connecting_fails(server: NatsServer, faults: Faults, fault: Fault, reason: str) -> None:
    """Close a link in the middle of traffic, and apply this fault to the next three attempts."""
    async with routing(server, faults) as (watch, stream):
        await eventually(lambda: sum(watch.router.routes[0].routed.values()) > 0)
        faults.inject("connect", fault, times=3)
        close_link(watch.router.connections["main"])
        await watch.until("NATS_CONNECTION_RESTORED")
        failed = watch.of("NATS_CONNECTION_FAILED")
        assert [one.reason for one in failed] == [reason] * 3
        await until_stored(stream, "SINK", COUNT)
        await assert_survived(watch, seen=["NATS_CONNECTION_LOST", "NATS_CONNECTION_FAILED"])
        assert watch.metric("router_nats_reconnect_failures_total") == 3


async def test_connect_error(server: NatsServer, faults: Faults) -> None:
    await assert_connecting_fails(server, faults, error("refused"), "refused")


async def test_connect_timeout(server: NatsServer, faults: Faults) -> None:
    await assert_connecting_fails(server, faults, timeout(0.1), "timeout")


async def test_connect_close(server: NatsServer, faults: Faults) -> None:
    await assert_connecting_fails(server, faults, close_connection(), "closed")


# --- publish ---


async def test_publish_error(server: NatsServer, faults: Faults) -> None:
    """A core publish is refused: it fails for that reason, and nothing else does."""
    async with routing(server, faults, 0) as (watch, _):
        faults.inject("publish", error("overloaded"), times=2)
        receipts = [await watch.router.publish("out", b"%d" % n) for n in range(5)]
        fates = [await receipt.settled() for receipt in receipts]
        assert fates == [Fate("failed", "overloaded")] * 2 + [Fate("fenced")] * 3
        await assert_survived(watch, losses=0, seen=["NATS_PUBLISH_ERROR"])
        assert watch.metric("router_nats_publish_failures_total", reason="overloaded") == 2
        assert watch.metric("router_nats_publish_total") == 3


async def test_publish_timeout(server: NatsServer, faults: Faults) -> None:
    async with routing(server, faults) as (watch, stream):
        await until_stored(stream, "SINK", COUNT)
        faults.inject("publish", timeout(0.3), times=1)
        began = trio.current_time()
        first, second = [await watch.router.publish("out", b"%d" % n) for n in range(2)]
        assert await first.settled() == Fate("failed", "timeout")
        assert trio.current_time() - began > 0.29
        assert await second.settled() == Fate("fenced")
        await assert_survived(watch, losses=0, seen=["NATS_PUBLISH_ERROR"])
        assert watch.metric("router_nats_publish_failures_total", reason="timeout") == 1


async def test_publish_close_connection(server: NatsServer, faults: Faults) -> None:
    """The link dies three times under the copies of the route; unconfirmed publishes are sent again."""
    faults.inject("publish_with_ack", close_connection(), probability=0.02, seed=5, times=3)
    async with routing(server, faults) as (watch, stream):
        await until_stored(stream, "SINK", COUNT)
        await watch.until("NATS_CONNECTION_RESTORED", times=3)
        await assert_survived(watch, losses=3, seen=["NATS_CONNECTION_LOST", "NATS_RETRY_PENDING"])
        assert {one.reason for one in watch.of("NATS_CONNECTION_LOST")} == {"closed"}
        await until_nothing_is_unacked(stream)


async def test_publish_with_ack_error(server: NatsServer, faults: Faults) -> None:
    faults.inject("publish_with_ack", error("overloaded"), times=50)
    async with routing(server, faults) as (watch, stream):
        await until_stored(stream, "SINK", COUNT)
        await until_nothing_is_unacked(stream)
        await assert_survived(watch, losses=0, seen=["NATS_PUBLISH_WITH_ACK_ERROR"])
        assert watch.metric("router_nats_publish_with_ack_failures_total", reason="overloaded") == 50
        assert watch.metric("router_messages_failed_total", reason="overloaded") == 50
        # Counted when a fence has confirmed them; the fence is sent with the acks, after the stream has its messages.
        await eventually(lambda: watch.metric("router_nats_nak_total") == 50)  # each is redelivered
        assert watch.metric("router_messages_routed_total") == COUNT
        faults.inject("publish_with_ack", error("overloaded"))
        with pytest.raises(PublishError) as caught:
            await watch.router.publish_with_ack("sink.0", b"1")
        assert caught.value.reason == "overloaded"


# --- ack ---


async def test_ack_error(server: NatsServer, faults: Faults) -> None:
    """Acks are refused: the stream redelivers, and nothing is stored twice."""
    faults.inject("ack", error("refused"), times=20)
    async with routing(server, faults) as (watch, stream):
        await until_stored(stream, "SINK", COUNT)
        await until_nothing_is_unacked(stream)
        await assert_survived(watch, losses=0, seen=["NATS_ACK_ERROR"])
        assert watch.metric("router_nats_ack_failures_total", reason="refused") == 20
        assert watch.metric("router_messages_routed_total") == COUNT, "redelivered messages are not routed again"


async def test_ack_timeout(server: NatsServer, faults: Faults) -> None:
    faults.inject("ack", timeout(0.2), times=20)
    async with routing(server, faults) as (watch, stream):
        await until_stored(stream, "SINK", COUNT)
        await until_nothing_is_unacked(stream)
        await assert_survived(watch, losses=0, seen=["NATS_ACK_ERROR"])
        assert watch.metric("router_nats_ack_failures_total", reason="timeout") == 20


async def test_ack_close_connection(server: NatsServer, faults: Faults) -> None:
    """The link dies at an ack; the ack is sent on the next link."""
    faults.inject("ack", close_connection(), probability=0.05, seed=1, times=2)
    async with routing(server, faults) as (watch, stream):
        await until_stored(stream, "SINK", COUNT)
        await watch.until("NATS_CONNECTION_RESTORED", times=2)
        await assert_survived(watch, losses=2, seen=["NATS_ACK_ERROR", "NATS_CONNECTION_LOST"])
        await until_nothing_is_unacked(stream)
        # An ack that is already pending, and struck when it is sent again, is the same failure.
        assert 1 <= watch.metric("router_nats_ack_failures_total", reason="closed") <= faults.struck["ack"] == 2


# --- subscribe ---


async def test_subscribe_error(server: NatsServer, faults: Faults) -> None:
    faults.inject("subscribe", error("refused"), times=2)
    async with routing(server, faults) as (watch, stream):
        assert watch.router.routes[0].state == FAILED
        assert watch.router.connections["main"].connected, "a route that can't subscribe ends no link"
        await until_stored(stream, "SINK", COUNT)
        await assert_survived(watch, losses=0, seen=["NATS_SUBSCRIBE_ERROR"])
        assert watch.metric("router_nats_subscribe_failures_total", reason="refused") == 2
        assert watch.metric("router_nats_subscribe_total") == 1


async def test_subscribe_timeout(server: NatsServer, faults: Faults) -> None:
    faults.inject("subscribe", timeout(0.2), times=1)
    began = trio.current_time()
    async with routing(server, faults) as (watch, stream):
        (failed,) = watch.of("NATS_SUBSCRIBE_ERROR")
        assert failed.reason == "timeout"
        assert trio.current_time() - began > 0.19
        await until_stored(stream, "SINK", COUNT)
        await assert_survived(watch, losses=0, seen=["NATS_SUBSCRIBE_ERROR"])
        assert watch.metric("router_nats_subscribe_failures_total", reason="timeout") == 1


# --- combined ---


async def test_intermittent_publish_errors(server: NatsServer, faults: Faults) -> None:
    """Every fifth publish fails, until each message has got through."""
    faults.inject("publish_with_ack", error("overloaded"), probability=0.2, seed=42)
    async with routing(server, faults) as (watch, stream):
        await until_stored(stream, "SINK", COUNT)
        await until_nothing_is_unacked(stream)
        await assert_survived(watch, losses=0, seen=["NATS_PUBLISH_WITH_ACK_ERROR"])
        struck = faults.struck["publish_with_ack"]
        assert COUNT * 0.1 < struck < COUNT * 0.5
        taken_back = watch.metric("router_nats_publish_with_ack_failures_total", reason="out_of_turn")
        assert watch.metric("router_nats_publish_with_ack_failures_total") == struck + taken_back
        assert watch.metric("router_messages_failed_total") == struck
        assert watch.metric("router_nats_publish_with_ack_total") == COUNT
        assert watch.metric("router_nats_operations_accepted_total") == COUNT + struck + taken_back


async def test_cascading_failures(server: NatsServer, faults: Faults) -> None:
    """Everything fails now and then, at the same time: connecting, subscribing, publishing, answering."""
    faults.inject("subscribe", error("refused"), probability=0.5, seed=2, times=3)
    faults.inject("publish_with_ack", close_connection(), probability=0.01, seed=3, times=3)
    faults.inject("ack", error("refused"), probability=0.3, seed=4)
    faults.inject("nak", delay(0.2), probability=0.5, seed=5)
    async with routing(server, faults) as (watch, stream):
        faults.inject("connect", error("refused"), probability=0.5, seed=1, times=6)
        await until_stored(stream, "SINK", COUNT)
        await until_nothing_is_unacked(stream)
        await watch.until("NATS_CONNECTION_RESTORED", times=3)
        await assert_survived(watch, losses=3, seen=["NATS_CONNECTION_LOST", "NATS_ACK_ERROR", "NATS_RETRY_COMPLETE"])
        assert 0 < watch.metric("router_nats_ack_failures_total", reason="refused") <= faults.struck["ack"]
        assert watch.metric("router_nats_connection_failures_total") == faults.struck["connect"] > 0
        assert watch.metric("router_nats_subscribe_failures_total") == faults.struck["subscribe"] > 0


async def test_full_recovery_after_the_faults_are_cleared(server: NatsServer, faults: Faults) -> None:
    """Nothing gets through while the faults are in force, everything once they are cleared, and no trace remains."""
    for operation in ("publish_with_ack", "ack", "nak"):
        faults.inject(operation, error("refused"))
    async with routing(server, faults, 2 * COUNT) as (watch, stream):
        await watch.until("NATS_PUBLISH_WITH_ACK_ERROR")
        await watch.until("NATS_NAK_ERROR")
        faults.inject("connect", error("refused"))
        close_link(watch.router.connections["main"])
        await watch.until("NATS_CONNECTION_FAILED", times=3)
        assert (await stream.stream_info("SINK"))["state"]["messages"] == 0
        receipt = await watch.router.publish("out", b"kept")
        assert receipt.status == "queued"
        faults.clear()
        assert await receipt.settled() == Fate("fenced")
        await until_stored(stream, "SINK", 2 * COUNT)
        await until_nothing_is_unacked(stream)
        await assert_survived(watch, seen=["NATS_CONNECTION_LOST", "NATS_NAK_ERROR", "NATS_RETRY_COMPLETE"])
        failures = len(watch.events)
        await publish_numbered(stream, range(COUNT))  # known ids: the stream drops them, and nothing is routed
        copy_id = (await stream.stream_messages("SINK"))[0].header("Nats-Msg-Id")
        assert copy_id is not None
        assert (await watch.router.publish_with_ack("sink.0", b"0", {"Nats-Msg-Id": copy_id})).duplicate
        assert len(watch.events) == failures, "calm again"
