"""Fast ingest on a real server that is killed under load, and with a router that is: once each, in order, accounted."""

from __future__ import annotations

import signal
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import trio

from router_trio.outbox.batch import Batch
from tests.support.command import running
from tests.support.compiled import COMPILED
from tests.support.eventually import eventually
from tests.support.raw_jetstream import JetStream
from tests.support.raw_nats import connect
from tests.support.server_version import needs_server
from tests.support.servers import NatsServer
from tests.support.settings import settings, stream_route_file
from tests.support.watch import assert_accounted, assert_alive, until_nothing_is_unacked, watched

pytestmark = needs_server(2, 14, lacks="fast ingest")

SUBJECTS = 7
ROUTE: dict[str, Any] = {
    "name": "copy",
    "from": {"stream": "SOURCE", "durable": "router", "filter": "in.*", "ack_wait": "5s"},
    "to": [{"subject": "out.{{wildcard(1)}}", "jetstream": True}],
}


async def filled(stream: JetStream, count: int) -> None:
    await stream.create_stream("SOURCE", ["in.*"])
    await stream.create_stream("SINK", ["out.*"], allow_batched=True)
    for start in range(0, count, 5_000):
        chunk = range(start, min(start + 5_000, count))
        await stream.publish_many([(f"in.{n % SUBJECTS}", b"%d" % n, ()) for n in chunk])


async def arrived(server: NatsServer) -> int:
    async with connect(server.url) as client:
        info = await JetStream(client).stream_info("SINK")
        return int(info["state"]["messages"])


async def assert_each_arrived_once_in_order(server: NatsServer, count: int) -> None:
    async with connect(server.url) as client:
        stream = JetStream(client)
        await until_nothing_is_unacked(stream)
        came: dict[str, list[int]] = {}
        for message in await stream.stream_messages("SINK", 120):
            came.setdefault(message.subject, []).append(int(message.payload))
    expected = {f"out.{subject}": list(range(subject, count, SUBJECTS)) for subject in range(SUBJECTS)}
    assert came.keys() == expected.keys()
    wrong = {
        subject: {
            "missing": sorted({*expected[subject]} - {*found}),
            "doubled": [number for number, times in Counter(found).items() if times > 1],
            "out of order": [pair for pair in pairwise(found) if pair[0] > pair[1]],
        }
        for subject, found in came.items()
        if found != expected[subject]
    }
    assert not wrong


@pytest.fixture
def batches(monkeypatch: pytest.MonkeyPatch) -> list[Batch]:
    """All batches that begin from now on."""
    begun: list[Batch] = []
    begin = Batch.__init__

    def noted(self: Batch, *given: Any) -> None:
        begin(self, *given)
        begun.append(self)

    monkeypatch.setattr(Batch, "__init__", noted)
    return begun


@pytest.mark.parametrize(
    "count", [20_000, pytest.param(120_000, marks=[pytest.mark.nightly, pytest.mark.timeout(900)])]
)
async def test_a_server_that_is_killed_five_times_has_each_message_once_in_order(
    server: NatsServer, batches: list[Batch], count: int
) -> None:
    async with connect(server.url) as client:
        await filled(JetStream(client), count)
    async with watched(settings(server.url, routes=[ROUTE])) as watch, trio.open_nursery() as nursery:
        live = watch.router

        async def look() -> None:
            while True:
                assert_accounted(live)
                await trio.sleep(0.01)

        nursery.start_soon(look)
        (route,) = live.routes
        for time in range(1, 6):
            await eventually(lambda time=time: route.settled["routed"] >= count * time // 6, 300)  # type: ignore[misc]
            await server.kill()
            await server.restart()
            await assert_alive(live, 90)
        await eventually(lambda: route.settled["routed"] >= count, 300)
        await assert_each_arrived_once_in_order(server, count)
        assert (route.settled["routed"], route.settled["lost"]) == (count, 0)
        assert live.ledger()["main"]["settled"]["acked"] == count
        nursery.cancel_scope.cancel()
    # What is compiled can't be listened to.
    assert COMPILED or sum(batch.acked for batch in batches) > count // 2, "most of it went in batches"


@pytest.mark.parametrize(
    "count", [20_000, pytest.param(120_000, marks=[pytest.mark.nightly, pytest.mark.timeout(900)])]
)
async def test_a_router_that_is_killed_twice_while_the_server_is_loses_and_doubles_nothing(
    server: NatsServer, tmp_path: Path, count: int
) -> None:
    async with connect(server.url) as client:
        await filled(JetStream(client), count)
    stream_route_file(tmp_path, server.url)

    async def until(part: int) -> None:
        async def there() -> bool:
            return await arrived(server) >= count * part // 8

        await eventually(there, 300)

    for time in range(2):
        async with running("run", "router.toml", cwd=tmp_path) as process:
            await until(3 * time + 1)
            await server.kill()
            await server.restart()
            await until(3 * time + 2)
            process.send(signal.SIGKILL)
    async with running("run", "router.toml", cwd=tmp_path) as process:
        await until(8)
        await assert_each_arrived_once_in_order(server, count)
        process.send(signal.SIGTERM)
        assert await process.ended() == 0
        (stopped,) = process.logged("ROUTER_STOPPED")
    ledger = stopped["ledger"]["main"]
    assert (ledger["pending"], ledger["in_flight"]) == (0, 0)
    assert ledger["accepted"] == sum(ledger["settled"].values()) == ledger["settled"]["acked"] > 0
