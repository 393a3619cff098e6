"""How far a route is behind, compared with what its streams hold, on a real server.

The truth is counted at the streams: messages in SOURCE that match and are not in SINK. The number that a route reports
may be as old as five seconds, and off by the messages in flight; the age of the oldest message may be off by as much.
"""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import pytest
import trio

from router_trio import Message, Router, Settings
from router_trio.router.options import RetryOptions
from router_trio.states import Behind
from router_trio.telemetry.http.status import status
from tests.integration.workers import workers
from tests.support.eventually import eventually
from tests.support.proxy import TcpProxy
from tests.support.raw_jetstream import JetStream
from tests.support.raw_nats import connect
from tests.support.server_version import needs_server
from tests.support.servers import NatsServer
from tests.support.settings import settings, stream_route
from tests.support.watch import Watch, cut_off, let_in, watched

pytestmark = pytest.mark.timeout(180)

TRUE_WITHIN = 5.0
LOOKED_EVERY = 0.1
IN_FLIGHT = 64
RATE = 300

ROUTE = stream_route("SOURCE", "sink.{{wildcard(1)}}", filter="source.*", max_in_flight=IN_FLIGHT)
LIMITED = {**ROUTE, "limit": {"rate": f"{RATE}/s", "burst": 1}}


class Looked(NamedTuple):
    """The truth at one moment: the messages, and the least and the most age that the oldest may have."""

    at: float
    stored: int
    settled: int
    least: float
    most: float

    @property
    def messages(self) -> int:
        """The unsettled messages."""
        return self.stored - self.settled


class Truth:
    """The unsettled messages by the streams, over the last five seconds; `in_flight` of them may be acked next.

    Both streams are empty when it is created.
    """

    def __init__(self, stream: JetStream, in_flight: int = IN_FLIGHT) -> None:
        self._stream = stream
        self._in_flight = in_flight
        self._stored_at: list[float] = []
        self._looked: deque[Looked] = deque([Looked(trio.current_time(), 0, 0, 0.0, 0.0)])
        self.compared = 0
        self.most_off = 0
        """Most messages by which a report differed from the truth of the same moment."""
        self.most_old = 0.0
        """Most seconds since a report was true, give or take what was in flight."""

    async def publish(self, count: int) -> None:
        """Publish messages that the route matches, and one that it does not."""
        first = len(self._stored_at)
        numbered = [(f"source.{n % 10}", b"%d" % n, None) for n in range(first, first + count)]
        await self._stream.publish_many([*numbered, ("noise.x", b"", None)])
        self._stored_at += [trio.current_time()] * count

    async def look(self) -> Looked:
        """Count the messages in both streams, and return what was found."""
        settled = (await self._stream.stream_info("SINK"))["state"]["messages"]
        body = {"subjects_filter": "source.*"}
        subjects = (await self._stream.api("STREAM.INFO.SOURCE", body))["state"].get("subjects") or {}
        now, stored = trio.current_time(), sum(subjects.values())
        ages = [now - at for at in self._stored_at[max(0, settled - self._in_flight) : settled + self._in_flight + 1]]
        messages = stored - settled
        least = 0.0 if messages <= self._in_flight else min(ages)
        found = Looked(now, stored, settled, least, max(ages, default=0.0) if messages else 0.0)
        self._looked.append(found)
        while self._looked[0].at < now - 2 * TRUE_WITHIN:
            self._looked.popleft()
        return found

    async def compare(self, behind: tuple[int, float] | None) -> None:
        """Fail unless a report was true within the last five seconds, at a look or at any moment between two."""
        now = await self.look()
        assert behind is not None, "it is not known how far the route is behind"
        messages, seconds = behind
        true = [
            later
            for one, later in pairwise([self._looked[0], *self._looked])
            if one.stored - later.settled - self._in_flight <= messages <= later.stored - one.settled + self._in_flight
            and min(one.least, later.least) - TRUE_WITHIN <= seconds <= max(one.most, later.most) + TRUE_WITHIN
        ]
        self.compared += 1
        self.most_off = max(self.most_off, abs(messages - now.messages))
        recent = [one for one in self._looked if one.at >= now.at - TRUE_WITHIN - LOOKED_EVERY]
        assert true, (
            f"reported {messages} messages, {seconds:.1f} s; the truth was {recent[:: max(1, len(recent) // 9)]}"
        )
        self.most_old = max(self.most_old, now.at - true[-1].at)
        assert self.most_old <= TRUE_WITHIN, f"{messages} messages, {seconds:.1f} s were true {self.most_old:.1f} s ago"

    async def compare_for(self, seconds: float, report: Callable[[], Awaitable[tuple[int, float] | None]]) -> None:
        """Compare a report with the truth again and again."""
        until = trio.current_time() + seconds
        await self.look()
        while trio.current_time() < until:
            begun = trio.current_time()
            await self.compare(await report())
            await trio.sleep_until(begun + LOOKED_EVERY)


def behind_of(watch: Watch) -> Behind:
    """Return how far the first route is behind; it must be known."""
    behind = watch.router.routes[0].behind
    assert behind is not None
    return behind


async def until_known(watch: Watch) -> None:
    """Wait until it is known how far the first route is behind: a round trip after it is ready."""
    await eventually(lambda: watch.router.routes[0].behind)


def reported_by(watch: Watch) -> Callable[[], Awaitable[tuple[int, float] | None]]:
    """Return what the metrics of a router show of its first route."""

    async def report() -> tuple[int, float] | None:
        behind = watch.router.routes[0].behind
        return None if behind is None else (behind.messages, behind.seconds)

    return report


@asynccontextmanager
async def two_streams(server: NatsServer) -> AsyncIterator[JetStream]:
    """Create a source with subjects that a route takes, and others, and a sink."""
    async with connect(server.url) as client:
        stream = JetStream(client)
        await stream.create_stream("SOURCE", ["source.*", "noise.*"])
        await stream.create_stream("SINK", ["sink.*"])
        yield stream


# --- under a changing load ---


@pytest.mark.parametrize("seconds", [12, pytest.param(60, marks=pytest.mark.nightly)])
async def test_it_is_true_within_five_seconds_under_a_changing_load(server: NatsServer, seconds: int) -> None:
    async with two_streams(server) as stream, watched(settings(server.url, routes=[LIMITED])) as watch:
        await until_known(watch)
        truth = Truth(stream)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(partial(truth.compare_for, seconds, reported_by(watch)))
            await _load(truth, stream, seconds)
        assert truth.compared >= 4 * seconds
        print(
            f"{truth.compared} comparisons: off by {truth.most_off} messages at most from the same moment; "
            f"true {truth.most_old:.1f} s before at most"
        )


async def _load(truth: Truth, stream: JetStream, seconds: float) -> None:
    """Publish less and more than the route may forward, at once and not at all, and pause its durable for a while."""
    await trio.sleep(0.05 * seconds)
    await _publish_for(truth, 0.15 * seconds, RATE // 3)
    await truth.publish(4 * RATE)
    await _publish_for(truth, 0.2 * seconds, RATE + RATE // 3)
    await trio.sleep(0.1 * seconds)
    await stream.pause_consumer("SOURCE", "router", 2 * seconds)
    await _publish_for(truth, 0.1 * seconds, RATE // 6)
    await trio.sleep(0.15 * seconds)
    await stream.pause_consumer("SOURCE", "router", 0)
    await _publish_for(truth, 0.1 * seconds, RATE // 3)


async def _publish_for(truth: Truth, seconds: float, rate: int) -> None:
    until = trio.current_time() + seconds
    while trio.current_time() < until:
        begun = trio.current_time()
        await truth.publish(rate // 10)
        await trio.sleep_until(begun + 0.1)


# --- while nothing moves ---


@needs_server(2, 11, lacks="pause of consumers")
async def test_a_paused_durable(server: NatsServer) -> None:
    async with two_streams(server) as stream, watched(settings(server.url, routes=[ROUTE])) as watch:
        await until_known(watch)
        truth = Truth(stream)
        await truth.publish(50)
        await eventually(lambda: watch.router.routes[0].routed["sink.{{wildcard(1)}}"] == 50)
        await stream.pause_consumer("SOURCE", "router", 60)
        await truth.publish(20)
        await truth.compare_for(TRUE_WITHIN + 2, reported_by(watch))
        behind = behind_of(watch)
        assert behind.messages == 20
        assert behind.seconds == pytest.approx((await truth.look()).most, abs=1.0)
        await stream.pause_consumer("SOURCE", "router", 0)
        await eventually(lambda: not behind_of(watch).messages)


async def test_a_destination_that_is_away(server: NatsServer, proxy: TcpProxy) -> None:
    quick = {"reconnect_delay": "50ms", "max_reconnect_delay": "300ms", "liveness_interval": "1s"}
    config = Settings(
        telemetry={"listen": ""},
        connections={"main": {"servers": [server.url], **quick}, "away": {"servers": [proxy.url], **quick}},
        routes=[
            {
                **ROUTE,
                "from": {**ROUTE["from"], "connection": "main"},
                "to": [{**ROUTE["to"][0], "connection": "away"}],
            }
        ],
    )
    async with two_streams(server) as stream, watched(config) as watch:
        await until_known(watch)
        truth = Truth(stream)
        await cut_off(proxy, watch)
        await truth.publish(IN_FLIGHT + 20)
        await truth.compare_for(TRUE_WITHIN + 2, reported_by(watch))
        assert behind_of(watch).messages == IN_FLIGHT + 20
        await let_in(proxy, watch)
        await eventually(lambda: not behind_of(watch).messages)


async def test_failed_messages_that_wait_for_their_next_attempt(server: NatsServer) -> None:
    async def fail(message: Message) -> Message:
        if failing:
            failed.add(message.subject)
            raise ValueError("not yet")
        return message

    failing, failed, watch = True, set[str](), Watch()
    router = Router(settings(server.url), observers=[watch], log=False)
    retry: RetryOptions = {"initial": "8s", "max": "8s"}
    router.route(name="route", to=ROUTE["to"], retry=retry, **ROUTE["from"])(fail)
    async with two_streams(server) as stream, watched(router, watch):
        await until_known(watch)
        truth = Truth(stream, in_flight=2)
        await truth.publish(5)
        # One may have had a short delay, and have failed more than once.
        await eventually(lambda: len(failed) == 5 and not watch.router.routes[0].in_hand)
        await truth.compare_for(TRUE_WITHIN + 1, reported_by(watch))
        assert behind_of(watch).messages == 5
        assert behind_of(watch).seconds > TRUE_WITHIN
        failing = False
        await eventually(lambda: not behind_of(watch).messages)


async def test_a_backlog_from_an_earlier_process_is_as_old_as_in_its_stream(server: NatsServer) -> None:
    async with two_streams(server) as stream:
        truth = Truth(stream)
        await truth.publish(30)
        await stream.create_consumer("SOURCE", "router", filter_subject="source.*", max_ack_pending=5000)
        await stream.pause_consumer("SOURCE", "router", 60)
        await trio.sleep(3)
        async with watched(settings(server.url, routes=[ROUTE])) as watch:
            await until_known(watch)
            assert behind_of(watch).messages == 30
            assert behind_of(watch).seconds == pytest.approx((await truth.look()).most, abs=1.0)
            await truth.compare_for(2, reported_by(watch))
            await stream.pause_consumer("SOURCE", "router", 0)
            await eventually(lambda: not behind_of(watch).messages)


# --- several processes ---


@needs_server(2, 11, lacks="pinned consumers")
async def test_a_standby_reports_what_its_leader_does(server: NatsServer) -> None:
    standby = {**ROUTE, "from": {**ROUTE["from"], "standby": True}, "limit": {"rate": f"{RATE // 6}/s", "burst": 1}}
    config = settings(server.url, routes=[standby])
    async with two_streams(server) as stream, watched(config) as leader:
        truth = Truth(stream)
        await truth.publish(2 * RATE)
        await leader.until("ROUTE_READY")  # the first message makes it the leader
        async with watched(config, alone=False) as other:
            await other.until("ROUTE_STANDBY")
            reports = (reported_by(leader), reported_by(other))

            async def both() -> None:
                for report in reports:
                    await truth.compare(await report())
                await trio.sleep(LOOKED_EVERY)

            await trio.sleep(0.5)
            until = trio.current_time() + TRUE_WITHIN + 3
            while trio.current_time() < until:
                await both()
            assert behind_of(other).messages > 0
            assert other.router.routes[0].received == 0


WORKERS = f"""
[router]
workers = 2
[telemetry]
listen = "127.0.0.1:0"
[connections.main]
servers = ["URL"]
[[routes]]
name = "route"
from = {{ stream = "SOURCE", durable = "router", filter = "source.*", max_in_flight = {IN_FLIGHT} }}
limit = {{ rate = "{RATE // 6}/s", burst = 2 }}
to = [ {{ subject = "sink.{{{{wildcard(1)}}}}", jetstream = true }} ]
"""


async def test_workers_count_what_waits_at_the_server_once(server: NatsServer, tmp_path: Path) -> None:
    async with two_streams(server) as stream, workers(server, tmp_path, WORKERS) as one:
        truth = Truth(stream, in_flight=2 * IN_FLIGHT)
        await truth.publish(3 * RATE)

        async def report() -> tuple[int, float] | None:
            behind = (await one.status())["routes"]["route"]["behind"]
            return None if behind is None else (behind["messages"], behind["seconds"])

        await truth.compare_for(TRUE_WITHIN + 3, report)
        found = (await truth.look()).messages
        assert found > 2 * IN_FLIGHT, "enough that counting them twice would be noticed"
        assert await one.metric("router_route_behind_count", route="route") == pytest.approx(found, abs=2 * IN_FLIGHT)


# --- while it can't be known ---


async def test_without_its_stream_it_is_not_known(server: NatsServer) -> None:
    async with two_streams(server) as stream, watched(settings(server.url, routes=[ROUTE])) as watch:
        await eventually(lambda: watch.router.routes[0].behind)
        assert status(watch.router, 0.0)["routes"]["route"]["behind"] == {"messages": 0, "seconds": 0.0}
        await stream.delete_stream("SOURCE")
        await eventually(lambda: watch.router.routes[0].behind is None)
        assert status(watch.router, 0.0)["routes"]["route"]["behind"] is None
        await stream.create_stream("SOURCE", ["source.*", "noise.*"])
        await eventually(lambda: watch.router.routes[0].behind, 20)
