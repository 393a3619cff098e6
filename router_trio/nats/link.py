"""A real link: one socket, one nats-py client, one asyncio loop, all gone when any of them fails."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import trio
from nats.aio.client import Client

from router_trio import protocol
from router_trio.errors import LinkError, SourceError, innermost
from router_trio.link import ConsumerSpec, Deliver, LinkListener, Refusal
from router_trio.nats import pubacks
from router_trio.nats.control import BorrowedTransport, client_died, open_client
from router_trio.nats.dial import abandon, address, open_stream
from router_trio.nats.jetstream import WirePullConsumer, ensure_consumer
from router_trio.nats.wire import Wire
from router_trio.pending import Operation
from router_trio.settings import ConnectionSettings


class Dialer:
    """Opens links with one connection's credentials: the `Connect` of the real network."""

    def __init__(self, settings: ConnectionSettings, name: str) -> None:
        self._settings = settings
        self._name = name

    @asynccontextmanager
    async def __call__(self, server: str, inbox: bytes, listener: LinkListener) -> AsyncIterator[NatsLink]:
        """See `link.Connect`."""
        stream = await open_stream(server)
        try:
            async with (
                open_client(stream, server, self._settings, self._name) as (client, transport),
                trio.open_nursery() as nursery,
            ):
                link = NatsLink(server, client, transport, inbox, listener)
                nursery.start_soon(link.wire.read)
                nursery.start_soon(link.wire.write)
                nursery.start_soon(client_died, client)
                await link.fence()
                try:
                    yield link
                finally:
                    link.ended = True
                nursery.cancel_scope.cancel()
        except BaseExceptionGroup as group:
            raise innermost(group, LinkError) from None
        finally:
            await abandon(stream)


class NatsLink:
    """See `link.Link`. Lives inside the context that `Dialer` opens."""

    def __init__(
        self, server: str, client: Client, transport: BorrowedTransport, inbox: bytes, listener: LinkListener
    ) -> None:
        self._client = client
        self._listener = listener
        self._asked: Counter[bytes] = Counter()
        self._denied: dict[bytes, list[str]] = {}
        self._deaf: str | None = None
        self._inboxes = 0
        self._inbox = inbox
        self._host = "{}:{}".format(*address(server))
        self.max_payload: int = client.max_payload
        self.ended = False
        self.wire = Wire(
            transport.stream, hand_on=transport.feed, informed=self._informed, denied=self._was_denied
        )
        self.wire.unread = transport.hand_over(self.wire.send, self.wire.expect_foreign_pong)
        self.wire.subscribe(inbox + b".*", self._answered)

    @property
    def server(self) -> str:
        """`host:port`, without credentials."""
        return self._host

    # --- publishing ---

    async def send(self, operations: Sequence[Operation]) -> Sequence[Refusal]:
        """See `link.Link.send`."""
        refusals: list[Refusal] = []
        limit = self.max_payload
        frames = []
        if self._deaf is not None:
            refusals = [Refusal(one, "permission_denied", self._deaf) for one in operations if one.with_ack]
            operations = [one for one in operations if not one.with_ack]
        for operation in operations:
            frame = operation.frame
            # A frame is longer than what the server counts: only one that looks too large is measured.
            if len(frame) > limit and protocol.published_size(frame) > limit:
                refusals.append(Refusal(operation, "too_large", f"more than the server's max_payload of {limit} bytes"))
            else:
                frames.append(frame)
        self.wire.send(b"".join(frames))
        await self.wire.flushed()
        return refusals

    async def fence(self) -> None:
        """See `link.Link.fence`."""
        await self.wire.fence()

    # --- receiving ---

    async def subscribe(self, subject: str, deliver: Deliver, *, queue: str | None = None) -> _Subscription:
        """See `link.Link.subscribe`."""
        raw = protocol.wire(subject)
        sid = self.wire.subscribe(raw, deliver, protocol.wire(queue or ""))
        self._asked[raw] += 1
        try:
            await self.wire.fence()
        except BaseException:
            self.wire.unsubscribe(sid)
            raise
        finally:
            self._asked[raw] -= 1
            denied = self._denied.get(raw)
        if denied:
            told = denied.pop()
            self.wire.unsubscribe(sid)
            raise SourceError(
                f"the server refused the subscription to {subject!r}: {told}; give this user the permission",
                reason="permission_denied",
            )
        return _Subscription(self.wire, sid)

    async def open_consumer(self, spec: ConsumerSpec, deliver: Deliver) -> WirePullConsumer:
        """See `link.Link.open_consumer`."""
        found = await ensure_consumer(self._client, spec)
        self._inboxes += 1
        inbox = b"%b-pull-%d" % (self._inbox, self._inboxes)
        subscription = await self.subscribe(protocol.text(inbox), deliver)
        return WirePullConsumer(spec, found, inbox, self.wire.send, subscription)

    def ack(self, reply: bytes) -> None:
        """See `link.Link.ack`."""
        self._answer(reply, b"+ACK")

    def nak(self, reply: bytes, delay: float) -> None:
        """See `link.Link.nak`."""
        self._answer(reply, b'-NAK {"delay": %d}' % int(delay * 1e9))

    def in_progress(self, reply: bytes) -> None:
        """See `link.Link.in_progress`."""
        self._answer(reply, b"+WPI")

    def _answer(self, reply: bytes, body: bytes) -> None:
        if self.ended:
            raise LinkError("not connected", reason="not_connected")
        self.wire.send(b"PUB %b %d\r\n%b\r\n" % (reply, len(body), body))

    # --- what the wire tells ---

    def _answered(self, batch: list[protocol.RawMessage]) -> None:
        for raw in batch:
            pubacks.read(raw, self._listener)

    def _was_denied(self, kind: bytes, subject: bytes, told: str) -> None:
        if kind == b"publish":
            self._listener.publish_denied(subject, told)
        elif subject == self._inbox + b".*":
            self._deaf = f"no PubAck can be received: {told}; let this user subscribe to _INBOX.>"
        elif self._asked[subject]:
            self._denied.setdefault(subject, []).append(told)
        elif subject in self._subscribed:
            # Permissions were taken away. A link whose subscription is silently gone would look alive for ever.
            raise LinkError(f"the server ended a subscription: {told}", reason="permission_denied")

    def _informed(self, text: bytes) -> None:
        try:
            info = json.loads(text)
        except ValueError as error:
            raise LinkError("the server sent an INFO that is no JSON", reason="protocol") from error
        self.max_payload = int(info.get("max_payload", self.max_payload))
        servers = info.get("connect_urls")
        if servers:
            self._listener.discovered([str(server) for server in servers])
        if info.get("ldm"):
            self._listener.lame_duck()


class _Subscription:
    def __init__(self, wire: Wire, sid: bytes) -> None:
        self._wire = wire
        self._sid = sid

    def close(self) -> None:
        """See `link.Subscription.close`."""
        self._wire.unsubscribe(self._sid)

    async def drain(self) -> None:
        """See `link.Subscription.drain`."""
        await self._wire.drain(self._sid)
