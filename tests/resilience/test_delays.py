"""Delays and scheduled retries over SIGKILLs of server and router: none early, none lost, none twice."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
import trio

from tests.resilience.delays import Delayed, create_streams, write_configuration
from tests.support.command import running
from tests.support.eventually import eventually
from tests.support.raw_jetstream import JetStream
from tests.support.raw_nats import RawNatsError, connect
from tests.support.server_version import needs_server
from tests.support.servers import NatsServer

pytestmark = [pytest.mark.slow, needs_server(2, 12, lacks="message schedules")]


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
    write_configuration(tmp_path, [server.url])
    delayed = Delayed(longest=longest)
    async with connect(server.url) as client:
        await create_streams(JetStream(client))
        await JetStream(client).publish_many(delayed.requests(range(count)))
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
                return await delayed.all_there(JetStream(client))
        except (OSError, RawNatsError):
            return False

    async with running("run", "router.toml", cwd=tmp_path) as router:
        await eventually(all_there, 60.0 + longest + count / 25)
        router.send(signal.SIGTERM)
        assert await router.ended() == 0
    assert not router.logged("ROUTE_SCHEDULE_LOST")
    async with connect(server.url) as client:
        print(await delayed.assert_delivered(JetStream(client), forgets_acks=True))
