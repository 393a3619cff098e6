"""Routes for messages whose senders try to interfere."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from router_trio import Message, Router
from tests.support.raw_jetstream import JetStream, StoredMessage
from tests.support.raw_nats import RawClient, connect
from tests.support.servers import NatsServer
from tests.support.settings import failing_of, settings
from tests.support.watch import Watch, until_stored


def same(message: Message) -> Message:
    """Change nothing that a stream would look at."""
    return message.replace(payload=message.payload + b"!", headers=message.headers.set("Seen", "1"))


def router(url: str, kind: str, watch: Watch, *, to: dict[str, Any] | None = None, **source: Any) -> Router:
    """Return a router with one route of this kind, from `in.*` to the stream `SINK`."""
    destination: Any = {"subject": "sink.{{wildcard(1)}}", "jetstream": True} | (to or {})
    failing = failing_of(source)
    if kind in ("stream", "handler of a stream"):
        origin = {"stream": "SOURCE", "durable": "router", "filter": "in.*"} | source
    else:
        origin = {"subject": "in.*"} | source
    if kind.startswith("handler"):
        made = Router(settings(url), observers=[watch])
        subject = origin.pop("subject", None)
        made.route(subject, to=destination, name="route", **failing, **origin)(same)
        return made
    routes = [{"name": "route", "from": origin, "to": [destination], **failing}]
    return Router(settings(url, routes=routes), observers=[watch])


@asynccontextmanager
async def streams(server: NatsServer, kind: str, **sink: Any) -> AsyncIterator[tuple[RawClient, JetStream]]:
    """Yield a client, the stream `SINK` with messages of others in it, and `SOURCE` if the kind of route needs one."""
    async with connect(server.url) as client:
        stream = JetStream(client)
        if "stream" in kind:
            await stream.create_stream("SOURCE", ["in.*"], **sink)
        await stream.create_stream("SINK", ["sink.>"], **sink)
        await stream.publish_many([("sink.others", b"%d" % number, None) for number in range(3)])
        yield client, stream


async def sunk(stream: JetStream, count: int) -> list[StoredMessage]:
    await until_stored(stream, "SINK", count, within=20)
    return await stream.stream_messages("SINK")
