"""The port: what a live connection to a server can do, whoever provides it.

The tasks above see only this. Real links are in `nats/`; the fake broker in `testing` and the fault injection are
links too. A link is born connected and dies once: when it dies, the `async with` that opened it is cancelled and
raises `LinkError`. Nothing on a link is ever retried by the link.

Messages cross this port in batches, as raw tuples (`framing.RawMessage`), never one call a message.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any, Protocol

from router_trio.errors import LinkError

# Words of the port.
from router_trio.message import PubAck as PubAck
from router_trio.message import stored as stored
from router_trio.message import stored_each as stored_each
from router_trio.outbox.operation import Operation as Operation
from router_trio.protocol.consumer import ConsumerSpec as ConsumerSpec
from router_trio.protocol.consumer import ConsumerState as ConsumerState
from router_trio.protocol.consumer import Limits as Limits
from router_trio.protocol.consumer import Progress as Progress
from router_trio.protocol.framing import RawMessage
from router_trio.protocol.stream_config import StreamConfig as StreamConfig
from router_trio.protocol.stream_config import StreamState as StreamState

LOOKUP_WITHIN = 2.0
"""Seconds that a server has to answer what is looked up beside the messages.

They are counted from when an answer could be here, as a PING shows: the time that the link takes is not among them.
"""

Deliver = Callable[[list[RawMessage]], None]
"""Takes a batch of received messages. Synchronous, must not raise; called from the link's reader.

The list is the link's, which empties it afterwards.
"""


class SubscriptionBatch(list[RawMessage]):
    """Messages of one subscription that are yet to be delivered. `key` is what the subscription was made with."""

    __slots__ = ("key",)

    def __init__(self, key: Any, messages: Iterable[RawMessage] = ()) -> None:
        super().__init__(messages)
        self.key: Any = key


DeliverShared = Callable[[Sequence[SubscriptionBatch]], None]
"""Takes what came at one time for several subscriptions, as `Deliver` does for one.

Nothing came for one that has ended meanwhile.
"""


@dataclass(frozen=True, slots=True)
class SharedDelivery:
    """Makes a subscription one of those that `deliver` is called for. `key` tells them apart."""

    deliver: DeliverShared
    key: Any


@dataclass(frozen=True, slots=True)
class Refusal:
    """An operation that a link did not write, or a part of one, and why. `retriable`: the same may succeed later."""

    operation: Operation
    reason: str
    detail: str
    retriable: bool = False


SIGN_OF_WORK_EVERY = 0.25
"""Seconds between two signs that somebody works on what a consumer has delivered: see `PullConsumer.say_at_work`."""


LISTEN_FOR = 3 * SIGN_OF_WORK_EVERY
"""Seconds without one after which nobody works on what was delivered before this process came."""


LEAD_ENDS_AFTER = 5.0
"""Seconds without `PullConsumer.hold_lead` after which another process may take the lead of a standby consumer."""


class LinkListener(Protocol):
    """Receives what happens on a link. Every method is synchronous and must not raise."""

    def acked(self, pubacks: Sequence[PubAck], /) -> None:
        """Streams stored these JetStream publishes. May be called with none."""

    def ack_refused(self, order: int, reason: str, detail: str, retriable: bool, *, stream: str = "") -> None:
        """A stream (or nobody: reason `no_responders`) answered the publish with this number with an error.

        `stream` is its name, if the error says it.
        """

    def expects(self, stream: str) -> bool:
        """Return True if a publish names this stream: its PubAcks are to be told, though it may not be found."""
        ...

    def publish_denied(self, subject: bytes, detail: str) -> None:
        """The server refused a publish to this subject (permissions). Comes before the next fence is answered.

        It may be that of an ack, a nak or a pull (see `protocol.permissions`), and of no request of the link.
        """

    def reply_denied(self, reply: bytes, detail: str) -> None:
        """The server refused a publish because of its reply subject, whose own subject it does not name."""

    def something_denied(self, detail: str) -> None:
        """The server refused something, in words that can't be read. Comes before the next fence is answered."""

    def read_begins(self) -> None:
        """Record that a read is about to be delivered: what is sent meanwhile can wait for its end."""

    def read_done(self) -> None:
        """Record that a read was delivered to all its subscriptions."""

    def lame_duck(self) -> None:
        """The server announced that it will shut down."""

    def discovered(self, servers: Sequence[str]) -> None:
        """The server told of servers of its cluster, as `host:port`."""


class Subscription(Protocol):
    """A live subscription."""

    def close(self) -> None:
        """End it: nothing is delivered after this call. Does nothing on a dead link or when closed."""

    async def drain(self) -> None:
        """End it without a loss: returns when everything that the server sent before has been delivered."""


class CoreSubscription(Subscription, Protocol):
    """A live subscription to a subject."""

    def deliver_to(self, deliver: Deliver | SharedDelivery) -> None:
        """Deliver to this from now on, between two messages. Does nothing on a dead link or when closed."""


class PullConsumer(Subscription, Protocol):
    """A durable pull consumer that exists on the server, and the inbox that its messages come to."""

    @property
    def ack_wait(self) -> float:
        """Seconds after which the server delivers an unacked message again."""
        ...

    @property
    def limits(self) -> Limits:
        """The limits of the server, after `open_consumer` has lifted what it could."""
        ...

    @property
    def lifted(self) -> Sequence[str]:
        """The limits that `open_consumer` has lifted, as they were: `max_deliver = 3`."""
        ...

    @property
    def stream_created(self) -> str:
        """When the stream was created: another value means that it is another stream of the same name."""
        ...

    @property
    def went_back(self) -> str | None:
        """How the stream contradicts what the spec knows of it: its sequences are now of other messages."""

    @property
    def progress(self) -> Progress:
        """How far the consumer was when it was opened."""
        ...

    async def unacked(self, first: int) -> Sequence[int] | None:
        """Return what had no ack when the consumer was opened, from that sequence on, in order.

        Some of it may have one, or not be the consumer's. None if it is too many, or could not be found out. Blocks for
        a few seconds at most.
        """

    async def gone(self, awaited: Mapping[int, bytes], in_hand: Callable[[], int]) -> Collection[int]:
        """Return which of these, that were delivered and not acked here, never come again.

        The stream has them no more, or another message under that sequence, or the consumer has an answer for them, of
        somebody else. `awaited`: their times as they came, by sequence, `b""` if unknown. `in_hand` is called when the
        server has answered. It returns how many others were delivered here and have not been acked since before this
        call. Raises `SourceError` if that can't be found out, `LinkError` if the link dies. Blocks for a few seconds at
        most.
        """
        ...

    async def again(self, sequences: Sequence[int]) -> bool:
        """Have these messages delivered again, in this order, before anything new, to pulls after this call.

        At least one is named.

        Those that have an ack, or were never delivered, are left alone. Returns True when the server has taken note,
        False if it refuses that or says nothing for some seconds: then they may come after their ack wait, and what is
        new before them.
        """
        ...

    async def check(self) -> ConsumerState:
        """Return how the consumer is now.

        Raises `SourceError` if there is no such consumer any more, if it was edited so that it no longer delivers what
        was asked for, and if the server does not say (reason `permission_denied`, `timeout`, ...: see `LOOKUP_FAILED`).
        Blocks for at most `LOOKUP_WITHIN` seconds behind a round trip. Can be cancelled.
        """
        ...

    def pull(self, batch: int, expires: float, max_bytes: int = 0) -> None:
        """Ask for `batch` more messages of together at most `max_bytes` (0: any), for at most `expires` seconds.

        The size of one is `framing.delivered_size`. They come through `deliver`, and so do the statuses that end a
        request (`headers.status`), `409 Message Size Exceeds MaxBytes` as soon as the next message is too large for
        what is left of it, `409 Batch Completed` if bytes are left when all messages have come.
        """

    def say_at_work(self) -> None:
        """Let a process that opens the consumer hear that somebody works on what was delivered.

        To the server it is nothing: no message gets a later ack wait than those that were delivered after it.
        """

    def hold_lead(self) -> None:
        """Keep the lead of a standby consumer, for `LEAD_ENDS_AFTER` seconds from now. Else it does nothing."""

    def release_lead(self) -> None:
        """Give the lead of a standby consumer to whoever waits for it. Else it does nothing."""


Learn = Callable[[str, int], None]
"""Is told how far a durable is that another process reads.

That is when its stream was made, and up to which sequence nothing is delivered any more (see `Progress.passed`).
"""


class Link(Protocol):
    """A live connection."""

    @property
    def server(self) -> str:
        """Where it is connected to, without credentials."""
        ...

    @property
    def max_payload(self) -> int:
        """The most bytes of headers and payload that the server takes."""
        ...

    @property
    def max_control_line(self) -> int:
        """The most bytes of a control line that the server takes: see `framing.control_line_size`."""
        ...

    async def send(self, operations: Sequence[Operation], *, fenced: bool = False) -> Sequence[Refusal]:
        """Write operations in order, with a fence if `fenced`; returns when the socket has taken them.

        Those refused are not written.
        """
        ...

    @property
    def can_send_at_once(self) -> bool:
        """True if the socket takes something, and nobody is writing to it."""
        ...

    def send_at_once(self, operations: Sequence[Operation], *, fenced: bool = False) -> Sequence[Refusal]:
        """As `send`, in the turn of who calls, if `can_send_at_once`. What the socket does not take waits for it."""
        ...

    async def fence(self) -> None:
        """Returns when the server has processed everything that was sent before this call, at once if that is known."""

    async def ping(self) -> None:
        """Returns when the server has given a sign of life after this call: a fence that is answered now."""

    async def subscribe(
        self, subject: str, deliver: Deliver | SharedDelivery, *, queue: str | None = None
    ) -> CoreSubscription:
        """Subscribe; returns when the server has it. Raises `SourceError` when the server refuses."""
        ...

    async def open_consumer(self, spec: ConsumerSpec, deliver: Deliver) -> PullConsumer:
        """Find the durable consumer, or create it. Raises `SourceError`: no such stream, another configuration, ...

        A limit of deliveries that is lower than the wanted one is lifted if the server lets us.
        """
        ...

    async def take_the_lead(self, spec: ConsumerSpec, learn: Learn) -> str:
        """Wait until this is the process that gets the messages of a standby consumer. Returns the pin that says so.

        The consumer is created if it is absent. A `pin` of the spec that still holds is returned at once. `learn` is
        called when the consumer was found, and then every few seconds if it can be looked at. Raises as
        `open_consumer`, `SourceError` (`server_too_old`) where the server has no such consumers, and if the consumer is
        deleted meanwhile. Can be cancelled.
        """
        ...

    def ack(self, replies: Sequence[bytes]) -> Sequence[tuple[bytes, LinkError]]:
        """Ack JetStream messages, by their reply subjects. Returns those whose ack was not written, and why."""
        ...

    def nak(self, reply: bytes, delay: float) -> None:
        """Nak a JetStream message: deliver it again after `delay` seconds. Raises `LinkError`."""

    def term(self, reply: bytes, reason: str) -> None:
        """Terminate a JetStream message: never deliver it again, for this reason. Raises `LinkError`."""

    def in_progress(self, reply: bytes) -> None:
        """Tell the server that a JetStream message is still being worked on: its ack wait starts anew."""

    async def find_streams(self, subject: str) -> Sequence[str]:
        """Return the names of streams that take some subject that this pattern matches.

        Raises `SourceError` (see `LOOKUP_FAILED`) if the server does not say. Blocks for at most `LOOKUP_WITHIN`
        seconds behind a round trip. Can be cancelled.
        """
        ...

    async def stream_state(self, name: str) -> StreamState | None:
        """Return a stream as it is now, or None if the server says that there is none. Raises as `find_streams`."""

    async def ensure_stream(self, wanted: StreamConfig) -> tuple[StreamConfig, bool]:
        """Make a stream if there is none of that name. Return what it is then, and True if this call made it.

        Raises `SourceError` as `find_streams`, and with the reason `stream_refused` if the server refuses to make it.
        Blocks for at most three times as long as a lookup. Can be cancelled.
        """
        ...


class Connect(Protocol):
    """Opens links for one named connection; credentials and TLS are its own business."""

    def __call__(self, server: str, inbox: bytes, listener: LinkListener) -> AbstractAsyncContextManager[Link]:
        """Connect to `server`. PubAcks of operation `n` are expected at the subject `inbox + b"." + n`.

        Entering raises `LinkError` (or `AuthorizationError`, `CertificateError`) if it can't connect, and so does
        leaving when the link died. The caller bounds the time with a cancel scope.
        """
        ...
