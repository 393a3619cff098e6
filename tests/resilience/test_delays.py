"""Delays and scheduled retries over SIGKILLs of server and router: none early, none lost, none twice."""

from __future__ import annotations

import json
import signal
import time
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from random import Random
from typing import Any

import pytest
import trio

from tests.support.command import running
from tests.support.eventually import eventually
from tests.support.raw_jetstream import JetStream, StoredMessage
from tests.support.raw_nats import RawNatsError, connect
from tests.support.server_version import needs_server
from tests.support.servers import NatsServer

pytestmark = [pytest.mark.slow, needs_server(2, 12, lacks="message schedules")]

CONFIGURATION = """
[telemetry]
listen = ""
[connections.main]
servers = ["{url}"]
reconnect_delay = "100ms"
max_reconnect_delay = "500ms"
[[routes]]
name = "later"
from = {{ stream = "IN", durable = "router", filter = "in.*", ack_wait = "5s" }}
[[routes.to]]
subject = "out.{{{{wildcard(1)}}}}"
delay = "timestamp(body.at)"
schedule_prefix = "later"
[[routes]]
name = "again"
from = {{ stream = "IN", durable = "again", filter = "in.*", ack_wait = "5s" }}
handler = "handlers:fails_at_first"
retry = {{ schedule = {{ stream = "RETRY", prefix = "retry", after = "100ms" }} }}
[[routes.to]]
subject = "retried.{{{{wildcard(1)}}}}"
"""

HANDLER = """
from router_trio import Retry


def fails_at_first(message):
    if message.deliveries == 1:
        raise Retry(after=1.0 + message.sequence % 3)
    return message
"""


async def messages(jetstream: JetStream, stream: str, below: str) -> list[StoredMessage]:
    """Return the messages of a stream below a subject, without those below others."""
    return [one for one in await jetstream.stream_messages(stream) if one.subject.startswith(below)]


@pytest.mark.parametrize(
    ("count", "longest", "kills"),
    [
        pytest.param(200, 4.0, 2, id="200"),
        pytest.param(10_000, 20.0, 8, id="10000", marks=[pytest.mark.nightly, pytest.mark.timeout(600)]),
    ],
)
async def test_delays_and_retries_survive_kills(
    count: int, longest: float, kills: int, server: NatsServer, tmp_path: Path
) -> None:
    random = Random(7)
    (tmp_path / "handlers.py").write_text(HANDLER)
    (tmp_path / "router.toml").write_text(CONFIGURATION.format(url=server.url))
    async with connect(server.url) as client:
        streams = JetStream(client)
        await streams.create_stream("IN", ["in.*"])
        settings: dict[str, Any] = {"allow_msg_schedules": True}
        await streams.create_stream("OUT", ["out.*", "later.*"], **settings)
        await streams.create_stream("RETRY", ["retry.>"], **settings)
        await streams.create_stream("RETRIED", ["retried.*"])
        began = time.time()
        due = {number: began + 1.0 + random.random() * (longest - 1.0) for number in range(count)}
        at = {number: datetime.fromtimestamp(when, UTC).isoformat() for number, when in due.items()}
        await streams.publish_many(
            (f"in.{number % 100}", json.dumps({"n": number, "at": at[number]}).encode(), None)
            for number in range(count)
        )
    for number in range(kills):
        async with running("run", "router.toml", cwd=tmp_path) as router:
            await trio.sleep(longest / (kills + 1))
            if number % 2 == 0:
                await server.kill()
                await server.restart()
                await trio.sleep(0.3)
            router.send(signal.SIGKILL)
            await router.ended()

    async def all_there() -> bool:
        try:
            async with connect(server.url) as client:
                streams = JetStream(client)
                out = (await streams.stream_info("OUT"))["state"]["messages"]
                waiting = await streams.api("STREAM.INFO.OUT", {"subjects_filter": "later.*"})
                retried = (await streams.stream_info("RETRIED"))["state"]["messages"]
                return bool(out >= count and not waiting["state"].get("subjects") and retried >= count)
        except (OSError, RawNatsError):
            return False

    async with running("run", "router.toml", cwd=tmp_path) as router:
        await eventually(all_there, 60.0 + longest + count / 25)
        router.send(signal.SIGTERM)
        assert await router.ended() == 0
    assert not router.logged("ROUTE_SCHEDULE_LOST")
    async with connect(server.url) as client:
        streams = JetStream(client)
        copies = await messages(streams, "OUT", "out.")
        numbers = [json.loads(one.payload)["n"] for one in copies]
        times = dict(zip(numbers, (one.time for one in copies), strict=True))
        early = {number: at for number, at in times.items() if at < due[number]}
        twice = {number: times for number, times in Counter(numbers).items() if times > 1}
        lost = set(range(count)) - set(numbers)
        assert (early, lost, twice) == ({}, set(), {})
        retried = [json.loads(one.payload)["n"] for one in await messages(streams, "RETRIED", "retried.")]
        assert set(range(count)) - set(retried) == set()
        assert {number: times for number, times in Counter(retried).items() if times > 1} == {}
