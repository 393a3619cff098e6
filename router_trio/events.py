"""Everything that can happen, as frozen events: the one source of facts for logs, outage spans and tests.

An event is emitted once, where the thing happens, by a call of an `Emit`. What can happen for every message carries a
`count` and is marked `per_message`: listeners merge those. Texts of an event are bounded when it is made. `at` is the
emitter's monotonic clock in seconds.
The docstring of each class is its help text in `router-trio contract`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from enum import IntEnum
from typing import Any, ClassVar, Self, dataclass_transform

from router_trio.quotes import LONGEST_TEXT, bounded


class Level(IntEnum):
    """Severity, ordered as in the standard library's logging."""

    DEBUG = 10
    INFO = 20
    WARN = 30
    ERROR = 40


@dataclass_transform(kw_only_default=True, frozen_default=True)
class _Fields:
    """What a frozen dataclass with keyword arguments is, for the annotations of each subclass.

    Not a dataclass: Python would compile six methods for each of some fifty kinds of events at each start.
    """

    fields: ClassVar[dict[str, str]] = {}
    """Names of the fields, with their types as they are written."""
    _defaults: ClassVar[dict[str, Any]] = {}

    def __init_subclass__(cls) -> None:
        own = {name: kind for name, kind in cls.__annotations__.items() if not kind.startswith("ClassVar")}
        cls.fields = cls.fields | own
        cls._defaults = cls._defaults | {name: vars(cls)[name] for name in own if name in vars(cls)}

    def __init__(self, **values: Any) -> None:
        unknown, missing = (
            values.keys() - self.fields.keys(),
            self.fields.keys() - values.keys() - self._defaults.keys(),
        )
        if unknown or missing:
            raise TypeError(f"{type(self).__name__}: unknown {sorted(unknown)}, missing {sorted(missing)}")
        self.__dict__.update(self._defaults)
        self.__dict__.update(values)
        self.__post_init__()

    def __post_init__(self) -> None:
        """Bring the fields into their final form, by `_set`."""

    def _set(self, name: str, value: object) -> None:
        self.__dict__[name] = value

    def replace(self, **changes: Any) -> Self:
        """Return the same with other values of some fields."""
        return type(self)(**self.__dict__ | changes)

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"{type(self).__name__} is frozen")

    def __delattr__(self, name: str) -> None:
        raise AttributeError(f"{type(self).__name__} is frozen")

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and vars(other) == vars(self)

    def __repr__(self) -> str:
        return f"{type(self).__qualname__}({', '.join(f'{name}={getattr(self, name)!r}' for name in self.fields)})"


class Event(_Fields):
    """The base of all events."""

    code: ClassVar[str]
    level: ClassVar[Level]
    tag: ClassVar[str | None] = None
    per_message: ClassVar[bool] = False
    at: float

    def __hash__(self) -> int:
        return hash((type(self), self.at))

    def __post_init__(self) -> None:
        # Here, so that no code that emits or shows an event can forget it.
        for name in ("detail", "reason", "error_type", "server", "stream", "subject", "place", "filter", "subjects"):
            text = getattr(self, name, None)
            if text is not None and len(text) > LONGEST_TEXT:
                self._set(name, bounded(text))

    @property
    def severity(self) -> Level:
        """The level of this one: that of its kind, unless it is worse than others of it."""
        return self.level

    def details(self) -> Iterator[tuple[str, Any]]:
        """Name and value of each field that is set, without the clock."""
        for name in self.fields:
            value = getattr(self, name)
            if name != "at" and value is not None:
                yield name, value


Emit = Callable[[Event], None]


# --- connections ---


class ConnectionEvent(Event):
    """The base of what happens on one named connection."""

    connection: str


class ConnectionEstablished(ConnectionEvent):
    """First connect of the process."""

    code = "NATS_CONNECTION_ESTABLISHED"
    level = Level.INFO
    server: str


class ConnectionRestored(ConnectionEvent):
    """Connected again after a loss; says how long the outage was, and how much was kept that is sent now."""

    code = "NATS_CONNECTION_RESTORED"
    level = Level.INFO
    server: str
    outage_seconds: float
    reconnect_attempts: int
    pending_count: int = 0


class ConnectionLost(ConnectionEvent):
    """An established link was lost."""

    code = "NATS_CONNECTION_LOST"
    level = Level.ERROR
    tag: ClassVar[str | None] = "nats_connection_failure"
    server: str
    reason: str
    detail: str
    pending_count: int


class ConnectionFailed(ConnectionEvent):
    """An attempt to connect failed."""

    code = "NATS_CONNECTION_FAILED"
    level = Level.WARN
    server: str
    reason: str
    detail: str
    attempt: int
    max_attempts: int


class UnexpectedLinkError(ConnectionEvent):
    """What a server sent raised an error that router_trio does not expect, and ended the link. Please report it."""

    code = "NATS_UNEXPECTED_ERROR"
    level = Level.ERROR
    server: str
    error_type: str
    place: str


class ReconnectAttempt(ConnectionEvent):
    """An attempt to reconnect starts, `delay_ms` after the last one ended."""

    code = "NATS_RECONNECT_ATTEMPT"
    level = Level.INFO
    tag: ClassVar[str | None] = "nats_reconnecting"
    server: str
    attempt: int
    max_attempts: int
    delay_ms: int


class ReconnectExhausted(ConnectionEvent):
    """The round's attempts are used up; `action` says what happens now: keep_trying or stop."""

    code = "NATS_RECONNECT_EXHAUSTED"
    level = Level.ERROR
    reconnect_attempts: int
    action: str


class LameDuck(ConnectionEvent):
    """The server announced that it will shut down; the connection moves to another one."""

    code = "NATS_LAME_DUCK"
    level = Level.WARN
    server: str


class RetryPending(ConnectionEvent):
    """After a reconnect, operations that were queued or unconfirmed are about to be sent."""

    code = "NATS_RETRY_PENDING"
    level = Level.INFO
    pending_count: int


class RetryComplete(ConnectionEvent):
    """After a reconnect, all operations that were queued or unconfirmed are settled."""

    code = "NATS_RETRY_COMPLETE"
    level = Level.INFO
    success_count: int
    failed_count: int


# --- operations on a connection ---


class OperationEvent(ConnectionEvent):
    """The base of what can happen for every message."""

    per_message = True
    count: int = 1


class PublishFailed(OperationEvent):
    """A core publish was refused or failed while connected; `subject` and `route` are those of the last one."""

    code = "NATS_PUBLISH_ERROR"
    level = Level.WARN
    reason: str
    detail: str | None = None
    subject: str | None = None
    route: str | None = None


class PublishWithAckFailed(OperationEvent):
    """A JetStream publish was refused or failed while connected; `subject` and `route` are those of the last one."""

    code = "NATS_PUBLISH_WITH_ACK_ERROR"
    level = Level.WARN
    reason: str
    detail: str | None = None
    subject: str | None = None
    route: str | None = None


class PublishQueued(OperationEvent):
    """A core publish was queued, because the connection is not connected."""

    code = "NATS_PUBLISH_QUEUED"
    level = Level.WARN
    pending_count: int


class PublishWithAckQueued(OperationEvent):
    """A JetStream publish was queued, because the connection is not connected."""

    code = "NATS_PUBLISH_WITH_ACK_QUEUED"
    level = Level.WARN
    pending_count: int


class PublishFailedOpen(OperationEvent):
    """A publish was discarded in fail-open mode."""

    code = "NATS_PUBLISH_FAIL_OPEN"
    level = Level.WARN
    reason: str


class QueueFull(OperationEvent):
    """The queue is at its limit; `reason` says whether the oldest was dropped or the newest was rejected or blocked."""

    code = "NATS_QUEUE_FULL"
    level = Level.WARN
    reason: str
    queue_size: int
    max_size: int


class PendingDropped(OperationEvent):
    """Queued messages were dropped; `reason` is expired or shutdown."""

    code = "NATS_PENDING_DROPPED"
    level = Level.WARN
    reason: str


class AckFailed(OperationEvent):
    """The ack of a source message could not be sent; the stream will redeliver the message."""

    code = "NATS_ACK_ERROR"
    level = Level.WARN
    reason: str
    route: str | None = None


class NakFailed(OperationEvent):
    """The nak of a source message could not be sent; the stream will redeliver the message after its ack wait."""

    code = "NATS_NAK_ERROR"
    level = Level.WARN
    reason: str
    route: str | None = None


class SubscribeFailed(OperationEvent):
    """A route could not subscribe or open its consumer, or lost it; the route retries."""

    code = "NATS_SUBSCRIBE_ERROR"
    level = Level.WARN
    reason: str
    detail: str
    route: str | None = None


# --- routes ---


class RouteEvent(Event):
    """The base of what happens on one route."""

    route: str


class RouteReady(RouteEvent):
    """A route has its subscription or consumer, and receives messages."""

    code = "ROUTE_READY"
    level = Level.INFO
    connection: str
    source: str


class RouteStandby(RouteEvent):
    """A route with standby waits for the lead of its consumer; ROUTE_READY follows when it routes."""

    code = "ROUTE_STANDBY"
    level = Level.INFO
    stream: str
    durable: str


class ConsumerDiffers(RouteEvent):
    """The durable has other limits than the configuration, and may not be changed; its limits are in force."""

    code = "ROUTE_CONSUMER_DIFFERS"
    level = Level.WARN
    stream: str
    durable: str
    detail: str


class FilterOutside(RouteEvent):
    """The stream takes none of the subjects that the filter of this route matches: it gets no message."""

    code = "ROUTE_FILTER_OUTSIDE_STREAM"
    level = Level.WARN
    stream: str
    filter: str
    subjects: str


class MessageFailed(RouteEvent):
    """A message could not be routed. `subject`, `stream` and `sequence` say which; `place` is where its handler raised.

    `error_type`, `detail` and `traceback` are of that error, the last with `handler_errors = "full"` alone.
    """

    code = "ROUTE_MESSAGE_FAILED"
    level = Level.WARN
    per_message = True
    reason: str
    count: int = 1
    subject: str | None = None
    stream: str | None = None
    sequence: int | None = None
    error_type: str | None = None
    place: str | None = None
    detail: str | None = None
    traceback: tuple[str, ...] | None = None


class _LastFailure(RouteEvent):
    """The base of what becomes of a message that is not tried again. `sequence` is its place in its `stream`."""

    per_message = True
    reason: str
    attempts: int
    subject: str | None = None
    stream: str | None = None
    sequence: int | None = None
    count: int = 1


class MessageDeadLettered(_LastFailure):
    """A message is not tried again, and its dead letter is stored."""

    code = "ROUTE_MESSAGE_DEAD_LETTERED"
    level = Level.WARN


class MessageGivenUp(_LastFailure):
    """A message is not tried again, and its route has no dead letters. A stream may keep it under `sequence`."""

    code = "ROUTE_MESSAGE_GIVEN_UP"
    level = Level.WARN


class DeadLetterNotStored(RouteEvent):
    """A dead letter could not be stored. A message of a stream stays there and comes again; another one is lost."""

    code = "ROUTE_DEAD_LETTER_NOT_STORED"
    level = Level.WARN
    per_message = True
    reason: str
    subject: str | None = None
    stream: str | None = None
    sequence: int | None = None
    detail: str | None = None
    count: int = 1


class RouteLimited(RouteEvent):
    """More messages came than the limit of a route allows: they wait."""

    code = "ROUTE_LIMITED"
    level = Level.INFO
    per_message = True
    rate: str
    count: int = 1


class BreakerOpened(RouteEvent):
    """A destination failed so often in a row that it is left alone; one message tries after `pause_seconds`."""

    code = "ROUTE_BREAKER_OPENED"
    level = Level.WARN
    connection: str
    subject: str
    reason: str
    failed_count: int
    pause_seconds: float


class BreakerClosed(RouteEvent):
    """A destination that was left alone has taken a message, and gets all others again."""

    code = "ROUTE_BREAKER_CLOSED"
    level = Level.INFO
    connection: str
    subject: str
    open_seconds: float


class DestinationNotStored(RouteEvent):
    """A destination does not accept what this route sends; `reason` and `detail` say why, and what to do."""

    code = "NATS_DESTINATION_NOT_STORED"
    level = Level.WARN
    connection: str
    subject: str
    reason: str
    detail: str


class DestinationStored(RouteEvent):
    """A destination that accepted nothing accepts messages again."""

    code = "NATS_DESTINATION_STORED"
    level = Level.INFO
    connection: str
    subject: str


class FastIngestChosen(RouteEvent):
    """The stream of a destination takes fast ingest: where enough is under way, one answer is for many messages."""

    code = "NATS_FAST_INGEST"
    level = Level.DEBUG
    connection: str
    subject: str
    stream: str


class FastIngestUnavailable(RouteEvent):
    """No stream takes fast ingest for all of a destination: each message gets a PubAck of its own."""

    code = "NATS_FAST_INGEST_UNAVAILABLE"
    level = Level.DEBUG
    connection: str
    subject: str
    detail: str


class DestinationsUnknown(ConnectionEvent):
    """The streams of the destinations can't be looked up; only publishes show whether they accept messages."""

    code = "NATS_DESTINATIONS_UNKNOWN"
    level = Level.INFO
    reason: str
    detail: str


class StreamCreated(ConnectionEvent):
    """A stream of the settings ([[streams]]) was absent, and was made."""

    code = "NATS_STREAM_CREATED"
    level = Level.INFO
    stream: str


class StreamDiffers(ConnectionEvent):
    """A stream is not as the settings ([[streams]]) say. It is left as it is; change it, or the settings."""

    code = "NATS_STREAM_DIFFERS"
    level = Level.WARN
    stream: str
    detail: str


class StreamNotMade(ConnectionEvent):
    """A stream of the settings ([[streams]]) could not be looked up or made; it is tried again."""

    code = "NATS_STREAM_NOT_MADE"
    level = Level.WARN
    stream: str
    reason: str
    detail: str


class StreamWentBack(RouteEvent):
    """A stream was created again, emptied or restored: it gives known sequences to new messages, which are routed."""

    code = "STREAM_WENT_BACK"
    level = Level.WARN
    stream: str
    detail: str


# --- fault injection ---


class FaultInjectionEnabled(Event):
    """This router injects faults on request, for rehearsals. Never leave that on in production."""

    code = "ROUTER_FAULT_INJECTION_ENABLED"
    level = Level.WARN
    page: str


class FaultInjected(Event):
    """A fault was set for an operation; it strikes `times` operations, or with 0 all of them until it is cleared."""

    code = "ROUTER_FAULT_INJECTED"
    level = Level.WARN
    operation: str
    fault: str
    probability: float
    times: int


class FaultsCleared(Event):
    """The fault of an operation was cleared, or all faults were."""

    code = "ROUTER_FAULTS_CLEARED"
    level = Level.WARN
    operation: str


# --- the router ---


class SettingIgnored(Event):
    """A key of the configuration has no effect any more; `detail` says what to write instead."""

    code = "ROUTER_SETTING_IGNORED"
    level = Level.WARN
    key: str
    detail: str


class StatusPageReady(Event):
    """The HTTP side answers; `url` is that of the status page."""

    code = "ROUTER_STATUS_PAGE"
    level = Level.INFO
    url: str


class RouterStarted(Event):
    """Each connection has made its first attempt, and each subscription that could be made is active."""

    code = "ROUTER_STARTED"
    level = Level.INFO
    name: str
    connections: int
    routes: int


class RouterDraining(Event):
    """Shutdown: intake has stopped, and accepted messages are being settled."""

    code = "ROUTER_DRAINING"
    level = Level.INFO
    pending_count: int
    timeout_seconds: float


class RouterStopped(Event):
    """The router has stopped; `ledger` has the counts of every connection. WARN if something was left unsettled."""

    code = "ROUTER_STOPPED"
    level = Level.INFO
    ledger: dict[str, Any]
    unsettled: int

    @property
    def severity(self) -> Level:
        """WARN if something was left unsettled."""
        return Level.WARN if self.unsettled else Level.INFO


class WorkerStarted(Event):
    """A worker process has started, and takes its part of the messages. `restarts`: how often it was started again."""

    code = "ROUTER_WORKER_STARTED"
    level = Level.INFO
    worker: int
    pid: int
    restarts: int


class WorkerLost(Event):
    """A worker process ended by itself, and is started again after `delay_ms`.

    What it had accepted and not settled is settled now: `dropped` publishes; `returned` messages, which their stream
    delivers again; `lost` messages of core subscriptions.
    """

    code = "ROUTER_WORKER_LOST"
    level = Level.ERROR
    worker: int
    pid: int
    reason: str
    delay_ms: int
    dropped: int
    returned: int
    lost: int


MOST_NAMES = 100
"""Names, or problems, that an event of a reload lists. `count` is of all."""


class RouterReloaded(Event):
    """A reload is done: `added`, `removed` and `changed` name the connections, streams and routes that differ.

    `unchanged` is the number of connections and routes that noticed nothing, `unsettled` the number of messages that
    what has ended could not settle in time.
    """

    code = "ROUTER_RELOADED"
    level = Level.INFO
    added: tuple[str, ...]
    removed: tuple[str, ...]
    changed: tuple[str, ...]
    unchanged: int
    unsettled: int

    def __post_init__(self) -> None:
        for name in ("added", "removed", "changed"):
            self._set(name, getattr(self, name)[:MOST_NAMES])


class ReloadRefused(Event):
    """A reload was refused and has changed nothing: `problems` says what is wrong with the configuration."""

    code = "ROUTER_RELOAD_REFUSED"
    level = Level.ERROR
    count: int
    problems: tuple[str, ...]

    def __post_init__(self) -> None:
        self._set("problems", tuple(map(bounded, self.problems[:MOST_NAMES])))


class RestartNeeded(Event):
    """Of a configuration that was reloaded, these `keys` have no effect before the process is started again."""

    code = "ROUTER_RESTART_NEEDED"
    level = Level.WARN
    keys: tuple[str, ...]


def catalogue() -> tuple[type[Event], ...]:
    """Return every kind of event, by code."""
    kinds = [kind for kind in globals().values() if isinstance(kind, type) and issubclass(kind, Event)]
    return tuple(sorted((kind for kind in kinds if "code" in vars(kind)), key=lambda kind: kind.code))
