"""Delays and scheduled retries in replicated streams, while leaders step down and a server is killed."""

from __future__ import annotations

import signal
from collections import Counter
from pathlib import Path
from random import Random

import pytest
import trio

from tests.resilience.chaos.load import TROUBLE
from tests.resilience.delays import Delayed, create_streams, write_configuration
from tests.resilience.test_cluster import step_down
from tests.support.command import running
from tests.support.eventually import eventually
from tests.support.raw_jetstream import JetStream
from tests.support.raw_nats import connect
from tests.support.server_version import needs_server
from tests.support.servers import Cluster, NatsServer, cluster

pytestmark = [pytest.mark.nightly, pytest.mark.timeout(900), needs_server(2, 12, lacks="message schedules")]

CHUNK = 100
AGAIN_AFTER = 0.1
ANSWERED_WITHIN = 2.0
STEP_DOWN_EVERY = 0.5
KILLED_FOR = 3.0
COUNTED_WITHIN = 120.0

LEADERS = (
    "STREAM.LEADER.STEPDOWN.IN",
    "STREAM.LEADER.STEPDOWN.OUT",
    "STREAM.LEADER.STEPDOWN.RETRY",
    "STREAM.LEADER.STEPDOWN.RETRIED",
    "CONSUMER.LEADER.STEPDOWN.IN.router",
    "CONSUMER.LEADER.STEPDOWN.IN.again",
    "CONSUMER.LEADER.STEPDOWN.RETRY.retry-again",
)
"""The requests that make leaders of both routes step down."""


class Trial:
    """A cluster with the load of `Delayed`, and its faults."""

    def __init__(self, group: Cluster, delayed: Delayed) -> None:
        self.group = group
        self.delayed = delayed
        self.stepped_down: Counter[str] = Counter()
        self._random = Random(11)

    def a_server(self) -> NatsServer:
        """Return any running server."""
        return self._random.choice([server for server in self.group.servers if server.is_running])

    async def publish(self, numbers: range) -> None:
        """Publish messages, each until it is stored."""
        for first in numbers[::CHUNK]:
            requests = self.delayed.requests(range(first, min(first + CHUNK, numbers.stop)))
            while True:
                try:
                    async with connect(self.a_server().url) as client:
                        with trio.fail_after(ANSWERED_WITHIN):
                            await JetStream(client).publish_many(requests)
                    break
                except TROUBLE:
                    await trio.sleep(AGAIN_AFTER)

    async def step_down(self) -> None:
        """Make one leader after the other step down, until cancelled."""
        while True:
            for request in LEADERS:
                try:
                    async with connect(self.a_server().url) as client:
                        await JetStream(client).api(request, within=ANSWERED_WITHIN)
                    self.stepped_down[request] += 1
                except TROUBLE:
                    pass  # it has no leader at the moment
                await trio.sleep(STEP_DOWN_EVERY)

    async def kill(self) -> None:
        """Kill the server that leads the stream of delayed copies, and restart it."""
        server = await self.group.stream_leader("OUT")
        await server.kill()
        await trio.sleep(KILLED_FOR)
        await server.restart()

    async def all_there(self) -> bool:
        """Return True if a running server says that everything was delivered."""
        try:
            async with connect(self.a_server().url) as client:
                return await self.delayed.all_there(JetStream(client))
        except TROUBLE:
            return False


async def test_delays_and_retries_survive_leaders_that_step_down_and_a_killed_server(tmp_path: Path) -> None:
    count, longest = 10_000, 20.0
    async with cluster(tmp_path) as group:
        trial = Trial(group, Delayed(longest=longest))
        write_configuration(tmp_path, group.urls)
        async with connect(group.urls[0]) as client:
            await create_streams(JetStream(client), replicas=3)
        async with running("run", "router.toml", cwd=tmp_path) as router:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(trial.step_down)
                await trial.publish(range(count // 2))
                nursery.start_soon(trial.kill)
                await trial.publish(range(count // 2, count))
                await trio.sleep(longest)
                nursery.cancel_scope.cancel()
            await eventually(trial.all_there, 60.0 + longest + count / 25)
            router.send(signal.SIGTERM)
            assert await router.ended() == 0
        assert not router.logged("ROUTE_SCHEDULE_LOST")
        await group.ready()
        async with connect(group.urls[0]) as client:
            figures = await trial.delayed.assert_delivered(JetStream(client))
    print(f"\n{sum(trial.stepped_down.values())} leaders stepped down: {dict(trial.stepped_down)}", *figures, sep="\n")
    assert set(trial.stepped_down) == set(LEADERS)


async def test_schedules_deleted_by_hand_are_reported_with_numbers(tmp_path: Path) -> None:
    count, deleted, purged = 20, 3, 2
    async with cluster(tmp_path) as group:
        trial = Trial(group, Delayed(shortest=3600.0, longest=3601.0))
        write_configuration(tmp_path, group.urls)
        async with connect(group.urls[0]) as client:
            streams = JetStream(client)
            await create_streams(streams, replicas=3)
            async with running("run", "router.toml", cwd=tmp_path) as router:
                await eventually(lambda: _holds(streams, "retry.n", 1), COUNTED_WITHIN)  # the first count
                await trial.publish(range(count))
                await eventually(lambda: _holds(streams, "retry.s.>", count), COUNTED_WITHIN)
                router.send(signal.SIGTERM)
                assert await router.ended() == 0
            assert not router.logged("ROUTE_SCHEDULE_LOST")
            schedules = [one for one in await streams.stream_messages("RETRY") if one.subject.startswith("retry.s.")]
            for one in schedules[:deleted]:
                await streams.api("STREAM.MSG.DELETE.RETRY", {"seq": one.sequence})
            for one in schedules[-purged:]:
                await streams.api("STREAM.PURGE.RETRY", {"filter": one.subject})
            await step_down(group, "RETRY")
            async with running("run", "router.toml", cwd=tmp_path) as router:
                await eventually(lambda: router.logged("ROUTE_SCHEDULE_LOST"), COUNTED_WITHIN, lambda: router.errors)
                (line,) = router.logged("ROUTE_SCHEDULE_LOST")
    lost = deleted + purged
    numbers = {"scheduled": count, "fired": 0, "there": count - lost, "cancelled": 0, "lost": lost}
    expected = {"level": "ERROR", "route": "again", "stream": "RETRY", **numbers}
    assert {name: line[name] for name in expected} == expected


async def _holds(streams: JetStream, subjects: str, count: int) -> bool:
    found = await streams.api("STREAM.INFO.RETRY", {"subjects_filter": subjects})
    return len(found["state"].get("subjects") or ()) == count
