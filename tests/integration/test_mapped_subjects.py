"""Streams that store a destination's messages under another subject, to which servers map them on the way."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import trio

from router_trio import Message
from router_trio.connection import destinations
from router_trio.errors import PublishError
from router_trio.outbox import retries
from router_trio.routing.stream.pulling import checks
from router_trio.telemetry.http.status import readiness
from tests.integration.test_domains import hub_and_leaf
from tests.support.eventually import eventually
from tests.support.raw_jetstream import JetStream
from tests.support.raw_nats import connect
from tests.support.servers import nats_server
from tests.support.settings import settings
from tests.support.streams import publish_numbered, route
from tests.support.watch import until_nothing_is_unacked, until_stored, watched

COUNT = 40

MAPPED = 'mappings { "sink.*": "stored.$1" }\n'

IMPORTED = """
accounts {
  OWNER: {
    jetstream: enabled
    users: [ { user: owner, password: owner } ]
    exports: [
      { service: "$JS.API.>", response_type: stream }
      { service: "$JS.ACK.>" }
      { service: "stored.*" }
    ]
  }
  GUEST: {
    jetstream: enabled
    users: [ { user: guest, password: guest } ]
    imports: [
      { service: { account: OWNER, subject: "$JS.API.>" }, to: "JS.OWNER.API.>" }
      { service: { account: OWNER, subject: "$JS.ACK.>" } }
      { service: { account: OWNER, subject: "stored.*" }, to: "sink.*" }
    ]
  }
}
"""

OWNER: dict[str, Any] = {"user": "owner", "password": "owner"}
GUEST: dict[str, Any] = {"user": "guest", "password": "guest"}


@dataclass
class Servers:
    """URL and settings of the router's connection, and the URLs of STORED and of SOURCE."""

    url: str
    source: JetStream
    stored: JetStream
    keys: dict[str, Any] = field(default_factory=dict)


@asynccontextmanager
async def mapped(tmp_path: Path) -> AsyncIterator[Servers]:
    """Run an account that maps the subjects published in it."""
    async with nats_server(tmp_path, config=MAPPED) as server, connect(server.url) as client:
        yield Servers(server.url, JetStream(client), JetStream(client))


@asynccontextmanager
async def imported(tmp_path: Path) -> AsyncIterator[Servers]:
    """Run an account that imports the subject of a stream under another name, and the API that describes the stream."""
    async with nats_server(tmp_path, config=IMPORTED) as server, connect(server.url, **OWNER) as owner:
        keys = GUEST | {"api_prefix": "JS.OWNER.API"}
        yield Servers(server.url, JetStream(owner), JetStream(owner), keys)


@asynccontextmanager
async def imported_alone(tmp_path: Path) -> AsyncIterator[Servers]:
    """Run such an account without that API: it has a JetStream of its own, which has no STORED."""
    async with (
        nats_server(tmp_path, config=IMPORTED) as server,
        connect(server.url, **OWNER) as owner,
        connect(server.url, **GUEST) as guest,
    ):
        yield Servers(server.url, JetStream(guest), JetStream(owner), GUEST)


@asynccontextmanager
async def behind_a_leaf_node(tmp_path: Path) -> AsyncIterator[Servers]:
    """Run a leaf node that maps, and a stream of the hub."""
    async with (
        hub_and_leaf(tmp_path, leaf=MAPPED) as (hub, leaf),
        connect(hub) as there,
        connect(leaf) as here,
    ):
        yield Servers(leaf, JetStream(here), JetStream(there))


WAYS = [mapped, imported, imported_alone, behind_a_leaf_node]


TO = {"subject": "sink.{{wildcard(1)}}", "jetstream": True}
NAMED = TO | {"stream": "STORED"}


@pytest.mark.parametrize("way", WAYS)
async def test_the_stream_named_by_a_destination_confirms_mapped_messages(way: Any, tmp_path: Path) -> None:
    async with way(tmp_path) as servers:
        await servers.source.create_stream("SOURCE", ["source.*"])
        await servers.stored.create_stream("STORED", ["stored.*"])
        config = settings(servers.url, routes=[route() | {"to": [NAMED]}], **servers.keys)
        async with watched(config) as watch:
            await publish_numbered(servers.source, range(COUNT))
            await until_stored(servers.stored, "STORED", COUNT)
            await until_nothing_is_unacked(servers.source)
            await eventually(lambda: watch.router.routes[0].trouble is None, within=15)
            assert watch.metric("router_nats_publish_with_ack_failures_total") == 0
            assert watch.router.ledger()["main"]["settled"]["acked"] == COUNT


@pytest.mark.parametrize("taken", ["sink.other", "sink.*"])
async def test_pubacks_that_do_not_count_are_reported_until_the_destination_names_their_stream(
    taken: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """This holds even if some stream takes the unmapped subject, and gets none of the messages.

    If no stream takes any subject of the destination, nothing is published.
    """
    monkeypatch.setattr(destinations, "LOOK_EVERY", 0.3)
    monkeypatch.setattr(checks, "CHECK_EVERY", 0.3)
    monkeypatch.setattr(retries, "ACK_BUDGET", 14.0)  # until then the publish to the old destination is in flight
    async with mapped(tmp_path) as servers:
        await servers.source.create_stream("SOURCE", ["source.*"])
        await servers.stored.create_stream("STORED", ["stored.*"])
        await servers.stored.create_stream("UNUSED", [taken])
        async with watched(settings(servers.url, routes=[route() | {"to": [TO]}])) as watch:
            await publish_numbered(servers.source, [7])

            def reasons() -> str:
                return " ".join(one["reason"] for one in readiness(watch.router, trio.current_time())[1]["reasons"])

            sentence = "PubAcks from stream 'STORED' for 'sink.7' don't count, because 'STORED' does not take it"
            await eventually(lambda: sentence in reasons(), within=10)
            assert "set stream = 'STORED' for the destination" in reasons()
            logged = [event for event in watch.of("NATS_DESTINATION_NOT_STORED") if event.reason == "other_stream"]
            assert [sentence in event.detail for event in logged] == [True]
            await trio.sleep(5 * destinations.LOOK_EVERY)
            assert sentence in reasons()
            assert len(watch.of("NATS_DESTINATION_NOT_STORED")) == 1
            await watch.router.reload(settings(servers.url, routes=[route() | {"to": [NAMED]}]))
            await until_nothing_is_unacked(servers.source)
            await eventually(lambda: reasons() == "", within=15)
            assert [one.payload for one in await servers.stored.stream_messages("STORED")] == [b"7"]


async def elsewhere(message: Message) -> Message:
    """Send to a subject that the server maps as well."""
    return message.replace(subject=f"sink.x{message.payload.decode()}")


async def test_subjects_chosen_by_a_handler_and_dead_letters_are_mapped_too(tmp_path: Path) -> None:
    letters = {"subject": "sink.dead", "stream": "STORED"}
    to = {"to": [NAMED], "handler": f"{__name__}:elsewhere", "retry": {"attempts": 1}, "dead_letter": letters}
    async with mapped(tmp_path) as servers:
        await servers.source.create_stream("SOURCE", ["source.*"])
        await servers.stored.create_stream("STORED", ["stored.*"])
        async with watched(settings(servers.url, routes=[route() | to])):
            await publish_numbered(servers.source, [7])
            await servers.source.publish("source.8", b"not a subject")
            await until_stored(servers.stored, "STORED", 2)
            await until_nothing_is_unacked(servers.source)
        stored = await servers.stored.stream_messages("STORED")
        assert {one.subject: one.payload for one in stored} == {"stored.x7": b"7", "stored.dead": b"not a subject"}


async def test_a_program_names_the_stream(tmp_path: Path) -> None:
    async with mapped(tmp_path) as servers:
        await servers.stored.create_stream("STORED", ["stored.*"])
        async with watched(settings(servers.url)) as watch:
            with pytest.raises(PublishError):
                await watch.router.publish_with_ack("sink.7", b"7", timeout=1)
            (failed,) = watch.of("NATS_PUBLISH_WITH_ACK_ERROR")
            assert "set stream = 'STORED' for the destination" in failed.detail
            receipt = await watch.router.publish_with_ack("sink.8", b"8", stream="STORED")
            assert receipt.fate is not None
            assert (receipt.status, receipt.fate.stream) == ("acked", "STORED")


async def test_the_puback_of_another_stream_does_not_count_where_one_is_named(tmp_path: Path) -> None:
    async with mapped(tmp_path) as servers:
        await servers.source.create_stream("SOURCE", ["source.*"])
        await servers.source.create_stream("EVIL", ["evil.*"])
        # The account maps to it, but there is no STORED.
        heard = await servers.source.client.subscribe("stored.*")
        async with watched(settings(servers.url, routes=[route() | {"to": [NAMED]}])) as watch:
            await publish_numbered(servers.source, [7])
            message = await heard.next()
            await servers.source.client.publish("evil.x", b"forged", None, message.reply)
            await until_stored(servers.source, "EVIL", 1)
            await trio.sleep(1)
            assert watch.router.ledger()["main"]["settled"]["acked"] == 0
            assert "the destination names stream 'STORED', which does not exist" in str(watch.router.routes[0].trouble)
            await servers.stored.create_stream("STORED", ["stored.*"])
            await until_nothing_is_unacked(servers.source)
