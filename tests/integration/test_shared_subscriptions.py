"""Routes that read one subject of one connection share a subscription: real servers."""

from __future__ import annotations

import pytest
import trio

from tests.support.eventually import eventually
from tests.support.raw_nats import connect
from tests.support.servers import NatsServer
from tests.support.settings import core_route, settings
from tests.support.watch import watched


@pytest.mark.parametrize("queue", [None, "routers"])
async def test_each_route_of_a_subject_gets_every_message_even_in_one_queue_group(
    server: NatsServer, queue: str | None
) -> None:
    group = {"queue": queue} if queue else {}
    routes = [
        core_route("in.*", "passed.{{wildcard(1)}}", name="passed", **group),
        {**core_route("in.*", "even.{{wildcard(1)}}", name="even", **group), "when": "int(tokens[1]) % 2 == 0"},
        {**core_route("in.*", "odd.{{wildcard(1)}}", name="odd", **group), "when": "int(tokens[1]) % 2 == 1"},
        core_route("in.>", "wide.>", name="wide"),
    ]
    async with connect(server.url) as client, watched(settings(server.url, routes=routes)) as watch:
        live = watch.router
        passed, even, odd, wide = live.routes
        for number in range(100):
            await client.publish(f"in.{number}", b"")
        await eventually(lambda: [one.received for one in live.routes] == [100] * 4)
        assert [sum(one.filtered.values()) for one in (passed, even, odd)] == [0, 50, 50]
        # Again on the next link, and once.
        await server.kill()
        await watch.until("NATS_CONNECTION_LOST")
        await server.restart()
        await watch.until("NATS_CONNECTION_RESTORED")
        async with connect(server.url) as another:
            await eventually(lambda: all(one.state == "running" for one in live.routes))
            for number in range(100):
                await another.publish(f"in.{number}", b"")
            await another.ping()
            await eventually(lambda: [one.received for one in live.routes] == [200] * 4)
            with trio.move_on_after(0.2):
                await eventually(lambda: any(one.received > 200 for one in live.routes))
        assert [one.received for one in (passed, even, odd, wide)] == [200] * 4
        assert len({one.settled["routed"] + one.settled["filtered"] for one in live.routes}) == 1
