"""Events that can happen for every message on a connection, with a count: publishes, acks, subscriptions."""

from __future__ import annotations

from router_trio.events.connections import ConnectionEvent
from router_trio.events.event import Level


class OperationEvent(ConnectionEvent):
    """The base of events that can happen for every message."""

    per_message = True
    count: int = 1


class PublishFailed(OperationEvent):
    """A core publish was refused or failed while connected. `subject` and `route` are those of the last one.

    `sequence` is that of its source message, if it is the copy of one from a stream.
    """

    code = "NATS_PUBLISH_ERROR"
    level = Level.WARN
    reason: str
    detail: str | None = None
    subject: str | None = None
    route: str | None = None
    sequence: int | None = None


class PublishWithAckFailed(OperationEvent):
    """A JetStream publish was refused or failed while connected. `subject` and `route` are those of the last one.

    `sequence` is that of its source message, if it is the copy of one from a stream.
    """

    code = "NATS_PUBLISH_WITH_ACK_ERROR"
    level = Level.WARN
    reason: str
    detail: str | None = None
    subject: str | None = None
    route: str | None = None
    sequence: int | None = None


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
    """The queue is full. `reason`: the oldest operations were dropped, or the newest were rejected or blocked."""

    code = "NATS_QUEUE_FULL"
    level = Level.WARN
    reason: str
    queue_size: int
    max_size: int


class PendingDropped(OperationEvent):
    """Queued messages were dropped; `reason` is `expired` or `shutdown`."""

    code = "NATS_PENDING_DROPPED"
    level = Level.WARN
    reason: str


class AckFailed(OperationEvent):
    """The ack of a source message could not be sent, or was refused; the stream will redeliver the message.

    `subject` is the subject that the user may not publish to.
    """

    code = "NATS_ACK_ERROR"
    level = Level.WARN
    reason: str
    route: str | None = None
    subject: str | None = None


class NakFailed(OperationEvent):
    """The nak of a source message could not be sent, or was refused; the stream redelivers it after its ack wait.

    `subject` is the subject that the user may not publish to.
    """

    code = "NATS_NAK_ERROR"
    level = Level.WARN
    reason: str
    route: str | None = None
    subject: str | None = None


class RefusalNotAttributed(OperationEvent):
    """The server refused an operation that can't be attributed, for example because the server maps subjects.

    All core publishes in flight have failed, since the refusal may be about any of them.
    """

    code = "NATS_REFUSAL_NOT_ATTRIBUTED"
    level = Level.WARN
    detail: str


class SubscribeFailed(OperationEvent):
    """A route could not subscribe or open its consumer, or lost it; the route retries."""

    code = "NATS_SUBSCRIBE_ERROR"
    level = Level.WARN
    reason: str
    detail: str
    route: str | None = None
