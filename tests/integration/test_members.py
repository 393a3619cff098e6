"""The bucket of members on real servers: of other domains and accounts, of a cluster, and one that can't be used."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

from router_trio.errors import SourceError
from router_trio.link import Announced, Group, Link, PartitionedSpec
from router_trio.nats.jetstream.members import EXPIRES_WITHIN, STREAM, bucket_config
from router_trio.nats.link import Dialer
from router_trio.protocol.permissions import MEMBERS
from router_trio.settings import ConnectionSettings
from router_trio.subjects.partitions import Partitioning
from tests.integration.test_domains import ACCOUNTS, hub_and_leaf
from tests.support.raw_jetstream import JetStream
from tests.support.raw_nats import connect
from tests.support.recorder import INBOX, Recorder
from tests.support.server_version import needs_server
from tests.support.servers import cluster, nats_server

pytestmark = needs_server(2, 11, lacks="messages with a time to live")

A = "a" * 16
GROUP = Group("ORDERS", "router", A)
EU = Announced("eu", "host-1", (3, 11))
WANTED = PartitionedSpec("ORDERS", "ORDERS-router", Partitioning(4, (1,), ("orders.*.*",)))

OF_BUCKET = """
      { service: "$KV.router-trio-members.>" }
"""
FROM_BUCKET = """
      {
        service: { account: OWNER, subject: "$KV.router-trio-members.>" }
        to: "JS.OWNER.API.$KV.router-trio-members.>"
      }
"""


@asynccontextmanager
async def opened(url: str, **keys: Any) -> AsyncIterator[Link]:
    async with Dialer(ConnectionSettings(servers=[url], **keys), "main")(url, INBOX, Recorder()) as link:
        yield link


async def share(link: Link, group: Group = GROUP) -> None:
    """Announce a member, look, move a partition, and leave."""
    members = await link.members(group)
    await members.announce(EU)
    assert (await members.seen()).ids == {A}
    assert await members.announcements() == {A: EU}
    await members.move({1: A})
    assert (await members.seen()).moved == {1: A}
    await members.move({})
    await members.withdraw()
    assert (await members.seen()).ids == frozenset()


async def test_members_of_another_domain_are_there(tmp_path: Path) -> None:
    async with hub_and_leaf(tmp_path) as (hub, leaf), connect(hub) as there, connect(leaf) as here:
        streams = JetStream(there)
        await streams.create_stream("ORDERS", ["orders.>"])
        async with opened(leaf, domain="hub") as link:
            await share(link)
            assert (await link.ensure_partitioned(WANTED)).created
        assert (await streams.stream_info(STREAM))["config"]["allow_msg_ttl"]
        assert (await streams.stream_info("ORDERS-router"))["config"]["sources"][0]["name"] == "ORDERS"
        assert (await JetStream(here).api("STREAM.NAMES"))["streams"] is None


async def test_members_of_another_account_need_an_import_of_their_keys(tmp_path: Path) -> None:
    exported = ACCOUNTS.replace('{ service: "sink.*" }', f'{{ service: "sink.*" }}{OF_BUCKET}')
    imported = exported.replace('{ service: { account: OWNER, subject: "sink.*" } }', FROM_BUCKET)
    guest = {"user": "guest", "password": "guest", "api_prefix": "JS.OWNER.API"}
    async with nats_server(tmp_path, config=imported) as server, opened(server.url, **guest) as link:
        await share(link)
    async with nats_server(tmp_path, config=ACCOUNTS) as server, opened(server.url, **guest) as link:
        members = await link.members(GROUP)
        with pytest.raises(SourceError, match=r"import \$KV\.router-trio-members\.> from its account") as caught:
            await members.announce(EU)
        assert caught.value.reason == "timeout"


async def test_the_bucket_is_on_as_many_servers_as_the_stream(tmp_path: Path) -> None:
    async with cluster(tmp_path) as group, opened(group.urls[0]) as link:
        await share(link, Group("ORDERS", "router", A, replicas=3, storage="memory"))
        async with connect(group.urls[1]) as client:
            config = (await JetStream(client).stream_info(STREAM))["config"]
        assert (config["num_replicas"], config["storage"]) == (3, "memory")


async def test_an_announcement_that_the_server_keeps_too_long_does_not_count_and_is_removed(tmp_path: Path) -> None:
    async with nats_server(tmp_path) as server, connect(server.url) as client, opened(server.url) as link:
        members, streams, key = await link.members(GROUP), JetStream(client), f"$KV.{MEMBERS}.ORDERS.router."
        await members.move({1: A})
        await streams.publish(key + "b" * 16, b"{}")  # without a time to live
        began = trio.current_time()
        while (await members.seen()).ids != {A}:
            await members.announce(EU, 1.0)
            assert trio.current_time() < began + 1.0 + EXPIRES_WITHIN + 1.0
            await trio.sleep(0.2)
        assert trio.current_time() >= began + 1.0 + EXPIRES_WITHIN
        found = await streams.api(f"STREAM.INFO.{STREAM}", {"subjects_filter": ">"})
        assert found["state"]["subjects"].keys() == {f"{key}moved", key + A}
        assert (await members.seen()).moved == {1: A}


async def test_a_bucket_whose_keys_do_not_expire_is_refused_with_the_command_that_mends_it(tmp_path: Path) -> None:
    async with nats_server(tmp_path) as server, connect(server.url) as client, opened(server.url) as link:
        streams = JetStream(client)
        await streams.api(f"STREAM.CREATE.{STREAM}", bucket_config(1, "memory") | {"allow_msg_ttl": False})
        with pytest.raises(SourceError, match=f"nats stream edit {STREAM} --allow-msg-ttl") as caught:
            await link.members(GROUP)
        assert caught.value.reason == "bucket_mismatch"
        await streams.edit_stream(STREAM, allow_msg_ttl=True)
        await share(link)


async def test_a_bucket_that_the_server_can_not_create_is_refused(tmp_path: Path) -> None:
    async with nats_server(tmp_path) as server, opened(server.url) as link:
        with pytest.raises(SourceError, match=r"refused to create the bucket 'router-trio-members'") as caught:
            await link.members(Group("ORDERS", "router", A, replicas=3))
        assert caught.value.reason == "stream_refused"


async def test_without_jetstream_members_can_not_be_had(tmp_path: Path) -> None:
    async with nats_server(tmp_path, jetstream=False) as server, opened(server.url) as link:
        for ask in (link.members(GROUP), link.ensure_partitioned(WANTED)):
            with pytest.raises(SourceError, match="JetStream is not enabled"):
                await ask
