"""Situations of messages, handlers, limits, breakers and circles."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import trio

from router_trio import Message, Reject, events
from router_trio.events import Event
from router_trio.testing import FakeBroker
from router_trio.testing.streams import EPOCH
from tests.support.eventually import eventually
from tests.support.world import core, fill, handled, one_broker, stream, to, world
from tests.unit.events.situations.situation import about
from tests.unit.routing.stream.giving_up import DEAD, brokers


def fails(message: Message) -> None:
    raise ValueError("never")


def rejects(message: Message) -> None:
    raise Reject("no such order")


FROM: dict[str, Any] = {"stream": "IN", "durable": "router", "filter": "in.*"}


@about(events.MessageFailed)
async def failed_messages() -> list[Event]:
    """A message of a stream and one of a subject fail in a handler, and one has no place in a mapping"""
    kept = handled(fails, to=to("out.x", jetstream=True), retry={"attempts": 1}, **FROM)
    plain = handled(fails, subject="core.*", to=to("out.x"))
    plain[1]["name"] = "plain"
    mapped = core("mapped.*", "out.{{split(1,-)}}", name="mapped")
    async with world([mapped], handlers=[kept, plain], brokers=one_broker()) as w:
        fill(w.broker, 1)
        w.broker.publish("core.x", b"")
        w.broker.publish("mapped.--", b"")
        await w.watch.until("ROUTE_MESSAGE_FAILED", 3)
    return sorted(w.watch.events, key=lambda one: str(getattr(one, "route", "")))


async def forever(message: Message) -> None:
    await trio.sleep_forever()


@about(events.MessageFailed)
async def failed_messages_without_a_name() -> list[Event]:
    """A stream takes the copy of another message for a duplicate, and two messages are never routed"""
    broker = FakeBroker()
    broker.add_stream("IN", ["in.*"], duplicate_window=1.0)
    broker.add_stream("OUT", ["out.>"])
    async with world([stream("IN", "out.x", message_id="sender")], brokers={"main": broker}) as doubled:
        for _ in range(2):
            broker.publish("in.x", b"", {"Nats-Msg-Id": "id"})
            await trio.sleep(2.0)
        await doubled.watch.until("ROUTE_MESSAGE_FAILED")
    async with world(handlers=[handled(forever, subject="in.*", to=to("out.x"))], shutdown_timeout=1.0) as ended:
        for number in range(3):
            ended.broker.publish(f"in.{number}", b"")
        await eventually(lambda: ended.route.in_hand == 3)
    return doubled.watch.events + ended.watch.events


@about(events.MessageDeadLettered)
async def dead_letters() -> list[Event]:
    """A message is dead-lettered after one attempt, and another one after three"""
    found: list[Event] = []
    for attempts in (1, 3):
        failing = handled(fails, to=to("out.x", jetstream=True), retry={"attempts": attempts}, dead_letter=DEAD, **FROM)
        async with world(handlers=[failing], brokers=brokers()) as w:
            fill(w.broker, 1)
            await w.watch.until("ROUTE_MESSAGE_DEAD_LETTERED")
        found += w.watch.events
    return found


@about(events.MessageGivenUp)
async def given_up() -> list[Event]:
    """A message of a stream and one of a subject are given up"""
    kept = handled(rejects, to=to("out.x", jetstream=True), **FROM)
    plain = handled(fails, subject="core.*", to=to("out.x"), retry={"attempts": 2, "initial": "10ms"})
    plain[1]["name"] = "plain"
    async with world(handlers=[kept, plain], brokers=one_broker()) as w:
        fill(w.broker, 1)
        w.broker.publish("core.x", b"")
        await w.watch.until("ROUTE_MESSAGE_GIVEN_UP", 2)
    return sorted(w.watch.events, key=lambda one: str(getattr(one, "route", "")))


@about(events.DeadLetterNotStored)
async def dead_letters_that_are_refused() -> list[Event]:
    """The dead letter of a message of a stream, and of one of a subject, is denied"""
    there = brokers()
    there["main"].deny_publish("dead.>")
    kept = handled(rejects, to=to("out.x", jetstream=True), dead_letter=DEAD, **FROM)
    plain = core("core.*", "out.{{split(1,-)}}", dead_letter=DEAD, name="plain")
    async with world([plain], handlers=[kept], brokers=there) as w:
        fill(w.broker, 1)
        w.broker.publish("core.--", b"")
        await w.watch.until("ROUTE_DEAD_LETTER_NOT_STORED", 2)
        w.broker.allow_publish("dead.>")
        await eventually(lambda: w.live.routes[-1].dead_lettered == 1 or w.live.routes[0].dead_lettered == 1, 200)
    return sorted(w.watch.events, key=lambda one: str(getattr(one, "route", "")))


@about(events.BucketConflict)
async def conflict() -> list[Event]:
    """Two buckets are written at the same key while they are not connected"""
    here, there = FakeBroker(), FakeBroker(epoch=EPOCH)
    there.add_stream("EARLIER", ["earlier"])  # so that the streams of the buckets are not created at the same time
    here.add_stream("KV_here", ["$KV.here.>"])
    there.add_stream("KV_there", ["$KV.there.>"])
    here.publish("$KV.here.key", b"earlier")
    await trio.sleep(2.5)
    there.publish("$KV.there.key", b"later")
    routes = [
        {
            "name": f"from-{source}",
            "from": {"connection": source, "bucket": source, "durable": "copy"},
            "to": [{"connection": end, "bucket": end, "last_writer": True}],
        }
        for source, end in (("here", "there"), ("there", "here"))
    ]
    async with world(routes, brokers={"here": here, "there": there}) as w:
        await w.watch.until("ROUTE_BUCKET_CONFLICT", within=60)
        await trio.sleep(5)
    return w.watch.events


@about(events.RouteInCircle)
async def circle() -> list[Event]:
    """Two routes send each other their messages"""
    edge = FakeBroker()
    there = {"main": FakeBroker(), "edge": edge}
    routes = [
        core("in.*", to("in.{{wildcard(1)}}", "edge"), name="there", connection="main"),
        core("in.*", to("in.{{wildcard(1)}}", "main"), name="back", connection="edge"),
    ]
    apart = {"main": {"servers": ["nats://main:4222"]}, "edge": {"servers": ["nats://edge:4222"]}}
    async with world(routes, brokers=there, connections=apart) as w:
        w.broker.publish("in.a", b"x")
        await w.watch.until("ROUTE_IN_CIRCLE", 2)
        await trio.sleep(5)
    return sorted(w.watch.events, key=lambda one: str(getattr(one, "route", "")))


@about(events.RouteLimited)
async def limited() -> list[Event]:
    """More messages arrive than the limit of a route allows"""
    route = stream("IN", "out.x") | {"limit": {"rate": "10/s"}}
    async with world([route], brokers=one_broker()) as w:
        fill(w.broker, 30)
        await w.watch.until("ROUTE_LIMITED")
        await eventually(lambda: w.route.settled["routed"] == 30)
    return w.watch.events


@about(events.BreakerOpened, events.BreakerClosed)
async def breakers() -> list[Event]:
    """The stream of a destination is full until its breaker has opened, after one failure and after three"""
    found: list[Event] = []
    for failures in (1, 3):
        end = to("out.x", jetstream=True) | {"breaker": {"failures": failures, "pause": "10s"}}
        async with world([stream("IN", end)], brokers=one_broker()) as w:
            w.broker.trouble.limit("OUT", 0)
            fill(w.broker, 5)
            await w.watch.until("ROUTE_BREAKER_OPENED")
            w.broker.trouble.limit("OUT", None)
            await w.watch.until("ROUTE_BREAKER_CLOSED", within=60)
        found += w.watch.events
    return found


@about(events.HandlerLeftBehind, real_time=True)
async def handler_left_behind() -> list[Event]:
    """A call in a thread does not return before its route ends, then two don't"""
    found: list[Event] = []
    for calls in (1, 2):
        may_return = threading.Event()

        def waits(message: Message) -> None:
            may_return.wait(10)  # noqa: B023 - called in this round

        in_thread = handled(waits, subject="in.*", to=to("out.x"), thread=True, key="subject", concurrency=2)
        async with world(handlers=[in_thread], shutdown_timeout=0.1) as w:
            for number in range(calls):
                w.broker.publish(f"in.{number}", b"")
            await eventually(lambda: w.route.handling == calls)  # noqa: B023 - called in this round
        may_return.set()
        found += w.watch.events
    return found


async def beats() -> None:
    await asyncio.sleep(60)


@about(events.TasksLeftBehind, real_time=True)
async def tasks_left_behind() -> list[Event]:
    """Handlers on asyncio leave one task running, then twelve"""
    found: list[Event] = []
    for count in (1, 12):
        kept: list[asyncio.Task[None]] = []

        async def starts(message: Message) -> Message:
            for _ in range(count):  # noqa: B023 - called in this round
                kept.append(asyncio.create_task(beats()))  # noqa: B023
            await asyncio.sleep(0)
            return message

        async with world(handlers=[handled(starts, subject="in.*", to=to("out.x"), loop="asyncio")]) as w:
            w.broker.publish("in.x", b"")
            await eventually(lambda: len(w.broker.published) == 1)
        found += w.watch.events
    return found
