"""Servers and a router, for tests of its readiness."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import trio

from router_trio import Live, Router, Settings
from router_trio.embedded import HOST
from router_trio.routing.handlers.calls import Handler
from tests.support.eventually import eventually
from tests.support.raw_jetstream import JetStream, JetStreamError
from tests.support.raw_nats import RawClient, connect
from tests.support.servers import NatsServer, nats_server
from tests.support.watch import Watch

WITHIN = 10.0

_numbers = count(1)


def users(*, deny: Sequence[str] = (), deaf: Sequence[str] = ()) -> str:
    """Return the configuration of a server whose user `router` may not publish to some subjects, nor subscribe to
    others.
    """
    publish, subscribe = json.dumps({"deny": list(deny)}), json.dumps({"deny": list(deaf)})
    return f"""
authorization {{ users: [
  {{ user: router, password: "secret", permissions: {{ publish: {publish}, subscribe: {subscribe} }} }}
  {{ user: other, password: "other" }}
] }}
"""


@dataclass
class Place:
    """A server, the router between its streams, and another client."""

    server: NatsServer
    settings: Settings
    live: Live
    client: RawClient
    heard: list[bytes]
    watch: Watch
    answer: tuple[int, list[dict[str, str]]] = (0, [])
    """The number of the last probe."""

    @property
    def streams(self) -> JetStream:
        return JetStream(self.client)

    async def readyz(self) -> tuple[int, list[dict[str, str]]]:
        """Return the answer that a probe of Kubernetes gets."""
        assert self.live.http_address is not None
        async with await trio.open_tcp_stream(*self.live.http_address) as stream:
            await stream.send_all(b"GET /readyz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            answer = b"".join([part async for part in stream])
        head, _, body = answer.partition(b"\r\n\r\n")
        return int(head.split()[1]), json.loads(body)["reasons"]

    async def until_unready(self, reason: str, within: float = WITHIN) -> None:
        async def unready() -> bool:
            self.answer = code, reasons = await self.readyz()
            return code == 503 and any(reason in one["reason"] for one in reasons)

        await eventually(unready, within, lambda: self.answer)

    async def until_ready(self) -> None:
        async def ready() -> bool:
            self.answer = await self.readyz()
            return self.answer[0] == 200

        await eventually(ready, WITHIN, lambda: self.answer)

    async def probe(self, within: float = WITHIN, subject: str = "in.x") -> bool:
        """Send a message to the route's source. Return whether it arrives."""
        payload = b"probe %d" % next(_numbers)
        await self.client.publish(subject, payload)
        with trio.move_on_after(within):
            while payload not in self.heard and payload not in await self.stored():
                await trio.sleep(0.02)
            return True
        return False

    async def stored(self) -> list[bytes]:
        with suppress(Exception):  # the stream itself may be missing
            return [message.payload for message in await self.streams.stream_messages("OUT")]
        return []


@asynccontextmanager
async def place(
    tmp_path: Path,
    *routes: dict[str, Any],
    config: str | None = None,
    jetstream: bool = True,
    out: bool = True,
    handler: Handler | None = None,
    made: Sequence[dict[str, Any]] = (),
    positions: Sequence[dict[str, Any]] = (),
    before: Callable[[JetStream], Awaitable[Any]] | None = None,
) -> AsyncIterator[Place]:
    """Yield a router and its server, with the streams `IN` of `in.*` (for routes that read it) and `OUT` of `out.*`.

    The router creates the streams of `made`. `before` is called before it starts.
    """
    async with (
        nats_server(tmp_path, config=users() if config is None else config, jetstream=jetstream) as server,
        connect(server.url, user="other", password="other") as client,
    ):
        streams = JetStream(client)
        if any("stream" in route["from"] for route in routes):
            await streams.create_stream("IN", ["in.*"])
        if jetstream and out:
            await streams.create_stream("OUT", ["out.*"])
        if before is not None:
            await before(streams)
        quick = {"reconnect_delay": "50ms", "max_reconnect_delay": "300ms", "liveness_interval": "1s"}
        url = f"nats://router:secret@{HOST}:{server.port}"
        settings = Settings(
            router={"shutdown_timeout": "1s"},
            telemetry={"listen": f"{HOST}:0"},
            connections={"main": {"servers": [url], **quick}},
            routes=list(routes),
            streams=list(made),
            positions=list(positions),
        )
        watch = Watch()
        heard: list[bytes] = []
        subscription = await client.subscribe("heard.>")
        router = Router(settings, observers=[watch])
        router._handlers |= {route["name"]: handler for route in routes if handler is not None}
        async with router.open() as live, trio.open_nursery() as nursery:
            watch.live = live

            async def listen() -> None:
                while True:
                    heard.append((await subscription.next(3600)).payload)

            nursery.start_soon(listen)
            yield Place(server, settings, live, client, heard, watch)
            nursery.cancel_scope.cancel()


async def create_billing(streams: JetStream, subject: str = "in.x") -> None:
    """Create the consumer `billing` of the stream `IN`, which has acked a message with this subject."""
    await streams.create_consumer("IN", "billing", ack_policy="explicit", filter_subject=subject)
    await streams.publish(subject, b"billed")
    hand = await streams.client.subscribe("billing")
    await streams.client.publish("$JS.API.CONSUMER.MSG.NEXT.IN.billing", b'{"batch": 1}', None, "billing")
    reply = (await hand.next()).reply
    assert reply is not None
    await streams.client.request(reply, b"+ACK")


async def checkpoints_in(streams: JetStream) -> int:
    """Return the number of checkpoints in the bucket of `[[positions]]`, 0 if there is no bucket."""
    try:
        return int((await streams.stream_info("KV_router-positions"))["state"]["messages"])
    except JetStreamError:
        return 0


def refused(server: NatsServer, user: str) -> set[str]:
    """Return the subjects that the server refused to a user."""
    what = "(?:Publish|Subscription) Violation"
    # The second form is that of servers before 2.12.
    pattern = rf'(?:user:{user}" - {what} - |{what} - User "{user}", )Subject "([^"]+)"'
    return set(re.findall(pattern, (server.directory / "nats-server.log").read_text()))


Step = Callable[[Place], Awaitable[Any]]


def deny(*subjects: str) -> Step:
    return lambda at: at.server.reload(users(deny=subjects))
