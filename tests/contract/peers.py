"""Two peers that a link can have, the fake broker and a real nats-server, behind the same few methods.

The real one is reached by TCP, or by WebSocket with TLS or without.

In both, the router's user may not publish to `denied.>`, subscribe to `secret.>`, look up the stream `SECRET` or make
a stream called `FORBIDDEN`.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, ExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, Protocol

import trio

from router_trio.embedded import HOST, reserve_port
from router_trio.link import Connect, Link
from router_trio.nats.link import Dialer
from router_trio.settings import ConnectionSettings
from router_trio.testing import FakeBroker
from tests.support.certificates import create_certificates
from tests.support.raw_jetstream import JetStream
from tests.support.raw_nats import RawClient, connect
from tests.support.recorder import INBOX, Recorder
from tests.support.servers import NatsServer, nats_server
from tests.support.websockets import websocket_config

PASSWORD = "s3cret"
WRONG_PASSWORD = "gu3ssed"

BUCKET = "KV_router-trio-members"
"""The stream of the bucket in which the members of partitioned routes announce themselves."""

DENIED = ("denied.>", "$JS.API.STREAM.INFO.SECRET", "$JS.API.STREAM.CREATE.FORBIDDEN")


def _users(*denied: str) -> str:
    return f"""
authorization {{ users: [
  {{ user: router, password: "{PASSWORD}",
     permissions: {{ publish: {{ deny: {json.dumps([*DENIED, *denied])} }}
                     subscribe: {{ deny: ["secret.>"] }} }} }}
  {{ user: other, password: other }}
] }}
"""


class Peer(Protocol):
    """The other end of a link, and what a test can do to it besides using the link."""

    server: str

    @property
    def connect(self) -> Connect:
        """Return how links are opened."""

    async def refuse_credentials(self) -> None:
        """Have `connect` find a server that doesn't know the user, from now on."""

    async def publish(
        self, subject: str, payload: bytes = b"", headers: dict[str, str] | None = None, *, reply: str = ""
    ) -> None:
        """Publish as another client."""

    async def add_stream(
        self, name: str, subjects: Sequence[str], *, max_messages: int | None = None, persist_async: bool = False
    ) -> None:
        """Create a stream that refuses messages at its limit. With `persist_async` it confirms before it writes."""

    async def payloads(self, stream: str) -> list[bytes]:
        """Return the payloads that a stream holds."""

    async def delete_consumer(self, stream: str, durable: str) -> None:
        """Delete a durable consumer."""

    async def edit_consumer(
        self,
        stream: str,
        durable: str,
        *,
        ack_wait: float | None = None,
        max_deliver: int | None = None,
        headers_only: bool = False,
    ) -> None:
        """Change a durable consumer, as an administrator would."""

    async def pause_consumer(self, stream: str, durable: str, seconds: float) -> None:
        """Pause a durable consumer for `seconds`."""

    async def delete_stream(self, name: str) -> None:
        """Delete a stream."""

    async def edit_stream(self, name: str, *subjects: str, sealed: bool = False) -> None:
        """Have a stream take these subjects, or seal it."""

    async def delete_schedule(self, stream: str, subject: str) -> None:
        """Delete the schedule on a subject of a stream, as an administrator would."""

    async def save(self, stream: str) -> None:
        """Keep a stream as it is now, for `roll_back`. Ends all links."""

    async def roll_back(self, stream: str) -> None:
        """Let a stream lose what it has stored since `save`. Ends all links."""

    async def lame_duck(self) -> None:
        """Announce that the server will shut down."""

    async def deny_publish(self, *subjects: str) -> None:
        """Deny the router's user these subjects too, from now on and until this is called again."""

    async def die(self) -> None:
        """Kill the server."""


class FakePeer:
    """A `Peer` in memory."""

    server = f"nats://router:{PASSWORD}@fake:4222"

    def __init__(self) -> None:
        self.broker = FakeBroker()
        for subject in DENIED:
            self.broker.deny_publish(subject)
        self._denied: Sequence[str] = ()
        self.broker.deny_subscribe("secret.>")
        self._saved: dict[str, int] = {}

    @property
    def connect(self) -> Connect:
        return self.broker.connect

    async def refuse_credentials(self) -> None:
        self.broker.refuse_credentials()

    async def publish(
        self, subject: str, payload: bytes = b"", headers: dict[str, str] | None = None, *, reply: str = ""
    ) -> None:
        self.broker.publish(subject, payload, headers, reply=reply)

    async def add_stream(
        self, name: str, subjects: Sequence[str], *, max_messages: int | None = None, persist_async: bool = False
    ) -> None:
        self.broker.add_stream(name, subjects, max_messages=max_messages)
        self.broker.trouble.persist_async(name, persist_async)

    async def payloads(self, stream: str) -> list[bytes]:
        return [message.payload for message in self.broker.messages(stream)]

    async def delete_consumer(self, stream: str, durable: str) -> None:
        self.broker.delete_consumer(stream, durable)

    async def edit_consumer(
        self,
        stream: str,
        durable: str,
        *,
        ack_wait: float | None = None,
        max_deliver: int | None = None,
        headers_only: bool = False,
    ) -> None:
        changes = {} if ack_wait is None else {"ack_wait": ack_wait}
        changes |= {} if max_deliver is None else {"max_deliver": max_deliver}
        self.broker.trouble.edit_consumer(stream, durable, headers_only=headers_only, **changes)

    async def pause_consumer(self, stream: str, durable: str, seconds: float) -> None:
        self.broker.trouble.pause_consumer(stream, durable, seconds)

    async def delete_stream(self, name: str) -> None:
        if name == BUCKET:
            self.broker.trouble.delete_bucket()
        else:
            self.broker.delete_stream(name)

    async def edit_stream(self, name: str, *subjects: str, sealed: bool = False) -> None:
        if sealed:
            self.broker.trouble.seal(name)
        else:
            self.broker.trouble.edit_subjects(name, *subjects)

    async def delete_schedule(self, stream: str, subject: str) -> None:
        self.broker.trouble.delete_schedule(stream, subject)

    async def save(self, stream: str) -> None:
        self._saved[stream] = len(self.broker.messages(stream))
        self.broker.cut()

    async def roll_back(self, stream: str) -> None:
        self.broker.trouble.restore(stream, self._saved[stream])
        self.broker.cut()

    async def lame_duck(self) -> None:
        self.broker.lame_duck()

    async def deny_publish(self, *subjects: str) -> None:
        for subject in self._denied:
            self.broker.allow_publish(subject)
        self._denied = subjects
        for subject in subjects:
            self.broker.deny_publish(subject)

    async def die(self) -> None:
        self.broker.down()


class RealPeer:
    """A `Peer` around a nats-server. `listeners` is the configuration of its listeners for other transports."""

    def __init__(
        self,
        process: NatsServer,
        client: RawClient,
        nursery: trio.Nursery,
        server: str,
        ca: Path | None = None,
        listeners: str = "",
    ) -> None:
        """Clients that follow `client` after a restart run in the `nursery`."""
        self.server = server
        self._nursery = nursery
        self._ca = ca
        self._listeners = listeners
        self._process = process
        self._client = client
        self._jetstream = JetStream(client)
        self._password = PASSWORD

    @property
    def connect(self) -> Connect:
        settings = ConnectionSettings(
            servers=[self.server], user="router", password=self._password, tls_ca_file=self._ca
        )
        return Dialer(settings, "main")

    async def refuse_credentials(self) -> None:
        self._password = WRONG_PASSWORD

    async def publish(
        self, subject: str, payload: bytes = b"", headers: dict[str, str] | None = None, *, reply: str = ""
    ) -> None:
        await self._client.publish(subject, payload, [*headers.items()] if headers else None, reply)
        await self._client.ping()

    async def add_stream(
        self, name: str, subjects: Sequence[str], *, max_messages: int | None = None, persist_async: bool = False
    ) -> None:
        config: dict[str, Any] = {} if max_messages is None else {"max_msgs": max_messages, "discard": "new"}
        if persist_async:
            config["persist_mode"] = "async"
        await self._jetstream.create_stream(name, subjects, **config)

    async def payloads(self, stream: str) -> list[bytes]:
        return [message.payload for message in await self._jetstream.stream_messages(stream)]

    async def delete_consumer(self, stream: str, durable: str) -> None:
        await self._jetstream.delete_consumer(stream, durable)

    async def edit_consumer(
        self,
        stream: str,
        durable: str,
        *,
        ack_wait: float | None = None,
        max_deliver: int | None = None,
        headers_only: bool = False,
    ) -> None:
        changes: dict[str, Any] = {} if ack_wait is None else {"ack_wait": round(ack_wait * 1e9)}
        changes |= {} if max_deliver is None else {"max_deliver": max_deliver}
        await self._jetstream.edit_consumer(stream, durable, headers_only=headers_only, **changes)

    async def pause_consumer(self, stream: str, durable: str, seconds: float) -> None:
        await self._jetstream.pause_consumer(stream, durable, seconds)

    async def delete_stream(self, name: str) -> None:
        await self._jetstream.delete_stream(name)

    async def edit_stream(self, name: str, *subjects: str, sealed: bool = False) -> None:
        changes: dict[str, Any] = {"sealed": True} if sealed else {"subjects": list(subjects)}
        await self._jetstream.edit_stream(name, **changes)

    async def delete_schedule(self, stream: str, subject: str) -> None:
        await self._jetstream.api(f"STREAM.PURGE.{stream}", {"filter": subject})

    async def save(self, stream: str) -> None:
        await self._process.terminate()
        shutil.copytree(self._directory(stream), self._saved(stream))
        await self._restart()

    async def roll_back(self, stream: str) -> None:
        await self._process.terminate()
        directory = self._directory(stream)
        shutil.rmtree(directory)
        shutil.copytree(self._saved(stream), directory)
        await self._restart()

    def _directory(self, stream: str) -> Path:
        return next(one for one in self._process.directory.rglob(stream) if one.parent.name == "streams")

    def _saved(self, stream: str) -> Path:
        return self._process.directory.parent / f"saved {stream}"

    async def _restart(self) -> None:
        await self._process.restart()
        self._client = await self._nursery.start(_another_client, self._process)
        self._jetstream = JetStream(self._client)

    async def lame_duck(self) -> None:
        self._process.lame_duck()

    async def deny_publish(self, *subjects: str) -> None:
        await self._process.reload(_users(*subjects) + self._listeners)

    async def die(self) -> None:
        await self._process.kill()


@asynccontextmanager
async def open_peer(kind: str, tmp_path: Path) -> AsyncIterator[Peer]:
    """Yield a peer of that kind: `fake`, `real`, or a real one by `ws` or `wss`."""
    if kind == "fake":
        yield FakePeer()
        return
    ca, listeners, server = None, "", ""
    with ExitStack() as stack:
        if kind != "real":
            port = stack.enter_context(reserve_port())
            certificates = create_certificates(tmp_path / "certificates") if kind == "wss" else None
            ca = None if certificates is None else certificates.ca
            listeners, server = websocket_config(port, certificates), f"{kind}://{HOST}:{port}"
        async with (
            nats_server(tmp_path, config=_users() + listeners) as process,
            trio.open_nursery() as nursery,
        ):
            client = await nursery.start(_another_client, process)
            yield RealPeer(process, client, nursery, server or process.url, ca, listeners)
            nursery.cancel_scope.cancel()


async def _another_client(process: NatsServer, task_status: trio.TaskStatus[RawClient]) -> None:
    async with connect(process.url, user="other", password="other") as client:
        task_status.started(client)
        await trio.sleep_forever()


def link_of(peer: Peer, listener: Recorder | None = None) -> AbstractAsyncContextManager[Link]:
    """Return a link for one test."""
    return peer.connect(peer.server, INBOX, listener or Recorder())
