"""Routers that share the partitions of a replicated stream while leaders of the bucket, the copy or a durable go."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
import trio

from router_trio import Router
from router_trio.events import RoutePartitionGivenUp
from router_trio.nats.jetstream.members import STREAM
from tests.resilience.test_cluster import kill_leader, step_down
from tests.support.eventually import eventually
from tests.support.raw_jetstream import JetStream
from tests.support.raw_nats import connect
from tests.support.server_version import needs_server
from tests.support.servers import Cluster, cluster
from tests.support.settings import settings, stream_route
from tests.support.watch import Watch

pytestmark = [needs_server(2, 11, lacks="pinned consumers"), pytest.mark.nightly, pytest.mark.timeout(180)]

KEYS = 20
ROUTE = stream_route("SOURCE", "sink.{{wildcard(1)}}", filter="source.*", partitions=8, partition_by=[1], ack_wait=5.0)


@pytest.mark.parametrize("stream", [STREAM, "SOURCE-router", "SOURCE", "SINK"])
@pytest.mark.parametrize("depose", [step_down, kill_leader])
async def test_order_and_counts_hold_when_a_leader_goes(
    tmp_path: Path, stream: str, depose: Callable[[Cluster, str], Awaitable[float]]
) -> None:
    first, second = Watch(), Watch()
    async with cluster(tmp_path) as group:
        async with connect(group.urls[0]) as client:
            for name, taken in (("SOURCE", "source.*"), ("SINK", "sink.*")):
                await JetStream(client).create_stream(name, [taken], num_replicas=3)
        configured = settings(group.urls, routes=[ROUTE])
        async with (
            Router(configured, observers=[first], log=False).open() as one,
            Router(configured, observers=[second], log=False).open() as other,
            trio.open_nursery() as nursery,
        ):
            first.live, second.live = one, other

            def shared() -> bool:
                found = [live.routes[0].partitions for live in (one, other)]
                return all(each is not None and len(each.led) == 4 for each in found)

            await eventually(shared, 30)
            flow = Flow(group)
            nursery.start_soon(flow.publish)
            await eventually(lambda: one.routes[0].received > 100, 30)
            await depose(group, stream)
            await trio.sleep(10.0)
            flow.stopped = True
            await flow.over.wait()

            def all_routed() -> bool:
                return one.routes[0].settled["routed"] + other.routes[0].settled["routed"] >= flow.published

            await eventually(all_routed, 60, lambda: (flow.published, one.status()["routes"], other.status()["routes"]))
            # Members whose announcements could not be renewed meanwhile are not taken for gone.
            gave_up = [
                one for watch in (first, second) for one in watch.events if isinstance(one, RoutePartitionGivenUp)
            ]
            assert gave_up == []
            nursery.cancel_scope.cancel()
        survivor = next(server for server in group.servers if server.is_running)
        async with connect(survivor.url) as client:
            streams = JetStream(client)
            stored = await streams.stream_messages("SINK")
            assert (await streams.stream_info(STREAM))["config"]["num_replicas"] == 3
            assert (await streams.stream_info("SOURCE-router"))["config"]["num_replicas"] == 3
    routed: dict[str, list[int]] = defaultdict(list)
    for message in stored:
        routed[message.subject.split(".")[1]].append(int(message.payload))
    assert routed == flow.stored


class Flow:
    """Messages that are published until `stopped`, numbered, each of the next key, and again until it is stored."""

    def __init__(self, group: Cluster) -> None:
        self._group = group
        self.published = 0
        self.stopped = False
        self.over = trio.Event()
        self.stored: dict[str, list[int]] = defaultdict(list)

    async def publish(self) -> None:
        while not self.stopped:
            try:
                alive = next(server for server in self._group.servers if server.is_running)
                async with connect(alive.url) as client:
                    while not self.stopped:
                        number = self.published
                        key = str(number % KEYS)
                        answer = await JetStream(client).publish(
                            f"source.{key}", b"%d" % number, [("Nats-Msg-Id", f"{number}")], within=2.0
                        )
                        assert answer["stream"] == "SOURCE"
                        self.stored[key].append(number)
                        self.published += 1
                        await trio.sleep(0.002)
            except Exception:
                await trio.sleep(0.1)  # an election, or a server that has just died
        self.over.set()
