"""Events that can happen for every message on a connection, with a count: publishes, acks, subscriptions."""

from __future__ import annotations

from router_trio.errors import reasons
from router_trio.events.connections import ConnectionEvent
from router_trio.events.event import Level
from router_trio.events.sentences import by_route, counted, to_subject, with_advice


class OperationEvent(ConnectionEvent):
    """The base of events that can happen for every message."""

    per_message = True
    count: int = 1


class _PublishRefused(OperationEvent):
    """The base of events about a publish that was refused or failed while connected."""

    reason: str
    detail: str | None = None
    subject: str | None = None
    route: str | None = None
    sequence: int | None = None

    def _sentence_of(self, publish: str) -> str:
        message = "" if self.sequence is None else f", of message {self.sequence} of its stream,"
        text = f"{publish}{to_subject(self.subject)}{message} on connection {self.connection} failed: {self.reason}"
        return by_route(self.route, text + with_advice(self.reason))


class PublishFailed(_PublishRefused):
    """A core publish was refused or failed while connected. `subject` and `route` are those of the last one.

    `sequence` is that of its source message, if it is the copy of one from a stream.
    """

    code = "NATS_PUBLISH_ERROR"
    level = Level.WARN

    def sentence(self) -> str:
        return self._sentence_of("core publish")


class PublishWithAckFailed(_PublishRefused):
    """A JetStream publish was refused or failed while connected. `subject` and `route` are those of the last one.

    `sequence` is that of its source message, if it is the copy of one from a stream.
    """

    code = "NATS_PUBLISH_WITH_ACK_ERROR"
    level = Level.WARN

    def sentence(self) -> str:
        return self._sentence_of("JetStream publish")


class _Queued(OperationEvent):
    """The base of events about publishes that wait for the connection."""

    pending_count: int

    def _sentence_of(self, publishes: str) -> str:
        return f"Connection {self.connection} is not connected: {publishes} are queued, {self.pending_count} pending"


class PublishQueued(_Queued):
    """A core publish was queued, because the connection is not connected."""

    code = "NATS_PUBLISH_QUEUED"
    level = Level.WARN

    def sentence(self) -> str:
        return self._sentence_of("core publishes")


class PublishWithAckQueued(_Queued):
    """A JetStream publish was queued, because the connection is not connected."""

    code = "NATS_PUBLISH_WITH_ACK_QUEUED"
    level = Level.WARN

    def sentence(self) -> str:
        return self._sentence_of("JetStream publishes")


class PublishFailedOpen(OperationEvent):
    """A publish was discarded in fail-open mode."""

    code = "NATS_PUBLISH_FAIL_OPEN"
    level = Level.WARN
    reason: str

    def sentence(self) -> str:
        return f"Connection {self.connection} discarded publishes, because fail_open is set: {self.reason}"


class QueueFull(OperationEvent):
    """The queue is full. `reason`: the oldest operations were dropped, or the newest were rejected or blocked."""

    code = "NATS_QUEUE_FULL"
    level = Level.WARN
    reason: str
    queue_size: int
    max_size: int

    def sentence(self) -> str:
        then = {
            reasons.DROPPED_OLDEST: "the oldest operations were dropped",
            reasons.REJECTED: "new publishes are rejected",
            reasons.BLOCKED: "publishers wait for room",
        }.get(self.reason, self.reason)
        return (
            f"The queue of connection {self.connection} is full ({self.queue_size} of "
            f"{counted(self.max_size, 'operation')}): {then}"
        )


class PendingDropped(OperationEvent):
    """Queued messages were dropped; `reason` is `expired` or `shutdown`."""

    code = "NATS_PENDING_DROPPED"
    level = Level.WARN
    reason: str

    def sentence(self) -> str:
        return f"Connection {self.connection} dropped pending operations: {self.reason}"


class AckFailed(OperationEvent):
    """The ack of a source message could not be sent, or was refused. It is sent again.

    The stream redelivers the message if its ack wait ends before that. `subject` is the subject that the user may not
    publish to.
    """

    code = "NATS_ACK_ERROR"
    level = Level.WARN
    reason: str
    route: str | None = None
    subject: str | None = None

    def sentence(self) -> str:
        text = f"acks{to_subject(self.subject)} on connection {self.connection} failed: {self.reason}"
        return by_route(
            self.route, f"{text}; they are sent again; the stream redelivers messages whose ack wait ends before that"
        )


class NakFailed(OperationEvent):
    """The nak of a source message could not be sent, or was refused; the stream redelivers it after its ack wait.

    `subject` is the subject that the user may not publish to.
    """

    code = "NATS_NAK_ERROR"
    level = Level.WARN
    reason: str
    route: str | None = None
    subject: str | None = None

    def sentence(self) -> str:
        text = f"naks{to_subject(self.subject)} on connection {self.connection} failed: {self.reason}"
        return by_route(self.route, f"{text}; the stream redelivers these messages after its ack wait")


class RefusalNotAttributed(OperationEvent):
    """The server refused an operation that can't be attributed, for example because the server maps subjects.

    All core publishes in flight have failed, since the refusal may be about any of them.
    """

    code = "NATS_REFUSAL_NOT_ATTRIBUTED"
    level = Level.WARN
    detail: str

    def sentence(self) -> str:
        return (
            f"Connection {self.connection}: the server refused an operation that can't be matched to any publish, ack "
            f"or request of this router: {self.detail}; all core publishes in flight count as failed"
        )


class SubscribeFailed(OperationEvent):
    """A route could not subscribe or open its consumer, or lost it; the route retries."""

    code = "NATS_SUBSCRIBE_ERROR"
    level = Level.WARN
    reason: str
    detail: str
    route: str | None = None

    def sentence(self) -> str:
        text = f"could not subscribe or open the consumer on connection {self.connection}: {self.reason}; retrying"
        return by_route(self.route, text)
