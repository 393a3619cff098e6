"""The page about sources: a copy changes between a server's sources and a route, and each message is stored once."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from router_trio import Router, Settings
from tests.docs.pages import DOCS, page
from tests.support.command import over_its_links
from tests.support.eventually import eventually
from tests.support.raw_jetstream import JetStream, JetStreamError
from tests.support.raw_nats import connect
from tests.support.server_version import needs_server
from tests.support.servers import NatsServer
from tests.support.watch import until_stored

BLOCKS = page(DOCS / "how-to" / "sources.md").blocks
FORMER, LATER = (json.loads(one.text)["sources"][0] for one in BLOCKS if one.language == "json")
(ROUTE,) = (one.text for one in BLOCKS if one.language == "toml")
(HEADER,) = (one.text.strip() for one in BLOCKS if one.language == "text")


class Copy:
    """A stream `ORDERS`, its copy `COPY`, and the number of orders so far."""

    def __init__(self, folder: Path, server: NatsServer, streams: JetStream) -> None:
        self.folder = folder
        self.server = server
        self.streams = streams
        self.orders = 0

    async def write(self, count: int) -> None:
        for _ in range(count):
            self.orders += 1
            await self.streams.publish(f"orders.{self.orders}", b"%d" % self.orders)

    async def copied(self) -> list[int]:
        """Wait until the last order is copied, and return all copies."""
        copies = list[int]()

        async def has_last() -> bool:
            copies[:] = [int(one.payload) for one in await self.streams.stream_messages("COPY")]
            return copies[-1:] == [self.orders]

        await eventually(has_last, 20, lambda: copies)
        return copies

    async def source(self, *sources: dict[str, Any]) -> None:
        await self.streams.edit_stream("COPY", sources=list(sources))

    @asynccontextmanager
    async def route(self, deliver: int | str) -> AsyncIterator[None]:
        text, count = re.subn("deliver = 41201", f"deliver = {deliver}", ROUTE)
        assert count == 1
        text = text.replace("nats://127.0.0.1:4222", self.server.url) + '\n[telemetry]\nlisten = ""\n'
        (self.folder / "router.toml").write_text(text)
        async with Router(Settings.load(self.folder / "router.toml"), log=False).open():
            yield

    async def ack_floor(self) -> int:
        """Return the ack floor of the route, if it has nothing outstanding."""
        info = await self.streams.consumer_info("ORDERS", "router")
        assert info["num_ack_pending"] == 0
        return int(info["ack_floor"]["stream_seq"])

    async def audit(self) -> int:
        """Return the exit code of an audit."""
        return (await over_its_links("audit", "router.toml", "copy", cwd=self.folder)).returncode


@asynccontextmanager
async def copy(folder: Path, server: NatsServer, *sources: dict[str, Any]) -> AsyncIterator[Copy]:
    async with connect(server.url) as client:
        streams = JetStream(client)
        await streams.create_stream("ORDERS", ["orders.*"])
        await streams.create_stream("COPY", ["copy.>"], sources=list(sources))
        yield Copy(folder, server, streams)


async def from_sources(at: Copy) -> int:
    """Do the steps to a route, while orders are written, and return the sequence at which it starts."""
    await at.write(20)
    await at.copied()
    await at.source()
    await at.write(5)
    newest = (await at.streams.stream_messages("COPY"))[-1].header("Nats-Stream-Source")
    assert newest is not None
    words = newest.split(" ")
    # The header of the page is one that the server writes: name, filter and destination are equal.
    shown = HEADER.removeprefix("Nats-Stream-Source: ").split(" ")
    assert [shown[0], *shown[2:4]] == [words[0], *words[2:4]]
    return int(words[1]) + 1


async def test_a_copy_changes_from_sources_to_a_route_and_back(tmp_path: Path, server: NatsServer) -> None:
    async with copy(tmp_path, server, FORMER) as at:
        async with at.route(await from_sources(at)):
            await at.write(10)
            assert await at.copied() == [*range(1, 36)]
        assert await at.audit() == 0
        await at.write(5)
        await at.source(LATER | {"opt_start_seq": await at.ack_floor() + 1})
        await at.streams.delete_consumer("ORDERS", "router")
        await at.write(5)
        assert await at.copied() == [*range(1, 46)]


async def test_the_source_that_a_copy_has_had_repeats_what_the_route_has_copied(
    tmp_path: Path, server: NatsServer
) -> None:
    async with copy(tmp_path, server, FORMER) as at:
        async with at.route(await from_sources(at)):
            await at.copied()
        await at.source(FORMER | {"opt_start_seq": await at.ack_floor() + 1})
        await at.write(1)
        assert await at.copied() == [*range(1, 26), *range(21, 27)]


@pytest.mark.parametrize("source", [FORMER, LATER], ids=["one spelling", "the other"])
async def test_a_copy_without_sources_changes_from_a_route_to_sources(
    source: dict[str, Any], tmp_path: Path, server: NatsServer
) -> None:
    async with copy(tmp_path, server) as at:
        async with at.route('"all"'):
            await at.write(20)
            await at.copied()
        await at.write(5)
        await at.source(source | {"opt_start_seq": await at.ack_floor() + 1})
        await at.write(5)
        assert await at.copied() == [*range(1, 31)]


@needs_server(2, 12, lacks="promotion of mirrors")
async def test_a_copy_changes_from_a_mirror_to_a_route(tmp_path: Path, server: NatsServer) -> None:
    async with copy(tmp_path, server) as at:
        await at.streams.delete_stream("COPY")
        await at.streams.create_stream("COPY", [], mirror={"name": "ORDERS"})
        await at.write(20)
        await until_stored(at.streams, "COPY", 20, 10)
        config = (await at.streams.stream_info("COPY"))["config"]
        del config["mirror"]
        await at.streams.api("STREAM.UPDATE.COPY", config | {"subjects": ["copy.>"]})
        await at.write(5)
        last = (await at.streams.stream_info("COPY"))["state"]["last_seq"]
        async with at.route(last + 1):
            await at.write(5)
            assert await at.copied() == [*range(1, 31)]
        with pytest.raises(JetStreamError, match="mirror"):
            await at.streams.edit_stream("COPY", mirror={"name": "ORDERS"}, subjects=[])
