"""The stream of a route with partitions is rolled back, or the copy that it reads: each message is routed once."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from router_trio import Settings
from tests.support.eventually import eventually
from tests.support.proxy import TcpProxy
from tests.support.raw_jetstream import JetStream
from tests.support.raw_nats import connect
from tests.support.server_version import needs_server
from tests.support.servers import NatsServer
from tests.support.settings import settings, stream_route
from tests.support.watch import Watch, watched

pytestmark = needs_server(2, 11, lacks="pinned consumers")

SOURCE, COPY, OUT = "IN", "IN-router", "OUT"


@dataclass
class Place:
    """A server whose streams are saved and rolled back, and a router that reaches it through a proxy."""

    server: NatsServer
    proxy: TcpProxy
    watch: Watch
    folder: Path
    settings: Settings
    published: list[str] = field(default_factory=list)
    """The bodies of all messages that IN has stored."""

    async def publish(self, bodies: Iterable[str]) -> None:
        new = [*bodies]
        self.published += new
        async with connect(self.server.url) as client:
            await JetStream(client).publish_many([(f"in.{n % 7}", one.encode(), None) for n, one in enumerate(new)])

    async def stored(self) -> Counter[str]:
        async with connect(self.server.url) as client:
            return Counter(one.payload.decode() for one in await JetStream(client).stream_messages(OUT))

    async def until_all_stored(self, within: float = 30.0) -> None:
        """Wait until OUT has each message, and fail if it has one twice."""
        wanted = Counter(self.published)

        async def has_all() -> bool:
            return not wanted - await self.stored()

        await eventually(has_all, within)
        assert await self.stored() == wanted

    async def until_copied(self, count: int) -> None:
        async with connect(self.server.url) as client:

            async def has_all() -> bool:
                return bool((await JetStream(client).stream_info(COPY))["state"]["last_seq"] >= count)

            await eventually(has_all, 20)

    def _directory(self, stream: str) -> Path:
        return next(one for one in self.server.directory.rglob(stream) if one.parent.name == "streams")

    async def save(self, *streams: str) -> None:
        """Keep streams as they are now, for `roll_back`."""
        self.proxy.refuse()
        await self.server.terminate()
        for one in streams:
            shutil.copytree(self._directory(one), self.folder / one)
        await self.server.restart()
        self.proxy.accept()

    async def roll_back(self, *streams: str, then: Iterable[str] = ()) -> None:
        """Restore streams as they were, and publish before the router is back."""
        self.proxy.refuse()
        await self.server.terminate()
        for one in streams:
            directory = self._directory(one)
            shutil.rmtree(directory)
            shutil.copytree(self.folder / one, directory)
        await self.server.restart()
        await self.publish(then)
        self.proxy.accept()


@asynccontextmanager
async def place(server: NatsServer, proxy: TcpProxy, folder: Path, **source: Any) -> AsyncIterator[Place]:
    async with connect(server.url) as client:
        await JetStream(client).create_stream(SOURCE, ["in.*"])
        await JetStream(client).create_stream(OUT, ["out.*"])
    keys: dict[str, Any] = {"filter": "in.*", "partitions": 4, "partition_by": [1], "ack_wait": "3s"} | source
    config = settings(proxy.url, routes=[stream_route(SOURCE, "out.{{wildcard(1)}}", **keys)])
    async with watched(config) as watch:
        yield Place(server, proxy, watch, folder, config)


def bodies(name: str, count: int) -> list[str]:
    return [f"{name} {number}" for number in range(count)]


async def test_a_copy_that_is_filled_again_routes_nothing_twice(
    server: NatsServer, proxy: TcpProxy, tmp_path: Path
) -> None:
    async with place(server, proxy, tmp_path) as at:
        await at.publish(bodies("first", 200))
        await at.until_all_stored()
        await at.save(COPY)
        await at.publish(bodies("second", 200))
        await at.until_all_stored()
        await at.roll_back(COPY, then=bodies("third", 100))
        await at.until_copied(500)
        await at.until_all_stored()
        assert at.watch.router.routes[0].settled["routed"] > 600, "copies were routed again"


@pytest.mark.parametrize("streams", [(SOURCE,), (SOURCE, COPY)], ids=["the stream", "with its copy"])
@pytest.mark.parametrize("new", [0, 150, 200, 300])
async def test_a_stream_that_is_rolled_back_under_its_copy_routes_all_new_messages(
    server: NatsServer, proxy: TcpProxy, tmp_path: Path, streams: tuple[str, ...], new: int
) -> None:
    """Some of the new messages are there before the router is back, and some come later, or before it has looked."""
    async with place(server, proxy, tmp_path) as at:
        await at.publish(bodies("first", 201))
        await at.until_all_stored()
        await at.save(*streams)
        await at.publish(bodies("second", 199))
        await at.until_all_stored()
        await at.roll_back(*streams, then=bodies("third", new))
        await at.publish(bodies("fourth", 150))
        await at.until_all_stored()
        assert at.watch.count("STREAM_WENT_BACK") >= 1


async def test_equal_messages_are_routed_as_often_as_a_rolled_back_stream_has_stored_them(
    server: NatsServer, proxy: TcpProxy, tmp_path: Path
) -> None:
    async with place(server, proxy, tmp_path) as at:
        await at.publish(["same"] * 210)
        await at.until_all_stored()
        await at.save(SOURCE)
        await at.publish(["same"] * 70)
        await at.until_all_stored()
        await at.roll_back(SOURCE)
        await at.watch.until("STREAM_WENT_BACK")
        await at.publish(["same"] * 140)
        await at.until_all_stored()


async def test_a_process_that_starts_after_the_rollback_notices_it(
    server: NatsServer, proxy: TcpProxy, tmp_path: Path
) -> None:
    route = stream_route(SOURCE, "out.{{wildcard(1)}}", filter="in.*", partitions=4, partition_by=[1])
    async with place(server, proxy, tmp_path) as at:
        await at.publish(bodies("first", 201))
        await at.until_all_stored()
        await at.save(SOURCE)
        await at.publish(bodies("second", 199))
        await at.until_all_stored()
    await at.roll_back(SOURCE, then=bodies("third", 150))
    async with watched(settings(proxy.url, routes=[route])) as at.watch:
        await at.watch.until("STREAM_WENT_BACK")
        await at.publish(bodies("fourth", 150))
        await at.until_all_stored()


async def test_several_processes_have_a_rolled_back_stream_copied_once(
    server: NatsServer, proxy: TcpProxy, tmp_path: Path
) -> None:
    async with (
        place(server, proxy, tmp_path) as at,
        watched(at.settings, alone=False),
        watched(at.settings, alone=False),
    ):
        await at.publish(bodies("first", 201))
        await at.until_all_stored()
        await at.save(SOURCE)
        await at.publish(bodies("second", 199))
        await at.until_all_stored()
        await at.roll_back(SOURCE, then=bodies("third", 300))
        await at.until_all_stored()
        async with connect(server.url) as client:
            copied = await JetStream(client).stream_messages(COPY)
        assert len(copied) <= 400 + 300 + 101, "some were copied more than twice"
