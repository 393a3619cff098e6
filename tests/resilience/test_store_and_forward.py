"""A site that is cut off from its headquarters for two hours, while its router and its server are killed.

The two hours pass on a simulated clock, and on a real one in the nightly run of `store_and_forward`, which is shortened
here. Each ends with an audit.
"""

from __future__ import annotations

import tomllib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from router_trio import Router, Settings
from router_trio.audit.audit import EVERYTHING
from router_trio.errors import LinkError
from router_trio.link import Connect, LinkListener
from router_trio.nats.jetstream.api import StoredMessage
from router_trio.settings import ConnectionSettings
from router_trio.testing import FakeBroker
from router_trio.testing.links import FakeLink
from tests.resilience.store_and_forward import COPIES, DURABLE, EXAMPLE, STREAM, store_and_forward
from tests.support.eventually import eventually
from tests.unit.audit.fake_streams import FakeAudit, FakeStream

HOUR = 3600.0
PUBLISHED_EVERY = 4.0
"""Seconds."""


@pytest.mark.parametrize(
    ("seconds", "kill_every"),
    [(4.0, 0.8), pytest.param(600.0, 20.0, marks=[pytest.mark.nightly, pytest.mark.timeout(1200)])],
)
async def test_nothing_is_missing_after_a_cut_with_kills_of_routers_and_servers(
    tmp_path: Path, seconds: float, kill_every: float
) -> None:
    report = await store_and_forward(seconds, 50, kill_every, tmp_path)
    assert not report.broken, report
    assert len(report.kills) == 4, report


class Process:
    """A router on the brokers of a site and of its headquarters. After `kill` nothing that it does has any effect."""

    def __init__(self, settings: Settings, brokers: dict[str, FakeBroker]) -> None:
        self._settings = settings
        self._brokers = brokers
        self._scope = trio.CancelScope()
        self._links: list[FakeLink] = []
        self._is_dead = False

    async def run(self) -> None:
        """Route until `kill`."""
        with self._scope:
            async with Router(self._settings, connect=self._connect, log=False).open():
                await trio.sleep_forever()

    def kill(self) -> None:
        """Lose all links at once, and end."""
        self._is_dead = True
        for link in self._links:
            link.die(LinkError("the process was killed", reason="killed"))
        self._scope.cancel()

    def _connect(self, name: str, _: ConnectionSettings) -> Connect:
        @asynccontextmanager
        async def connect(server: str, inbox: bytes, listener: LinkListener) -> AsyncIterator[FakeLink]:
            if self._is_dead:
                await trio.sleep_forever()
            async with self._brokers[name].connect(server, inbox, listener) as link:
                self._links.append(link)
                yield link

        return connect


def as_stored(broker: FakeBroker, name: str) -> FakeStream:
    """Return a stream of a broker as the audit reads it."""
    stream = broker._server.streams[name]
    copy = FakeStream(name, stream.subjects, stream.stored[-1].timestamp if stream.stored else 0)
    for one in stream.stored:
        copy.messages[one.sequence] = StoredMessage(
            one.sequence, one.timestamp, one.subject, one.publish.header, one.publish.payload
        )
        copy.newest = one.sequence
    return copy


async def test_nothing_is_missing_after_two_hours_on_a_simulated_clock(autojump_clock: MockClock) -> None:
    configuration = tomllib.loads(EXAMPLE.read_text(encoding="utf-8"))
    configuration["telemetry"] = {"listen": ""}
    configuration["connections"]["site"]["servers"] = ["nats://site:4222"]
    settings = Settings.model_validate(configuration)
    site, headquarters = FakeBroker(), FakeBroker()
    published, copies_after = 0, 0

    async def publish() -> None:
        nonlocal published
        while True:
            site.publish(f"readings.{published % 10}.heat", b"%d" % published)
            published += 1
            await trio.sleep(PUBLISHED_EVERY)

    async def route() -> None:
        while True:
            process = Process(settings, {"site": site, "headquarters": headquarters})
            async with trio.open_nursery() as running:
                running.start_soon(process.run)
                await trio.sleep(7 * 60)
                process.kill()

    async def kill_server() -> None:
        while True:
            await trio.sleep(11 * 60)
            site.down()
            await trio.sleep(2.0)
            site.up()

    async def cut_off(seconds: float) -> None:
        with trio.move_on_after(seconds):
            while True:
                headquarters.blackhole()
                await trio.sleep(10 * 60)
                headquarters.down()
                await trio.sleep(10 * 60)
        headquarters.up()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(route)
        await eventually(lambda: {STREAM, COPIES} <= site._server.streams.keys() | headquarters._server.streams.keys())
        async with trio.open_nursery() as outage:
            for task in (publish, kill_server):
                outage.start_soon(task)
            await trio.sleep(120)
            before = len(headquarters.messages(COPIES))
            await cut_off(2 * HOUR)
            copies_after = len(headquarters.messages(COPIES))
            outage.cancel_scope.cancel()
        site.up()
        await eventually(lambda: len(headquarters.messages(COPIES)) >= published, 600)
        consumer = site._server.consumers[STREAM, DURABLE]
        await eventually(lambda: consumer.progress.passed == published and not consumer.left_unacked(), 600)
        nursery.cancel_scope.cancel()

    assert before > 20
    assert copies_after < 60 < 1800 < published
    source, copies = as_stored(site, STREAM), as_stored(headquarters, COPIES)
    source.consume(DURABLE, published)
    report = await FakeAudit(settings, settings.routes[0], [source, copies]).run(EVERYTHING)
    assert {kind: count for kind, count in report.counts.items() if count} == {"there": published}
