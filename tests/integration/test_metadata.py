"""Metadata on what a router creates on a real server, and how routers of several versions share a durable."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest

from router_trio.errors import SourceError, reasons
from router_trio.nats.jetstream import api
from router_trio.nats.jetstream.consumers import _create
from router_trio.nats.link import Dialer, NatsLink
from router_trio.protocol.consumer import ConsumerSpec
from router_trio.protocol.metadata import CONFIG, MONITOR, ROUTE, SENDS, VERSION, package_version
from router_trio.protocol.stream_config import StreamConfig
from router_trio.settings import ConnectionSettings
from tests.support.eventually import eventually
from tests.support.raw_jetstream import JetStream
from tests.support.raw_nats import connect
from tests.support.recorder import Recorder
from tests.support.server_version import needs_server
from tests.support.servers import NatsServer
from tests.support.settings import settings, stream_route
from tests.support.watch import until_settled, watched

SPEC = ConsumerSpec("IN", "router", (), ack_wait=30.0, max_deliver=-1, max_ack_pending=70_000, least_ack_pending=4096)


@pytest.fixture
async def stream(server: NatsServer) -> AsyncIterator[JetStream]:
    async with connect(server.url) as client:
        found = JetStream(client)
        await found.create_stream("IN", ["in.*"])
        yield found


@asynccontextmanager
async def link_to(server: NatsServer) -> AsyncIterator[NatsLink]:
    dialer = Dialer(ConnectionSettings(servers=[server.url]), "test")
    async with dialer(server.url, b"_INBOX.test", Recorder()) as link:
        yield link


async def metadata_of(stream: JetStream, durable: str = "router") -> dict[str, str]:
    """Return the metadata of a consumer, without what the server adds."""
    config: dict[str, Any] = (await stream.consumer_info("IN", durable))["config"]
    return {key: value for key, value in config.get("metadata", {}).items() if not key.startswith("_nats.")}


async def test_a_created_durable_and_stream_name_their_route_version_and_configuration(
    server: NatsServer, stream: JetStream
) -> None:
    config = settings(server.url, routes=[stream_route("IN", "out.{{wildcard(1)}}", filter="in.*", max_in_flight=2000)])
    config = config.with_changes(streams=[{"name": "OUT", "subjects": ["out.>"]}])
    async with watched(config):
        granted = (await stream.consumer_info("IN", "router"))["config"]["max_ack_pending"]
        assert await metadata_of(stream) == {
            ROUTE: "route",
            VERSION: package_version(),
            CONFIG: config.content_hash,
            SENDS: '[["", "out.{{wildcard(1)}}"]]',
            f"{MONITOR}enabled": "true",
            f"{MONITOR}outstanding-ack-critical": str(granted),
            f"{MONITOR}unprocessed-critical": "2000",
            f"{MONITOR}redelivery-critical": "2000",
        }
        found = (await stream.stream_info("OUT"))["config"]["metadata"]
        wanted = {VERSION: package_version(), CONFIG: config.content_hash, f"{MONITOR}enabled": "true"}
        assert {key: found[key] for key in found if not key.startswith("_nats.")} == wanted


@pytest.mark.parametrize("metadata", [{}, {VERSION: "0.0.1", CONFIG: "old", "team": "orders"}])
async def test_a_durable_of_another_version_is_used_and_stays_as_it_is(
    server: NatsServer, stream: JetStream, metadata: dict[str, str]
) -> None:
    await stream.create_stream("OUT", ["out.*"], metadata=metadata)
    created = await stream.create_consumer(
        "IN", "router", filter_subject="in.*", ack_wait=30 * 10**9, max_ack_pending=73_728, metadata=metadata
    )
    config = settings(server.url, routes=[stream_route("IN", "out.{{wildcard(1)}}", filter="in.*")])
    config = config.with_changes(streams=[{"name": "OUT", "subjects": ["out.*"]}])
    async with watched(config) as watch:
        await stream.publish("in.1")
        await eventually(lambda: watch.router.routes[0].settled["routed"] == 1)
        await until_settled(watch.router)
        for code in ("ROUTE_CONSUMER_DIFFERS", "NATS_STREAM_DIFFERS", "NATS_SUBSCRIBE_ERROR"):
            assert watch.of(code) == []
    info = await stream.consumer_info("IN", "router")
    assert (info["created"], info["config"]) == (created["created"], created["config"])
    assert await metadata_of(stream) == metadata


async def test_of_two_versions_that_create_a_durable_at_once_the_second_changes_nothing(
    server: NatsServer, stream: JetStream
) -> None:
    async with link_to(server) as link:
        older = replace(SPEC, metadata=lambda: {VERSION: "1.0"})
        newer = replace(SPEC, ack_wait=10.0, metadata=lambda: {VERSION: "2.0"})
        first = await _create(link.api, older, resumes=False)
        second = await _create(link.api, newer, resumes=False)
        assert (second.created, second.config) == (first.created, first.config)
        assert (await metadata_of(stream))[VERSION] == "1.0"


@needs_server(2, 12, lacks="Nats-Required-Api-Level")
async def test_a_server_that_would_drop_a_field_refuses_it(
    server: NatsServer, stream: JetStream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(api, "LEVELS", {"allow_batched": 1000, "priority_groups": 1000})
    async with link_to(server) as link:
        wanted = StreamConfig("BATCHED", ("batched",), allow_batched=True)
        with pytest.raises(SourceError, match="too old for allow_batched of stream 'BATCHED'") as caught:
            await link.ensure_stream(wanted)
        assert caught.value.reason == reasons.SERVER_TOO_OLD
        assert await link.stream_state("BATCHED") is None
        with pytest.raises(SourceError, match="too old for priority_groups of the durable 'router'") as caught:
            await _create(link.api, replace(SPEC, standby=True), resumes=False)
        assert caught.value.reason == reasons.SERVER_TOO_OLD
        await link.ensure_stream(replace(wanted, allow_batched=False))


async def test_a_client_names_router_connection_and_process(server: NatsServer, stream: JetStream) -> None:
    async with watched(settings(server.url)) as watch:
        connections = (await server.monitor("/connz"))["connections"]
        (name,) = (one["name"] for one in connections if one.get("name", "").startswith(watch.router.name))
        router, connection, process = name.rsplit(" ", 2)
        assert (router, connection) == (watch.router.name, "main")
        host, _, pid = process.rpartition(":")
        assert host
        assert pid.isdigit()
