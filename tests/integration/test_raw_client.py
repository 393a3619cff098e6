"""The client of the tests itself."""

from __future__ import annotations

from pathlib import Path

import trio

from tests.support.raw_nats import connect
from tests.support.servers import nats_server


async def test_a_ping_that_is_cancelled_before_it_is_sent_shifts_no_later_pong(tmp_path: Path) -> None:
    async with nats_server(tmp_path) as server, connect(server.url) as client:
        with trio.CancelScope() as scope:
            scope.cancel()
            await client.ping()
        assert scope.cancelled_caught
        await client.ping(within=2)
