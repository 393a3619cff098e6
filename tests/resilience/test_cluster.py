"""Routes between replicated streams, while leaders go: what is lost (nothing), and for how long nothing goes on."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
import trio

from router_trio import Router
from tests.raw_jetstream import JetStream
from tests.raw_nats import RawClient, RawNatsError, connect
from tests.resilience.chaos.load import payload, subject
from tests.resilience.chaos.spy import Spy, numbers
from tests.resilience.chaos.verdict import out_of_order
from tests.servers import Cluster, cluster
from tests.watch import Watch, assert_alive, eventually, settings, stream_route, watched

WITHIN = 20.0
"""Seconds without a PubAck. A handover takes 0.3 s. One that is missed, as on a busy machine, and the death of a leader
take an election: it starts 4 to 9 s after the last sign of life, and may have to be held again."""

PAUSE = 0.02
CHUNK = 10


async def step_down(group: Cluster, stream: str) -> None:
    """The leader of a stream hands over to another server."""
    async with connect(group.urls[0]) as client:
        await JetStream(client).api(f"STREAM.LEADER.STEPDOWN.{stream}")


async def kill_leader(group: Cluster, stream: str) -> None:
    """The server that leads a stream is killed, and stays away."""
    await (await group.stream_leader(stream)).kill()


@pytest.mark.parametrize("stream", ["SINK", "SOURCE"])
@pytest.mark.parametrize(
    ("depose", "messages"),
    [
        (step_down, 1_000),
        pytest.param(kill_leader, 6_000, marks=[pytest.mark.nightly, pytest.mark.timeout(180)]),
    ],
    ids=["stepped down", "killed"],
)
async def test_a_leader_that_goes_costs_time_and_nothing_else(
    tmp_path: Path,
    stream: str,
    depose: Callable[[Cluster, str], Awaitable[None]],
    messages: int,
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
            await depose(group, stream)
            await eventually(lambda: len(set(spy.written_at)) == messages, 90, lambda: live.status()["routes"])
            await eventually(lambda: not live.ledger()["main"]["in_flight"], 30, live.ledger)
            await assert_alive(live)
        survivor = next(server for server in group.servers if server.running)
        async with connect(survivor.url) as client:
            stored = await JetStream(client).stream_messages("SINK")
    arrived = [found for message in stored for found in numbers(message.payload)]
    print(
        f"\n{stream} leader {depose.__name__}: {messages} messages, {messages - len(set(arrived))} lost, "
        f"longest time without a PubAck {spy.longest_gap:.2f} s, {spy.resent} resent, {spy.suppressed} suppressed, "
        f"{len(out_of_order(range(messages), arrived))} out of order"
    )
    assert set(arrived) == set(range(messages))
    assert len(arrived) == messages, "stored twice"
    assert not sum(live.routes[0].failed.values())
    assert out_of_order(range(messages), arrived) == []
    assert spy.longest_gap < WITHIN


async def _fill(group: Cluster, messages: int) -> None:
    """Publish to the source until it has all, a chunk at a time, on whatever server runs."""
    sent = 0
    while sent < messages:
        server = next(server for server in group.servers if server.running)
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
