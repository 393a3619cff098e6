"""Every reason of a failure, in one table: its name, whose fault it is, and the cure.

A reason is a short word: the `reason` of an error, an event or a fate, and the label of a counter. No other module
spells one out. Each decision that depends on a reason is a column here, or derived from one.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Final

from router_trio.errors import codes

# --- a message failed, or a publish ---

HANDLER_ERROR: Final = "handler_error"
RETRY: Final = "retry"
REJECTED: Final = "rejected"
MAPPING: Final = "mapping"
RESERVED_SUBJECT: Final = "reserved_subject"
INVALID_SUBJECT: Final = "invalid_subject"
INVALID_HEADER: Final = "invalid_header"
INVALID_PAYLOAD: Final = "invalid_payload"
INVALID_BODY: Final = "invalid_body"
EXPRESSION: Final = "expression"
SCHEMA: Final = "schema"
LOOP: Final = "loop"
ERROR: Final = "error"
POISON: Final = "poison"
TOO_LARGE: Final = "too_large"
WRONG_EXPECTATION: Final = "wrong_expectation"
DUPLICATE: Final = "duplicate"
PERMISSION_DENIED: Final = "permission_denied"
NO_RESPONDERS: Final = "no_responders"
LIMIT: Final = "limit"
SUBJECT_LIMIT: Final = "subject_limit"
BAD_ANSWER: Final = "bad_answer"
TIMEOUT: Final = "timeout"
UNANSWERED: Final = "unanswered"
OTHER_STREAM: Final = "other_stream"
JETSTREAM: Final = "jetstream"
SCHEDULES_REFUSED: Final = "schedules_refused"
SEALED: Final = f"jetstream_{codes.SEALED}"
INJECTED: Final = "injected"
NOT_CONNECTED: Final = "not_connected"
QUEUE_FULL: Final = "queue_full"
EXPIRED: Final = "expired"
SHUTDOWN: Final = "shutdown"
WORKER_LOST: Final = "worker_lost"
OUT_OF_TURN: Final = "out_of_turn"
DROPPED_OLDEST: Final = "dropped_oldest"
BLOCKED: Final = "blocked"
SLOW_CONSUMER: Final = "slow_consumer"
RETRY_FULL: Final = "retry_full"
DEAD_LETTER: Final = "dead_letter"
MAX_DELIVER: Final = "max_deliver"
NO_ORIGIN: Final = "no_origin"

# --- a link failed ---

NETWORK: Final = "network"
DNS: Final = "dns"
TLS: Final = "tls"
CERTIFICATE: Final = "certificate"
AUTHORIZATION: Final = "authorization"
PROTOCOL: Final = "protocol"
HANDSHAKE: Final = "handshake"
RESOURCES: Final = "resources"
CLOSED: Final = "closed"
SERVER_ERROR: Final = "server_error"
SERVER_SHUTDOWN: Final = "server_shutdown"
STALE: Final = "stale"
MAX_CONNECTIONS: Final = "max_connections"
LIVENESS: Final = "liveness"
LAME_DUCK: Final = "lame_duck"

# --- a source failed, or a question to JetStream ---

STREAM_NOT_FOUND: Final = "stream_not_found"
STREAM_REFUSED: Final = "stream_refused"
SEVERAL_STREAMS: Final = "several_streams"
PARTITIONS_DIFFER: Final = "partitions_differ"
BUCKET_MISMATCH: Final = "bucket_mismatch"
CONSUMER_NOT_FOUND: Final = "consumer_not_found"
CONSUMER_DELETED: Final = "consumer_deleted"
CONSUMER_MISMATCH: Final = "consumer_mismatch"
CONSUMER_REFUSED: Final = "consumer_refused"
CONSUMER_EXPIRES: Final = "consumer_expires"
CONSUMER_SILENT: Final = "consumer_silent"
CONSUMER_LIMIT: Final = "consumer_limit"
CONSUMER_LOST: Final = "consumer_lost"
LEAD_LOST: Final = "lead_lost"
WOULD_DELETE: Final = "would_delete"
FEEDS_ITSELF: Final = "feeds_itself"
JETSTREAM_UNAVAILABLE: Final = "jetstream_unavailable"
NO_JETSTREAM: Final = "no_jetstream"
MAX_SUBSCRIPTIONS: Final = "max_subscriptions"
INVALID_NAME: Final = "invalid_name"
SERVER_TOO_OLD: Final = "server_too_old"
NOT_FOUND: Final = "not_found"
DENY_DELETE: Final = "deny_delete"

# --- a message was not sent, or not answered, and that is not a failure ---

WHEN: Final = "when"
HANDLER: Final = "handler"
UNMATCHED: Final = "unmatched"
NO_REPLY: Final = "no_reply"
ECHO: Final = "echo"
OLDER: Final = "older"


class Fault(Enum):
    """Whose fault a reason is. The value completes "it is the fault of"."""

    MESSAGE = "the message"
    """Later messages would not fail for it, so none of them waits."""

    DESTINATION = "the destination"
    """It refuses or does not answer. It may accept the message later, and would accept later messages too early."""

    WAY = "the way there"
    """The message was not sent, and was not kept: neither it nor the destination is at fault."""

    ROUTER = "the router"
    """The router keeps no more, or is shutting down."""

    LINK = "the link"
    """A connection attempt failed, or a live link died."""

    SOURCE = "the source"
    """A route could not subscribe or open its consumer, or JetStream did not answer a question."""

    UNKNOWN = "unknown"
    """The message or the destination: its attempts count, and later messages wait."""

    NONE = "none"
    """The message was not sent, as the configuration wants it."""


class Refuses(Enum):
    """Which later messages a refusing destination would refuse as well. The value completes "it refuses"."""

    NOTHING = "nothing else"

    SUBJECT = "messages to the same subject"
    """All messages, if its destination has one subject."""

    STREAM = "all messages of the stream"
    """All messages, if its destination has one stream."""


class Again(Enum):
    """Whether a failed message is retried, unless `[routes.retry]` of its route decides otherwise."""

    YES = "yes"
    FROM_A_STREAM = "from a stream"
    """The settings of the destination's queue drop a core message; a stream still has its message."""

    NO = "no"


FAILURES: Final = "failures"
MIRRORS: Final = "mirrors"
PUBLISHES: Final = "publishes"
PUBLISHES_WITH_ACK: Final = "publishes_with_ack"
DROPS: Final = "drops"
ANSWERS: Final = "answers"
FILTERED: Final = "filtered"
UNANSWERED_MESSAGES: Final = "unanswered_messages"


@dataclass(frozen=True, slots=True)
class Reason:
    """A reason. `cause` and `cure` are the sentences of the troubleshooting page, `advice` is what a log line adds.

    `labels`: the counters that have it as a label from the start; others get the label when it first occurs. `to_name`:
    `[routes.retry] not` knows it, so that a misspelt name can be corrected. `refuses` is for faults of destinations.
    `of_route`: a message fails for it because the route is as it is; another handler or configuration would deliver it.
    """

    name: str
    fault: Fault
    cause: str
    cure: str
    advice: str = ""
    again: Again = Again.YES
    labels: frozenset[str] = frozenset()
    to_name: bool = False
    refuses: Refuses = Refuses.NOTHING
    of_route: bool = False


def _message(name: str, cause: str, cure: str, *labels: str, again: Again = Again.YES, to_name: bool = True) -> Reason:
    return Reason(name, Fault.MESSAGE, cause, cure, "", again, frozenset(labels), to_name)


def _of_route(name: str, cause: str, cure: str, *labels: str, again: Again = Again.YES, to_name: bool = True) -> Reason:
    return Reason(name, Fault.MESSAGE, cause, cure, "", again, frozenset(labels), to_name, of_route=True)


def _destination(
    name: str,
    refuses: Refuses,
    cause: str,
    cure: str,
    *labels: str,
    advice: str = "",
    to_name: bool = True,
) -> Reason:
    return Reason(
        name, Fault.DESTINATION, cause, cure, advice, labels=frozenset(labels), to_name=to_name, refuses=refuses
    )


def _way(name: str, cause: str, cure: str, *labels: str, again: Again = Again.YES, to_name: bool = False) -> Reason:
    return Reason(name, Fault.WAY, cause, cure, "", again, frozenset(labels), to_name)


def _router(name: str, cause: str, cure: str, *labels: str) -> Reason:
    return Reason(name, Fault.ROUTER, cause, cure, "", Again.NO, frozenset(labels))


def _link(name: str, cause: str, cure: str) -> Reason:
    return Reason(name, Fault.LINK, cause, cure)


def _source(name: str, cause: str, cure: str) -> Reason:
    return Reason(name, Fault.SOURCE, cause, cure)


def _none(name: str, cause: str, *labels: str) -> Reason:
    return Reason(name, Fault.NONE, cause, "", "", Again.NO, frozenset(labels))


TABLE: Final[Mapping[str, Reason]] = {
    reason.name: reason
    for reason in (
        _message(
            EXPRESSION,
            "a key is missing, a type is wrong, or the body is not JSON",
            "test for the key with `has(...)`; `explain --data` shows the part that fails",
            *(FAILURES, MIRRORS),
        ),
        _way(
            NOT_CONNECTED,
            "the destination's connection is down and its queue keeps nothing (`fail_open`), or the link was lost",
            "`/readyz` says why it is down; [Connections](../explanation/connections.md)",
            *(FAILURES, MIRRORS, PUBLISHES, PUBLISHES_WITH_ACK, ANSWERS),
            to_name=True,
        ),
        _of_route(
            HANDLER_ERROR,
            "the handler raised, returned an invalid value or too many messages, or returned inside a cancel scope",
            "[When it fails](../how-to/handlers.md#when-it-fails); the error text is logged with "
            '`telemetry.handler_errors = "full"`',
            FAILURES,
        ),
        _message(
            INVALID_BODY,
            "the body of the message does not fit the type that the handler takes, or is not JSON",
            "the detail has the path and what is expected there; "
            "[Take a value instead of a message](../how-to/typed-bodies.md)",
            FAILURES,
        ),
        _message(
            SCHEMA,
            "the body does not fit the schema of the route, or is not JSON",
            "the detail has the path in the body and the rule in the schema; "
            "[Require a schema](../how-to/schemas.md); `explain --data` shows it for a body",
            FAILURES,
            again=Again.NO,
            to_name=False,
        ),
        _message(
            REJECTED,
            "the handler raised `Reject`, or a full queue refused its newest message",
            "see `detail` in the log, or that of the dead letter",
            FAILURES,
            again=Again.NO,
            to_name=False,
        ),
        _of_route(
            RETRY,
            "the handler raised `Retry`",
            "see `detail` in the log; set `attempts` to bound the retries",
            FAILURES,
        ),
        _of_route(
            MAPPING,
            "the destination's mapping gives no subject for the message",
            "correct the mapping: it needs more tokens than the subject has",
            *(FAILURES, MIRRORS),
        ),
        _message(
            RESERVED_SUBJECT,
            "the message would be published to `$...` or below `_INBOX`",
            "begin the destination with a token of your own",
            *(FAILURES, UNANSWERED_MESSAGES),
        ),
        _of_route(
            INVALID_SUBJECT,
            "the handler returned a subject that can't be published to",
            "return a subject without wildcards, spaces and empty tokens",
        ),
        _of_route(
            INVALID_HEADER,
            "the handler returned a header that can't be written",
            "use names of printable ASCII without spaces and colons, and strings without CR, LF and NUL as values",
        ),
        _of_route(
            INVALID_PAYLOAD,
            "a program published a payload that is not bytes",
            "encode the payload to bytes",
            to_name=False,
        ),
        _of_route(
            LOOP,
            "the message passed more routes than `hop_limit` allows",
            "two routes send to each other: exclude the message from one of them",
        ),
        _of_route(
            MAX_DELIVER,
            "its durable reached `max_deliver` with it while no route had it in hand: it is not delivered any more",
            "[A limit of deliveries](../how-to/dead-letters.md#a-limit-of-deliveries)",
            again=Again.NO,
            to_name=False,
        ),
        _message(
            NO_ORIGIN,
            "a message in the stream of retries has no valid origin: another client published or changed it",
            "find the client: only the router should publish below the `prefix` of `schedule`",
            again=Again.NO,
            to_name=False,
        ),
        _of_route(ERROR, "the message that the route made of it can't be published", "see `detail` in the log"),
        _message(
            POISON,
            "the server closed every link on which the message was sent",
            "check the size and headers of the message, and the log of the server",
        ),
        _destination(
            PERMISSION_DENIED,
            Refuses.SUBJECT,
            "the user may not publish to the destination",
            "[grant the permission](../how-to/tls-and-credentials.md#what-the-user-must-be-allowed)",
            *(FAILURES, MIRRORS, PUBLISHES, PUBLISHES_WITH_ACK),
            advice="allow this user to publish there",
        ),
        _message(
            TOO_LARGE,
            "the message with its headers is larger than the server or the stream allows",
            "raise `max_payload` of the server or `max_msg_size` of the stream",
            *(FAILURES, MIRRORS, PUBLISHES, PUBLISHES_WITH_ACK),
        ),
        _message(
            WRONG_EXPECTATION,
            "its `Nats-Expected-...` headers do not match the stream",
            "remove them, or don't `keep` them at the destination",
        ),
        _message(
            DUPLICATE,
            "the stream already has another message with the `Nats-Msg-Id` that the sender gave this one",
            'give each message an id of its own, or set `message_id = "own"`',
            again=Again.NO,
            to_name=False,
        ),
        _destination(
            NO_RESPONDERS,
            Refuses.SUBJECT,
            "no stream takes this subject",
            "create a stream for it, or set `jetstream = false` for a core publish",
            PUBLISHES_WITH_ACK,
            advice="create a stream for it, correct the destination, or set `jetstream = false` for a core publish",
        ),
        _destination(
            LIMIT,
            Refuses.STREAM,
            "the stream or the account is full",
            "raise the limit, or delete messages",
            advice="the stream or the account is full; raise the limit, or delete messages",
        ),
        _destination(
            SUBJECT_LIMIT,
            Refuses.SUBJECT,
            "the stream has as many messages of this subject as it allows",
            "raise `max_msgs_per_subject`, or delete messages of the subject",
            advice="raise `max_msgs_per_subject`, or delete messages of the subject",
        ),
        _destination(
            BAD_ANSWER,
            Refuses.SUBJECT,
            "the answer to a JetStream publish is not a PubAck",
            "find the subscriber of this subject that answers in the stream's place",
        ),
        _destination(
            TIMEOUT,
            Refuses.SUBJECT,
            "no PubAck arrived in time",
            "check the stream's leader and its disk; the message may have been stored",
            PUBLISHES_WITH_ACK,
        ),
        _destination(UNANSWERED, Refuses.NOTHING, "no PubAck has arrived yet", "as for `timeout`", to_name=False),
        _destination(
            OTHER_STREAM,
            Refuses.SUBJECT,
            "the only PubAcks came from a stream that does not take the subject",
            "[name that stream](../how-to/streams.md#subjects-that-the-server-maps) if the server maps the subject",
            to_name=False,
        ),
        Reason(
            JETSTREAM,
            Fault.UNKNOWN,
            "the stream refused the message, or JetStream did not say why",
            "see `detail`",
        ),
        _destination(
            SCHEDULES_REFUSED,
            Refuses.STREAM,
            "the stream is not known to publish messages later, or would delete schedules before they are due",
            "[the stream of a delay](../how-to/delay.md#the-stream)",
            to_name=False,
        ),
        _destination(SEALED, Refuses.STREAM, "the stream is sealed", "send to another stream", to_name=False),
        _destination(
            INJECTED, Refuses.NOTHING, "fault injection made the operation fail", "no action needed", to_name=False
        ),
        _way(
            QUEUE_FULL,
            "messages arrive faster than the connection sends them",
            "[Tune the queue](../how-to/tune-the-queue.md)",
            *(FAILURES, MIRRORS, DROPS),
            again=Again.FROM_A_STREAM,
            to_name=True,
        ),
        _way(
            EXPIRED,
            "the message was queued for longer than `pending_max_age`",
            "[Tune the queue](../how-to/tune-the-queue.md)",
            DROPS,
            again=Again.FROM_A_STREAM,
            to_name=True,
        ),
        _way(
            SHUTDOWN,
            "the router shut down before the message was delivered",
            "raise `shutdown_timeout`; [Operating](operating.md#stop-and-drain)",
            *(FAILURES, DROPS),
            again=Again.FROM_A_STREAM,
        ),
        _way(
            WORKER_LOST,
            "the worker ended before the message was delivered",
            "see `ROUTER_WORKER_LOST` in the log",
            *(FAILURES, DROPS),
        ),
        _way(OUT_OF_TURN, "an earlier message of its subject must be delivered first", "no action needed"),
        _router(DROPPED_OLDEST, "the queue is full: its oldest messages were dropped", "as for `queue_full`"),
        _router(BLOCKED, "the queue is full: publishers wait for room", "as for `queue_full`"),
        _router(
            SLOW_CONSUMER,
            "messages arrive faster than the route handles them",
            "[Tune the queue](../how-to/tune-the-queue.md)",
            FAILURES,
        ),
        _router(
            RETRY_FULL,
            "more messages failed than the route keeps for another attempt",
            "repair the destination, or read from a stream",
            FAILURES,
        ),
        _router(
            DEAD_LETTER,
            "the dead letter could not be stored",
            "[RouterDeadLettersNotStored](../runbooks/RouterDeadLettersNotStored.md)",
            FAILURES,
        ),
        _link(
            NETWORK,
            "nothing listens on the address (`connection refused`), or the network is down",
            "start the server, or correct `servers`",
        ),
        _link(DNS, "the host name can't be resolved", "correct `servers` or the resolver"),
        _link(
            TLS,
            "the TLS handshake failed",
            "use TLS on both sides or on neither; `tls://` and `wss://` in the URL require it",
        ),
        _link(
            CERTIFICATE, "a certificate is not trusted, or is for another name", "set `tls_ca_file` or `tls_hostname`"
        ),
        _link(
            AUTHORIZATION,
            "the server, a gateway or a proxy refused the credentials",
            "[TLS and credentials](../how-to/tls-and-credentials.md)",
        ),
        _link(PROTOCOL, "the peer does not speak the NATS protocol", "correct `servers`"),
        _link(HANDSHAKE, "the server, a gateway or a proxy refused the connection", "see `detail` and its log"),
        _link(RESOURCES, "the system has no descriptor, memory or thread left", "raise its limits (`ulimit -n`)"),
        _link(CLOSED, "the connection was closed", "see the log of the server"),
        _link(SERVER_ERROR, "the server ended the connection with an error", "see `detail` and the log of the server"),
        _link(SERVER_SHUTDOWN, "the server is shutting down", "no action needed if that is planned"),
        _link(
            STALE,
            "the server got no answer to its PINGs",
            "check the network, and for a handler that blocks the event loop",
        ),
        _link(
            MAX_CONNECTIONS,
            "the server or the account allows no more connections",
            "raise `max_connections` of the server or the account",
        ),
        _link(
            LIVENESS,
            "the server did not answer a fence in time",
            "check the network, and for a handler that blocks the event loop: `router_event_loop_lag_seconds`",
        ),
        _link(LAME_DUCK, "the server asked its clients to leave (lame duck mode)", "no action needed"),
        _source(
            STREAM_NOT_FOUND,
            "the stream does not exist",
            "create it, or have the router [create it](../how-to/streams.md)",
        ),
        _source(
            STREAM_REFUSED,
            "the server refused to create the stream",
            "see `detail`; change `[[streams]]` or the limits of the account",
        ),
        _source(SEVERAL_STREAMS, "several streams store the dead letters", "choose one with `--stream`"),
        _source(
            PARTITIONS_DIFFER,
            "the stream has other partitions than the route",
            "give all processes the same `partitions` and `partition_by`, those of the stream, or "
            "[change the stream](../how-to/partitions.md#another-number-of-partitions)",
        ),
        _source(
            BUCKET_MISMATCH,
            "the bucket in which processes announce themselves, or to which a route copies values with a TTL, exists, "
            "and its keys do not expire",
            "run the command in `detail`, which lets them expire",
        ),
        _source(CONSUMER_NOT_FOUND, "the consumer does not exist", "no action needed: the route creates it again"),
        _source(CONSUMER_DELETED, "the consumer was deleted", "no action needed: the route creates it again"),
        _source(
            CONSUMER_MISMATCH,
            "the durable exists with a configuration that the route can't use, such as another filter",
            "use another `durable`, or delete the consumer",
        ),
        _source(CONSUMER_REFUSED, "JetStream refused the consumer", "see `detail`"),
        _source(
            CONSUMER_EXPIRES,
            "the server deletes the durable after a time without use",
            "remove `inactive_threshold`, or raise it",
        ),
        _source(
            CONSUMER_SILENT,
            "nothing was heard from the consumer, neither a message nor a heartbeat",
            "no action needed: the route opens it again",
        ),
        _source(CONSUMER_LIMIT, "the consumer allows less than the route needs", "raise the limits of the consumer"),
        _source(
            CONSUMER_LOST,
            "the server ended the pull request of the route",
            "no action needed: the route opens the consumer again",
        ),
        _source(LEAD_LOST, "another process took over the lead", "no action needed"),
        _source(WOULD_DELETE, "giving a message up would delete it from the stream", "set `[routes.dead_letter]`"),
        _source(FEEDS_ITSELF, "the stream stores what the route sends", "[Circles](../how-to/circles.md)"),
        _source(JETSTREAM_UNAVAILABLE, "JetStream does not answer", "check its leader: `nats server report jetstream`"),
        _source(NO_JETSTREAM, "JetStream is not enabled on the server or for the account", "enable it"),
        _source(
            MAX_SUBSCRIPTIONS, "the server or the account allows no more subscriptions", "raise `max_subscriptions`"
        ),
        _source(INVALID_NAME, "the name is not valid for a stream or consumer", "correct it"),
        _source(SERVER_TOO_OLD, "the server lacks a feature that the route needs", "upgrade the server"),
        _source(NOT_FOUND, "the stream has no such message", "no action needed: it was deleted in the meantime"),
        _source(DENY_DELETE, "the stream does not allow deleting messages", "`deny_delete` of the stream"),
        _none(WHEN, "`when` of the route evaluated to false", FILTERED),
        _none(HANDLER, "the handler returned nothing", FILTERED),
        _none(UNMATCHED, "no destination matched the message", FILTERED),
        _none(ECHO, "the value was written in that bucket, or is there already"),
        _none(OLDER, "its bucket has, or gets, a later value of the key"),
        _none(NO_REPLY, "the message has no reply subject", UNANSWERED_MESSAGES),
    )
}
"""The reasons by name. Others are `jetstream_` with the error code of a server: see `of_code`."""

OF_CODE = re.compile(r"jetstream_[0-9]{5}")
"""The form of a reason made from the error code of a server."""


def of_code(code: int) -> str:
    """Return the reason of a refusal with this error code of a server."""
    return f"{JETSTREAM}_{code}"


def refuses(reason: str) -> Refuses:
    """Return which later messages would be refused for this reason as well."""
    found = TABLE.get(reason)
    if found is not None:
        return found.refuses
    return _REFUSES[codes.kind_of(_code_of(reason))]


def counts_as_attempt(reason: str) -> bool:
    """Return True if a failure uses up an attempt of its message: the message may be its cause."""
    found = TABLE.get(reason)
    if found is not None:
        return found.fault in (Fault.MESSAGE, Fault.UNKNOWN)
    return codes.kind_of(_code_of(reason)) in (codes.Kind.HEADER, codes.Kind.UNKNOWN)


def _code_of(reason: str) -> int:
    return int(reason.rpartition("_")[2]) if OF_CODE.fullmatch(reason) else 0


_REFUSES: Final[Mapping[codes.Kind, Refuses]] = {
    codes.Kind.PLAIN: Refuses.STREAM,
    codes.Kind.PASSES: Refuses.STREAM,
    codes.Kind.SUBJECT: Refuses.SUBJECT,
    codes.Kind.TOO_LARGE: Refuses.NOTHING,
    codes.Kind.EXPECTATION: Refuses.NOTHING,
    codes.Kind.HEADER: Refuses.NOTHING,
    codes.Kind.UNKNOWN: Refuses.NOTHING,
}


def advice(reason: str) -> str:
    """Return the cure for refusals with this reason, `""` if the words of the server contain it."""
    found = TABLE.get(reason)
    return "" if found is None else found.advice


def labelled(counter: str) -> tuple[str, ...]:
    """Return the reasons that a counter has from the start."""
    return tuple(reason.name for reason in TABLE.values() if counter in reason.labels)


def _all(reasons: Iterable[Reason]) -> frozenset[str]:
    return frozenset(reason.name for reason in reasons)


OF_THE_MESSAGE: Final = _all(one for one in TABLE.values() if one.fault is Fault.MESSAGE) | frozenset(
    map(of_code, codes.OF_THE_MESSAGE)
)
"""Failures that are the message's own fault: later messages would not fail for it, so none of them waits."""

OF_THE_SENDER: Final = OF_THE_MESSAGE - _all(one for one in TABLE.values() if one.of_route) - {DUPLICATE}
"""Failures for which a message would fail in any route: they say nothing about this one, and burn no error budget.

The recording rules and the dashboards have them. A `duplicate` is no failure there: its message has a fate of its own.
"""

OF_THE_WAY: Final = _all(one for one in TABLE.values() if one.fault is Fault.WAY)
"""Failures before a message reached its destination, which is not at fault."""

DECIDED_BY_QUEUE: Final = _all(one for one in TABLE.values() if one.again is Again.FROM_A_STREAM)
"""Failures after which a core message is not tried again, by the settings of the destination's queue."""

NEVER_AGAIN: Final = _all(one for one in TABLE.values() if one.again is Again.NO)
"""Failures after which no message is tried again."""

OF_ALL_ALIKE: Final = frozenset({NO_RESPONDERS, PERMISSION_DENIED, LIMIT, SUBJECT_LIMIT, BAD_ANSWER, SEALED})
"""Refusals that every publish to the same destination would get."""

FULL: Final = frozenset({LIMIT, SUBJECT_LIMIT})
"""Refusals of a stream that has no room, which lasts until a lookup shows more room."""

LOOKUP_FAILED: Final = frozenset({PERMISSION_DENIED, TIMEOUT, BAD_ANSWER, JETSTREAM_UNAVAILABLE, RESOURCES})
"""Reasons why a lookup failed without an answer about the stream or consumer that was looked up."""

TO_NAME: Final = tuple(one.name for one in TABLE.values() if one.to_name)
"""Reasons that a configuration can name, as in `[routes.retry] not`."""

OF_LOOKUPS: Final[Mapping[str, str]] = {"no_stream": NO_RESPONDERS, "stream_full": LIMIT, "stream_sealed": SEALED}
"""Reasons of readiness about a destination's stream, with the reasons for which messages then fail."""
