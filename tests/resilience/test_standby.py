"""Two processes with one standby route on a real server: one routes, the other takes over, and order is kept."""

from __future__ import annotations

import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import trio

from tests.support.command import RunningCommand, running
from tests.support.eventually import eventually
from tests.support.raw_jetstream import JetStream
from tests.support.raw_nats import RawClient, connect
from tests.support.server_version import needs_server
from tests.support.servers import NatsServer, nats_server

# Processes are suspended and killed while a server counts seconds: on a busy machine a lead may be lost by chance.
pytestmark = [needs_server(2, 11, lacks="pinned consumers"), pytest.mark.nightly]

CONFIG = """
[telemetry]
listen = ""
[connections.main]
servers = ["{url}"]
[[routes]]
name = "copies"
handler = "slow:work"
[routes.from]
stream = "IN"
durable = "router"
filter = "in.*"
standby = true
max_in_flight = 100
[[routes.to]]
subject = "out.{{{{wildcard(1)}}}}"
jetstream = true
"""
HANDLER = """
import trio
async def work(message):
    await trio.sleep(0.001)
    return message
"""
SUBJECTS = 20
TAKEOVER_WITHIN = 15.0
"""Seconds: the lead ends five after the last sign of life; the rest is for a loaded machine."""


@dataclass
class Place:
    server: NatsServer
    client: RawClient
    folder: Path
    published: int = 0
    stop: trio.Event = field(default_factory=trio.Event)

    @property
    def streams(self) -> JetStream:
        return JetStream(self.client)

    async def publish_on(self) -> None:
        """Publish consecutive numbers on each subject, until the event is set."""
        while not self.stop.is_set():
            first = self.published
            batch = [(f"in.{number % SUBJECTS}", b"%d" % number, None) for number in range(first, first + SUBJECTS)]
            await self.streams.publish_many(batch)
            self.published += SUBJECTS
            await trio.sleep(0.05)

    async def stored(self) -> int:
        return int((await self.streams.stream_info("OUT"))["state"]["messages"])

    async def more_than(self, count: int, within: float = 30.0) -> None:
        async def more() -> bool:
            return await self.stored() > count

        await eventually(more, within)

    @asynccontextmanager
    async def router(self) -> AsyncIterator[RunningCommand]:
        async with running("run", "router.toml", cwd=self.folder) as command:
            await command.has_logged("ROUTE_STANDBY")
            yield command

    async def all_there_in_order(self) -> None:
        await self.more_than(self.published - 1, 60)
        messages = await self.streams.stream_messages("OUT")
        numbers = [int(message.payload) for message in messages]
        assert sorted(numbers) == list(range(self.published)), "each once"
        for subject in range(SUBJECTS):
            mine = [number for number in numbers if number % SUBJECTS == subject]
            assert mine == sorted(mine), f"the order of in.{subject}"


@asynccontextmanager
async def place(tmp_path: Path) -> AsyncIterator[Place]:
    async with nats_server(tmp_path) as server, connect(server.url) as client:
        (tmp_path / "router.toml").write_text(CONFIG.format(url=server.url))
        (tmp_path / "slow.py").write_text(HANDLER)
        one = Place(server, client, tmp_path)
        await one.streams.create_stream("IN", ["in.*"])
        await one.streams.create_stream("OUT", ["out.*"])
        yield one


async def the_active_one(*routers: RunningCommand) -> RunningCommand:
    await eventually(lambda: any(one.logged("ROUTE_READY") for one in routers), 20)
    (active,) = [one for one in routers if one.logged("ROUTE_READY")]
    return active


async def test_the_other_process_takes_over_when_the_active_one_is_killed(tmp_path: Path) -> None:
    async with place(tmp_path) as p, p.router() as first, p.router() as second, trio.open_nursery() as nursery:
        nursery.start_soon(p.publish_on)
        active = await the_active_one(first, second)
        other = second if active is first else first
        await p.more_than(300)
        assert not other.logged("ROUTE_READY")
        active.send(signal.SIGKILL)
        began = trio.current_time()
        await active.ended()
        await other.has_logged("ROUTE_READY")
        await p.more_than(await p.stored())
        took = trio.current_time() - began
        print(f"takeover after {took:.2f} s")
        assert took < TAKEOVER_WITHIN
        await trio.sleep(1.0)
        p.stop.set()
        await p.all_there_in_order()
        other.send(signal.SIGTERM)
        assert await other.ended() == 0


async def test_a_process_that_is_stopped_gives_up_the_lead_at_once(tmp_path: Path) -> None:
    async with place(tmp_path) as p, p.router() as first, p.router() as second, trio.open_nursery() as nursery:
        nursery.start_soon(p.publish_on)
        active = await the_active_one(first, second)
        other = second if active is first else first
        await p.more_than(200)
        active.send(signal.SIGTERM)
        assert await active.ended() == 0
        began = trio.current_time()
        await other.has_logged("ROUTE_READY")
        print(f"takeover {trio.current_time() - began:.2f} s after the end")
        await p.more_than(await p.stored())
        p.stop.set()
        await p.all_there_in_order()


async def test_a_process_that_was_suspended_notices_that_it_lost_the_lead(tmp_path: Path) -> None:
    async with place(tmp_path) as p, p.router() as first, p.router() as second, trio.open_nursery() as nursery:
        nursery.start_soon(p.publish_on)
        active = await the_active_one(first, second)
        other = second if active is first else first
        await p.more_than(200)
        active.send(signal.SIGSTOP)
        await other.has_logged("ROUTE_READY")
        await p.more_than(await p.stored() + 100)
        active.send(signal.SIGCONT)
        await eventually(lambda: len(active.logged("ROUTE_STANDBY")) == 2, 20)
        await p.more_than(await p.stored() + 100)
        p.stop.set()
        await p.all_there_in_order()
