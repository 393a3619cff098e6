"""Events of a route: its source, its messages, its destinations."""

from __future__ import annotations

from typing import Any

from router_trio.events.event import Event, Level
from router_trio.events.sentences import counted, named_message, raised_by, with_advice


class RouteEvent(Event):
    """The base of events on one route."""

    route: str


class RouteReady(RouteEvent):
    """A route has its subscription or consumer and is receiving messages."""

    code = "ROUTE_READY"
    level = Level.INFO
    connection: str
    source: str

    def sentence(self) -> str:
        return f"Route {self.route} is receiving from {self.source} on connection {self.connection}"


class RouteStandby(RouteEvent):
    """A route with standby waits for the lead of its consumer; ROUTE_READY follows when it routes."""

    code = "ROUTE_STANDBY"
    level = Level.INFO
    stream: str
    durable: str

    def sentence(self) -> str:
        return (
            f"Route {self.route} is on standby, waiting for the lead of consumer {self.durable} of stream {self.stream}"
        )


class RouteMembersChanged(RouteEvent):
    """Processes that share the partitions of a route have joined or left. `count` is their number now.

    `share` is the number of partitions that this process should lead.
    """

    code = "ROUTE_MEMBERS_CHANGED"
    level = Level.INFO
    stream: str
    durable: str
    count: int
    joined: int
    left: int
    share: int

    def sentence(self) -> str:
        processes, share = counted(self.count, "process shares", "processes share"), counted(self.share, "partition")
        return (
            f"Route {self.route}: {processes} the partitions of stream {self.stream} ({self.joined} joined, "
            f"{self.left} left); this one should lead {share}"
        )


class PartitionEvent(RouteEvent):
    """The base of events on one partition of a route."""

    stream: str
    durable: str
    partition: int


class RoutePartitionTaken(PartitionEvent):
    """This process leads a partition of a route from now on. `seconds` is the time since it should."""

    code = "ROUTE_PARTITION_TAKEN"
    level = Level.INFO
    seconds: float

    def sentence(self) -> str:
        return (
            f"Route {self.route} leads partition {self.partition} of stream {self.stream}, after {self.seconds:.1f} s"
        )


class RoutePartitionGivenUp(PartitionEvent):
    """This process no longer leads a partition of a route: it is the share of another one, or the route ends.

    `seconds` is the time in which messages in hand were settled before another process could take the partition.
    """

    code = "ROUTE_PARTITION_GIVEN_UP"
    level = Level.INFO
    seconds: float

    def sentence(self) -> str:
        partition = f"partition {self.partition} of stream {self.stream}"
        return f"Route {self.route} has given up {partition}, after {self.seconds:.1f} s"


class RoutePartitionLost(PartitionEvent):
    """This process no longer leads a partition of a route, which is its share: the server or the link is the cause.

    Unsettled messages are redelivered to the process that leads it next, which may be this one. `reason` and `detail`
    are the cause.
    """

    code = "ROUTE_PARTITION_LOST"
    level = Level.WARN
    reason: str
    detail: str

    def sentence(self) -> str:
        return (
            f"Route {self.route} has lost partition {self.partition} of stream {self.stream}: {self.detail}; unsettled "
            "messages are redelivered to the process that leads it next"
        )


class RoutePartitionsUnled(RouteEvent):
    """Messages wait in partitions of a route that no process leads: their owner does not exist, or can't lead.

    `count` is the number of these partitions, `detail` names them and their owners. Processes that can lead them stand
    in for the owners.
    """

    code = "ROUTE_PARTITIONS_UNLED"
    level = Level.WARN
    stream: str
    durable: str
    count: int
    detail: str

    def sentence(self) -> str:
        return f"Route {self.route}, stream {self.stream}: {self.detail}"


class ConsumerDiffers(RouteEvent):
    """The durable has other limits than the configuration and can't be changed; its own limits are in force."""

    code = "ROUTE_CONSUMER_DIFFERS"
    level = Level.WARN
    stream: str
    durable: str
    detail: str

    def sentence(self) -> str:
        return (
            f"Route {self.route}: consumer {self.durable} of stream {self.stream} differs from the configuration and "
            f"was left unchanged: {self.detail}; change the consumer or the configuration"
        )


class ConsumerLimitsRemoved(RouteEvent):
    """The router removed limits of a durable by which the server would give up messages, or delete the durable.

    `detail` has the limits and their values.
    """

    code = "ROUTE_CONSUMER_LIMITS_REMOVED"
    level = Level.INFO
    stream: str
    durable: str
    detail: str

    def sentence(self) -> str:
        return (
            f"Route {self.route}: the router removed {self.detail} from consumer {self.durable} of stream "
            f"{self.stream}, since a route counts attempts itself and its durable must outlast a restart"
        )


class ConsumerReset(RouteEvent):
    """The durable was reset or recreated while the route reads from it, and continues elsewhere.

    It would have delivered `from_sequence` next, and continues with `to_sequence`. Messages that the route has settled
    are acked when they are redelivered, and not routed again.
    """

    code = "ROUTE_CONSUMER_RESET"
    level = Level.WARN
    stream: str
    durable: str
    from_sequence: int
    to_sequence: int

    def sentence(self) -> str:
        then = (
            "messages that the route has settled are acked, not routed again; to route them again, stop the router "
            "first"
            if self.to_sequence < self.from_sequence
            else "the messages between them are skipped"
        )
        return (
            f"Route {self.route}: consumer {self.durable} of stream {self.stream} was reset or recreated and continues "
            f"at message {self.to_sequence} instead of {self.from_sequence}; {then}"
        )


class RouteScheduleLost(RouteEvent):
    """Schedules of retries have left their stream and were not published, so their messages are lost.

    They were purged or deleted by another client, or a limit was set on the stream. `scheduled` is the number of
    schedules that were stored since they are counted, for all routes of the stream; these were published (`fired`) or
    `cancelled`, are still `there`, or are `lost`.
    """

    code = "ROUTE_SCHEDULE_LOST"
    level = Level.ERROR
    stream: str
    scheduled: int
    fired: int
    there: int
    cancelled: int
    lost: int

    def sentence(self) -> str:
        return (
            f"Route {self.route}: {counted(self.lost, 'scheduled retry', 'scheduled retries')} of stream {self.stream} "
            f"will never be published, and {counted(self.lost, 'message is', 'messages are')} lost, by a purge, a "
            f"deletion or a limit of the stream: {self.scheduled} scheduled, {self.fired} published, "
            f"{self.cancelled} cancelled, {self.there} still there"
        )


class RetriesEvent(RouteEvent):
    """The base of events on retries that settings before a reload have scheduled, in `stream` below `prefix`."""

    stream: str
    prefix: str


class RouteRetriesDraining(RetriesEvent):
    """Messages still wait for their next attempt where the settings before a reload have scheduled them.

    `waiting` is their number, due ones included. They are retried under the new settings until none is left.
    """

    code = "ROUTE_RETRIES_DRAINING"
    level = Level.INFO
    waiting: int

    def sentence(self) -> str:
        waiting = counted(self.waiting, "message waits", "messages wait")
        return (
            f"Route {self.route}: {waiting} in stream {self.stream} below {self.prefix} for the next attempt, as "
            "scheduled before the reload; the route reads there until none is left"
        )


class RouteRetriesDrained(RetriesEvent):
    """No message waits any more where the settings before a reload have scheduled retries.

    The route does not read there from now on.
    """

    code = "ROUTE_RETRIES_DRAINED"
    level = Level.INFO

    def sentence(self) -> str:
        return (
            f"Route {self.route}: no message waits in stream {self.stream} below {self.prefix} any more; the route "
            "has stopped reading there"
        )


class RouteRetriesLeft(RetriesEvent):
    """Messages wait for their next attempt, and after this reload no route receives them.

    `waiting` is the number of their schedules on that connection; absent if it can't be counted. The route was removed
    or renamed, it reads from another connection, or its new source or a destination can't have scheduled retries.
    """

    code = "ROUTE_RETRIES_LEFT"
    level = Level.WARN
    connection: str
    waiting: int | None

    def sentence(self) -> str:
        waiting = (
            "messages may wait" if self.waiting is None else counted(self.waiting, "message waits", "messages wait")
        )
        return (
            f"Route {self.route}: {waiting} in stream {self.stream} of connection {self.connection} below "
            f"{self.prefix} for the next attempt, where no route reads after this reload; load the previous settings "
            "again and keep the route until nothing waits there; `router-trio schedules` with those settings lists it"
        )


class DeliveryLimitReached(RouteEvent):
    """Messages reached a limit of deliveries of the durable (`max_deliver`) while no route had them in hand.

    The server does not deliver them again, and does not report which messages they are: `count` of those from
    `from_sequence` to `to_sequence`. Those that can be identified become dead letters with the reason `max_deliver`.
    """

    code = "ROUTE_DELIVERY_LIMIT_REACHED"
    level = Level.WARN
    stream: str
    durable: str
    count: int
    from_sequence: int
    to_sequence: int

    def sentence(self) -> str:
        first, last = self.from_sequence, self.to_sequence
        among = f"sequence {first}" if first == last else f"among the sequences {first} to {last}"
        them = "it" if self.count == 1 else "them"
        return (
            f"Route {self.route}: consumer {self.durable} of stream {self.stream} reached its limit of deliveries with "
            f"{counted(self.count, 'message')} ({among}) and does not deliver {them} any more; `router-trio audit` "
            "lists messages without a copy"
        )


class ConsumerPaused(RouteEvent):
    """The durable of the route is paused on the server: it delivers nothing to any process.

    `detail` has until when, and by whom. Messages that were delivered before are still routed and acked.
    """

    code = "ROUTE_CONSUMER_PAUSED"
    level = Level.WARN
    stream: str
    durable: str
    detail: str

    def sentence(self) -> str:
        return f"Route {self.route} receives nothing: {self.detail}"


class ConsumerResumed(RouteEvent):
    """The pause of the durable is over: it delivers again, beginning with the first message that it did not."""

    code = "ROUTE_CONSUMER_RESUMED"
    level = Level.INFO
    stream: str
    durable: str

    def sentence(self) -> str:
        return f"Route {self.route}: consumer {self.durable} of stream {self.stream} is not paused any more"


class FilterOutside(RouteEvent):
    """The filter of the route matches no subject of its stream: the route receives nothing and is not ready."""

    code = "ROUTE_FILTER_OUTSIDE_STREAM"
    level = Level.WARN
    stream: str
    filter: str
    subjects: str

    def sentence(self) -> str:
        return (
            f"Route {self.route} receives nothing: its filter {self.filter} matches none of the subjects of stream "
            f"{self.stream}, which are {self.subjects}; correct the filter or the stream"
        )


class MessageFailed(RouteEvent):
    """A message could not be routed. `subject`, `stream` and `sequence` name it; `place` is where its handler raised.

    `error_type`, `detail` and `traceback` are those of the handler's error. With `handler_errors = "type"` no
    `traceback` is logged, and `detail` only of `Reject`, `Retry` and errors of the router itself.
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
    is_public: bool = False  # the text of the handler's error was written to be shown, as that of `Reject`
    not_logged = ("at", "is_public")

    def shown_details(self, *, handler_errors: bool = False) -> dict[str, Any]:
        fields = super().shown_details()
        if not handler_errors and self.error_type is not None:
            fields.pop("traceback", None)
            if not self.is_public:
                fields.pop("detail", None)
        return fields

    def sentence(self) -> str:
        message = named_message(self.subject, self.stream, self.sequence)
        if self.subject is None and self.count > 1:
            message = "messages"
        return f"Route {self.route}: {message} failed: {self.reason}{raised_by(self.error_type, self.place)}"


class _LastFailure(RouteEvent):
    """The base of events about a message that is not retried. `sequence` is its position in its `stream`."""

    per_message = True
    reason: str
    attempts: int
    subject: str | None = None
    stream: str | None = None
    sequence: int | None = None
    count: int = 1

    def _sentence_of(self, fate: str) -> str:
        message = named_message(self.subject, self.stream, self.sequence)
        return f"Route {self.route}: {message} {fate} after {counted(self.attempts, 'attempt')}: {self.reason}"


class MessageDeadLettered(_LastFailure):
    """A message is not retried, and its dead letter is stored."""

    code = "ROUTE_MESSAGE_DEAD_LETTERED"
    level = Level.WARN

    def sentence(self) -> str:
        return self._sentence_of("was dead-lettered")


class MessageGivenUp(_LastFailure):
    """A message is not retried, and its route has no dead letters. A stream may still have it under `sequence`."""

    code = "ROUTE_MESSAGE_GIVEN_UP"
    level = Level.WARN

    def sentence(self) -> str:
        return self._sentence_of("was given up")


class DeadLetterNotStored(RouteEvent):
    """A dead letter could not be stored. A message of a stream stays there and is redelivered; another one is lost."""

    code = "ROUTE_DEAD_LETTER_NOT_STORED"
    level = Level.WARN
    per_message = True
    reason: str
    subject: str | None = None
    stream: str | None = None
    sequence: int | None = None
    detail: str | None = None
    count: int = 1

    def sentence(self) -> str:
        then = "is lost" if self.sequence is None else "stays in its stream and will be redelivered"
        message = named_message(self.subject, self.stream, self.sequence)
        return (
            f"Route {self.route}: the dead letter of {message} could not be stored: {self.reason}; the message {then}"
        )


class BucketConflict(RouteEvent):
    """A value of a KV bucket was not copied to `connection`, where its key has a value written `later` s later.

    `kept_from` is the stream in which that was written. `subject` has the key, and `sequence` the place of the value in
    `stream`.
    """

    code = "ROUTE_BUCKET_CONFLICT"
    level = Level.WARN
    per_message = True
    subject: str
    stream: str
    sequence: int
    connection: str
    kept_from: str
    later: float
    count: int = 1

    def sentence(self) -> str:
        return (
            f"Route {self.route}: {named_message(self.subject, self.stream, self.sequence)} is not copied to "
            f"connection {self.connection}, where its key has a value that was written {self.later:g} s later, in "
            f"{self.kept_from}"
        )


class RouteInCircle(RouteEvent):
    """A route receives mostly messages that it has sent itself: `returned` of the last `received` ones.

    They go round in a circle, over other routes, routers or streams, until they reach the hop limit. The header
    Router-Passed of a message names the routes on its way; `passed_as` is the name of this one. It is reported once a
    minute while it lasts.
    """

    code = "ROUTE_IN_CIRCLE"
    level = Level.WARN
    returned: int
    received: int
    passed_as: str

    def sentence(self) -> str:
        return (
            f"Route {self.route}: {self.returned} of the last {counted(self.received, 'message')} had passed it "
            "before: they go round in a circle; their header Router-Passed names the routes on the way, this one as "
            f"{self.passed_as}, and each of them reports its own name; `router-trio check --online` shows a way over "
            "streams and durables"
        )


class HandlerLeftBehind(RouteEvent):
    """Calls of a handler did not return before their route ended, and were abandoned.

    Their messages are redelivered by their stream, or lost. A thread ends when its call returns.
    """

    code = "ROUTE_HANDLER_LEFT_BEHIND"
    level = Level.WARN
    count: int

    def sentence(self) -> str:
        return (
            f"Route {self.route} ended before {counted(self.count, 'call')} of its handler returned; messages from a "
            "stream are redelivered, others are lost"
        )


class RouteLimited(RouteEvent):
    """Messages arrive faster than the rate limit of their route allows, and are delayed."""

    code = "ROUTE_LIMITED"
    level = Level.INFO
    per_message = True
    rate: str
    count: int = 1

    def sentence(self) -> str:
        return f"Route {self.route} is delaying messages: its rate limit of {self.rate} is reached"


class BreakerOpened(RouteEvent):
    """A destination failed `failed_count` times in a row: it gets no messages, but one attempt per `pause_seconds`."""

    code = "ROUTE_BREAKER_OPENED"
    level = Level.WARN
    connection: str
    subject: str
    reason: str
    failed_count: int
    pause_seconds: float

    def sentence(self) -> str:
        failures = "a failure" if self.failed_count == 1 else f"{self.failed_count} failures in a row, the last one"
        return (
            f"Route {self.route} opened the circuit breaker of {self.subject} on connection {self.connection} after "
            f"{failures} with the reason {self.reason}; next attempt in {self.pause_seconds:g} s"
        )


class BreakerClosed(RouteEvent):
    """A destination with an open breaker accepted a message, and receives all messages again."""

    code = "ROUTE_BREAKER_CLOSED"
    level = Level.INFO
    connection: str
    subject: str
    open_seconds: float

    def sentence(self) -> str:
        return (
            f"Route {self.route} closed the circuit breaker of {self.subject} on connection {self.connection} after "
            f"{self.open_seconds:.1f} s"
        )


class DestinationNotStored(RouteEvent):
    """A destination does not accept messages of this route; `reason` and `detail` say why, and what to do."""

    code = "NATS_DESTINATION_NOT_STORED"
    level = Level.WARN
    connection: str
    subject: str
    reason: str
    detail: str

    def sentence(self) -> str:
        return (
            f"Route {self.route} can't deliver to {self.subject} on connection {self.connection}: "
            f"{self.reason}{with_advice(self.reason)}"
        )


class DestinationStored(RouteEvent):
    """A destination that refused messages accepts them again."""

    code = "NATS_DESTINATION_STORED"
    level = Level.INFO
    connection: str
    subject: str

    def sentence(self) -> str:
        return f"Route {self.route} can deliver to {self.subject} on connection {self.connection} again"


class DestinationUnconfirmed(RouteEvent):
    """A stream stores core publishes of this route, without a PubAck: a message that it refuses counts as routed."""

    code = "NATS_DESTINATION_UNCONFIRMED"
    level = Level.WARN
    connection: str
    subject: str
    stream: str

    def sentence(self) -> str:
        return (
            f"Route {self.route} sends core publishes to {self.subject} on connection {self.connection}, which stream "
            f"{self.stream} stores: a message that the stream refuses counts as routed; set jetstream = true for this "
            "destination"
        )


class StreamWentBack(RouteEvent):
    """A stream was recreated, purged or restored: it reuses known sequences for new messages, which are routed."""

    code = "STREAM_WENT_BACK"
    level = Level.WARN
    stream: str
    detail: str

    def sentence(self) -> str:
        return (
            f"Route {self.route}: stream {self.stream} was recreated, purged or restored: {self.detail}; its messages "
            "are routed as new"
        )
