"""A message with the longest and oddest subject that a server accepts costs a router no more than any other."""

from __future__ import annotations

import time
from typing import Any

import pytest
import trio

from router_trio import Router
from router_trio.errors.quotes import LONGEST_TEXT
from tests.support.raw_jetstream import JetStream
from tests.support.raw_nats import connect
from tests.support.servers import NatsServer
from tests.support.settings import core_route, settings, stream_route
from tests.support.watch import Watch, watched

LONGEST_LAG = 0.1
"""Seconds for which nothing else in the process may run."""

HOSTILE = ["a:a:a:a@", "a://", "://", "=", '"', "@a", "nats://a:b@", "token="]


class Heartbeat:
    """The longest time for which the event loop was blocked."""

    def __init__(self) -> None:
        self.lag = 0.0

    async def beat(self) -> None:
        """Measure, until cancelled."""
        while True:
            before = time.perf_counter()
            await trio.sleep(0.001)
            self.lag = max(self.lag, time.perf_counter() - before)


def _failing(kind: str) -> dict[str, Any]:
    # Two leading dashes make an empty token: the mapping of every message fails.
    if kind == "core":
        return core_route("source.*", "sink.{{split(1,-)}}.x")
    return stream_route("SOURCE", "sink.{{split(1,-)}}.x", filter="source.*")


@pytest.mark.parametrize("kind", ["core", "stream"])
@pytest.mark.parametrize("unit", HOSTILE)
async def test_a_subject_of_4_kb_that_fails_does_not_block_the_router(
    server: NatsServer, unit: str, kind: str, capfd: pytest.CaptureFixture[str]
) -> None:
    heartbeat, watch = Heartbeat(), Watch()
    router = Router(settings(server.url, routes=[_failing(kind)]), log=True, observers=[watch])
    async with connect(server.url) as client:
        await JetStream(client).create_stream("SOURCE", ["source.*"])
        async with watched(router, watch), trio.open_nursery() as nursery:
            await watch.until("ROUTE_READY")
            nursery.start_soon(heartbeat.beat)
            subject = "source.--" + unit * (3900 // len(unit))
            with trio.fail_after(10):
                await client.publish(subject, b"x")
                await client.ping()
                event = await watch.until("ROUTE_MESSAGE_FAILED")
            nursery.cancel_scope.cancel()
            assert len(event.detail) <= LONGEST_TEXT
            assert "maps to" in event.detail
    assert heartbeat.lag < LONGEST_LAG
    lines = [line for line in capfd.readouterr().err.splitlines() if "ROUTE_MESSAGE_FAILED" in line]
    assert lines
    # Each contains the message three times: in its sentence, as its subject and in its detail.
    assert max(map(len, lines)) < 5 * LONGEST_TEXT
