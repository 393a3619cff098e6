"""Events of a connection: its links, and the streams on its server."""

from __future__ import annotations

from typing import ClassVar

from router_trio.events.event import Event, Level
from router_trio.events.sentences import counted


class ConnectionEvent(Event):
    """The base of events on one named connection."""

    connection: str


class ServerEvent(ConnectionEvent):
    """The base of events about the server of a connection. Servers announce each other without a scheme."""

    server: str

    def __post_init__(self) -> None:
        if "://" not in self.server:
            self._set("server", f"nats://{self.server}")
        super().__post_init__()


class ConnectionEstablished(ServerEvent):
    """The connection was established for the first time in this process."""

    code = "NATS_CONNECTION_ESTABLISHED"
    level = Level.INFO

    def sentence(self) -> str:
        return f"Connection {self.connection} is connected to {self.server}"


class ConnectionRestored(ServerEvent):
    """The connection was established again after a loss. `pending_count` operations were kept and are sent now."""

    code = "NATS_CONNECTION_RESTORED"
    level = Level.INFO
    outage_seconds: float
    reconnect_attempts: int
    pending_count: int = 0

    def sentence(self) -> str:
        return (
            f"Connection {self.connection} reconnected to {self.server} after {self.outage_seconds:.1f} s and "
            f"{counted(self.reconnect_attempts, 'attempt')}"
        )


class ConnectionLost(ServerEvent):
    """An established link was lost."""

    code = "NATS_CONNECTION_LOST"
    level = Level.ERROR
    tag: ClassVar[str | None] = "nats_connection_failure"
    reason: str
    detail: str
    pending_count: int

    def sentence(self) -> str:
        return (
            f"Connection {self.connection} lost its link to {self.server}: {self.reason}; reconnecting, "
            f"{counted(self.pending_count, 'operation')} pending"
        )


class ConnectionFailed(ServerEvent):
    """An attempt to connect failed."""

    code = "NATS_CONNECTION_FAILED"
    level = Level.WARN
    reason: str
    detail: str
    attempt: int
    max_attempts: int

    def sentence(self) -> str:
        problem, mark, cure = self.detail.partition("; ")
        if self.server.rpartition("://")[2] not in problem:
            problem = f"{problem}, at {self.server.rpartition('://')[2]}"
        return (
            f"Connection {self.connection} could not connect (attempt {self.attempt} of {self.max_attempts}): "
            f"{problem}{mark}{cure}"
        )


class UnexpectedLinkError(ServerEvent):
    """Data from a server raised an error that router_trio does not expect, and the link was closed: report the bug."""

    code = "NATS_UNEXPECTED_ERROR"
    level = Level.ERROR
    error_type: str
    place: str

    def sentence(self) -> str:
        return (
            f"Connection {self.connection} closed its link to {self.server} after an unexpected {self.error_type} at "
            f"{self.place}: this is a bug in router_trio, please report it"
        )


class ReconnectAttempt(ServerEvent):
    """An attempt to reconnect starts, `delay_ms` after the previous one ended."""

    code = "NATS_RECONNECT_ATTEMPT"
    level = Level.INFO
    tag: ClassVar[str | None] = "nats_reconnecting"
    attempt: int
    max_attempts: int
    delay_ms: int

    def sentence(self) -> str:
        attempt = f"attempt {self.attempt} of {self.max_attempts}"
        return f"Connection {self.connection} is connecting to {self.server}, {attempt}"


class ReconnectExhausted(ConnectionEvent):
    """All attempts of a round failed. `action` is what the router does next: keep_trying or stop."""

    code = "NATS_RECONNECT_EXHAUSTED"
    level = Level.ERROR
    reconnect_attempts: int
    action: str

    def sentence(self) -> str:
        then = {
            "keep_trying": "it keeps trying",
            "stop": 'the router stops (on_reconnect_exhausted = "stop")',
        }.get(self.action, self.action)
        return (
            f"Connection {self.connection} failed to connect in {counted(self.reconnect_attempts, 'attempt')}; {then}"
        )


class LameDuck(ServerEvent):
    """The server announced that it will shut down (lame duck mode); the connection moves to another server."""

    code = "NATS_LAME_DUCK"
    level = Level.WARN

    def sentence(self) -> str:
        return (
            f"Server {self.server} is in lame duck mode and will shut down; connection {self.connection} is moving to "
            "another server"
        )


class RetryPending(ConnectionEvent):
    """After a reconnect, operations that were queued or unconfirmed are about to be sent."""

    code = "NATS_RETRY_PENDING"
    level = Level.INFO
    pending_count: int

    def sentence(self) -> str:
        return (
            f"Connection {self.connection} is sending "
            f"{counted(self.pending_count, 'operation that was', 'operations that were')} queued or unconfirmed during "
            "the outage"
        )


class RetryComplete(ConnectionEvent):
    """After a reconnect, all operations that were queued or unconfirmed are settled."""

    code = "NATS_RETRY_COMPLETE"
    level = Level.INFO
    success_count: int
    failed_count: int

    def sentence(self) -> str:
        return (
            f"Connection {self.connection} has settled all operations from before the reconnect: {self.success_count} "
            f"succeeded, {self.failed_count} failed"
        )


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

    def sentence(self) -> str:
        stream = "a stream" if self.stream is None else f"stream {self.stream}"
        at_least, assumed = (
            ("at least ", " (the server's default, since it could not be looked up)")
            if self.window_assumed
            else ("", "")
        )
        return (
            f"Connection {self.connection} reconnected after {self.outage_seconds:.1f} s: {stream} may store "
            f"{at_least}{counted(self.count, 'message')} twice, sent up to {self.unanswered_seconds:.1f} s ago without "
            f"a PubAck, longer than its duplicate window of {self.window_seconds:g} s{assumed}"
        )


class DestinationsUnknown(ConnectionEvent):
    """The streams of the destinations can't be looked up. Only failed publishes show that one accepts no messages."""

    code = "NATS_DESTINATIONS_UNKNOWN"
    level = Level.INFO
    reason: str
    detail: str

    def sentence(self) -> str:
        return (
            f"Connection {self.connection} could not look up the streams of its destinations: {self.reason}; a stream "
            "that accepts nothing is noticed only when a publish fails"
        )


class ServiceNotOffered(ConnectionEvent):
    """The router does not answer `nats service` on this connection: a server refused a subscription or an answer.

    Nothing else is affected. The router tries again on the next link.
    """

    code = "NATS_SERVICE_NOT_OFFERED"
    level = Level.INFO
    reason: str
    detail: str

    def sentence(self) -> str:
        return (
            f"Connection {self.connection} does not offer the router as a NATS service: {self.reason}; grant the "
            "permissions, or set service = false under [router]"
        )


class AdvisoriesRefused(ConnectionEvent):
    """The user may not subscribe to advisories, so log lines do not contain the cause that a server reports.

    `subject` is the first of `count` refused ones. Nothing else is affected.
    """

    code = "NATS_ADVISORIES_REFUSED"
    level = Level.INFO
    reason: str
    subject: str
    count: int
    detail: str

    def sentence(self) -> str:
        return (
            f"Connection {self.connection} has no permission to subscribe to advisories of JetStream: the causes that "
            "servers report are not logged; nothing else is affected"
        )


class QuorumLost(ConnectionEvent):
    """A server reported that a stream or durable has lost its quorum, and lookups confirm it: nothing is stored there.

    `detail` names the replicas that are offline. Emitted when it first explains trouble of this router.
    """

    code = "NATS_QUORUM_LOST"
    level = Level.WARN
    stream: str
    durable: str | None = None
    detail: str

    def sentence(self) -> str:
        return (
            f"Connection {self.connection}: {self.detail}; nothing is stored or delivered there until more than half "
            "of the replicas are up"
        )


class StreamAcksEarly(ConnectionEvent):
    """The stream of a destination confirms messages before it has written them (`persist_mode` is `async`).

    A crash of its server can lose confirmed messages, which are acked at their source by then.
    """

    code = "NATS_STREAM_ACKS_EARLY"
    level = Level.WARN
    stream: str

    def sentence(self) -> str:
        return (
            f"Stream {self.stream} on connection {self.connection} confirms messages before writing them (persist_mode "
            "is async): a crash of its server can lose messages that count as routed"
        )


class StreamCreated(ConnectionEvent):
    """A stream of `[[streams]]` did not exist and was created."""

    code = "NATS_STREAM_CREATED"
    level = Level.INFO
    stream: str

    def sentence(self) -> str:
        return f"Stream {self.stream} was created on connection {self.connection}"


class StreamDiffers(ConnectionEvent):
    """A stream differs from its `[[streams]]` section and was left unchanged: change the stream or the section."""

    code = "NATS_STREAM_DIFFERS"
    level = Level.WARN
    stream: str
    detail: str

    def sentence(self) -> str:
        return (
            f"Stream {self.stream} on connection {self.connection} differs from [[streams]] and was left unchanged: "
            f"{self.detail}; change the stream or the configuration"
        )


class StreamNotMade(ConnectionEvent):
    """A stream of `[[streams]]` could not be looked up or created; the router retries."""

    code = "NATS_STREAM_NOT_MADE"
    level = Level.WARN
    stream: str
    reason: str
    detail: str

    def sentence(self) -> str:
        return (
            f"Stream {self.stream} could not be looked up or created on connection {self.connection}: {self.reason}; "
            "retrying"
        )
