"""Routes between replicated streams when leaders fail: nothing is lost, and the pause is bounded."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
import trio

from router_trio import Router
from router_trio.telemetry.http.status import readiness
from tests.resilience.chaos.load import numbers, payload, subject
from tests.resilience.chaos.spy import Spy
from tests.resilience.chaos.verdict import out_of_order
from tests.support.eventually import eventually
from tests.support.raw_jetstream import JetStream, JetStreamError
from tests.support.raw_nats import RawClient, RawNatsError, connect
from tests.support.servers import Cluster, cluster
from tests.support.settings import settings, stream_route
from tests.support.watch import Watch, assert_alive, watched

STEP_DOWN_WITHIN = 3.0
"""Seconds without a PubAck when a leader hands over, in addition to the time in which the stream has none."""

KILLED_WITHIN = 20.0
"""An election starts 4 to 9 s after the leader's last sign of life, and may have to be repeated."""

ASK_AGAIN_AFTER = 0.25
PAUSE = 0.02
CHUNK = 10


async def step_down(group: Cluster, stream: str) -> float:
    """Make the leader of a stream hand over to another server. Return for how long there was none."""
    async with connect(group.urls[0]) as client:
        await JetStream(client).api(f"STREAM.LEADER.STEPDOWN.{stream}")
        began = trio.current_time()
        while True:
            try:
                # Only a leader answers.
                with trio.fail_after(ASK_AGAIN_AFTER):
                    await JetStream(client).stream_info(stream)
                return trio.current_time() - began
            except (JetStreamError, trio.TooSlowError):
                await trio.sleep(PAUSE)


async def kill_leader(group: Cluster, stream: str) -> float:
    """Kill the server that leads a stream, for good. `KILLED_WITHIN` bounds the time that this takes."""
    await (await group.stream_leader(stream)).kill()
    return 0.0


@pytest.mark.parametrize("stream", ["SINK", "SOURCE"])
@pytest.mark.parametrize(
    ("depose", "messages", "within"),
    [
        (step_down, 1_000, STEP_DOWN_WITHIN),
        pytest.param(kill_leader, 6_000, KILLED_WITHIN, marks=[pytest.mark.nightly, pytest.mark.timeout(180)]),
    ],
    ids=["stepped down", "killed"],
)
async def test_losing_a_leader_costs_time_and_no_message(
    tmp_path: Path,
    stream: str,
    depose: Callable[[Cluster, str], Awaitable[float]],
    messages: int,
    within: float,
) -> None:
    spy, watch = Spy(), Watch()
    async with cluster(tmp_path) as group:
        async with connect(group.urls[0]) as client:
            for name, taken in (("SOURCE", "source.*"), ("SINK", "sink.*")):
                await JetStream(client).create_stream(name, [taken], num_replicas=3)
        route = stream_route("SOURCE", "sink.{{wildcard(1)}}", filter="source.*", ack_wait=5.0)
        configured = settings(group.urls, routes=[route])
        async with watched(Router(configured, observers=[watch], connect=spy.connect), watch), trio.open_nursery() as n:
            live = watch.live
            assert live is not None
            n.start_soon(_fill, group, messages)
            await eventually(lambda: live.routes[0].received > messages / 4, 30)
            leaderless = await depose(group, stream)
            await eventually(lambda: len(set(spy.written_at)) == messages, 90, lambda: live.status()["routes"])
            await eventually(lambda: not live.ledger()["main"]["in_flight"], 30, live.ledger)
            await assert_alive(live)
        survivor = next(server for server in group.servers if server.is_running)
        async with connect(survivor.url) as client:
            stored = await JetStream(client).stream_messages("SINK")
    arrived = [found for message in stored for found in numbers(message.payload)]
    print(
        f"\n{stream} leader {depose.__name__}: {messages} messages, {messages - len(set(arrived))} lost, "
        f"longest time without a PubAck {spy.longest_gap:.2f} s, without a leader {leaderless:.2f} s, "
        f"{spy.resent} resent, {spy.suppressed} suppressed, "
        f"{len(out_of_order(range(messages), arrived))} out of order"
    )
    assert set(arrived) == set(range(messages))
    assert len(arrived) == messages, "stored twice"
    assert not sum(live.routes[0].failed.values())
    assert out_of_order(range(messages), arrived) == []
    assert spy.longest_gap < leaderless + within


@pytest.mark.parametrize("leads", [True, False], ids=["it leads", "it does not lead"])
async def test_a_node_that_is_cut_off_makes_its_router_unready_within_ten_seconds(tmp_path: Path, leads: bool) -> None:
    """The other two hang, which is all that the third can observe. If it leads, it continues as if nothing had
    happened.
    """
    watch = Watch()
    async with cluster(tmp_path) as group:
        async with connect(group.urls[0]) as client:
            stream = JetStream(client)
            for name, taken in (("SOURCE", "source.*"), ("SINK", "sink.*")):
                await stream.create_stream(name, [taken], num_replicas=3)
            await stream.create_consumer("SOURCE", "router", filter_subject="source.*")
            leader = (await stream.consumer_info("SOURCE", "router"))["cluster"]["leader"]
        node = next(one for one in group.servers if (one.name == leader) is leads)
        route = stream_route("SOURCE", "sink.{{wildcard(1)}}", filter="source.*")
        async with Router(settings(node.url, routes=[route]), observers=[watch], log=False).open() as live:
            async with connect(node.url) as client:
                await JetStream(client).publish("source.1", b"1")
            await eventually(lambda: live.routes[0].settled["routed"] == 1)
            await eventually(lambda: readiness(live, trio.current_time())[0] == 200)
            for one in group.servers:
                if one is not node:
                    one.stop()
            try:
                await eventually(lambda: readiness(live, trio.current_time())[0] == 503, 10)
                assert live.connections["main"].connected
            finally:
                for one in group.servers:
                    one.cont()
            await eventually(lambda: readiness(live, trio.current_time())[0] == 200, 60, live.status)


async def _fill(group: Cluster, messages: int) -> None:
    """Publish to the source until it has all, a chunk at a time, on any running server."""
    sent = 0
    while sent < messages:
        server = next(server for server in group.servers if server.is_running)
        try:
            async with connect(server.url) as client:
                while sent < messages:
                    await _publish(client, range(sent, min(sent + CHUNK, messages)))
                    sent += CHUNK
                    await trio.sleep(PAUSE)
        except (RawNatsError, OSError, trio.TooSlowError, trio.BrokenResourceError):
            await trio.sleep(PAUSE)


async def _publish(client: RawClient, chunk: range) -> None:
    requests = [(subject("source", n), payload(n), [("Nats-Msg-Id", f"id-{n}")]) for n in chunk]
    with trio.fail_after(2):
        await JetStream(client).publish_many(requests)
