"""Retries that the settings before a reload have scheduled, with a real nats-server."""

from __future__ import annotations

from typing import Any

import pytest

from router_trio import Message, Retry, Router, Settings
from tests.support.eventually import eventually
from tests.support.raw_jetstream import JetStream
from tests.support.raw_nats import connect
from tests.support.server_version import needs_server
from tests.support.servers import NatsServer
from tests.support.watch import Watch, assert_accounted

pytestmark = [pytest.mark.slow, needs_server(2, 12, lacks="message schedules")]

COUNT = 20
WAIT = 3.0
"""Seconds until a message is tried again."""

failed: set[tuple[str, bytes]] = set()


def fails_once(message: Message) -> Message:
    """Fail for each message once."""
    if (message.subject, message.payload) not in failed:
        failed.add((message.subject, message.payload))
        raise Retry(after=WAIT)
    return message


def settings(server: NatsServer, schedule: dict[str, str] | None) -> Settings:
    """Return settings whose only route schedules its retries there."""
    retry: dict[str, Any] = {"initial": "10ms", "schedule": schedule and {"after": "10ms"} | schedule}
    streams = {"IN": ["in.*"], "OUT": ["out.*"], "RETRY": ["retry.>", "other.>"], "AGAIN": ["again.>"]}
    return Settings(
        telemetry={"listen": ""},
        connections={"main": {"servers": [server.url]}},
        streams=[
            {"name": name, "subjects": subjects, "allow_message_schedules": name in ("RETRY", "AGAIN")}
            for name, subjects in streams.items()
        ],
        routes=[
            {
                "name": "route",
                "from": {"stream": "IN", "durable": "router", "filter": "in.*"},
                "to": [{"subject": "out.{{wildcard(1)}}", "jetstream": True}],
                "handler": "tests.integration.test_left_retries:fails_once",
                "retry": retry,
            }
        ],
    )


@pytest.mark.parametrize(
    "after", [None, {"stream": "AGAIN", "prefix": "again"}, {"stream": "RETRY", "prefix": "other"}]
)
async def test_retries_that_wait_survive_a_reload_and_later_ones_a_restart(
    server: NatsServer, after: dict[str, str] | None
) -> None:
    failed.clear()
    watch = Watch()

    async def publish(subject: str) -> None:
        for number in range(COUNT):
            await jetstream.publish(f"in.{subject}", b"%d" % number)

    async with connect(server.url) as client:
        jetstream = JetStream(client)
        before = settings(server, {"stream": "RETRY", "prefix": "retry"})
        async with Router(before, log=False, observers=[watch]).open() as live:
            await publish("a")
            await eventually(lambda: live.routes[0].settled["scheduled"] == COUNT, 10.0)
            await live.reload(settings(server, after))
            await eventually(lambda: watch.of("ROUTE_RETRIES_DRAINING"), 10.0)
            assert [one.waiting for one in watch.of("ROUTE_RETRIES_DRAINING")] == [COUNT]
            await publish("b")
            await eventually(lambda: live.routes[0].settled["routed"] >= COUNT, 20.0)
            await eventually(lambda: watch.of("ROUTE_RETRIES_DRAINED"), 20.0)
            assert_accounted(live)
            assert not live.routes[0].draining
            assert not live.routes[0].obstacles
        async with Router(settings(server, after), log=False, observers=[watch]).open() as live:
            await publish("c")
            await eventually(lambda: _routed(jetstream, 3 * COUNT), 20.0)
            await eventually(lambda: live.routes[0].in_hand == 0)
            assert not live.routes[0].obstacles
        out = sorted((one.subject, one.payload) for one in await jetstream.stream_messages("OUT"))
        assert out == sorted((f"out.{subject}", b"%d" % number) for subject in "abc" for number in range(COUNT))
        durables = (await jetstream.api("CONSUMER.NAMES.RETRY"))["consumers"]
        assert len(durables) == (2 if after is not None and after["stream"] == "RETRY" else 1)
        assert "retry-route" in durables
    assert not watch.of("ROUTE_SCHEDULE_LOST")


async def _routed(jetstream: JetStream, count: int) -> bool:
    return len(await jetstream.stream_messages("OUT")) == count
