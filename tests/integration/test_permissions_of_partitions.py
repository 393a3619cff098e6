"""Routes with partitions, for users with exactly the permissions that `router-trio permissions` prints."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

from router_trio import Router, Settings
from router_trio.cli.permissions import lines
from router_trio.embedded import HOST, reserve_port
from router_trio.link import Group
from router_trio.nats.command_link import open_links
from router_trio.online.asking import ask
from router_trio.online.facts import Unknown
from tests.integration.readiness import refused
from tests.integration.test_domains import jetstream_of
from tests.integration.test_permissions_command import users
from tests.support.eventually import eventually
from tests.support.raw_jetstream import JetStream
from tests.support.raw_nats import connect
from tests.support.server_version import needs_server
from tests.support.servers import NatsServer, nats_server
from tests.support.settings import stream_route
from tests.support.watch import Watch, until_stored

pytestmark = needs_server(2, 11, lacks="pinned consumers")

ROUTE = stream_route("IN", "out.{{wildcard(1)}}", filter="in.*", ack_wait="2s", partitions=4, partition_by=[1])
OWN = {"name": "IN", "subjects": ["in.*"], "partitions": 4, "partition_by": [1]}
OUT = {"name": "OUT", "subjects": ["out.*"]}


def configured(url: str = "nats://127.0.0.1:4222", *streams: dict[str, Any], **connection: Any) -> Settings:
    quick = {"reconnect_delay": "50ms", "max_reconnect_delay": "300ms"}
    login = {"user": "router", "password": "router", "inbox_prefix": "_INBOX_router"}
    return Settings(
        router={"shutdown_timeout": "2s"},
        telemetry={"listen": ""},
        connections={"main": {"servers": [url], **quick, **login, **connection}},
        routes=[ROUTE],
        streams=[OUT, *streams],
    )


@asynccontextmanager
async def servers(
    tmp_path: Path, permissions: Sequence[str], domain: str | None
) -> AsyncIterator[tuple[NatsServer, str]]:
    """Yield the server of the router, and the URL of the one with the streams: its hub if there is a domain."""
    config = users(list(permissions))
    if domain is None:
        async with nats_server(tmp_path, config=config) as server:
            yield server, server.url
        return
    with reserve_port() as port:
        of_hub = f"leafnodes {{ listen: {HOST}:{port} }}\n" + jetstream_of(tmp_path, domain)
        of_leaf = f'leafnodes {{ remotes: [ {{ url: "nats://{HOST}:{port}" }} ] }}\n' + jetstream_of(tmp_path, "leaf")
        async with (
            nats_server(tmp_path, name="hub", jetstream=False, config=of_hub) as hub,
            nats_server(tmp_path, jetstream=False, config=of_leaf + config) as server,
        ):
            while not (await hub.monitor("/leafz"))["leafnodes"]:
                await trio.sleep(0.05)
            yield server, hub.url


@pytest.mark.parametrize(
    ("streams", "domain"),
    [
        pytest.param([], None, id="a copy"),
        pytest.param([OWN], None, id="a stream with partitions"),
        pytest.param([], "hub", id="a copy in another domain"),
    ],
)
async def test_with_the_printed_permissions_nothing_is_refused(
    streams: list[dict[str, Any]], domain: str | None, tmp_path: Path
) -> None:
    permissions = list(lines(configured("nats://h", *streams, domain=domain), "main", "server"))
    async with servers(tmp_path, permissions, domain) as (server, there):
        admin: dict[str, Any] = {"user": "admin", "password": "admin"}
        async with connect(there, **({} if domain else admin)) as client, connect(server.url, **admin) as sender:
            js = JetStream(client)
            if not streams:
                await js.create_stream("IN", ["in.*"])
            settings = configured(server.url, *streams, domain=domain)
            first, second = Watch(), Watch()
            async with Router(settings, observers=[first], log=False).open() as live:
                first.live = live
                await first.until("ROUTE_READY")
                async with Router(settings, observers=[second], log=False).open() as other:
                    second.live = other
                    await eventually(lambda: [taken(one) for one in (first, second)] == [2, 2], 15)
                    for number in range(40):
                        await sender.publish(f"in.{number}", b"%d" % number)
                    await until_stored(js, "OUT", 40)
                    async with open_links(settings, "test", ["main"]) as links:
                        partitions = other.routes[0].partitions
                        assert partitions is not None
                        members = await links["main"].link.members(Group("IN", "router", partitions.member))
                        await members.move({0: partitions.member, 1: partitions.member, 2: partitions.member})
                    await eventually(lambda: taken(second) == 3, 10)
                await eventually(lambda: taken(first) == 4, 10)
                for number in range(40, 60):
                    await sender.publish(f"in.{number}", b"%d" % number)
                await until_stored(js, "OUT", 60)
            assert refused(server, "router") == set()
            assert not [
                one for one in (*first.events, *second.events) if getattr(one, "reason", "") == "permission_denied"
            ]


@pytest.mark.parametrize("streams", [pytest.param([], id="a copy"), pytest.param([OWN], id="a stream with partitions")])
async def test_with_the_printed_permissions_every_stream_can_be_checked(
    streams: list[dict[str, Any]], tmp_path: Path
) -> None:
    permissions = list(lines(configured("nats://h", *streams), "main", "server"))
    async with servers(tmp_path, permissions, None) as (server, there):
        async with connect(there, user="admin", password="admin") as client:
            if not streams:
                await JetStream(client).create_stream("IN", ["in.*"])
        settings, watch = configured(server.url, *streams), Watch()
        async with open_links(settings, "check", ["main"]) as links:
            before = await ask(settings, links, {}, None)
            async with Router(settings, observers=[watch], log=False).open() as live:
                watch.live = live
                await watch.until("ROUTE_READY")
                after = await ask(settings, links, {}, None)
        for found in (before.server("main"), after.server("main")):
            asked = [*found.streams.items(), *found.consumers.items()]
            assert [name for name, one in asked if isinstance(one, Unknown)] == []
            assert ("IN-router" in found.streams) is not bool(streams)


def taken(watch: Watch) -> int:
    """Return the number of partitions that a router leads."""
    assert watch.live is not None
    partitions = watch.live.routes[0].partitions
    return 0 if partitions is None else len(partitions.led)
