"""Events of a route: its source, its messages, its destinations."""

from __future__ import annotations

from router_trio.events.event import Event, Level


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


class ConsumerReset(RouteEvent):
    """Somebody has reset the durable, or made it again, while the route reads from it: it goes on elsewhere.

    It would have delivered `from_sequence` next, and goes on with `to_sequence`. What the route has settled is acked
    when it is delivered again, and not routed again.
    """

    code = "ROUTE_CONSUMER_RESET"
    level = Level.WARN
    stream: str
    durable: str
    from_sequence: int
    to_sequence: int


class FilterOutside(RouteEvent):
    """The stream takes none of the subjects that the filter of this route matches: it gets no message, is not ready."""

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


class HandlerLeftBehind(RouteEvent):
    """Calls of a handler did not return before their route was ended: nothing waits for them any more.

    Their messages are redelivered by their stream, or are lost. A thread ends when its call returns.
    """

    code = "ROUTE_HANDLER_LEFT_BEHIND"
    level = Level.WARN
    count: int


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


class DestinationUnconfirmed(RouteEvent):
    """A stream stores the core publishes of this route, which have no PubAck: one that it refuses counts as routed."""

    code = "NATS_DESTINATION_UNCONFIRMED"
    level = Level.WARN
    connection: str
    subject: str
    stream: str


class StreamWentBack(RouteEvent):
    """A stream was created again, emptied or restored: it gives known sequences to new messages, which are routed."""

    code = "STREAM_WENT_BACK"
    level = Level.WARN
    stream: str
    detail: str
