"""Real links, and the `Dialer` that opens them: one socket, and its wire, which carries the requests too."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import AsyncIterator, Collection, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace
from functools import cached_property, partial
from operator import attrgetter
from socket import gethostname
from typing import TYPE_CHECKING

import trio

from router_trio.errors import LinkError, SourceError, innermost, reasons
from router_trio.link import (
    ConsumerSpec,
    Deliver,
    Group,
    LeadState,
    Learn,
    LinkListener,
    Newest,
    Operation,
    PartitionedSpec,
    PartitionedStream,
    Refusal,
    SchedulesCount,
    SchedulesSpec,
    SharedDelivery,
    StreamState,
)
from router_trio.nats.handshake import Handshake
from router_trio.nats.info import ServerInfo, parse_info
from router_trio.nats.jetstream.api import API, Api, Denials
from router_trio.nats.jetstream.pubacks import PubAcks, StreamName
from router_trio.nats.requests import Requests
from router_trio.nats.subscriptions import WireSubscription
from router_trio.nats.transport import BeforeWrite, abandon, address, failed_attempt, open_stream, stream_for_wire
from router_trio.nats.websocket import WebSocketStream
from router_trio.nats.wire import READ_SIZE_WITH_CONSUMERS, Wire
from router_trio.protocol import framing
from router_trio.protocol.refusals import PUBLISH, REPLY, Denied
from router_trio.protocol.stream_config import StreamConfig
from router_trio.settings import ConnectionSettings

if TYPE_CHECKING:
    from router_trio.nats.jetstream.consumers import WirePullConsumer
    from router_trio.nats.jetstream.holds import Holds
    from router_trio.nats.jetstream.members import BucketMembers
    from router_trio.nats.jetstream.streams import Lookups

_frame = attrgetter("frame")

LISTEN_AGAIN_AFTER = 1.0
"""Seconds after the server denied the inbox until it is subscribed to again: the permission may have been granted."""


ABSENT_FOR = 1.0
"""Seconds for which a stream that a PubAck names, and that the server does not have, is not looked up again."""

MAX_ABSENT = 1024
"""Number of such streams that are remembered. Beyond that all are forgotten."""


class NatsLink:
    """A `link.Link` to a server. It is used inside the context that `Dialer` opens.

    Modules that send requests to the JetStream API are imported when they are needed, so that no core route waits for
    them.
    """

    def __init__(
        self,
        server: str,
        handshake: Handshake,
        settings: ConnectionSettings,
        inbox: bytes,
        listener: LinkListener,
        before_write: BeforeWrite | None = None,
    ) -> None:
        self._listener = listener
        self._inbox_denied: str | None = None
        self._listen_at = 0.0
        self._inboxes = 0
        self._inbox = inbox
        self._host = address(server).address
        self.info: ServerInfo = handshake.info
        self.max_payload: int = self.info.max_payload
        self.max_control_line: int = self.info.max_control_line
        self.ended = False
        stream = handshake.stream
        self.wire: Wire = Wire(
            stream.for_wire(before_write)
            if isinstance(stream, WebSocketStream)
            else stream_for_wire(stream, before_write),
            on_info=self._on_info,
            denied=self._was_denied,
            read_begins=listener.read_begins,
            read_done=listener.read_done,
            hide=handshake.secrets.hide,
        )
        self.wire.unread = handshake.rest
        self._subscriptions = self.wire.subscriptions
        self._denials = Denials()
        self.requests: Requests = Requests(self.wire, inbox + b"-api", self._too_large)
        self.api: Api = Api(self.requests, self._denials, settings.api, handshake.secrets.hide)
        self._unknown: deque[StreamName] = deque()
        self._domains: dict[str, str] = {}
        """The JetStream domains of streams that PubAcks have named, by name of the stream."""
        self._absent_until: dict[StreamName, float] = {}
        self._some_unknown = trio.Event()
        self._pubacks = PubAcks(listener, self._ask_about, handshake.secrets.hide)
        self._answers = self._subscriptions.add(inbox + b".*", self._pubacks.read)
        self._records: tuple[set[bytes], ...] = ()  # see `_own_answers`
        self._pins: set[str] = set()  # pins of leads taken on this link
        self._lifted: dict[tuple[str, str], Sequence[str]] = {}  # limits that were lifted of consumers not opened since

    @property
    def server(self) -> str:
        """The `host:port` of the server, without credentials."""
        return self._host

    @property
    def lame_duck(self) -> bool:
        """True if the latest INFO announces that the server will shut down."""
        return self.info.lame_duck

    @cached_property
    def _lookups(self) -> Lookups:
        from router_trio.nats.jetstream.streams import Lookups

        return Lookups(self.api)

    @cached_property
    def _holds(self) -> Holds:
        from router_trio.nats.jetstream.holds import Holds

        return Holds(self._inbox + b"-hold", self._subscriptions.add)

    @cached_property
    def _lookup_limit(self) -> trio.CapacityLimiter:
        from router_trio.nats.jetstream.unacked import AT_A_TIME

        return trio.CapacityLimiter(AT_A_TIME)

    # --- publishing ---

    async def send(self, operations: Sequence[Operation], *, fenced: bool = False) -> Sequence[Refusal]:
        if self._inbox_denied is not None and any(one.with_ack for one in operations):
            await self._listen_again()
        frames, refusals = self._frames(operations)
        await self.wire.send_now(frames, fenced=fenced and not operations[-1].with_ack)
        return refusals

    @property
    def can_send_at_once(self) -> bool:
        return self.wire.clear and self._inbox_denied is None

    def send_at_once(self, operations: Sequence[Operation], *, fenced: bool = False) -> Sequence[Refusal]:
        frames, refusals = self._frames(operations)
        if frames:
            self.wire.send_in_this_turn(frames, fenced=fenced and not operations[-1].with_ack)
        return refusals

    def _frames(self, operations: Sequence[Operation]) -> tuple[bytes, list[Refusal]]:
        """Return the bytes of the operations that can be written, and the refusals of the others."""
        refusals: list[Refusal] = []
        small = min(self.max_payload, self.max_control_line)
        if self._inbox_denied is not None:
            refusals = [
                Refusal(one, reasons.PERMISSION_DENIED, self._inbox_denied) for one in operations if one.with_ack
            ]
            operations = [one for one in operations if not one.with_ack]
        frames = [*map(_frame, operations)]
        # A frame is longer than what the server counts, so only one that looks too large is measured. Joined frames
        # were measured when they were accepted, on this link.
        if max(map(len, frames), default=0) > small:
            for index, (operation, frame) in enumerate(zip(operations, frames, strict=True)):
                too_large = self._too_large(frame) if len(frame) > small and operation.count == 1 else None
                if too_large is not None:
                    refusals.append(Refusal(operation, reasons.TOO_LARGE, too_large))
                    frames[index] = b""
        return b"".join(frames), refusals

    def _too_large(self, frame: bytes) -> str | None:
        """Return why the server would refuse a publish as too large; None if it would accept it."""
        if framing.published_size(frame) > self.max_payload:
            return f"more than the server's max_payload of {self.max_payload} bytes"
        if framing.line_size(frame) > self.max_control_line:
            return f"more than the server's max_control_line of {self.max_control_line} bytes"
        return None

    async def _listen_again(self) -> None:
        if trio.current_time() >= self._listen_at:
            self._inbox_denied = None
            self._subscriptions.remove(self._answers)
            self._answers = self._subscriptions.add(self._inbox + b".*", self._pubacks.read)
            await self.wire.fence()

    def _ask_about(self, stream: StreamName) -> None:
        self._unknown.append(stream)
        self._some_unknown.set()

    async def answer_pubacks(self) -> None:
        """Look up whether the streams that PubAcks name exist, for as long as the link lasts."""
        while True:
            while self._unknown:
                stream = self._unknown.popleft()
                try:
                    exists = self._listener.expects(stream[0]) or await self._may_exist(stream)
                    if exists and stream[1]:
                        self._domains[stream[0]] = stream[1]
                except SourceError:  # no lookup was possible
                    exists = True
                self._pubacks.found(stream, exists)
            self._some_unknown = trio.Event()
            await self._some_unknown.wait()

    async def _may_exist(self, stream: StreamName) -> bool:
        """Return False if the server reports that there is no such stream, or did a moment ago."""
        now = trio.current_time()
        if now < self._absent_until.get(stream, 0.0):
            return False
        exists = await self._lookups.may_exist(*stream)
        if not exists:
            if len(self._absent_until) >= MAX_ABSENT:
                self._absent_until.clear()
            self._absent_until[stream] = now + ABSENT_FOR
        return exists

    async def fence(self) -> None:
        await self.wire.fence()

    async def ping(self) -> None:
        await self.wire.ping()

    # --- receiving ---

    async def subscribe(
        self, subject: str, deliver: Deliver | SharedDelivery, *, queue: str | None = None
    ) -> WireSubscription:
        return await self._subscriptions.subscribe(subject, deliver, queue=queue)

    async def listen(self, subjects: Sequence[str], deliver: Deliver) -> Sequence[tuple[str, str]]:
        return await self._subscriptions.listen(subjects, deliver)

    def stop_listening(self, subjects: Sequence[str]) -> None:
        self._subscriptions.stop_listening(subjects)

    async def open_consumer(self, spec: ConsumerSpec, deliver: Deliver) -> WirePullConsumer:
        from router_trio.nats.jetstream.consumers import WirePullConsumer, ensure_consumer

        found = await ensure_consumer(self.api, spec, self.subscribe, self._own_answers)
        found = replace(found, lifted=self._lifted.pop((spec.stream, spec.durable), found.lifted))
        self.wire.read_size = READ_SIZE_WITH_CONSUMERS
        self._inboxes += 1
        inbox = b"%b-pull-%d" % (self._inbox, self._inboxes)
        subscription = await self.subscribe(framing.text(inbox), deliver)
        send, limit = self.wire.send, self._lookup_limit
        return WirePullConsumer(spec, found, inbox, self.api, self._lookups, send, subscription, limit, self._holds)

    async def take_the_lead(self, spec: ConsumerSpec, learn: Learn) -> str:
        from router_trio.nats.jetstream.consumers import ensure_consumer
        from router_trio.nats.jetstream.oldest import OldestMessage
        from router_trio.nats.jetstream.standby import check_version, learning, wait_for_pin

        check_version(self.info)
        found = await ensure_consumer(self.api, spec, self.subscribe, self._own_answers)
        if found.lifted:
            self._lifted[spec.stream, spec.durable] = found.lifted
        self._inboxes += 1
        inbox = b"%b-lead-%d" % (self._inbox, self._inboxes)
        asked = self.api.subject_of(f"CONSUMER.MSG.NEXT.{spec.stream}.{spec.durable}")
        renew = spec.pin not in self._pins
        with self._denials.raised(framing.wire(asked)):
            pin = await learning(
                partial(
                    wait_for_pin, self.api, self.wire.send, self.subscribe, inbox, spec, self._lookups, renew=renew
                ),
                self._lookups,
                spec,
                found,
                OldestMessage(self.api, spec, self._lookup_limit),
                partial(learn, found.stream_created),
                self.wire.send,
            )
            self._pins.discard(spec.pin or "")
            self._pins.add(pin)
            return pin
        raise AssertionError("unreachable: the block returns or raises")

    async def lead_state(self, stream: str, durable: str) -> LeadState:
        from router_trio.nats.jetstream.standby import lead_state

        return await lead_state(self._lookups, stream, durable)

    async def find_streams(self, subject: str) -> Sequence[str]:
        return await self._lookups.find_streams(subject)

    async def stream_state(self, name: str) -> StreamState | None:
        state = await self._lookups.stream_state(name, self._domains.get(name, ""))
        # A stream that another JetStream does not have may exist on this server's own.
        if state is not None or self.api.prefix == API:
            self._pubacks.found((name, ""), state is not None)
        return state

    async def newest(self, stream: str, subject: str) -> Newest | None:
        return await self._lookups.newest(stream, subject)

    async def ensure_stream(self, wanted: StreamConfig) -> tuple[StreamConfig, bool]:
        return await self._lookups.ensure_stream(wanted)

    async def ensure_partitioned(self, wanted: PartitionedSpec) -> PartitionedStream:
        from router_trio.nats.jetstream.sourced_stream import ensure_partitioned

        return await ensure_partitioned(self._lookups, wanted, self.info)

    async def members(self, group: Group) -> BucketMembers:
        from router_trio.nats.jetstream.members import members_of

        return await members_of(self.api, self._lookups, group, self.info)

    async def count_subjects(self, stream: str, pattern: str) -> int:
        return await self._lookups.count_subjects(stream, pattern)

    async def count_schedules(self, spec: SchedulesSpec) -> SchedulesCount:
        from router_trio.nats.jetstream.schedules import Schedules

        return await Schedules(self.api, self._lookups, spec).count()

    def ack(self, replies: Sequence[bytes]) -> Sequence[tuple[bytes, LinkError]]:
        if self.ended:
            return [(reply, _not_connected()) for reply in replies]
        if replies:
            for record in self._records:
                record.update(replies)
            self.wire.send(b"PUB " + b" 4\r\n+ACK\r\nPUB ".join(replies) + b" 4\r\n+ACK\r\n")
        return ()

    def nak(self, reply: bytes, delay: float) -> None:
        self._answer(reply, b'-NAK {"delay": %d}' % int(delay * 1e9))

    def term(self, reply: bytes, reason: str) -> None:
        self._answer(reply, b"+TERM " + reason.encode())

    def in_progress(self, reply: bytes) -> None:
        self._answer(reply, b"+WPI")

    def _answer(self, reply: bytes, body: bytes) -> None:
        self.respond(reply, body)
        for record in self._records:
            record.add(reply)

    def respond(self, reply: bytes, payload: bytes) -> None:
        if self.ended:
            raise _not_connected()
        self.wire.send(framing.publish(reply, payload))

    @contextmanager
    def _own_answers(self) -> Iterator[Collection[bytes]]:
        """Record the subjects of the acks, naks and in-progress signals sent on this link while this is entered."""
        record: set[bytes] = set()
        self._records += (record,)
        try:
            yield record
        finally:
            self._records = tuple(one for one in self._records if one is not record)

    # --- reports of the wire ---

    def _was_denied(self, denied: Denied | None, words: str) -> None:
        """Pass on a denial, with the server's `words`: to the request on this link that caused it, or the listener.

        `denied` is None if the words can't be parsed, so that it is unknown what was denied.
        """
        if denied is None:
            self._listener.something_denied(words)
        elif denied.kind == PUBLISH:
            # An ack may be sent as a request, too. The listener has to know that all acks are denied.
            if not self._denials.denied(denied.subject, words) or denied.subject.startswith(b"$JS.ACK."):
                self._listener.publish_denied(denied.subject, words)
        elif denied.kind == REPLY:
            self._listener.reply_denied(denied.subject, words)
        else:
            self._subscription_denied(denied, words)

    def _subscription_denied(self, denied: Denied, words: str) -> None:
        subject, queue = denied.subject, denied.queue or b""
        if subject == self._inbox + b".*":
            self._inbox_denied = (
                f"no PubAck can be received: {words}; allow this user to subscribe to {_prefix(self._inbox)}.>"
            )
            self._listen_at = trio.current_time() + LISTEN_AGAIN_AFTER
        elif subject == self.requests.answers:
            self.requests.deny_answers(f"{words}; allow this user to subscribe to {_prefix(self._inbox)}.>")
        elif self._subscriptions.was_denied(subject, queue, words):
            pass  # `subscribe` raises it
        elif self._subscriptions.subscribed(subject, queue, denied.sid):
            # Permissions were revoked. A link whose subscription ended silently would look alive for ever.
            raise LinkError(f"the server ended a subscription: {words}", reason=reasons.PERMISSION_DENIED)

    def _on_info(self, text: bytes) -> None:
        self.info = parse_info(text, self.info)
        self.max_payload = self.info.max_payload
        self.max_control_line = self.info.max_control_line
        self.announce()

    def announce(self) -> None:
        """Report to the listener what the latest INFO announces."""
        if self.info.connect_urls:
            self._listener.discovered(self.info.connect_urls)
        if self.info.lame_duck:
            self._listener.lame_duck()


def client_name(router: str, connection: str) -> str:
    """Return the client name shown in a server's reports: router, connection, and host and id of the process."""
    return f"{router} {connection} {gethostname()}:{os.getpid()}"


class Dialer:
    """Open links with the credentials of one connection: the `link.Connect` of the real network."""

    def __init__(self, settings: ConnectionSettings, name: str, before_write: BeforeWrite | None = None) -> None:
        """`name` is the client's name in reports of the server. `before_write` is called before bytes leave."""
        self._settings = settings
        self._name = name
        self._before_write = before_write
        self._files = trio.CapacityLimiter(1)

    @asynccontextmanager
    async def __call__(self, server: str, inbox: bytes, listener: LinkListener) -> AsyncIterator[NatsLink]:
        """Open a link, as `link.Connect` does, and run its tasks for as long as it is used."""
        handshake: Handshake | None = None
        link: NatsLink | None = None
        opened = False
        try:
            stream = await open_stream(server, self._settings.proxy)
            handshake = Handshake(stream, server, self._settings, self._name, self._files)
            await handshake.shake_hands()
            async with trio.open_nursery() as nursery:
                link = NatsLink(server, handshake, self._settings, inbox, listener, self._before_write)
                nursery.start_soon(link.wire.read)
                nursery.start_soon(link.wire.write)
                nursery.start_soon(link.answer_pubacks)
                await link.fence()
                link.announce()
                opened = True
                try:
                    yield link
                finally:
                    link.ended = True
                nursery.cancel_scope.cancel()
        except BaseException as error:
            bare = innermost(error, LinkError)
            if handshake is not None and isinstance(bare, LinkError):
                bare = handshake.secrets.hide_in(bare)
            if not opened:
                # The attempt failed, by any kind of error.
                bare = failed_attempt(server, bare)
            if bare is error:
                raise
            raise bare from bare.__cause__
        finally:
            if link is not None:
                link.requests.end()
            if handshake is not None:
                await abandon(handshake.stream)


def _prefix(inbox: bytes) -> str:
    """Return the connection's `inbox_prefix`."""
    return framing.text(inbox.rpartition(b".")[0])


def _not_connected() -> LinkError:
    return LinkError("not connected", reason=reasons.NOT_CONNECTED)
