"""Two worlds that a link can live in, the fake broker and a real nats-server, seen through the same few methods.

In both, the router's user may not publish to `denied.>`, subscribe to `secret.>` or look up the stream `SECRET`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any, Protocol

import trio

from router_trio.link import Connect, Link
from router_trio.message import PubAck
from router_trio.nats.link import Dialer
from router_trio.outbox.operation import CoreOperation, Operation, OperationWithAck
from router_trio.protocol.framing import RawMessage, publish
from router_trio.settings import ConnectionSettings
from router_trio.testing import FakeBroker
from tests.support.raw_jetstream import JetStream
from tests.support.raw_nats import RawClient, connect
from tests.support.servers import NatsServer, nats_server

PASSWORD = "s3cret"
WRONG_PASSWORD = "gu3ssed"
INBOX = b"_INBOX.contract"
WITHIN = 5.0

_USERS = f"""
authorization {{ users: [
  {{ user: router, password: "{PASSWORD}",
     permissions: {{ publish: {{ deny: ["denied.>", "$JS.API.STREAM.INFO.SECRET"] }}
                     subscribe: {{ deny: ["secret.>"] }} }} }}
  {{ user: other, password: other }}
] }}
"""


class World(Protocol):
    """What a test can do besides using the link."""

    server: str

    @property
    def connect(self) -> Connect:
        """How links are opened."""

    async def refuse_credentials(self) -> None:
        """From now on `connect` meets a server that doesn't know the user."""

    async def publish(self, subject: str, payload: bytes = b"") -> None:
        """Publish as another client."""

    async def add_stream(self, name: str, subjects: Sequence[str], *, max_messages: int | None = None) -> None:
        """Create a stream; at its limit it refuses."""

    async def payloads(self, stream: str) -> list[bytes]:
        """What a stream holds."""

    async def delete_consumer(self, stream: str, durable: str) -> None:
        """Delete a durable consumer."""

    async def edit_consumer(
        self, stream: str, durable: str, *, ack_wait: float | None = None, headers_only: bool = False
    ) -> None:
        """Change a durable consumer, as an administrator would."""

    async def pause_consumer(self, stream: str, durable: str, seconds: float) -> None:
        """A durable consumer delivers nothing for so long."""

    async def delete_stream(self, name: str) -> None:
        """Delete a stream."""

    async def edit_stream(self, name: str, *subjects: str, sealed: bool = False) -> None:
        """Have a stream take these subjects, or seal it."""

    async def lame_duck(self) -> None:
        """The server announces that it will shut down."""

    async def die(self) -> None:
        """The server is gone."""


class FakeWorld:
    """A `World` in memory."""

    server = f"nats://router:{PASSWORD}@fake:4222"

    def __init__(self) -> None:
        self.broker = FakeBroker()
        self.broker.deny_publish("denied.>")
        self.broker.deny_publish("$JS.API.STREAM.INFO.SECRET")
        self.broker.deny_subscribe("secret.>")

    @property
    def connect(self) -> Connect:
        return self.broker.connect

    async def refuse_credentials(self) -> None:
        self.broker.refuse_credentials()

    async def publish(self, subject: str, payload: bytes = b"") -> None:
        self.broker.publish(subject, payload)

    async def add_stream(self, name: str, subjects: Sequence[str], *, max_messages: int | None = None) -> None:
        self.broker.add_stream(name, subjects, max_messages=max_messages)

    async def payloads(self, stream: str) -> list[bytes]:
        return [message.payload for message in self.broker.messages(stream)]

    async def delete_consumer(self, stream: str, durable: str) -> None:
        self.broker.delete_consumer(stream, durable)

    async def edit_consumer(
        self, stream: str, durable: str, *, ack_wait: float | None = None, headers_only: bool = False
    ) -> None:
        changes = {} if ack_wait is None else {"ack_wait": ack_wait}
        self.broker.trouble.edit_consumer(stream, durable, headers_only=headers_only, **changes)

    async def pause_consumer(self, stream: str, durable: str, seconds: float) -> None:
        self.broker.trouble.pause_consumer(stream, durable, seconds)

    async def delete_stream(self, name: str) -> None:
        self.broker.delete_stream(name)

    async def edit_stream(self, name: str, *subjects: str, sealed: bool = False) -> None:
        if sealed:
            self.broker.trouble.seal(name)
        else:
            self.broker.trouble.edit_subjects(name, *subjects)

    async def lame_duck(self) -> None:
        self.broker.lame_duck()

    async def die(self) -> None:
        self.broker.down()


class RealWorld:
    """A `World` around a nats-server."""

    def __init__(self, process: NatsServer, client: RawClient) -> None:
        self.server = process.url
        self._process = process
        self._client = client
        self._jetstream = JetStream(client)
        self._password = PASSWORD

    @property
    def connect(self) -> Connect:
        settings = ConnectionSettings(servers=[self.server], user="router", password=self._password)
        return Dialer(settings, "main")

    async def refuse_credentials(self) -> None:
        self._password = WRONG_PASSWORD

    async def publish(self, subject: str, payload: bytes = b"") -> None:
        await self._client.publish(subject, payload)
        await self._client.ping()

    async def add_stream(self, name: str, subjects: Sequence[str], *, max_messages: int | None = None) -> None:
        config: dict[str, Any] = {} if max_messages is None else {"max_msgs": max_messages, "discard": "new"}
        await self._jetstream.create_stream(name, subjects, **config)

    async def payloads(self, stream: str) -> list[bytes]:
        return [message.payload for message in await self._jetstream.stream_messages(stream)]

    async def delete_consumer(self, stream: str, durable: str) -> None:
        await self._jetstream.delete_consumer(stream, durable)

    async def edit_consumer(
        self, stream: str, durable: str, *, ack_wait: float | None = None, headers_only: bool = False
    ) -> None:
        changes: dict[str, Any] = {} if ack_wait is None else {"ack_wait": round(ack_wait * 1e9)}
        await self._jetstream.edit_consumer(stream, durable, headers_only=headers_only, **changes)

    async def pause_consumer(self, stream: str, durable: str, seconds: float) -> None:
        await self._jetstream.pause_consumer(stream, durable, seconds)

    async def delete_stream(self, name: str) -> None:
        await self._jetstream.delete_stream(name)

    async def edit_stream(self, name: str, *subjects: str, sealed: bool = False) -> None:
        changes: dict[str, Any] = {"sealed": True} if sealed else {"subjects": list(subjects)}
        await self._jetstream.edit_stream(name, **changes)

    async def lame_duck(self) -> None:
        self._process.lame_duck()

    async def die(self) -> None:
        await self._process.kill()


@asynccontextmanager
async def open_world(kind: str, tmp_path: Path) -> AsyncIterator[World]:
    """The world of that kind, `fake` or `real`."""
    if kind == "fake":
        yield FakeWorld()
        return
    async with (
        nats_server(tmp_path, config=_USERS) as process,
        connect(process.url, user="other", password="other") as client,
    ):
        yield RealWorld(process, client)


class Recorder:
    """A `LinkListener`, and a `Deliver`: writes down what it is told, and lets a test wait for it."""

    def __init__(self) -> None:
        self.batches: list[list[RawMessage]] = []
        self.acks: dict[int, tuple[str | None, int | None, bool]] = {}
        self.refusals: dict[int, tuple[str, bool]] = {}
        self.denied: list[tuple[bytes, str]] = []
        self.events: list[str] = []
        self.lame_ducks = 0
        self.servers: list[str] = []
        self._told = trio.Event()

    def __call__(self, batch: list[RawMessage]) -> None:
        self.batches.append(batch.copy())
        self.events.append("delivered")
        self._tell()

    @property
    def messages(self) -> list[RawMessage]:
        """All that was delivered, in order."""
        return [raw for batch in self.batches for raw in batch]

    def acked(self, pubacks: Sequence[PubAck]) -> None:
        self.acks |= {order: (fate.stream, fate.sequence, fate.duplicate) for order, fate in pubacks}
        self._tell()

    def ack_refused(self, order: int, reason: str, detail: str, retriable: bool) -> None:
        self.refusals[order] = (reason, retriable)
        self._tell()

    def publish_denied(self, subject: bytes, detail: str) -> None:
        self.denied.append((subject, detail))
        self._tell()

    def read_done(self) -> None:
        self.events.append("handed out")
        self._tell()

    def lame_duck(self) -> None:
        self.lame_ducks += 1
        self._tell()

    def discovered(self, servers: Sequence[str]) -> None:
        self.servers = list(servers)
        self._tell()

    async def until(self, condition: Callable[[Recorder], object], *, within: float = WITHIN) -> None:
        """Returns when it is true of this recorder. Raises `trio.TooSlowError` after `within` seconds."""
        with trio.fail_after(within):
            while not condition(self):
                await self._told.wait()

    async def until_delivered(self, count: int, *, within: float = WITHIN) -> list[RawMessage]:
        """All messages, as soon as there are that many. See `until`."""
        await self.until(lambda recorder: len(recorder.messages) >= count, within=within)
        return self.messages

    def _tell(self) -> None:
        self._told.set()
        self._told = trio.Event()


def link_of(world: World, listener: Recorder | None = None) -> AbstractAsyncContextManager[Link]:
    """A link that one test uses."""
    return world.connect(world.server, INBOX, listener or Recorder())


def operation(order: int, subject: bytes, payload: bytes = b"", *, headers: bytes = b"") -> CoreOperation:
    """A core publish."""
    frame = publish(subject, payload, headers=headers)
    return CoreOperation(order, frame, owner=None, accepted_at=0.0, clean=True)


def operation_with_ack(order: int, subject: bytes, payload: bytes = b"", *, headers: bytes = b"") -> Operation:
    """A JetStream publish, whose PubAck is expected at the link's inbox."""
    frame = publish(subject, payload, reply=b"%b.%d" % (INBOX, order), headers=headers)
    return OperationWithAck(order, frame, owner=None, accepted_at=0.0, clean=True)
