"""A link that is dead here and alive to a real server: the requests that the leader of a standby route left there."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import trio

from tests.support.eventually import eventually
from tests.support.raw_jetstream import JetStream
from tests.support.raw_nats import connect
from tests.support.server_version import needs_server
from tests.support.servers import NatsServer
from tests.support.settings import settings
from tests.support.watch import watched

pytestmark = needs_server(2, 11, lacks="pinned consumers")

ROUTE: dict[str, Any] = {
    "name": "copies",
    "from": {"stream": "SOURCE", "durable": "router", "filter": "in.*", "standby": True},
    "to": [{"subject": "out.{{wildcard(1)}}", "jetstream": True}],
}
COUNT = 400


class HalfOpen:
    """A path to a server; `end` closes the near halves of its connections, unnoticed by the server."""

    def __init__(self, port: int) -> None:
        self.port = 0
        self._target = port
        self._near: list[trio.SocketStream] = []

    def end(self) -> None:
        near, self._near = self._near, []
        for stream in near:
            stream.socket.close()

    async def serve(self, near: trio.SocketStream) -> None:
        self._near.append(near)
        far = await trio.open_tcp_stream("127.0.0.1", self._target)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._pass, near, far)
            nursery.start_soon(self._pass, far, near)

    async def _pass(self, source: trio.SocketStream, sink: trio.SocketStream) -> None:
        with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            async for data in source:
                with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
                    await sink.send_all(data)


@asynccontextmanager
async def half_open(port: int) -> AsyncIterator[HalfOpen]:
    way = HalfOpen(port)
    async with trio.open_nursery() as nursery:
        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        way.port = listener.socket.getsockname()[1]
        nursery.start_soon(trio.serve_listeners, way.serve, [listener])
        yield way
        nursery.cancel_scope.cancel()


async def test_a_leader_gets_all_messages_in_order_despite_an_old_link_alive_to_the_server(
    server: NatsServer,
) -> None:
    async with connect(server.url) as client, half_open(server.port) as way:
        stream = JetStream(client)
        await stream.create_stream("SOURCE", ["in.*"])
        await stream.create_stream("SINK", ["out.*"])
        async with watched(settings(f"nats://127.0.0.1:{way.port}", routes=[ROUTE])) as watch:
            (route,) = watch.router.routes
            for number in range(COUNT):
                await stream.publish(f"in.{number % 5}", b"%d" % number)
                if number == 100:
                    await eventually(lambda: route.settled["routed"] > 50, 20)
                    way.end()
                    await watch.until("NATS_CONNECTION_LOST")
                await trio.sleep(0.005)
            await eventually(lambda: route.settled["routed"] >= COUNT, 20)
            numbers = [int(one.payload) for one in await stream.stream_messages("SINK")]
            assert sorted(numbers) == list(range(COUNT))
            for subject in range(5):
                mine = [number for number in numbers if number % 5 == subject]
                assert mine == sorted(mine)
