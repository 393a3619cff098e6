"""Every error code of JetStream that this package can receive: what it means for a route, and what to change.

The code is the `err_code` of an answer. The text of such an error, in a log line, on `/readyz`, in `check --online` and
on the troubleshooting page, has both from here (`explained`). No other module spells a code out.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Final

# Codes that the router reacts to.
NO_PEERS: Final = 10005
CONSUMER_NOT_FOUND: Final = 10014
NO_MESSAGE: Final = 10037
NOT_ENABLED_FOR_ACCOUNT: Final = 10039
NAME_IN_USE: Final = 10058
STREAM_NOT_FOUND: Final = 10059
OTHER_STREAM_EXPECTED: Final = 10060
SUBJECTS_OVERLAP: Final = 10065
WRONG_LAST_SEQUENCE: Final = 10071
NOT_ENABLED: Final = 10076
STORE_FAILED: Final = 10077
SEALED: Final = 10109
TOO_MANY_ACK_PENDING: Final = 10121
CONSUMER_EXISTS: Final = 10148
NO_MESSAGE_TTL: Final = 10166
LEVEL_REQUIRED: Final = 10185
NO_SCHEDULES: Final = 10188
BAD_SCHEDULE: Final = 10189
BAD_SCHEDULE_TARGET: Final = 10190

ALL: Final = range(10_000, 10_500)
"""The codes of nats-server, present and future."""


class Asked(Enum):
    """The kind of request that is answered with a code. The value completes "the answer to"."""

    PUBLISH = "a publish"
    CONSUMER = "a request about a durable"
    STREAM = "a request about a stream"
    ANY = "any request"


class Kind(Enum):
    """The consequence of a refused publish."""

    PLAIN = "plain"
    """The destination refuses, for as long as it is as it is."""

    PASSES = "passes"
    """A later try may succeed without any change."""

    TOO_LARGE = "too large"
    """The message is larger than the stream accepts."""

    SUBJECT = "subject"
    """The destination refuses the messages of this subject."""

    EXPECTATION = "expectation"
    """The message carries an expectation that the stream does not meet."""

    HEADER = "header"
    """A header of the message is at fault: later messages would not fail for it."""

    UNKNOWN = "unknown"
    """The table does not have the code: a later server made it."""


@dataclass(frozen=True, slots=True)
class Code:
    """A code. `words` are the server's, `means` is what follows for a route, `change` the cure."""

    number: int
    asked: Asked
    words: str
    means: str
    change: str
    kind: Kind = Kind.PLAIN


def _publish(number: int, words: str, means: str, change: str, kind: Kind = Kind.PLAIN) -> Code:
    return Code(number, Asked.PUBLISH, words, means, change, kind)


def _header(number: int, words: str, name: str, wrong: str) -> Code:
    """Return a code about a header that the destination keeps, although its stream does not take it."""
    return Code(
        number,
        Asked.PUBLISH,
        words,
        f"the message carries `{name}`, and {wrong}: it fails by its own fault",
        f"remove `{name}` from `keep` of the destination, or correct the publisher",
        Kind.HEADER,
    )


def _consumer(number: int, words: str, means: str, change: str) -> Code:
    return Code(number, Asked.CONSUMER, words, means, change)


def _stream(number: int, words: str, means: str, change: str) -> Code:
    return Code(number, Asked.STREAM, words, means, change)


def _any(number: int, words: str, means: str, change: str, kind: Kind = Kind.PLAIN) -> Code:
    return Code(number, Asked.ANY, words, means, change, kind)


_LEADER = "check that more than half of the servers are up: `nats server report jetstream`"
_NO_TTL = "the stream has no `allow_msg_ttl`"
_NO_COUNTER = "the stream has no `allow_msg_counter`"
_NO_SCHEDULE = "the stream has no `allow_msg_schedules`"

_CODES: tuple[Code, ...] = (
    # --- any request ---
    _any(10003, "bad request", "the server does not know the request, or not its form", "upgrade the server"),
    _any(
        10004,
        "incomplete results",
        "not all servers of the cluster answered, so a list is not complete",
        _LEADER,
    ),
    _any(
        NO_PEERS,
        "no suitable peers for placement",
        "the cluster has too few servers with room for the wanted replicas",
        "lower `replicas`, or add servers or storage",
        Kind.PASSES,
    ),
    _any(
        10006, "JetStream not in clustered mode", "the server does not belong to the cluster yet", _LEADER, Kind.PASSES
    ),
    _any(
        10007,
        "JetStream cluster not assigned to this server",
        "the stream or durable is being moved to another server",
        "wait; if it lasts, `nats server report jetstream` shows where it is",
        Kind.PASSES,
    ),
    _any(
        10008,
        "JetStream system temporarily unavailable",
        "JetStream or the stream has no leader: too few of its servers reach each other",
        _LEADER,
        Kind.PASSES,
    ),
    _any(
        10009,
        "JetStream cluster can not handle request",
        "the server that answered is not the leader any more",
        f"wait for the election; if it lasts, {_LEADER}",
        Kind.PASSES,
    ),
    _any(
        10023,
        "insufficient resources",
        "the server has used up its memory or storage for JetStream, or a limit of the account",
        "raise `max_mem`, `max_file` or the limits of the account, or delete messages",
    ),
    _any(
        10025,
        "invalid JSON",
        "the server does not know a field that the router sends",
        "upgrade the server, or turn its strict mode off",
    ),
    _any(
        10028,
        "insufficient memory resources available",
        "the server has no memory left for streams and consumers that are kept in memory",
        'raise `max_mem` of the server, or use `storage = "file"`',
    ),
    _any(10035, "account not found", "the server does not have the account", "check the account of the user"),
    _any(
        NOT_ENABLED_FOR_ACCOUNT,
        "JetStream not enabled for account",
        "the account of the user has no JetStream",
        "enable JetStream for the account, or use another user",
    ),
    _any(
        10047,
        "insufficient storage resources available",
        "the disk of the server, or its share for JetStream, is used up: nothing can be stored",
        "free space on the disk, raise `max_file` of the server, or delete messages",
    ),
    _any(
        NOT_ENABLED, "JetStream not enabled", "the server has no JetStream", "enable it in the server's configuration"
    ),
    _any(
        10120,
        "no JetStream default or applicable tiered limit present",
        "the account has no limits for this number of replicas",
        "give the account limits for it, or change `replicas`",
    ),
    _any(
        10167,
        "too many requests",
        "the server has more requests waiting than it accepts",
        "no action needed if it passes; else ask less often, or add servers",
        Kind.PASSES,
    ),
    _any(
        10185,
        "JetStream minimum api level required",
        "the server is too old for what the configuration asks for",
        "upgrade the server, or remove the key that needs it",
    ),
    # --- a publish ---
    _publish(
        10002,
        "resource limits exceeded for account",
        "the account is full: messages wait at their source",
        "raise the limits of the account, or delete messages",
    ),
    _publish(
        10054,
        "message size exceeds maximum allowed",
        "the message is larger than the stream accepts",
        "raise `max_msg_size` of the stream",
        Kind.TOO_LARGE,
    ),
    _publish(
        OTHER_STREAM_EXPECTED,
        "expected stream does not match",
        "the message carries `Nats-Expected-Stream`, and another stream takes it",
        "remove the header, or send to that stream",
        Kind.EXPECTATION,
    ),
    _publish(
        10063,
        "expected stream sequence does not match",
        "the message carries an expectation that the stream does not meet",
        "remove `Nats-Expected-...` from `keep` of the destination",
        Kind.EXPECTATION,
    ),
    _publish(
        10070,
        "wrong last msg ID",
        "the message carries `Nats-Expected-Last-Msg-Id`, and the last message has another id",
        "remove the header from `keep` of the destination",
        Kind.EXPECTATION,
    ),
    _publish(
        WRONG_LAST_SEQUENCE,
        "wrong last sequence",
        "the message carries an expected last sequence, and the stream has another one",
        "remove `Nats-Expected-...` from `keep` of the destination",
        Kind.EXPECTATION,
    ),
    _publish(
        STORE_FAILED,
        "maximum messages exceeded",
        'the stream is full and refuses new messages (`discard = "new"`), or its server could not write',
        "raise the limit that is named, or delete messages; if none is, see the log of the server",
    ),
    _publish(
        10097,
        "header size exceeds maximum allowed of 64k",
        "the headers of the message are larger than a stream accepts",
        "remove headers with `[routes.to.headers]`",
        Kind.TOO_LARGE,
    ),
    _publish(
        SEALED,
        "invalid operation on sealed stream",
        "the stream accepts no messages any more",
        "send to another stream",
    ),
    _publish(
        10158,
        "duplicate message id is in process",
        "the same message is being stored just now: it is sent again",
        "no action needed",
        Kind.PASSES,
    ),
    _publish(
        10163,
        "expected last sequence per subject temporarily unavailable",
        "another message with an expectation for this subject is being stored",
        "no action needed; remove `Nats-Expected-...` from `keep` if it recurs",
        Kind.EXPECTATION,
    ),
    _publish(
        10164,
        "wrong last sequence",
        "the message carries an expected last sequence, and the stream has another one",
        "remove `Nats-Expected-...` from `keep` of the destination",
        Kind.EXPECTATION,
    ),
    _publish(
        10193,
        "missing sequence for expected last sequence per subject",
        "the message carries only a part of an expectation",
        "remove `Nats-Expected-...` from `keep` of the destination",
        Kind.EXPECTATION,
    ),
    _header(10111, "rollup not permitted", "Nats-Rollup", "the stream does not allow roll-ups"),
    _header(10165, "invalid per-message TTL", "Nats-TTL", "its value is not a time of at least a second"),
    _header(NO_MESSAGE_TTL, "per-message TTL is disabled", "Nats-TTL", _NO_TTL),
    _header(10168, "message counters is disabled", "Nats-Incr", _NO_COUNTER),
    _header(
        10169, "message counter increment is missing", "Nats-Incr", "the stream of counters takes nothing without it"
    ),
    _header(10170, "message counter has payload", "Nats-Incr", "a counter takes no payload"),
    _header(10171, "message counter increment is invalid", "Nats-Incr", "its value is not a signed number"),
    _publish(
        10172,
        "message counter is broken",
        "the stored value of the counter can't be read",
        "delete the last message of that subject",
        Kind.SUBJECT,
    ),
    *(
        _header(number, words, "Nats-Batch-...", "a route sends no batches")
        for number, words in (
            (10174, "atomic publish is disabled"),
            (10175, "atomic publish sequence is missing"),
            (10176, "atomic publish batch is incomplete"),
            (10177, "atomic publish unsupported header used"),
            (10179, "atomic publish batch ID is invalid"),
            (10199, "atomic publish batch is too large"),
            (10200, "atomic publish batch commit is invalid"),
            (10201, "atomic publish batch contains duplicate message id"),
        )
    ),
    _header(NO_SCHEDULES, "message schedules is disabled", "Nats-Schedule", _NO_SCHEDULE),
    *(
        _header(number, words, "Nats-Schedule...", "its value is not valid")
        for number, words in (
            (BAD_SCHEDULE, "message schedules pattern is invalid"),
            (BAD_SCHEDULE_TARGET, "message schedules target is invalid"),
            (10191, "message schedules invalid per-message TTL"),
            (10192, "message schedules invalid rollup"),
            (10203, "message schedules source is invalid"),
            (10212, "message schedules invalid scheduler"),
            (10223, "message schedules time zone is invalid"),
        )
    ),
    _header(10227, "stream source header is not permitted", "Nats-Stream-Source", "only servers may set it"),
    # --- a durable ---
    _consumer(
        10012,
        "consumer creation failed",
        "the server could not create or change the durable",
        "see the words of the server, and its log",
    ),
    _consumer(
        10013,
        "consumer name already in use",
        "a consumer of this name exists and can't be changed into the one of the route",
        "use another `durable`, or delete that consumer",
    ),
    _consumer(
        CONSUMER_NOT_FOUND,
        "consumer not found",
        "the durable does not exist, or was deleted",
        "no action needed: a route that runs creates it",
    ),
    _consumer(
        10026,
        "maximum consumers limit reached",
        "the stream or the account allows no more consumers",
        "raise `max_consumers`, or delete consumers that are not used",
    ),
    _consumer(
        10093,
        "consumer filter subject is not a valid subset of the interest subjects",
        "the filter matches no subject of the stream",
        "correct `filter` of the route",
    ),
    _consumer(
        10094,
        "consumer delivery policy is not valid",
        "the durable can't start where `deliver` says",
        "correct `deliver` of the route",
    ),
    _consumer(
        10099,
        "multiple non-filtered consumers not allowed on workqueue stream",
        "another consumer already takes all messages of the work queue",
        "delete that consumer, or give both filters that do not overlap",
    ),
    _consumer(
        10100,
        "filtered consumer not unique on workqueue stream",
        "another consumer of the work queue has a filter that overlaps with the one of the route",
        "delete that consumer, or change `filter` of the route",
    ),
    _consumer(
        10101,
        "consumer must be deliver all on workqueue stream",
        "a durable of a work queue starts at the first message",
        "remove `deliver` from the route",
    ),
    _consumer(
        10104,
        "error creating store for consumer",
        "the server can't write the state of the durable",
        "check the disk of the server, and its log",
    ),
    _consumer(
        10119,
        "consumer is offline",
        "no server that holds the durable is up",
        _LEADER,
    ),
    _consumer(
        TOO_MANY_ACK_PENDING,
        "consumer max ack pending exceeds system limit",
        "the server, the account or the stream allows fewer unacked messages than the route may have in hand",
        "lower `max_in_flight` of the route, or raise that limit",
    ),
    _consumer(
        10126,
        "consumer config replica count exceeds parent stream",
        "the durable was edited to have more replicas than its stream",
        "lower its replicas, or raise those of the stream",
    ),
    _consumer(
        10134,
        "consumer config replicas must match interest retention stream's replicas",
        "the durable has another number of replicas than its stream",
        "give it as many as the stream has",
    ),
    _consumer(
        10138,
        "consumer subject filters cannot overlap",
        "two filters of the route match the same subject",
        "remove one of them",
    ),
    _consumer(
        10149,
        "consumer does not exist",
        "the durable was deleted while it was changed",
        "run the command again; a route that runs creates the durable",
    ),
    _consumer(
        10153,
        "consumer inactive threshold exceeds system limit",
        "the server does not allow the durable to outlast a long stop of the router",
        "raise `inactive_threshold` in `consumer_limits` of the stream, or remove it",
    ),
    _consumer(
        10160,
        "provided priority group does not exist for this consumer",
        "the durable is not one for standby",
        "use another `durable` for a route with `standby`",
    ),
    _consumer(
        10195,
        "consumer is offline: unsupported",
        "a server that holds the durable does not know a part of its configuration",
        "run the same version on all servers",
    ),
    # --- a stream ---
    _stream(
        10027,
        "maximum number of streams reached",
        "the account allows no more streams",
        "raise `max_streams` of the account, or delete streams",
    ),
    _stream(
        NO_MESSAGE,
        "no message found",
        "the stream has no such message any more",
        "no action needed: it was deleted in the meantime",
    ),
    _stream(
        10043,
        "sequence not found",
        "the stream has no such message any more",
        "no action needed: it was deleted in the meantime",
    ),
    _stream(
        10049,
        "stream creation failed",
        "the server could not create the stream",
        "see the words of the server, and its log",
    ),
    _stream(
        10052,
        "stream configuration is not valid",
        "keys of the stream contradict each other",
        "correct `[[streams]]` as the server says",
    ),
    _stream(
        10053,
        "stream limits exceeded",
        "the account allows no stream of this size",
        "lower the limits of the stream, or raise those of the account",
    ),
    _stream(
        10057,
        "message delete not permitted",
        "a message of the stream can't be deleted",
        "set `deny_delete` of the stream to false",
    ),
    _stream(
        NAME_IN_USE,
        "stream name already in use with a different configuration",
        "the stream exists and differs from `[[streams]]`",
        "change the stream or the configuration",
    ),
    _stream(
        STREAM_NOT_FOUND,
        "stream not found",
        "the stream does not exist, or was deleted",
        "create it, correct its name, or list it in `[[streams]]`",
    ),
    _stream(
        SUBJECTS_OVERLAP,
        "subjects overlap with an existing stream",
        "another stream takes subjects of the wanted one",
        "change the subjects of one of them",
    ),
    _stream(
        10074,
        "replicas > 1 not supported in non-clustered mode",
        "the server does not belong to a cluster",
        "set `replicas = 1`, or use a cluster",
    ),
    _stream(
        10113,
        "account requires a stream config to have max bytes set",
        "the account accepts only streams with a limit of bytes",
        "set `max_bytes` in `[[streams]]`",
    ),
    _stream(10118, "stream is offline", "no server that holds the stream is up", _LEADER),
    _stream(
        10122,
        "stream max bytes exceeds account limit max stream bytes",
        "the account allows smaller streams only",
        "lower `max_bytes`, or raise the limit of the account",
    ),
    _stream(
        10194,
        "stream is offline: unsupported",
        "a server that holds the stream does not know a part of its configuration",
        "run the same version on all servers",
    ),
)

CODES: Final[Mapping[int, Code]] = {one.number: one for one in _CODES}
"""The codes by number."""


def _all(kind: Kind) -> frozenset[int]:
    return frozenset(one.number for one in _CODES if one.kind is kind)


PASSING: Final = _all(Kind.PASSES)
"""Codes of refusals that a later try may not get.

Limits of a stream are not among them, though the server answers those with status 503 as well.
"""

TOO_LARGE: Final = _all(Kind.TOO_LARGE)
"""Codes for a message that is larger than the stream accepts."""

OF_EXPECTATIONS: Final = _all(Kind.EXPECTATION)
"""Codes for a message whose expectation the stream does not meet."""

OF_THE_MESSAGE: Final = _all(Kind.HEADER)
"""Codes that are the fault of a header of the message; all others are the destination's."""

NO_JETSTREAM: Final = frozenset({NOT_ENABLED_FOR_ACCOUNT, NOT_ENABLED})
"""Codes of an account or a server without JetStream."""


def kind_of(number: int) -> Kind:
    """Return what follows from a refused publish with this code; `UNKNOWN` for one that the table does not have."""
    code = CODES.get(number)
    return Kind.UNKNOWN if code is None else code.kind


def explained(number: int, words: str) -> str:
    """Return the text of an error: the server's `words`, its code, what it means for a route, and the cure.

    A code that is not in the table is only named.
    """
    if not number:
        return words
    named = f"{words} (JetStream error {number})"
    code = CODES.get(number)
    return named if code is None else f"{named}: {plain(code.means)}; {plain(code.change)}"


def plain(text: str) -> str:
    """Return a text of the table without the marks that it has on a page."""
    return text.replace("`", "")


def rows(asked: Iterable[Asked] = tuple(Asked)) -> list[Code]:
    """Return the codes that answer these kinds of request, by number."""
    wanted = set(asked)
    return sorted((one for one in _CODES if one.asked in wanted), key=lambda one: one.number)
