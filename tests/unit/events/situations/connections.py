"""Situations of connections and of the streams on their servers."""

from __future__ import annotations

from contextlib import suppress
from math import inf
from typing import Any

import trio

from router_trio import Router, events
from router_trio.connection.platform import Platform
from router_trio.errors import ConnectionExhaustedError, UnexpectedError
from router_trio.events import Event
from router_trio.nats.info import parse_info
from router_trio.testing import FakeBroker
from tests.support.eventually import eventually
from tests.support.settings import settings
from tests.support.watch import Watch
from tests.support.world import LongestDelays, core, fill, map_subjects, one_broker, stream, to, world
from tests.unit.connection.network import A, B, Network, opened, patient
from tests.unit.connection.test_duplicates import away, routing, unanswered
from tests.unit.events.situations.situation import about

PLATFORM = Platform(random=LongestDelays(), watch_loop=False)
ROUTE = stream("IN", "out.x")
STORED = core("in.>", to("out.>", jetstream=True), name="stored")


@about(events.ConnectionEstablished, events.ConnectionLost, events.ReconnectAttempt, events.ConnectionRestored)
async def lost_and_found() -> list[Event]:
    """A link is cut, and the second attempt succeeds"""
    network = Network()
    async with opened(network, patient([A, B]), platform=PLATFORM) as (watch, live):
        network.take_down()
        await watch.until("NATS_CONNECTION_LOST")
        await live.publish("out", b"")
        await watch.until("NATS_CONNECTION_FAILED")
        network.broker.up()
        await watch.until("NATS_CONNECTION_RESTORED")
    return watch.events


@about(events.ConnectionFailed, real_time=True)
async def connection_refused() -> list[Event]:
    """Nothing listens at the address of a server"""
    watch = Watch()
    async with Router(settings("nats://127.0.0.1:1"), observers=[watch], log=False).open():
        await watch.until("NATS_CONNECTION_FAILED")
    return watch.events


@about(events.ConnectionFailed, events.ReconnectExhausted)
async def no_server() -> list[Event]:
    """No server answers in a round of attempts, each for another cause"""
    network = Network()
    network.delays = {A: inf}
    network.take_down()
    async with opened(network, patient([A, B], reconnect_attempts=2), platform=PLATFORM) as (watch, _):
        await watch.until("NATS_RECONNECT_EXHAUSTED")
        network.delays.clear()
        network.broker.up()
    return watch.events


@about(events.ReconnectExhausted)
async def one_attempt() -> list[Event]:
    """The only attempt of a round fails, and the router is to stop then"""
    network, watch = Network(), Watch()
    network.take_down()
    config = patient(reconnect_attempts=1, on_reconnect_exhausted="stop")
    with suppress(ConnectionExhaustedError):
        async with opened(network, config, watch=watch):
            await trio.sleep_forever()
    return watch.events


@about(events.UnexpectedLinkError)
async def unexpected_error() -> list[Event]:
    """Code of the router fails over what a server sent"""
    network = Network()
    try:
        parse_info(None)  # type: ignore[arg-type]
    except Exception as error:
        network.trouble = {A: UnexpectedError(error)}
    watch = Watch()
    router = Router(patient([A, B]), observers=[watch], connect=lambda name, one: network.connect, log=False)
    async with router.open():
        await watch.until("NATS_CONNECTION_ESTABLISHED")
    return watch.events


@about(events.LameDuck)
async def lame_duck() -> list[Event]:
    """A server announces its end"""
    network = Network()
    async with opened(network, patient([A, B])) as (watch, _):
        network.broker.lame_duck()
        await watch.until("NATS_LAME_DUCK")
        network.broker.cut()
        await trio.sleep(10)
    return watch.events


@about(events.RetryPending, events.RetryComplete)
async def sent_after_an_outage() -> list[Event]:
    """After an outage one operation is sent, then two, and one of them fails"""
    async with world() as w:
        w.broker.deny_publish("denied")
        for subjects in (["a"], ["b", "denied"]):
            await w.lose()
            for subject in subjects:
                await w.live.publish(subject, b"")
            await w.find()
            await trio.sleep(1)
    return w.watch.events


@about(events.DuplicatesPossible)
async def duplicates() -> list[Event]:
    """After a long outage, PubAcks of one message and of three are missing"""
    found: list[Event] = []
    for count in (1, 3):
        async with routing() as w:
            await unanswered(w, count)
            await away(w, 180)
        found += w.watch.events
    return found


@about(events.DuplicatesPossible)
async def duplicates_of_an_unknown_stream() -> list[Event]:
    """The stream of messages without PubAck, or only its window, can't be looked up"""
    found: list[Event] = []
    for denied in ("$JS.API.STREAM.INFO.OUT", "$JS.API.>"):
        async with routing(denied) as w:
            await unanswered(w, 1)
            await away(w, 180)
        found += w.watch.events
    return found


@about(events.DestinationsUnknown)
async def no_lookups() -> list[Event]:
    """The user may not look up streams"""
    brokers = one_broker()
    brokers["main"].deny_publish("$JS.API.>")
    async with world([STORED], brokers=brokers) as w:
        await w.watch.until("NATS_DESTINATIONS_UNKNOWN")
    return w.watch.events


@about(events.ServiceNotOffered)
async def no_service() -> list[Event]:
    """The user may not subscribe as a service"""
    broker = FakeBroker()
    broker.deny_subscribe("$SRV.*")
    async with world([core("in.*", "out.x")], brokers={"main": broker}) as w:
        await w.watch.until("NATS_SERVICE_NOT_OFFERED")
    return w.watch.events


@about(events.AdvisoriesRefused)
async def no_advisories() -> list[Event]:
    """The user may not subscribe to advisories"""
    brokers = one_broker()
    brokers["main"].deny_subscribe("$JS.EVENT.>")
    async with world([ROUTE], brokers=brokers) as w:
        await w.watch.until("NATS_ADVISORIES_REFUSED")
    return w.watch.events


@about(events.QuorumLost)
async def no_quorum() -> list[Event]:
    """The server of a stream is cut off from its cluster"""
    async with world([ROUTE], brokers=one_broker()) as w:
        fill(w.broker, 1)
        await eventually(lambda: w.route.settled["routed"] == 1)
        w.broker.trouble.cut_off("IN")
        await w.watch.until("NATS_QUORUM_LOST", within=60)
        w.broker.trouble.cut_off("IN", False)
    return w.watch.events


@about(events.StreamAcksEarly)
async def acks_early() -> list[Event]:
    """The stream of a destination confirms before it writes"""
    brokers = one_broker()
    brokers["main"].trouble.persist_async("OUT")
    async with world([STORED], brokers=brokers) as w:
        await w.watch.until("NATS_STREAM_ACKS_EARLY")
    return w.watch.events


@about(events.StreamCreated, events.StreamDiffers, events.StreamNotMade)
async def streams_of_the_configuration() -> list[Event]:
    """Of the streams of a configuration one is created, one differs, and one is refused"""
    broker = FakeBroker()
    broker.add_stream("OUT", ["out.>"], max_messages=9)
    broker.deny_publish("$JS.API.STREAM.CREATE.DENIED")
    streams: list[dict[str, Any]] = [
        {"name": "IN", "subjects": ["in.*"]},
        {"name": "OUT", "subjects": ["out.>"]},
        {"name": "DENIED", "subjects": ["denied.>"]},
    ]
    async with world(brokers={"main": broker}, streams=streams) as w:
        await w.watch.until("NATS_STREAM_NOT_MADE")
    return w.watch.events


@about(events.DestinationNotStored, events.DestinationStored)
async def destination_without_stream() -> list[Event]:
    """No stream takes the subject of a destination until one is created"""
    brokers = one_broker()
    brokers["main"].delete_stream("OUT")
    async with world([STORED], brokers=brokers) as w:
        await w.watch.until("NATS_DESTINATION_NOT_STORED")
        w.broker.add_stream("OUT", ["out.>"])
        await w.watch.until("NATS_DESTINATION_STORED", within=60)
    return w.watch.events


@about(events.DestinationNotStored)
async def destinations_that_refuse() -> list[Event]:
    """The stream of a destination is full, is sealed, answers for another subject, or the user may not publish there"""
    found: list[Event] = []
    for way in ("full", "sealed", "mapped", "denied"):
        brokers = one_broker()
        broker = brokers["main"]
        if way == "full":
            broker.trouble.limit("OUT", 0)
        elif way == "sealed":
            broker.trouble.seal("OUT")
        elif way == "denied":
            broker.deny_publish("out.>")
        else:
            broker.add_stream("STORED", ["stored.>"])
            map_subjects(broker, "out", "stored")
        async with world([STORED], brokers=brokers) as w:
            await trio.sleep(5)
            broker.publish("in.x", b"")
            await w.watch.until("NATS_DESTINATION_NOT_STORED", within=60)
        found += w.watch.events
    return found


@about(events.DestinationUnconfirmed)
async def destination_without_pubacks() -> list[Event]:
    """A stream stores what a route publishes as core messages"""
    route = stream("IN", to("out.x", jetstream=False))
    async with world([route], brokers=one_broker()) as w:
        await w.watch.until("NATS_DESTINATION_UNCONFIRMED", within=60)
    return w.watch.events
