"""Processes of `router-trio run` share the partitions of a route on a real server: hand-overs, order, counts."""

from __future__ import annotations

import signal
from collections import Counter, defaultdict
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import trio

from tests.support.command import RunningCommand, over_its_links, running
from tests.support.eventually import eventually
from tests.support.raw_jetstream import JetStream
from tests.support.raw_nats import RawClient, connect
from tests.support.server_version import needs_server
from tests.support.servers import NatsServer

KEYS = 50
PARTITIONS = 16

CONFIG = """
[router]
shutdown_timeout = "5s"
[telemetry]
listen = ""
[connections.main]
servers = ["{url}"]
[[routes]]
name = "orders"
handler = "slow:handle"
concurrency = 16
[routes.from]
stream = "ORDERS"
durable = "router"
filter = "orders.*.*"
partitions = 16
partition_by = [1]
[[routes.to]]
subject = "out.{{{{wildcard(1)}}}}.{{{{wildcard(2)}}}}"
jetstream = true
"""

HANDLER = """
import trio

async def handle(message):
    await trio.sleep(0.005)
    return message
"""

pytestmark = needs_server(2, 11, lacks="pinned consumers")


@dataclass
class Flow:
    """Messages that are published all the time, numbered, each of the next key."""

    client: RawClient
    published: int = 0
    stopped: bool = False
    ended: trio.Event = field(default_factory=trio.Event)

    async def run(self, every: float = 0.01, each: int = 4) -> None:
        """Publish until `stopped`."""
        js = JetStream(self.client)
        while not self.stopped:
            first = self.published
            await js.publish_many([(f"orders.{n % KEYS}.{n % 3}", b"%d" % n, None) for n in range(first, first + each)])
            self.published += each
            await trio.sleep(every)
        self.ended.set()

    async def stop(self) -> None:
        """Publish no more; return when all that is published is in the stream."""
        self.stopped = True
        await self.ended.wait()

    async def stored(self, within: float) -> float:
        """Wait until the destination has all that is published by now. Return the seconds that it took."""
        js, began = JetStream(self.client), trio.current_time()
        expected = Counter(str(number % KEYS) for number in range(self.published))

        async def has_all() -> bool:
            state = (await js.api("STREAM.INFO.OUT", {"subjects_filter": "out.>"}))["state"]
            found: Counter[str] = Counter()
            for subject, count in (state.get("subjects") or {}).items():
                found[subject.split(".")[1]] += count
            return all(found[key] >= count for key, count in expected.items())

        await eventually(has_all, within)
        return trio.current_time() - began

    async def assert_all_stored_once_in_order(self) -> None:
        """Check the destination: each message once, and those of each key in order."""
        found: dict[str, list[int]] = defaultdict(list)
        for message in await JetStream(self.client).stream_messages("OUT"):
            found[message.subject.split(".")[1]].append(int(message.payload))
        for key, numbers in found.items():
            assert numbers == list(range(int(key), self.published, KEYS)), key


@asynccontextmanager
async def group(nats: NatsServer, tmp_path: Path, count: int) -> AsyncIterator[tuple[Flow, list[RunningCommand]]]:
    """Run that many processes, which have shared the partitions, while messages are published."""
    config = tmp_path / "router.toml"
    config.write_text(CONFIG.format(url=nats.url))
    (tmp_path / "slow.py").write_text(HANDLER)
    async with connect(nats.url) as client, AsyncExitStack() as stack:
        js = JetStream(client)
        await js.create_stream("ORDERS", ["orders.>"])
        await js.create_stream("OUT", ["out.>"])
        processes = [await stack.enter_async_context(running("run", config, cwd=tmp_path)) for _ in range(count)]
        for process in processes:
            await process.has_logged("ROUTE_MEMBERS_CHANGED", count=count)
        flow = Flow(client)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(flow.run)
            await trio.sleep(1.0)
            await flow.stored(10)
            yield flow, processes
            nursery.cancel_scope.cancel()


async def test_two_processes_share_and_the_one_that_is_stopped_is_followed_at_once(
    server: NatsServer, tmp_path: Path
) -> None:
    async with group(server, tmp_path, 2) as (flow, (first, second)):
        taken = [{line["partition"] for line in one.logged("ROUTE_PARTITION_TAKEN")} for one in (first, second)]
        assert taken[0] | taken[1] == set(range(PARTITIONS))
        first.send(signal.SIGTERM)
        await trio.sleep(0.2)
        assert await flow.stored(4) < 4
        assert await first.ended() == 0
        given_up = {line["partition"] for line in first.logged("ROUTE_PARTITION_GIVEN_UP")}
        assert len(given_up) == PARTITIONS // 2
        await flow.stop()
        await flow.stored(5)
        await flow.assert_all_stored_once_in_order()


async def test_a_killed_process_is_followed_within_ten_seconds(server: NatsServer, tmp_path: Path) -> None:
    async with group(server, tmp_path, 2) as (flow, (first, _)):
        first.send(signal.SIGKILL)
        await trio.sleep(0.2)
        assert await flow.stored(10) < 10
        await flow.stop()
        await flow.stored(5)
        await flow.assert_all_stored_once_in_order()


async def test_a_suspended_process_is_followed_and_wakes_without_a_second_copy(
    server: NatsServer, tmp_path: Path
) -> None:
    async with group(server, tmp_path, 2) as (flow, (first, second)):
        first.send(signal.SIGSTOP)
        await trio.sleep(0.2)
        assert await flow.stored(10) < 10
        first.send(signal.SIGCONT)
        await eventually(lambda: len(second.logged("ROUTE_MEMBERS_CHANGED")) >= 3)
        await trio.sleep(3.0)
        await flow.stop()
        await flow.stored(5)
        await flow.assert_all_stored_once_in_order()


async def test_a_process_that_joins_takes_its_share_within_five_seconds(server: NatsServer, tmp_path: Path) -> None:
    async with (
        group(server, tmp_path, 1) as (flow, _),
        running("run", tmp_path / "router.toml", cwd=tmp_path) as joins,
    ):
        await joins.has_logged("ROUTER_STARTED")
        began = trio.current_time()
        await eventually(lambda: len(joins.logged("ROUTE_PARTITION_TAKEN")) == PARTITIONS // 2, 5)
        assert trio.current_time() - began < 5
        await flow.stop()
        await flow.stored(5)
        await flow.assert_all_stored_once_in_order()


@pytest.mark.nightly
async def test_the_number_of_partitions_is_changed_under_processes_without_a_loss_or_a_repeat(
    server: NatsServer, tmp_path: Path
) -> None:
    async with group(server, tmp_path, 2) as (flow, processes):
        config = tmp_path / "router.toml"
        config.write_text(config.read_text().replace("partitions = 16", "partitions = 6"))
        # A process that starts too early waits.
        async with running("run", config, cwd=tmp_path) as early:
            await early.has_logged("NATS_SUBSCRIBE_ERROR", reason="partitions_differ")
            done = await over_its_links("partitions", "router.toml", "orders", "--change", "--apply", cwd=tmp_path)
            assert (done.returncode, done.stderr) == (0, "")
            assert done.stdout.splitlines()[-1] == "done: 6 partitions of orders.*.*, by wildcard 1"
            await eventually(lambda: len(early.logged("ROUTE_PARTITION_TAKEN")) == 6, 15)
            for process in processes:
                await process.has_logged("NATS_SUBSCRIBE_ERROR", reason="partitions_differ")
            await flow.stop()
            await flow.stored(10)
            await flow.assert_all_stored_once_in_order()
