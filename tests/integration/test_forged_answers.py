"""Clients that subscribe to a destination, and have a real server answer our publishes in place of their stream."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio

from router_trio import Message
from tests.support.eventually import eventually
from tests.support.raw_jetstream import JetStream
from tests.support.raw_nats import RawClient, connect
from tests.support.servers import NatsServer
from tests.support.settings import settings
from tests.support.streams import publish_numbered, route, source_and_sink
from tests.support.watch import until_nothing_is_unacked, until_stored, watched

COUNT = 20
MANY = 300


@asynccontextmanager
async def forging(
    client: RawClient, subject: str, headers: Any = None, *, ahead: int = 0, heard_at: str = "sink.*"
) -> AsyncIterator[list[str]]:
    """Publish to a subject for each message received at `heard_at`, with its reply subject; yield those.

    And with those of `ahead` publishes that follow, again and again: their numbers are consecutive.
    """
    heard = await client.subscribe(heard_at)
    forged: list[str] = []

    async def forge() -> None:
        while True:
            message = await heard.next(within=600)
            if message.reply:
                forged.append(message.reply)
                inbox, _, number = message.reply.rpartition(".")
                for more in range(ahead + 1):
                    await client.publish(subject, b"forged", headers, f"{inbox}.{int(number) + more}")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(forge)
        yield forged
        nursery.cancel_scope.cancel()


async def test_a_puback_of_a_stream_that_takes_other_subjects_acks_nothing(server: NatsServer) -> None:
    async with connect(server.url) as client:
        stream = JetStream(client)
        await stream.create_stream("SOURCE", ["source.*"])
        await stream.create_stream("EVIL", ["evil.*"])
        await stream.create_stream("OTHERS", ["sink.other"])  # without any, nothing would be published
        await publish_numbered(stream, range(COUNT))
        async with forging(client, "evil.x") as forged, watched(settings(server.url, routes=[route()])) as watch:
            await eventually(lambda: len(forged) >= COUNT)
            await until_stored(stream, "EVIL", COUNT)
            await client.ping()
            await trio.sleep(1)
            assert watch.router.ledger()["main"]["settled"]["acked"] == 0
            # The stream is back: all is stored, and then acked at its source.
            await stream.delete_stream("OTHERS")
            await stream.create_stream("SINK", ["sink.*"])
            await until_stored(stream, "SINK", COUNT, within=20)
            await until_nothing_is_unacked(stream)


@pytest.mark.parametrize("named", ["EVIL", "GHOST"])
async def test_a_stream_that_pubacks_name_repeatedly_is_looked_up_once_a_second(named: str, server: NatsServer) -> None:
    """The named stream does not take the subject, or does not exist."""
    async with connect(server.url) as client:
        stream = JetStream(client)
        await stream.create_stream("SOURCE", ["source.*"])
        await stream.create_stream("EVIL", ["evil.*"])
        await stream.create_stream("OTHERS", ["sink.other"])  # without any, nothing would be published
        heard = await client.subscribe("sink.*")
        async with watched(settings(server.url, routes=[route()])) as watch:
            await publish_numbered(stream, range(COUNT))
            inbox, _, number = str((await heard.next()).reply).rpartition(".")
            asked = await client.subscribe(f"$JS.API.STREAM.INFO.{named}")
            for _ in range(20):
                for more in range(COUNT):
                    puback = b'{"stream":"%b","seq":7}' % named.encode()
                    await client.publish(f"{inbox}.{int(number) + more}", puback)
                await trio.sleep(0.1)
            lookups = 0
            with trio.move_on_after(0.5):
                while await asked.next():
                    lookups += 1
            assert 1 <= lookups <= 6
            assert watch.router.ledger()["main"]["settled"]["acked"] == 0


async def elsewhere(message: Message) -> Message:
    """Send where no stream is."""
    return message.replace(subject="elsewhere.x")


async def test_a_puback_of_the_destinations_stream_acks_nothing_that_a_handler_sends_elsewhere(
    server: NatsServer,
) -> None:
    config = settings(server.url, routes=[{**route(), "handler": f"{__name__}:elsewhere"}])
    async with connect(server.url) as client:
        stream = await source_and_sink(client, COUNT)
        async with forging(client, "sink.forged", heard_at="elsewhere.*") as forged, watched(config) as watch:
            await eventually(lambda: len(forged) >= COUNT)
            await until_stored(stream, "SINK", COUNT)
            await client.ping()
            await trio.sleep(1)
            assert watch.router.ledger()["main"]["settled"]["acked"] == 0


@pytest.mark.parametrize("forged", ["evil.x", "sink.forged"])
async def test_a_forged_error_dead_letters_no_stored_message(forged: str, server: NatsServer) -> None:
    """The error is a genuine one: of another stream, or of the right one about the forger's message."""
    letter = {"subject": "dead.{{wildcard(1)}}"}
    async with connect(server.url) as client:
        stream = JetStream(client)
        await stream.create_stream("SOURCE", ["source.*"])
        await stream.create_stream("EVIL", ["evil.*"])
        await stream.create_stream("SINK", ["sink.*"])
        await stream.create_stream("DEAD", ["dead.*"])
        config = settings(server.url, routes=[route(retry={"attempts": 1}, dead_letter=letter)])
        refused = [("Nats-Expected-Last-Sequence", "99999")]
        async with connect(server.url) as other, forging(other, forged, refused, ahead=30), watched(config):
            for number in range(MANY):
                await publish_numbered(stream, [number])
            await until_stored(stream, "SINK", MANY)
            await until_nothing_is_unacked(stream)
        assert await stream.stream_messages("DEAD") == []


async def test_a_stream_that_takes_over_the_subject_is_believed(server: NatsServer) -> None:
    async with connect(server.url) as client:
        stream = JetStream(client)
        await stream.create_stream("SOURCE", ["source.*"])
        await stream.create_stream("SINK", ["sink.*"])
        await stream.create_stream("OTHER", ["other.*"])
        async with watched(settings(server.url, routes=[route()])):
            await publish_numbered(stream, range(COUNT))
            await until_stored(stream, "SINK", COUNT)
            await stream.delete_stream("SINK")
            await stream.edit_stream("OTHER", subjects=["other.*", "sink.*"])
            await publish_numbered(stream, range(COUNT, 2 * COUNT))
            await until_stored(stream, "OTHER", COUNT)
            await until_nothing_is_unacked(stream)
