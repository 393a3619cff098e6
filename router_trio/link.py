"""The port: the operations of a live connection to a server, independent of its implementation.

The tasks above see only this. Real links are in `nats/`; the fake broker in `testing` and the fault injection are links
too. A link is created connected and dies once: when it dies, the `async with` that opened it is cancelled and raises
`LinkError`. A link never retries an operation. Messages cross this port in batches, as raw tuples
(`framing.RawMessage`), never one call per message.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from dataclasses import dataclass, field, replace
from inspect import unwrap
from typing import Any, Protocol

from router_trio.errors import LinkError
from router_trio.events import Event

# Types of the port.
from router_trio.message import PubAck as PubAck
from router_trio.message import stored as stored
from router_trio.message import stored_each as stored_each
from router_trio.outbox.operation import Operation as Operation
from router_trio.protocol.buckets import Newest as Newest
from router_trio.protocol.consumer import ConsumerSpec as ConsumerSpec
from router_trio.protocol.consumer import ConsumerState as ConsumerState
from router_trio.protocol.consumer import Limits as Limits
from router_trio.protocol.consumer import Progress as Progress
from router_trio.protocol.consumer import StoredAt as StoredAt
from router_trio.protocol.framing import RawMessage
from router_trio.protocol.stream_config import StreamConfig as StreamConfig
from router_trio.protocol.stream_config import StreamState as StreamState
from router_trio.states import RouteState
from router_trio.subjects.partitions import Partitioning

LOOKUP_WITHIN = 2.0
"""Seconds for a server to answer a lookup.

They are counted from the time when an answer could have arrived, as a PING shows: the latency of the link is not
included.
"""

Deliver = Callable[[list[RawMessage]], None]
"""Receive a batch of messages. Synchronous, must not raise; called from the link's reader.

The link owns the list, and empties it afterwards.
"""


class SubscriptionBatch(list[RawMessage]):
    """Messages of one subscription that are not delivered yet. `key` is the argument of the subscription."""

    __slots__ = ("key",)

    def __init__(self, key: Any, messages: Iterable[RawMessage] = ()) -> None:
        super().__init__(messages)
        self.key: Any = key


DeliverShared = Callable[[Sequence[SubscriptionBatch]], None]
"""Receive the messages of one read for several subscriptions, as `Deliver` does for one.

Messages of a subscription that has ended meanwhile are left out.
"""


@dataclass(frozen=True, slots=True)
class SharedDelivery:
    """Add a subscription to those that share a call of `deliver`. `key` identifies it."""

    deliver: DeliverShared
    key: Any


@dataclass(frozen=True, slots=True)
class Refusal:
    """An operation, or a part of one, that a link did not write, and the reason. `retriable`: it may succeed later."""

    operation: Operation
    reason: str
    detail: str
    retriable: bool = False


IDLE_HEARTBEAT = 5.0
"""Seconds between two heartbeats of a pull request for which there are no messages, unless it names another time."""


SIGN_OF_WORK_EVERY = 0.25
"""Seconds between two signs that a process is working on messages of a consumer: see `PullConsumer.say_at_work`."""


LISTEN_FOR = 3 * SIGN_OF_WORK_EVERY
"""Seconds without a sign after which no process works on messages that were delivered before this one started."""


STATE_FOR = 4.8
"""Seconds for which the state of a consumer counts as the current one, also while waiting for its lead.

With the time of a lookup five, which is how old the number of messages may be by which a route is behind.
"""


LEAD_ENDS_AFTER = 5.0
"""Seconds without `PullConsumer.hold_lead` after which another process may take the lead of a standby consumer."""


MEMBER_GONE_AFTER = 5.0
"""Seconds after `Members.announce` in which a process counts as a member, unless it asks for more."""


@dataclass(frozen=True, slots=True)
class CopiedUpTo:
    """The last message that the copy of a stream had: its `sequence` and its `time` in that stream, as looked up `at`.

    Both times are in nanoseconds since 1970.
    """

    sequence: int
    time: int
    at: int


@dataclass(frozen=True, slots=True)
class PartitionedSpec:
    """The partitions of `stream` that a route reads.

    If `stream` itself puts the token of the partition in front of its subjects, it is read as it is. Otherwise the
    stream `derived` is, which sources it. `deliver` is where `derived` begins if it has to be created, as in
    `ConsumerSpec`. It has the limits of `stream`, unless it is `declared`. `known` is what the last look has shown, and
    `highest` the last message of `stream` that was delivered from `derived` before this link, which had copied it at
    `highest_at`. By these it is noticed that `stream` was rolled back.
    """

    stream: str
    derived: str
    partitioning: Partitioning
    deliver: str | int = "all"
    declared: StreamConfig | None = None
    known: CopiedUpTo | None = None
    highest: int = 0
    highest_at: int = 0


@dataclass(frozen=True, slots=True)
class PartitionedStream:
    """A stream that has the partitions of a `PartitionedSpec`, as found or `created`.

    `source` is the stream that it sources; empty if publishers send to it. `lag` is the number of messages of `source`
    that it does not have yet, and `sourced` the sequence of the last one that it has. `sourced_at` is the time in
    nanoseconds since 1970 when the source was last heard of; 0 if unknown. `replicas` and `storage` are those of the
    stream of the spec.

    `source` was rolled back as often as `reused` has numbers, and may use sequences up to these again. `went_back` is
    the evidence for that which this look has found, empty without any, and `stuck` why what `source` stores since then
    may not be copied. `is_announced`: it is going to be copied again. `known` is for the next spec.
    """

    name: str
    source: str = ""
    lag: int = 0
    sourced: int = 0
    sourced_at: int = 0
    replicas: int = 1
    storage: str = "file"
    created: bool = False
    reused: tuple[int, ...] = ()
    is_announced: bool = False
    went_back: str = ""
    stuck: str = ""
    known: CopiedUpTo | None = None


@dataclass(frozen=True, slots=True)
class Group:
    """The processes that share the partitions of a stream for one `durable`, and the id of this one among them.

    `stream` is the stream of the route, not the one derived from it. `member` has 16 hex digits. A bucket that has to
    be created gets these `replicas` and this `storage`.
    """

    stream: str
    durable: str
    member: str
    replicas: int = 1
    storage: str = "file"


@dataclass(frozen=True, slots=True)
class SeenMembers:
    """The ids of the processes of a `Group` that exist, and the partitions that were `moved` to one by hand."""

    ids: frozenset[str]
    moved: Mapping[int, str]


@dataclass(frozen=True, slots=True)
class LeadState:
    """The lead of a standby consumer.

    It is `unled` if it has messages, undelivered or unacked, and no client has its lead. So is one that does not exist:
    the process that should lead it would have created it. `paused` describes until when it is paused, so that no
    client can get its lead, and it does not count as unled; None if it is not paused.
    """

    unled: bool
    paused: str | None = None


@dataclass(frozen=True, slots=True)
class Announced:
    """The announcement of a member: the name of its router, its host, and the partitions that it leads."""

    name: str
    host: str
    led: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class SchedulesSpec:
    """The stream of scheduled retries below `prefix`, and the subject `target` that `durable` reads there."""

    stream: str
    prefix: str
    target: str
    durable: str


@dataclass(frozen=True, slots=True)
class SchedulesCount:
    """The schedules of a stream of retries: how many were stored, and what became of these.

    They were published (`fired`) or `cancelled`, or are still `there`. The others are lost.
    """

    scheduled: int
    fired: int
    there: int
    cancelled: int
    is_first: bool = field(default=False, compare=False)
    """True if the stream has no record of an earlier count, so that what was lost before can't be counted."""
    in_flux: bool = field(default=False, compare=False)
    """True if another process deletes published messages, so that the numbers do not fit each other."""
    last_sequence: int = field(default=0, compare=False)
    """The last sequence of the stream. If it was higher before, the stream has lost its tail."""
    created: str = field(default="", compare=False)
    """When the stream was created, in the server's format."""

    @property
    def lost(self) -> int:
        """The number of schedules that have left the stream and were not published."""
        return self.scheduled - self.fired - self.there - self.cancelled

    def without_lost(self) -> SchedulesCount:
        """Return the count as if no schedule was lost."""
        return replace(self, scheduled=self.scheduled - self.lost)


class Members(Protocol):
    """The processes of a `Group`, as they announce themselves in a bucket. It belongs to one link.

    Each method raises `SourceError` if the request is refused or not answered (`permission_denied`, `timeout`, ...: see
    `LOOKUP_FAILED`), and `LinkError` if the link dies. Each blocks for at most `LOOKUP_WITHIN` seconds after a round
    trip, and can be cancelled.
    """

    async def announce(self, announced: Announced, seconds: float = MEMBER_GONE_AFTER) -> None:
        """Announce this process for that many seconds, rounded up, in place of its last announcement."""

    async def seen(self) -> SeenMembers:
        """Return the members that exist now, this process only if its announcement was received, and all moves.

        The moves are looked up only if there are any.
        """
        ...

    async def withdraw(self) -> None:
        """Remove the announcement of this process, so that the others see at once that it leaves.

        If the request fails, the announcement expires after its seconds; nothing is raised then.
        """

    async def announcements(self) -> Mapping[str, Announced]:
        """Return the announcements of all members by their ids. For people: members that can't be read are skipped."""
        ...

    async def move(self, moved: Mapping[int, str]) -> None:
        """Set the partitions that are moved to a member by hand, in place of all earlier ones."""


class LinkListener(Protocol):
    """Receive the events of a link. Every method is synchronous and must not raise."""

    def acked(self, pubacks: Sequence[PubAck], /) -> None:
        """Streams stored these JetStream publishes. May be called with an empty sequence."""

    def ack_refused(self, order: int, reason: str, detail: str, retriable: bool, *, stream: str = "") -> None:
        """A stream answered the publish with this number with an error, or none answered (`no_responders`).

        `stream` is its name, if the error contains it.
        """

    def expects(self, stream: str) -> bool:
        """Return True if a publish names this stream: its PubAcks are passed on, though it may not be found."""
        ...

    def publish_denied(self, subject: bytes, detail: str) -> None:
        """The server refused a publish to this subject (permissions). Called before the next fence is answered.

        It may be the subject of an ack, a nak or a pull (see `protocol.permissions`), never of a request of the link.
        """

    def reply_denied(self, reply: bytes, detail: str) -> None:
        """The server refused a publish because of its reply subject; the subject of the publish is not known."""

    def something_denied(self, detail: str) -> None:
        """The server refused something, in words that can't be parsed. Called before the next fence is answered."""

    def read_begins(self) -> None:
        """Record that the messages of a read are about to be delivered: sends can wait until `read_done`."""

    def read_done(self) -> None:
        """Record that the messages of a read were delivered to all subscriptions."""

    def lame_duck(self) -> None:
        """The server announced that it will shut down."""

    def discovered(self, servers: Sequence[str]) -> None:
        """The server announced servers of its cluster, as `host:port`."""


class Subscription(Protocol):
    """A live subscription."""

    def close(self) -> None:
        """End the subscription: nothing is delivered after this call. Does nothing on a dead link or when closed."""

    async def drain(self) -> None:
        """End the subscription without a loss: return when all messages that the server sent before are delivered."""


class CoreSubscription(Subscription, Protocol):
    """A live subscription to a subject."""

    def deliver_to(self, deliver: Deliver | SharedDelivery) -> None:
        """Switch to another receiver between two messages. Does nothing on a dead link or when closed."""


class PullConsumer(Subscription, Protocol):
    """A durable pull consumer that exists on the server, and the inbox that receives its messages."""

    @property
    def ack_wait(self) -> float:
        """Seconds after which the server delivers an unacked message again."""
        ...

    @property
    def limits(self) -> Limits:
        """The limits on the server, after `open_consumer` has lifted those that it can."""
        ...

    @property
    def lifted(self) -> Sequence[str]:
        """The limits that `open_consumer` has lifted, with their earlier values: `max_deliver = 3`."""
        ...

    @property
    def stream_created(self) -> str:
        """When the stream was created: another value means that it is another stream of the same name."""
        ...

    @property
    def went_back(self) -> str | None:
        """Evidence that the sequences now belong to other messages than the spec knows; None without it."""

    @property
    def progress(self) -> Progress:
        """The progress of the consumer when it was opened."""
        ...

    async def unacked(self, first: int) -> Sequence[int] | None:
        """Return the sequences that were unacked when the consumer was opened, from that sequence on, in order.

        Some of them may be acked, or not belong to the consumer. None if there are too many, or if they could not be
        looked up. Blocks for a few seconds at most.
        """

    async def gone(self, awaited: Mapping[int, bytes], in_hand: Callable[[], int]) -> Collection[int]:
        """Return which of these messages, delivered and not acked here, will never be redelivered.

        The stream no longer has them, or has another message under their sequence, or another process has settled them.
        `awaited`: their timestamps as delivered, by sequence, `b""` if unknown. `in_hand` is called when the server has
        answered. It returns how many other messages were delivered here and have been unacked since before this call.
        Raises `SourceError` if the lookup fails, `LinkError` if the link dies. Blocks for a few seconds at most.
        """
        ...

    async def again(self, sequences: Sequence[int]) -> bool:
        """Have these messages redelivered, in this order, before new ones, to pulls after this call.

        At least one must be given. Messages that are acked, or were never delivered, are skipped. Returns True when the
        server has confirmed, False if it refuses or does not answer for some seconds: then they may be redelivered
        after their ack wait, and new messages before them.
        """
        ...

    async def stored(self, first: int, last: int, most: int) -> Sequence[RawMessage]:
        """Return the first messages of the consumer from `first` to `last` that the stream still has, at most `most`.

        Each has the form in which the consumer would deliver it, so that it can be terminated. Raises `SourceError` if
        a lookup fails. Blocks for some seconds at most for each. Can be cancelled.
        """
        ...

    async def claim(self, sequence: int, counted: int) -> bool | None:
        """Terminate a message that the consumer delivered and does not deliver any more.

        Returns True if the server counted it as redelivered and not acked until then, and False if it did not. Returns
        None if that can't be determined, since the server did not count `counted` such messages before, counts more of
        them afterwards, or does not answer. The message may have been terminated even so. No such message may be acked
        meanwhile. Can be cancelled. Raises as `stored`.
        """
        ...

    async def check(self, *, oldest: bool = False) -> ConsumerState:
        """Return the state of the consumer; with `oldest` also its first message that is not acked or not delivered.

        That message is None if there is none, and if it can't be looked up, which takes a second request.
        Raises `SourceError` if the consumer no longer exists, if it was deleted and created again since it was opened
        (reason `consumer_deleted`), if it was edited so that it no longer fits the spec, and if the lookup fails
        (reason `permission_denied`, `timeout`, ...: see `LOOKUP_FAILED`). Blocks for at most `LOOKUP_WITHIN` seconds
        after a round trip, twice as long with `oldest`. Can be cancelled.
        """
        ...

    def pull(self, batch: int, expires: float, max_bytes: int = 0, heartbeat: float = IDLE_HEARTBEAT) -> None:
        """Request `batch` more messages with a total of at most `max_bytes` (0: any), for at most `expires` seconds.

        While there are no messages, the server sends a status every `heartbeat` seconds; none if the request expires
        within twice that time.
        The size of one is `framing.delivered_size`. `deliver` receives them, and the statuses that end a request
        (`headers.status`): `409 Message Size Exceeds MaxBytes` as soon as the next message is too large for the rest of
        the request, `409 Batch Completed` if bytes are left when all messages have been delivered.
        """

    def say_at_work(self) -> None:
        """Signal to other processes that open the consumer that this one is working on delivered messages.

        The server ignores it: no message gets a later ack wait than those that were delivered after it.
        """

    def hold_lead(self) -> bool:
        """Keep the lead of a standby consumer for `LEAD_ENDS_AFTER` seconds. Does nothing for other consumers.

        Returns True if a request was sent. It has no room for a message: the server moves the next redelivery behind
        all others, unless another pull has room for it.
        """
        ...

    async def acks_processed(self) -> None:
        """Return when the server has processed all acks and naks that were sent before, or after a few seconds."""

    def watch_lead(self, proved: Callable[[float], None], refused: Callable[[], None]) -> None:
        """Call `proved` for each request of `hold_lead` that the server has answered, with the time when it was sent.

        This process had the lead then, and no other has it for `LEAD_ENDS_AFTER` seconds. `refused` is called if the
        server answers that this process does not have the lead. Does nothing for other consumers.
        """

    def release_lead(self) -> None:
        """Release the lead of a standby consumer to a waiting process. Does nothing for other consumers."""


Learn = Callable[[str, ConsumerState], None]
"""Receive the state of a durable that another process reads.

The arguments are the time when its stream was created, and the state, with its oldest message.
"""


class Link(Protocol):
    """A live connection."""

    @property
    def server(self) -> str:
        """The server of the link, without credentials."""
        ...

    @property
    def max_payload(self) -> int:
        """Maximum size in bytes of headers and payload that the server accepts."""
        ...

    @property
    def max_control_line(self) -> int:
        """Maximum size in bytes of a control line that the server accepts: see `framing.control_line_size`."""
        ...

    @property
    def lame_duck(self) -> bool:
        """True if the server has announced on this link that it will shut down."""
        ...

    async def send(self, operations: Sequence[Operation], *, fenced: bool = False) -> Sequence[Refusal]:
        """Write operations in order, with a fence if `fenced`; return when the socket has taken them.

        Refused operations are returned, and not written.
        """
        ...

    @property
    def can_send_at_once(self) -> bool:
        """True if the socket accepts data and no task is writing to it."""
        ...

    def send_at_once(self, operations: Sequence[Operation], *, fenced: bool = False) -> Sequence[Refusal]:
        """Send synchronously, if `can_send_at_once`. Data that the socket does not take is written later."""
        ...

    async def fence(self) -> None:
        """Return when the server has processed everything that was sent before this call, at once if that is known."""

    async def ping(self) -> None:
        """Return when the server has given a sign of life after this call: the answer to a new fence."""

    async def subscribe(
        self, subject: str, deliver: Deliver | SharedDelivery, *, queue: str | None = None
    ) -> CoreSubscription:
        """Subscribe; return when the server has the subscription. Raises `SourceError` if the server refuses it."""
        ...

    async def listen(self, subjects: Sequence[str], deliver: Deliver) -> Sequence[tuple[str, str]]:
        """Subscribe to subjects on which nothing depends. Return those that the server refused, each with its words.

        Returns when the server has the subscriptions. All subscriptions made by `listen` end, without an error, when
        the server refuses any subscription of the link because there are too many. A subscription whose permission is
        revoked later ends as well.
        """
        ...

    def stop_listening(self, subjects: Sequence[str]) -> None:
        """End subscriptions of `listen`. Does nothing for those that have ended, and on a dead link."""

    async def open_consumer(self, spec: ConsumerSpec, deliver: Deliver) -> PullConsumer:
        """Find the durable consumer, or create it.

        Raises `SourceError`: no such stream, another configuration, ... A limit of deliveries below the wanted one is
        lifted if the server permits it.
        """
        ...

    async def take_the_lead(self, spec: ConsumerSpec, learn: Learn) -> str:
        """Wait until this process has the lead of a standby consumer. Return the pin that proves it.

        The consumer is created if it does not exist. A `pin` of the spec that is still valid is returned at once.
        `learn` is called when the consumer is found, and then every few seconds if it can be looked up. Raises as
        `open_consumer`, `SourceError` (`server_too_old`) if the server has no such consumers, and if the consumer is
        deleted meanwhile. Can be cancelled.
        """
        ...

    async def lead_state(self, stream: str, durable: str) -> LeadState:
        """Look up whether a standby consumer has a leader. Raises as `find_streams`. Can be cancelled."""
        ...

    def ack(self, replies: Sequence[bytes]) -> Sequence[tuple[bytes, LinkError]]:
        """Ack JetStream messages, by their reply subjects. Return those whose ack was not written, with the error."""
        ...

    def nak(self, reply: bytes, delay: float) -> None:
        """Nak a JetStream message: have it redelivered after `delay` seconds. Raises `LinkError`."""

    def term(self, reply: bytes, reason: str) -> None:
        """Terminate a JetStream message: it is never redelivered, for this reason. Raises `LinkError`."""

    def in_progress(self, reply: bytes) -> None:
        """Signal that a JetStream message is still in progress: the server restarts its ack wait."""

    def respond(self, reply: bytes, payload: bytes) -> None:
        """Answer a request of another client, at its reply subject. Raises `LinkError`.

        The listener is notified if the server denies it, before the next fence is answered. The caller checks the
        subject, and that the payload is not larger than `max_payload`.
        """
        ...

    async def find_streams(self, subject: str) -> Sequence[str]:
        """Return the names of streams with subjects that this pattern matches.

        Raises `SourceError` (see `LOOKUP_FAILED`) if the lookup fails. Blocks for at most `LOOKUP_WITHIN` seconds after
        a round trip. Can be cancelled.
        """
        ...

    async def stream_state(self, name: str) -> StreamState | None:
        """Return the state of a stream, or None if it does not exist. Raises as `find_streams`."""

    async def newest(self, stream: str, subject: str) -> Newest | None:
        """Return the newest message of a stream with this subject, or None. Raises as `find_streams`.

        It is read from the leader of the stream, so nothing that was confirmed before is missed.
        """
        ...

    async def ensure_stream(self, wanted: StreamConfig) -> tuple[StreamConfig, bool]:
        """Create a stream if it does not exist. Return its configuration, and True if this call created it.

        Raises `SourceError` as `find_streams`, and with the reason `stream_refused` if the server refuses to create it.
        Blocks for at most three times as long as a lookup. Can be cancelled.
        """
        ...

    async def ensure_partitioned(self, wanted: PartitionedSpec) -> PartitionedStream:
        """Find the stream that has the partitions of a route, or create it. Also called later, for its `lag`.

        If it copies a stream that was rolled back, the server is made to copy what that one stores since then.

        Raises `SourceError` as `find_streams`, and with these reasons: `stream_not_found` if there is no
        `wanted.stream`, `partitions_differ` if the stream has other partitions or sources another stream,
        `server_too_old` if the server can't source it without a loss, and `stream_refused` if the server refuses to
        create it. Blocks for at most three times as long as a lookup, unless that stream was rolled back. Can be
        cancelled: the next call finds what was changed by then.
        """
        ...

    async def members(self, group: Group) -> Members:
        """Return the members of a group. The bucket of all groups is created if it does not exist.

        Raises `SourceError` as `find_streams`, and with the reason `stream_refused` if the server refuses to create the
        bucket. Blocks for at most three times as long as a lookup. Can be cancelled.
        """
        ...

    async def count_subjects(self, stream: str, pattern: str) -> int:
        """Return on how many subjects of `pattern` a stream has messages.

        Raises `SourceError` as `find_streams`. Can be cancelled.
        """
        ...

    async def count_schedules(self, spec: SchedulesSpec) -> SchedulesCount:
        """Count the schedules of a stream of retries, for all routes and processes. Each lost one is reported once.

        Deletes published messages that are acked. Raises `SourceError` as `find_streams`. Blocks for at most six times
        as long as a lookup. Can be cancelled.
        """
        ...


class Connect(Protocol):
    """Open links for one named connection, with its credentials and TLS."""

    def __call__(self, server: str, inbox: bytes, listener: LinkListener) -> AbstractAsyncContextManager[Link]:
        """Connect to `server`. PubAcks of operation `n` are expected at the subject `inbox + b"." + n`.

        Entering raises `LinkError` (or `AuthorizationError`, `CertificateError`) if it can't connect, and so does
        leaving when the link has died. The caller bounds the time with a cancel scope.
        """
        ...


@dataclass(frozen=True, eq=False, slots=True)
class ObservedRouter:
    """The parts of a running router that a fake server reads for a test.

    `unsettled` is the number of publishes without a fate, also of the program. `unready` returns the reasons of
    `/readyz`. `retries_without_end` returns True for a route that never gives up a message.
    """

    routes: Callable[[], Iterable[RouteState]]
    unsettled: Callable[[], int]
    unready: Callable[[], Iterable[str]]
    retries_without_end: Callable[[str], bool]


class FakeServer:
    """The base of a server in memory, for a test: it is notified of what the routers that connect to it do."""

    def observing(self, router: ObservedRouter) -> AbstractContextManager[None]:
        """Return a context that lasts as long as the router runs."""
        raise NotImplementedError

    def observe(self, event: Event) -> None:
        """Take note of an event of a router."""
        raise NotImplementedError

    def wall_clock(self) -> float:
        """Return the Unix time of the test, in seconds, by which the server stores and publishes messages."""
        raise NotImplementedError


def fake_server_of(connect: Connect) -> FakeServer | None:
    """Return the fake server that this opens links to, also with faults around it; None for a real one."""
    # A method has the `__wrapped__` of its function, which has no `__self__`.
    method = unwrap(connect, stop=lambda one: hasattr(one, "__self__"))
    server = getattr(method, "__self__", None)
    return server if isinstance(server, FakeServer) else None
