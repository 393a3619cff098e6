"""`audit` where messages were really lost, and while thousands of messages a second are routed."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

from router_trio import Router, Settings
from router_trio.audit.audit import EVERYTHING, Audit, Range, connections_of
from router_trio.audit.repair import repaired
from router_trio.audit.report import Report
from router_trio.nats.command_link import CommandLink, open_links
from router_trio.nats.jetstream.api import StoredMessage
from router_trio.nats.range_reader import StreamRange
from router_trio.nats.stored import StoredMessages
from tests.support.eventually import eventually
from tests.support.raw_jetstream import JetStream, JetStreamError
from tests.support.raw_nats import RawNatsError, connect
from tests.support.servers import Cluster, NatsServer, cluster, nats_server

EARLIER, LATER = 300, 200
"""Messages that are copied before the stores are saved, and after."""

RECENT = 1000
"""Messages that are audited while others are routed."""

WINDOW = 100_000_000
"""The duplicate window of the sink, in nanoseconds."""

CONFIGURATION = """
[telemetry]
listen = ""
[connections.main]
servers = ["{source}"]
connect_timeout = "30s"
[connections.there]
servers = {sink}
connect_timeout = "30s"
[[routes]]
name = "copy"
from = {{ connection = "main", stream = "SOURCE", durable = "router", filter = "source.*" }}
to = [ {{ connection = "there", subject = "sink.{{{{wildcard(1)}}}}" }} ]
"""


def configure(folder: Path, source: str, sink: list[str]) -> Settings:
    path = folder / "router.toml"
    path.write_text(CONFIGURATION.format(source=source, sink=json.dumps(sink)))
    return Settings.load(path)


async def fill(url: str, numbers: range) -> None:
    async with connect(url) as client:
        await JetStream(client).publish_many([(f"source.{n % 9}", b'{"n": %d}' % n, None) for n in numbers])


async def route_all(settings: Settings, source: str) -> None:
    """Run the router until everything in the source is acked."""

    async def done() -> bool:
        async with connect(source) as client:
            try:
                info = await JetStream(client).consumer_info("SOURCE", "router")
            except JetStreamError:
                return False
        return bool(info["num_pending"] == 0 == info["num_ack_pending"])

    async with Router(settings, log=False).open():
        await eventually(done, 60)


@asynccontextmanager
async def links_of(settings: Settings) -> AsyncIterator[dict[str, CommandLink]]:
    async with open_links(settings, "audit", connections_of(settings.routes[0])) as links:
        yield links


async def audited(settings: Settings, wanted: Range = EVERYTHING) -> Report:
    async with links_of(settings) as links:
        return await Audit(settings, settings.routes[0], links).run(wanted)


async def restart_all(group: Cluster) -> None:
    async with trio.open_nursery() as nursery:
        for server in group.servers:
            nursery.start_soon(server.restart)
    await group.ready()


def stores(group: Cluster) -> list[Path]:
    return [server.directory / "store" for server in group.servers[:2]]


async def last_of(server: NatsServer) -> int:
    """Return the last sequence of the sink, once its leader answers."""

    async def led() -> bool:
        try:
            async with connect(server.url) as client:
                return bool(await JetStream(client).stream_info("SINK"))
        except (JetStreamError, RawNatsError, OSError, trio.TooSlowError):
            return False

    await eventually(led, 60)
    async with connect(server.url) as client:
        state = (await JetStream(client).stream_info("SINK"))["state"]
    return int(state["last_seq"])


@pytest.mark.timeout(400)
async def test_the_tail_that_a_restored_majority_has_lost_is_found_and_repaired(tmp_path: Path) -> None:
    async with nats_server(tmp_path, name="source") as source, cluster(tmp_path) as group:
        settings = configure(tmp_path, source.url, group.urls)
        async with connect(source.url) as client:
            await JetStream(client).create_stream("SOURCE", ["source.*"])
        async with connect(group.urls[0]) as client:
            await JetStream(client).create_stream("SINK", ["sink.*"], num_replicas=3, duplicate_window=WINDOW)
        await fill(source.url, range(EARLIER))
        await route_all(settings, source.url)
        for server in group.servers:
            await server.kill()
        for store in stores(group):
            shutil.copytree(store, store.with_name("saved"))
        await restart_all(group)
        await last_of(group.servers[0])

        await fill(source.url, range(EARLIER, EARLIER + LATER))
        await route_all(settings, source.url)
        # An audit here would create consumers, which the saved stores don't know: then the third server would also be
        # ahead of the other two in the metadata of the cluster.
        assert await last_of(group.servers[0]) == EARLIER + LATER

        for server in group.servers:
            await server.kill()
        for store in stores(group):
            shutil.rmtree(store)
            shutil.copytree(store.with_name("saved"), store)
        # The two are a majority, so that the third one has to follow them.
        async with trio.open_nursery() as nursery:
            for server in group.servers[:2]:
                nursery.start_soon(server.restart)
        assert await last_of(group.servers[0]) == EARLIER
        await group.servers[2].restart()
        await group.ready()
        await last_of(group.servers[0])

        report = await audited(settings)
        lost = list(range(EARLIER + 1, EARLIER + LATER + 1))
        assert [(one.sequence, one.stored_class) for one in report.findings] == [(one, "missing") for one in lost]
        assert report.counts["there"] == EARLIER
        async with links_of(settings) as links:
            report, repair = await repaired(settings, settings.routes[0], links, EVERYTHING)
        assert (repair.stored, repair.refused, repair.duplicates) == (LATER, 0, 0)
        assert report.clean
        assert (await audited(settings)).counts["there"] == EARLIER + LATER


async def test_streams_are_read_on_the_servers_that_lead_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    servers, create = list[str](), StoredMessages.create_reader
    requested, request = list[int](), StoredMessages.batches

    async def created(self: StoredMessages, *given: Any, **more: Any) -> str:
        servers.append(await create(self, *given, **more))
        return servers[-1]

    def batches(self: StoredMessages, first: int, *given: Any) -> AsyncGenerator[Sequence[StoredMessage], None]:
        requested.append(first)
        return request(self, first, *given)

    monkeypatch.setattr(StoredMessages, "create_reader", created)
    monkeypatch.setattr(StoredMessages, "batches", batches)
    async with cluster(tmp_path) as group, connect(group.urls[0]) as client:
        await JetStream(client).create_stream("SOURCE", ["source.*"], num_replicas=3)
        await JetStream(client).publish_many([("source.1", b"", None)] * 100)
        async with links_of(configure(tmp_path, group.urls[0], group.urls)) as links:
            info = await links["main"].stored("SOURCE").info()
            while len(set(servers)) < 2:  # the servers place consumers at random
                reading = links["main"].read(info, StreamRange(1, 100, ["source.*"], "test", most=10))
                assert [one.sequence async for batch in reading for one in batch] == [*range(1, 101)]
                assert servers[-1] == info.group.leader
    assert {*requested} == {101}, "all was read by consumers"


async def test_nothing_is_accused_while_thousands_of_messages_a_second_are_routed(
    tmp_path: Path, server: NatsServer
) -> None:
    audits, per_second = int(os.environ.get("AUDITS", "3")), int(os.environ.get("MESSAGES_PER_SECOND", "3000"))
    settings = configure(tmp_path, server.url, [server.url])
    async with connect(server.url) as client:
        for name in ("SOURCE", "SINK"):
            await JetStream(client).create_stream(name, [f"{name.lower()}.*"])
        published = 0

        async def publish() -> None:
            nonlocal published
            async with connect(server.url) as client:
                while True:
                    batch = range(published, published + per_second // 50)
                    await JetStream(client).publish_many([(f"source.{n % 9}", b'{"n": %d}' % n, None) for n in batch])
                    published = batch.stop
                    await trio.sleep(0.02)

        async with Router(settings, log=False).open(), trio.open_nursery() as nursery:
            nursery.start_soon(publish)
            await trio.sleep(1)
            for _ in range(audits):
                report = await audited(settings, Range(first=max(1, published - RECENT)))
                print(f"\n{published:,} published, {report.messages:,} audited: {dict(+report.counts)}", end="")
                assert report.clean, report.findings[:3]
                assert report.counts["there"] + report.counts["pending"] == report.messages
            assert report.counts["there"]
            nursery.cancel_scope.cancel()
        for name in ("SOURCE", "SINK"):
            await JetStream(client).delete_stream(name)
