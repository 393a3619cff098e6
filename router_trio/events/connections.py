"""Events of a connection: its links, and the streams on its server."""

from __future__ import annotations

from typing import ClassVar

from router_trio.events.event import Event, Level


class ConnectionEvent(Event):
    """The base of events on one named connection."""

    connection: str


class ConnectionEstablished(ConnectionEvent):
    """The connection was established for the first time in this process."""

    code = "NATS_CONNECTION_ESTABLISHED"
    level = Level.INFO
    server: str


class ConnectionRestored(ConnectionEvent):
    """The connection was established again after a loss. `pending_count` operations were kept and are sent now."""

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
    """Data from a server raised an error that router_trio does not expect, and the link was closed: report the bug."""

    code = "NATS_UNEXPECTED_ERROR"
    level = Level.ERROR
    server: str
    error_type: str
    place: str


class ReconnectAttempt(ConnectionEvent):
    """An attempt to reconnect starts, `delay_ms` after the previous one ended."""

    code = "NATS_RECONNECT_ATTEMPT"
    level = Level.INFO
    tag: ClassVar[str | None] = "nats_reconnecting"
    server: str
    attempt: int
    max_attempts: int
    delay_ms: int


class ReconnectExhausted(ConnectionEvent):
    """All attempts of a round failed. `action` is what the router does next: keep_trying or stop."""

    code = "NATS_RECONNECT_EXHAUSTED"
    level = Level.ERROR
    reconnect_attempts: int
    action: str


class LameDuck(ConnectionEvent):
    """The server announced that it will shut down (lame duck mode); the connection moves to another server."""

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


class DuplicatesPossible(ConnectionEvent):
    """After a reconnect, messages are sent again whose ids their stream may have forgotten, so it may store them twice.

    `count` messages had been sent and were unanswered for up to `unanswered_seconds`, longer than the duplicate window
    of the stream. With `window_assumed` the window could not be looked up and the server's default is assumed; if the
    window is shorter, more messages than `count` are affected. `stream` is absent if the stream is not known.
    """

    code = "NATS_DUPLICATES_POSSIBLE"
    level = Level.WARN
    stream: str | None
    count: int
    outage_seconds: float
    unanswered_seconds: float
    window_seconds: float
    window_assumed: bool


class DestinationsUnknown(ConnectionEvent):
    """The streams of the destinations can't be looked up. Only failed publishes show that one accepts no messages."""

    code = "NATS_DESTINATIONS_UNKNOWN"
    level = Level.INFO
    reason: str
    detail: str


class ServiceNotOffered(ConnectionEvent):
    """The router does not answer `nats service` on this connection: a server refused a subscription or an answer.

    Nothing else is affected. The router tries again on the next link.
    """

    code = "NATS_SERVICE_NOT_OFFERED"
    level = Level.INFO
    reason: str
    detail: str


class AdvisoriesRefused(ConnectionEvent):
    """The user may not subscribe to advisories, so log lines do not contain the cause that a server reports.

    `subject` is the first of `count` refused ones. Everything else works as with the permission.
    """

    code = "NATS_ADVISORIES_REFUSED"
    level = Level.INFO
    reason: str
    subject: str
    count: int
    detail: str


class QuorumLost(ConnectionEvent):
    """A server reported that a stream or durable has lost its quorum, and lookups confirm it: nothing is stored there.

    `detail` names the replicas that are offline. Emitted when it first explains trouble of this router.
    """

    code = "NATS_QUORUM_LOST"
    level = Level.WARN
    stream: str
    durable: str | None = None
    detail: str


class StreamAcksEarly(ConnectionEvent):
    """The stream of a destination confirms messages before it has written them (`persist_mode` is `async`).

    A crash of its server can lose confirmed messages, which are acked at their source by then.
    """

    code = "NATS_STREAM_ACKS_EARLY"
    level = Level.WARN
    stream: str


class StreamCreated(ConnectionEvent):
    """A stream of `[[streams]]` did not exist and was created."""

    code = "NATS_STREAM_CREATED"
    level = Level.INFO
    stream: str


class StreamDiffers(ConnectionEvent):
    """A stream differs from its `[[streams]]` section and was left unchanged: change the stream or the section."""

    code = "NATS_STREAM_DIFFERS"
    level = Level.WARN
    stream: str
    detail: str


class StreamNotMade(ConnectionEvent):
    """A stream of `[[streams]]` could not be looked up or created; the router retries."""

    code = "NATS_STREAM_NOT_MADE"
    level = Level.WARN
    stream: str
    reason: str
    detail: str
