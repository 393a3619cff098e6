"""Situations of publishes, acks and subscriptions."""

from __future__ import annotations

from contextlib import suppress

import trio

from router_trio import Message, events
from router_trio.errors import PublishError
from router_trio.events import Event
from router_trio.testing import FakeBroker
from tests.support.eventually import eventually
from tests.support.world import LOCAL, REMOTE, core, fill, handled, one_broker, stream, to, two_brokers, world
from tests.unit.events.situations.situation import about


@about(events.PublishFailed, events.PublishWithAckFailed)
async def publishes_that_are_denied() -> list[Event]:
    """A program and a route may not publish"""
    brokers = one_broker()
    brokers["main"].deny_publish("denied.>")
    brokers["main"].deny_publish("out.>")
    async with world(
        [core("in.x", "denied.x"), core("in.y", to("out.y", jetstream=True), name="stored")], brokers=brokers
    ) as w:
        await w.live.publish("denied.program", b"")
        await trio.sleep(1)
        with suppress(PublishError):
            await w.live.publish_with_ack("out.program", b"")
        w.broker.publish("in.x", b"")
        w.broker.publish("in.y", b"")
        await eventually(
            lambda: w.watch.count("NATS_PUBLISH_ERROR") + w.watch.count("NATS_PUBLISH_WITH_ACK_ERROR") == 4
        )
        await trio.sleep(1)
    return w.watch.events


@about(events.PublishWithAckFailed)
async def copies_that_are_refused() -> list[Event]:
    """The stream of a program's publish and of the copy of a message from a stream is full"""
    brokers = one_broker()
    brokers["main"].trouble.limit("OUT", 0)
    route = stream("IN", "out.{{wildcard(1)}}", filter="in.*", retry={"attempts": 1, "not": ["limit"]})
    async with world([route], brokers=brokers) as w:
        with suppress(PublishError):
            await w.live.publish_with_ack("out.program", b"")
        fill(w.broker, 1)
        await w.watch.until("NATS_PUBLISH_WITH_ACK_ERROR", 2)
    return w.watch.events


@about(events.PublishFailed)
async def copies_of_stream_messages_that_are_refused() -> list[Event]:
    """The user may not publish the core copy of a message from a stream"""
    brokers = one_broker()
    brokers["main"].deny_publish("heard.>")
    async with world([stream("IN", to("heard.x"))], brokers=brokers) as w:
        fill(w.broker, 1)
        await w.watch.until("NATS_PUBLISH_ERROR")
    return w.watch.events


@about(events.PublishQueued, events.PublishWithAckQueued, events.PendingDropped)
async def queued() -> list[Event]:
    """Publishes wait for a connection, and some are dropped after their time"""
    brokers = one_broker()
    async with world(brokers=brokers, pending_max_age="5s") as w:
        await w.lose()
        await w.live.publish("a", b"")
        await w.live.publish("b", b"")
        with suppress(PublishError), trio.move_on_after(1):
            await w.live.publish_with_ack("out.c", b"")
        await trio.sleep(20)
        await w.find()
    return w.watch.events


@about(events.PublishFailedOpen)
async def failing_open() -> list[Event]:
    """A publish is not kept in an outage, since the connection fails open"""
    async with world(fail_open=True) as w:
        await w.lose()
        await w.live.publish("a", b"")
        await w.find()
    return w.watch.events


@about(events.QueueFull)
async def full_queues() -> list[Event]:
    """The queue of a connection is full, with each `on_full`, and with room for one operation and for two"""
    found: list[Event] = []
    for most, on_full in ((1, "drop_oldest"), (2, "reject"), (2, "block")):
        async with world(max_pending_operations=most, on_pending_full=on_full) as w:
            await w.lose()
            for number in range(3):
                with suppress(PublishError), trio.move_on_after(1):
                    await w.live.publish(f"out.{number}", b"")
            await w.find()
        found += w.watch.events
    return found


@about(events.AckFailed)
async def acks_without_a_link() -> list[Event]:
    """Acks find no link"""
    async with world([REMOTE], brokers=two_brokers()) as w:
        w.brokers["edge"].stall(1.0)
        fill(w.broker, 2)
        await eventually(lambda: w.entry("edge")["in_flight"] == 2)
        await w.lose("main")
        await w.watch.until("NATS_ACK_ERROR")
        await w.find("main")
    return w.watch.events


def fail(message: Message) -> None:
    raise ValueError("never")


@about(events.AckFailed, events.NakFailed)
async def acks_that_are_denied() -> list[Event]:
    """The user may not ack"""
    brokers = one_broker()
    brokers["main"].deny_publish("$JS.ACK.>")
    async with world([LOCAL], brokers=brokers) as w:
        fill(w.broker, 1)
        await w.watch.until("NATS_ACK_ERROR")
        w.broker.allow_publish("$JS.ACK.>")
        await trio.sleep(60)
    brokers = one_broker()
    brokers["main"].deny_publish("$JS.ACK.>")
    failing = handled(fail, to=to("out.x", jetstream=True), stream="IN", durable="router", retry={"initial": "10ms"})
    async with world(handlers=[failing], brokers=brokers) as other:
        fill(other.broker, 1)
        await other.watch.until("NATS_NAK_ERROR")
        other.broker.allow_publish("$JS.ACK.>")
    return w.watch.events + other.watch.events


@about(events.RefusalNotAttributed)
async def refusals_of_unknown_subjects() -> list[Event]:
    """The server refuses a publish by a subject to which it has mapped it"""
    async with world() as w:
        listener = w.live.connections["main"].listener  # the links call it, with what the server reports
        listener.publish_denied(b"forbidden.x", 'Permissions Violation for Publish to "forbidden.x"')
    return w.watch.events


@about(events.SubscribeFailed)
async def subscriptions_that_fail() -> list[Event]:
    """The user may not subscribe, the stream of a route does not exist, or its durable is deleted"""
    broker = FakeBroker()
    broker.add_stream("IN", ["in.*"])
    broker.add_stream("OUT", ["out.>"])
    broker.deny_subscribe("denied.*")
    routes = [core("denied.*", "x", name="denied"), stream("NONE", "out.x", route="missing"), stream("IN", "out.x")]
    async with world(routes, brokers={"main": broker}) as w:
        await w.watch.until("NATS_SUBSCRIBE_ERROR", 2)
        broker.delete_consumer("IN", "router")
        await eventually(lambda: "route" in {one.route for one in w.watch.of("NATS_SUBSCRIBE_ERROR")})
    return sorted(w.watch.events, key=lambda one: str(getattr(one, "route", "")))
