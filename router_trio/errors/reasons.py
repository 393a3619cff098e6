"""Every reason why something failed, in one table: its name, whose fault it is, and what to do.

A reason is a short word: the `reason` of an error, an event or a fate, and the label of a counter. Nothing else in the
package spells one out. What has to be decided by a reason is a column here, or derived from one.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Final

# --- a message failed, or a publish ---

HANDLER_ERROR: Final = "handler_error"
RETRY: Final = "retry"
REJECTED: Final = "rejected"
MAPPING: Final = "mapping"
RESERVED_SUBJECT: Final = "reserved_subject"
INVALID_SUBJECT: Final = "invalid_subject"
INVALID_HEADER: Final = "invalid_header"
INVALID_PAYLOAD: Final = "invalid_payload"
EXPRESSION: Final = "expression"
LOOP: Final = "loop"
ERROR: Final = "error"
POISON: Final = "poison"
TOO_LARGE: Final = "too_large"
WRONG_EXPECTATION: Final = "wrong_expectation"
DUPLICATE: Final = "duplicate"
PERMISSION_DENIED: Final = "permission_denied"
NO_RESPONDERS: Final = "no_responders"
LIMIT: Final = "limit"
BAD_ANSWER: Final = "bad_answer"
TIMEOUT: Final = "timeout"
UNANSWERED: Final = "unanswered"
OTHER_STREAM: Final = "other_stream"
JETSTREAM: Final = "jetstream"
SEALED: Final = "jetstream_10109"
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
CONTROL_PLANE: Final = "control_plane"

# --- a source failed, or a question to JetStream ---

STREAM_NOT_FOUND: Final = "stream_not_found"
STREAM_REFUSED: Final = "stream_refused"
SEVERAL_STREAMS: Final = "several_streams"
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

# --- a message went nowhere, or got no answer, and that is no failure ---

WHEN: Final = "when"
HANDLER: Final = "handler"
UNMATCHED: Final = "unmatched"
NO_REPLY: Final = "no_reply"


class Fault(Enum):
    """Whose fault a reason is. The value completes "it is the fault of"."""

    MESSAGE = "the message"
    """Others behind it would not fail: none waits for it."""

    DESTINATION = "the destination"
    """It refuses, or does not answer: it may take the message later, and would take what is behind it too early."""

    WAY = "the way there"
    """The destination was away and this router kept nothing: it says nothing of the message or the destination."""

    ROUTER = "the router"
    """More than it keeps, or it ends."""

    LINK = "the link"
    """A connection attempt failed, or a live link died."""

    SOURCE = "the source"
    """A route could not subscribe or open its consumer, or JetStream did not answer a question."""

    NONE = "none"
    """A message went nowhere, as the configuration wants it."""


class Again(Enum):
    """Whether a message that failed is tried again, unless the `[routes.retry]` of its route says more."""

    YES = "yes"
    FROM_A_STREAM = "from a stream"
    """A setting of the destination's queue wants a core message to be dropped; a stream still has its message."""

    NO = "no"


FAILURES: Final = "failures"
MIRRORS: Final = "mirrors"
GIVEN_UP: Final = "given_up"
PUBLISHES: Final = "publishes"
PUBLISHES_WITH_ACK: Final = "publishes_with_ack"
DROPS: Final = "drops"
ANSWERS: Final = "answers"
FILTERED: Final = "filtered"
UNANSWERED_MESSAGES: Final = "unanswered_messages"


@dataclass(frozen=True, slots=True)
class Reason:
    """A reason. `cause` and `cure` are the sentences of the troubleshooting page, `advice` is what a log line adds.

    `labels`: the counters that have it as a label from the start; it appears in others once it has happened. `to_name`:
    `[routes.retry] not` knows it, so that a misspelt one can be corrected.
    """

    name: str
    fault: Fault
    cause: str
    cure: str
    advice: str = ""
    again: Again = Again.YES
    labels: frozenset[str] = frozenset()
    to_name: bool = False


def _message(name: str, cause: str, cure: str, *labels: str, again: Again = Again.YES, to_name: bool = True) -> Reason:
    return Reason(name, Fault.MESSAGE, cause, cure, "", again, frozenset(labels), to_name)


def _destination(name: str, cause: str, cure: str, *labels: str, advice: str = "", to_name: bool = True) -> Reason:
    return Reason(name, Fault.DESTINATION, cause, cure, advice, labels=frozenset(labels), to_name=to_name)


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
            "a key is missing, a type is wrong, the body is no JSON",
            "ask with `has(...)`; `explain --data` shows the part that fails",
            *(FAILURES, MIRRORS, GIVEN_UP),
        ),
        _way(
            NOT_CONNECTED,
            "the destination's connection is away, and its queue keeps nothing (`fail_open`), or the link died",
            "`/readyz` says why it is away; [Connections](../explanation/connections.md)",
            *(FAILURES, MIRRORS, PUBLISHES, PUBLISHES_WITH_ACK, ANSWERS),
            to_name=True,
        ),
        _message(
            HANDLER_ERROR,
            "the handler raised, or returned something that is not a message, or too much, or within a cancel scope",
            "[When it fails](../how-to/handlers.md#when-it-fails); "
            'the text is logged with `telemetry.handler_errors = "full"`',
            *(FAILURES, GIVEN_UP),
        ),
        _message(
            REJECTED,
            "the handler raised `Reject`; of a full queue: its newest message was refused",
            "the detail of the dead letter says why",
            *(FAILURES, GIVEN_UP),
            again=Again.NO,
            to_name=False,
        ),
        _message(
            RETRY,
            "the handler raised `Retry`",
            "nothing to mend, unless it does so for ever: set `attempts`",
            *(FAILURES, GIVEN_UP),
        ),
        _message(
            MAPPING,
            "the message has no subject at the destination",
            "the mapping needs more tokens than the subject has",
            *(FAILURES, MIRRORS, GIVEN_UP),
        ),
        _message(
            RESERVED_SUBJECT,
            "it would go to `$...` or below `_INBOX`",
            "begin the destination with a token of your own",
            *(FAILURES, UNANSWERED_MESSAGES),
        ),
        _message(
            INVALID_SUBJECT,
            "the handler returned a subject that can't be published to",
            "no wildcards, spaces or empty tokens in the subject of an answer",
        ),
        _message(
            INVALID_HEADER,
            "the handler returned a header that can't be written",
            "names of printable ASCII without spaces and colons, values that are strings without CR, LF and NUL",
        ),
        _message(INVALID_PAYLOAD, "a program published a payload that is not bytes", "encode it", to_name=False),
        _message(
            LOOP, "it passed more routes than `hop_limit`", "two routes send to each other: one must leave it out"
        ),
        _message(ERROR, "what it became can't be published", "the log has the detail"),
        _message(
            POISON,
            "the server ended every link on which it was sent",
            "look at its size and headers, and at the log of the server",
        ),
        _destination(
            PERMISSION_DENIED,
            "the user may not publish there",
            "[what the user must be allowed](../how-to/tls-and-credentials.md#what-the-user-must-be-allowed)",
            *(FAILURES, MIRRORS, PUBLISHES, PUBLISHES_WITH_ACK),
            advice="let this user publish there",
        ),
        _message(
            TOO_LARGE,
            "larger than the server or the stream allows, with its headers",
            "`max_payload` of the server, `max_msg_size` of the stream",
            *(FAILURES, MIRRORS, GIVEN_UP, PUBLISHES, PUBLISHES_WITH_ACK),
        ),
        _message(
            WRONG_EXPECTATION,
            "its `Nats-Expected-...` headers do not fit the stream",
            "remove them, or do not `keep` them at the destination",
        ),
        _message(
            DUPLICATE,
            "the stream has another message with the `Nats-Msg-Id` that the sender gave to this one",
            'ids that differ, or `message_id = "own"`',
            again=Again.NO,
            to_name=False,
        ),
        _destination(
            NO_RESPONDERS,
            "no stream takes this subject",
            "create one for it, or set `jetstream = false` for a core publish",
            PUBLISHES_WITH_ACK,
            advice="create a stream for it, or correct the destination",
        ),
        _destination(
            LIMIT,
            "the stream or the account is full",
            "raise the limit, or delete messages",
            advice="the stream or the account is full; raise the limit, or delete messages",
            to_name=False,
        ),
        _destination(BAD_ANSWER, "the answer to a JetStream publish is not one", "something else listens there"),
        _destination(
            TIMEOUT,
            "no PubAck in time",
            "the stream's leader, the disk; it may have been stored",
            *(GIVEN_UP, PUBLISHES_WITH_ACK),
        ),
        _destination(UNANSWERED, "no PubAck yet", "as of `timeout`", to_name=False),
        _destination(
            OTHER_STREAM,
            "no PubAck that counts: those that come are from a stream that does not take the subject",
            "[name that stream](../how-to/streams.md#subjects-that-the-server-maps) if the server maps the subject",
            to_name=False,
        ),
        _destination(
            JETSTREAM,
            "the stream refused, or JetStream did not say why",
            "what `detail` says",
            to_name=False,
        ),
        _destination(SEALED, "the stream is sealed", "another stream", to_name=False),
        _destination(INJECTED, "a test injected the failure", "nothing to mend", to_name=False),
        _way(
            QUEUE_FULL,
            "more comes than goes",
            "[Tune the queue](../how-to/tune-the-queue.md)",
            *(FAILURES, MIRRORS, DROPS),
            again=Again.FROM_A_STREAM,
            to_name=True,
        ),
        _way(
            EXPIRED,
            "it was in the queue longer than `pending_max_age`",
            "[Tune the queue](../how-to/tune-the-queue.md)",
            DROPS,
            again=Again.FROM_A_STREAM,
            to_name=True,
        ),
        _way(
            SHUTDOWN,
            "the router ended before it was delivered",
            "a longer `shutdown_timeout`; [Operating](operating.md#stop-and-drain)",
            *(FAILURES, DROPS),
            again=Again.FROM_A_STREAM,
        ),
        _way(
            WORKER_LOST,
            "its worker ended before it was delivered",
            "`ROUTER_WORKER_LOST` says why",
            *(FAILURES, DROPS),
        ),
        _way(OUT_OF_TURN, "an earlier message of its subject has to be delivered first", "nothing to mend"),
        _router(DROPPED_OLDEST, "the queue is full: its oldest messages were dropped", "as of `queue_full`"),
        _router(BLOCKED, "the queue is full: its publishers wait", "as of `queue_full`"),
        _router(
            SLOW_CONSUMER,
            "more comes than goes",
            "[Tune the queue](../how-to/tune-the-queue.md)",
            FAILURES,
        ),
        _router(
            RETRY_FULL,
            "more messages failed than are kept for another attempt",
            "mend the destination, or read from a stream",
            FAILURES,
        ),
        _router(
            DEAD_LETTER,
            "its dead letter could not be stored",
            "[RouterDeadLettersNotStored](../runbooks/RouterDeadLettersNotStored.md)",
            FAILURES,
        ),
        _link(
            NETWORK,
            "nothing listens there (`connection refused`), or the network is down",
            "start the server, correct `servers`",
        ),
        _link(DNS, "the name can't be resolved", "correct `servers`, or the resolver"),
        _link(TLS, "the TLS handshake failed", "TLS on both sides or on none, a URL with `tls://`"),
        _link(CERTIFICATE, "a certificate is not trusted or has another name", "`tls_ca_file`, `tls_hostname`"),
        _link(
            AUTHORIZATION,
            "the server refuses the credentials",
            "[TLS and credentials](../how-to/tls-and-credentials.md)",
        ),
        _link(PROTOCOL, "a peer sent what is not the NATS protocol", "correct `servers`"),
        _link(HANDSHAKE, "the server refused the connection", "what `detail` says, and the log of the server"),
        _link(RESOURCES, "the system has no descriptor, memory or thread left", "raise its limits (`ulimit -n`)"),
        _link(CLOSED, "the connection was closed", "the log of the server says why"),
        _link(SERVER_ERROR, "the server ended the connection", "what `detail` says, and the log of the server"),
        _link(SERVER_SHUTDOWN, "the server shuts down", "nothing to mend if that is meant"),
        _link(STALE, "the server got no answer to its pings", "the network, or a loop that is blocked by a handler"),
        _link(MAX_CONNECTIONS, "the server is full", "`max_connections` of the server or the account"),
        _link(
            LIVENESS,
            "the server did not answer in time",
            "the network, or a loop that is blocked by a handler: `router_event_loop_lag_seconds`",
        ),
        _link(LAME_DUCK, "the server asked its clients to leave", "nothing to mend"),
        _link(CONTROL_PLANE, "the JetStream client of the connection failed", "what `detail` says"),
        _source(
            STREAM_NOT_FOUND, "there is no such stream", "make it, or have the router [make it](../how-to/streams.md)"
        ),
        _source(STREAM_REFUSED, "the stream can't be made", "change it in `[[streams]]`, or the server"),
        _source(SEVERAL_STREAMS, "more than one stream has these letters", "name the stream"),
        _source(CONSUMER_NOT_FOUND, "there is no such consumer", "the route makes it again"),
        _source(CONSUMER_DELETED, "the consumer was deleted", "the route makes it again"),
        _source(CONSUMER_MISMATCH, "the durable exists with another filter", "another name, or delete the consumer"),
        _source(CONSUMER_REFUSED, "JetStream refused the consumer", "what `detail` says"),
        _source(CONSUMER_EXPIRES, "unused for a while, the durable is deleted", "raise `inactive_threshold`"),
        _source(
            CONSUMER_SILENT, "the consumer gives nothing though its stream has messages", "the route opens it again"
        ),
        _source(CONSUMER_LIMIT, "the consumer allows too little", "raise its limits"),
        _source(CONSUMER_LOST, "the server ended the request of the route", "the route opens the consumer again"),
        _source(LEAD_LOST, "another process took over", "nothing to mend"),
        _source(WOULD_DELETE, "giving up would delete messages", "set `[routes.dead_letter]`"),
        _source(FEEDS_ITSELF, "the stream takes what the route sends", "[Circles](../how-to/circles.md)"),
        _source(
            JETSTREAM_UNAVAILABLE, "JetStream does not answer", "look at its leader: `nats server report jetstream`"
        ),
        _source(NO_JETSTREAM, "the server or the account has no JetStream", "enable it"),
        _source(MAX_SUBSCRIPTIONS, "the account allows no more subscriptions", "raise its limit"),
        _source(INVALID_NAME, "that can't be the name of a stream or consumer", "correct it"),
        _source(SERVER_TOO_OLD, "the server lacks what the route needs", "upgrade it"),
        _source(NOT_FOUND, "the stream has no such message", "it was deleted meanwhile"),
        _source(DENY_DELETE, "the stream lets nobody delete messages", "`deny_delete` of the stream"),
        _none(WHEN, "the `when` of the route does not hold", FILTERED),
        _none(HANDLER, "the handler returned nothing", FILTERED),
        _none(UNMATCHED, "no destination takes it", FILTERED),
        _none(NO_REPLY, "the message has no reply subject", UNANSWERED_MESSAGES),
    )
}
"""By name. Besides these there are `jetstream_` and the error code of a server: see `of_code`."""

OF_CODE = re.compile(r"jetstream_[0-9]{5}")
"""The form of a reason for which there is only the error code of a server."""

_HEADERS_THAT_A_STREAM_DOES_NOT_TAKE = (
    10111,  # Nats-Rollup
    *(10165, 10166),  # Nats-TTL
    *range(10168, 10172),  # Nats-Incr
    *(*range(10174, 10178), 10179, *range(10199, 10202)),  # Nats-Batch-...
    *(*range(10188, 10193), 10203, 10212, 10223),  # Nats-Schedule...
)
"""Error codes of nats-server that are the fault of the message; all others are the destination's."""


def of_code(code: int) -> str:
    """Return the reason of a refusal for which a server gave this error code."""
    return f"{JETSTREAM}_{code}"


def advice(reason: str) -> str:
    """Return what to do about refusals for this reason, `""` if the server's own words say it."""
    found = TABLE.get(reason)
    return "" if found is None else found.advice


def labelled(counter: str) -> tuple[str, ...]:
    """Return the reasons that a counter has from the start."""
    return tuple(reason.name for reason in TABLE.values() if counter in reason.labels)


def _all(reasons: Iterable[Reason]) -> frozenset[str]:
    return frozenset(reason.name for reason in reasons)


OF_THE_MESSAGE: Final = _all(one for one in TABLE.values() if one.fault is Fault.MESSAGE) | frozenset(
    map(of_code, _HEADERS_THAT_A_STREAM_DOES_NOT_TAKE)
)
"""Failures that are a message's own fault: what is behind it would not fail, so nothing waits for it."""

OF_THE_WAY: Final = _all(one for one in TABLE.values() if one.fault is Fault.WAY)
"""Failures that say nothing of a destination: it was away, and its queue kept nothing."""

DECIDED_BY_QUEUE: Final = _all(one for one in TABLE.values() if one.again is Again.FROM_A_STREAM)
"""Failures after which a core message is not tried again: a setting of the destination's queue wants that."""

NEVER_AGAIN: Final = _all(one for one in TABLE.values() if one.again is Again.NO)
"""Failures after which no message is tried again."""

OF_ALL_ALIKE: Final = frozenset({NO_RESPONDERS, PERMISSION_DENIED, LIMIT, BAD_ANSWER, SEALED})
"""Refusals that every publish to the same destination would meet."""

LOOKUP_FAILED: Final = frozenset({PERMISSION_DENIED, TIMEOUT, BAD_ANSWER, JETSTREAM_UNAVAILABLE, RESOURCES})
"""Reasons why JetStream did not say what was asked: they say nothing of what was looked up."""

TO_NAME: Final = tuple(one.name for one in TABLE.values() if one.to_name)
"""Reasons that are known beforehand where one is named, as in `[routes.retry] not`."""
