"""The table of all permissions that a router needs, and the purpose of a publish that a server has refused.

A server that refuses a publish names its subject only. So publishes other than those of routes and programs are
recognized here by their subjects. `docs/reference/permissions.md` is generated from the table, and `router-trio
permissions` fills it in for a configuration (`settings/permissions.py`). Pure.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Literal, NamedTuple

from router_trio.protocol import ack_reply

PUBLISH: Literal["publish"] = "publish"
SUBSCRIBE: Literal["subscribe"] = "subscribe"

API = "$JS.API"
"""The prefix of the JetStream API, unless the connection has a `domain` or an `api_prefix`."""


SERVICES = "$SRV"
"""The first token of the subjects on which NATS services are asked (ADR-32)."""

SERVICE = "router-trio"
"""The name of a router as a NATS service."""

KV = "$KV"
"""The first token of the subjects of KV buckets."""

MEMBERS = "router-trio-members"
"""The KV bucket in which the processes that share partitions announce themselves."""


def kv_below(api: str) -> str:
    """Return where to publish to the KV buckets of a JetStream API: below its prefix, unless that is the default one.

    Between servers of different domains, nothing is delivered to `$KV` itself. The server of a domain removes the
    prefix.
    """
    return KV if api == API else f"{api}.{KV}"


def mapped_at_own_domain(subject: bytes) -> bytes:
    """Return the subject to which the server of a domain maps a publish below its own `$JS.DOMAIN.API`.

    Such a server checks the permission to publish to that subject, and names it in a refusal. Other subjects are
    returned as they are.
    """
    found = _OF_DOMAIN.fullmatch(subject)
    if found is None:
        return subject
    return found[1] if found[1].startswith(_BUCKETS) else b"$JS.API." + found[1]


_OF_DOMAIN = re.compile(rb"\$JS\.[^.]+\.API\.(.+)", re.DOTALL)
_BUCKETS = (b"$KV.", b"$OBJ.")


class Use(Enum):
    """The part of a configuration that needs a permission, as text."""

    DESTINATION = "a destination"
    DEAD_LETTERS = "the dead letters of a route"
    ANSWERS = "a route that answers"
    SUBJECT = "a route from a subject"
    CONSUMER = "a route from a stream"
    SHARED_CONSUMER = "a route from a stream without standby"
    STANDBY = "a route with standby"
    PARTITIONS = "a route with partitions"
    COPY = "a route with partitions whose stream has none"
    BUCKET = "a bucket as a destination of another bucket"
    FINDING_STREAMS = "a destination whose stream is found by its subject"
    STREAM_OF_DESTINATION = "the stream of a destination"
    DECLARED_STREAM = "a stream of [[streams]]"
    POSITION = "a consumer of [[positions]], at its source"
    RETRIES = "scheduled retries of a route"
    CHECKPOINTS = "a consumer of [[positions]], at the destination"
    INBOX = "a connection"
    SERVICE = "a connection of a router that is a NATS service"


@dataclass(frozen=True, slots=True)
class Permission:
    """A permission. `subject` has the names of a configuration in braces, those of every connection among them.

    `use` is the part of a configuration that the permission is for, and that has the other names. `sends` is what is
    published or subscribed to, in a few words; `details` continues them. `needed` is which routes or connections need
    the permission, and `refused` what happens without it. If `optional`, the router works without it, and reports what
    it can't determine. If `first_start`, it is used only where something does not exist yet: once that was made, the
    router works without it.
    """

    kind: Literal["publish", "subscribe"]
    subject: str
    use: Use
    sends: str
    needed: str
    refused: str
    optional: bool = False
    details: str = ""
    first_start: bool = False

    def of(self, names: Mapping[str, str]) -> str:
        """Return the subject with the names of a configuration filled in. Raises `KeyError` if one is missing."""
        return self.subject.format_map(names)


_NOT_READY = "`/readyz` names the subject and the cure"

_NOT_SENT = (
    "the message fails with `permission_denied`: `NATS_PUBLISH_ERROR` or `NATS_PUBLISH_WITH_ACK_ERROR`, counted in "
    "`router_nats_publish_failures_total` or `router_nats_publish_with_ack_failures_total`; a stream redelivers it; "
    f"{_NOT_READY}"
)

_NOT_ACKED = (
    "`NATS_ACK_ERROR` or `NATS_NAK_ERROR` with `permission_denied`, counted in `router_nats_ack_failures_total` or "
    f"`router_nats_nak_failures_total`; the stream redelivers after the ack wait; {_NOT_READY}"
)

_NOT_OFFERED = "`NATS_SERVICE_NOT_OFFERED`, once; `nats service` does not show the router on this connection"

_OF_RETRIES = "each route with `schedule` in `[routes.retry]`"
_OF_SERVICE = "each connection, unless `service = false`"

_NOT_SAVED = "`ROUTER_POSITION_NOT_SAVED` names the subject; the last checkpoint stays, and routing goes on"

_NO_ADVISORIES = "`NATS_ADVISORIES_REFUSED`, once; trouble is noticed as late, and its cause is what the router sees"

PERMISSIONS: tuple[Permission, ...] = (
    Permission(
        PUBLISH,
        "{destination}",
        Use.DESTINATION,
        "messages",
        "each destination, its connection",
        _NOT_SENT,
        details=" to a destination, or by a program",
    ),
    Permission(
        PUBLISH,
        "{dead_letter}",
        Use.DEAD_LETTERS,
        "dead letters",
        "each `[routes.dead_letter]`, its connection",
        f"the dead letter, as other messages: {_NOT_SENT}",
    ),
    Permission(
        PUBLISH,
        "{reply}",
        Use.ANSWERS,
        "answers",
        "routes with `respond`: `_INBOX.>`, and what `reply_to` names",
        "the answer fails with `permission_denied`: `NATS_PUBLISH_ERROR`, counted in "
        "`router_nats_publish_failures_total`",
        details=" to the reply subjects of requests",
    ),
    Permission(
        PUBLISH,
        "$JS.ACK.{stream}.{durable}.>",
        Use.CONSUMER,
        "acks",
        "each route from a stream",
        _NOT_ACKED,
        details=", naks, terms, and progress acks for messages that are still being handled",
    ),
    Permission(
        PUBLISH,
        "$JS.ACK.{domain}.*.{stream}.{durable}.>",
        Use.CONSUMER,
        "acks with domain and account",
        "each route from a stream of a server with the feature flag `js_ack_fc_v2`",
        f"with the flag: {_NOT_ACKED}; without it, nothing",
        details=": the newer form of their subjects",
    ),
    Permission(
        PUBLISH,
        "{api}.CONSUMER.MSG.NEXT.{stream}.{durable}",
        Use.CONSUMER,
        "pulls",
        "each route from a stream",
        "`NATS_SUBSCRIBE_ERROR` with `permission_denied`, counted in `router_nats_subscribe_failures_total`; the route "
        f"is `failed` and retries; {_NOT_READY}",
        details=": requests for the next messages; with `standby` also for the lead",
    ),
    Permission(
        PUBLISH,
        "{api}.STREAM.INFO.{stream}",
        Use.CONSUMER,
        "whether the stream exists",
        "each route from a stream",
        "as for pulls",
        details=", and is still the same",
    ),
    Permission(
        PUBLISH,
        "{api}.CONSUMER.INFO.{stream}.{durable}",
        Use.CONSUMER,
        "whether the durable exists",
        "each route from a stream",
        "as for pulls",
        details=", and its position",
    ),
    Permission(
        PUBLISH,
        "{api}.CONSUMER.DURABLE.CREATE.{stream}.{durable}",
        Use.CONSUMER,
        "to create the durable",
        "each route from a stream whose durable does not exist",
        "as for pulls; where the durable exists, nothing",
        details="; to remove its limit of deliveries",
        first_start=True,
    ),
    Permission(
        PUBLISH,
        "{api}.CONSUMER.UNPIN.{stream}.{durable}",
        Use.STANDBY,
        "to give up the lead",
        "routes with `standby` or `partitions`",
        "another process takes over five seconds later",
        optional=True,
    ),
    Permission(
        PUBLISH,
        "{api}.STREAM.MSG.GET.{stream}",
        Use.CONSUMER,
        "lookups of single messages",
        "each route from a stream",
        "without the lookup the router waits for the ack wait, or assumes the less favourable case, and estimates the "
        "age",
        optional=True,
        details=": whether a stream was restored, or a message was deleted; the age of the oldest one by which a route "
        "is behind; whether a value for a bucket that has waited for its next attempt is the latest, which else fails "
        "and is tried again",
    ),
    Permission(
        PUBLISH,
        "{api}.STREAM.INFO.{copied}",
        Use.COPY,
        "whether the stream has partitions itself",
        "each route with `partitions`",
        "as for pulls",
        details=", and the limits of a copy that has",
    ),
    Permission(
        PUBLISH,
        "{api}.STREAM.CREATE.{stream}",
        Use.COPY,
        "to create the copy with the partitions",
        "each route with `partitions` whose stream has none, until the copy exists",
        "as for pulls; where the copy exists, nothing",
        first_start=True,
    ),
    Permission(
        PUBLISH,
        "{api}.STREAM.MSG.GET.{partitioned}",
        Use.COPY,
        "whether the stream was rolled back",
        "each route with `partitions` whose stream has none",
        f"what a rolled back stream stores may not be copied, nor routed; {_NOT_READY}",
    ),
    Permission(
        PUBLISH,
        "{api}.STREAM.UPDATE.{stream}",
        Use.COPY,
        "to have a rolled back stream copied again",
        "each route with `partitions` whose stream has none",
        f"nothing until it was rolled back; then it is not copied, and {_NOT_READY}",
    ),
    Permission(
        PUBLISH,
        "{api}.CONSUMER.INFO.{copied}.{group_durable}",
        Use.COPY,
        "whether the route has read the stream without partitions",
        "each route with `partitions` whose stream has none, until the copy exists",
        "as for pulls; where the copy exists, nothing",
        first_start=True,
    ),
    Permission(
        PUBLISH,
        "{api}.STREAM.INFO.KV_{members}",
        Use.PARTITIONS,
        "which processes share the partitions",
        "each route with `partitions`",
        f"the process takes no further partitions, and those that it leads go on; {_NOT_READY}",
    ),
    Permission(
        PUBLISH,
        "{kv}.{members}.{group}.*",
        Use.PARTITIONS,
        "that this process shares the partitions",
        "each route with `partitions`",
        f"a process that starts gets no share, and what others lead goes on; {_NOT_READY}",
    ),
    Permission(
        PUBLISH,
        "{api}.STREAM.MSG.GET.KV_{members}",
        Use.PARTITIONS,
        "which partitions were moved by hand, and which announcements have expired",
        "each route with `partitions`, once some were moved, or a server has kept an announcement for too long",
        f"as for which processes share them; {_NOT_READY}",
    ),
    Permission(
        PUBLISH,
        "{api}.STREAM.CREATE.KV_{members}",
        Use.PARTITIONS,
        "to create the bucket of these processes",
        "each connection with `partitions`, until the bucket exists",
        f"as for which processes share them; where the bucket exists, nothing; {_NOT_READY}",
        first_start=True,
    ),
    Permission(
        PUBLISH,
        "{api}.STREAM.PURGE.KV_{members}",
        Use.PARTITIONS,
        "to leave, and to remove announcements that a server has kept for too long",
        "each route with `partitions`",
        "the other processes see five seconds later that it left; its partitions are released at once",
        optional=True,
    ),
    Permission(
        PUBLISH,
        "{api}.STREAM.MSG.GET.{target}",
        Use.BUCKET,
        "the newest value of a key",
        "each route from a bucket to a bucket",
        "a message that is redelivered, or with `last_writer` any message, fails with `permission_denied`, and is "
        "tried again",
    ),
    Permission(
        PUBLISH,
        "{api}.STREAM.NAMES",
        Use.FINDING_STREAMS,
        "which stream takes the messages",
        "each JetStream destination that does not name its `stream`; core destinations, on a connection with others or "
        "of a route from a stream",
        "`NATS_DESTINATIONS_UNKNOWN`; only publishes show whether a destination accepts messages",
        optional=True,
    ),
    Permission(
        PUBLISH,
        "{api}.STREAM.INFO.{target}",
        Use.STREAM_OF_DESTINATION,
        "whether the stream accepts messages",
        "each JetStream destination",
        "the stream counts as accepting messages until it refuses one",
        optional=True,
        details="; `*` if only the server knows the stream of a destination",
    ),
    Permission(
        PUBLISH,
        "{api}.STREAM.INFO.{made}",
        Use.DECLARED_STREAM,
        "whether the stream exists",
        "each connection with `[[streams]]`",
        "`NATS_STREAM_NOT_MADE` with `permission_denied`; `/readyz` names it",
        details=", and is as configured",
    ),
    Permission(
        PUBLISH,
        "{api}.STREAM.CREATE.{made}",
        Use.DECLARED_STREAM,
        "to create the stream",
        "each connection with `[[streams]]` that do not exist",
        "`NATS_STREAM_NOT_MADE` with `permission_denied`; `/readyz` names it",
        first_start=True,
    ),
    Permission(
        PUBLISH,
        "{api}.CONSUMER.INFO.{copied}.{consumer}",
        Use.POSITION,
        "how far the consumer is",
        "each of `[[positions]]`, the connection of the source",
        _NOT_SAVED,
        details=", and its configuration",
    ),
    Permission(
        PUBLISH,
        "{api}.STREAM.MSG.GET.{copied}",
        Use.POSITION,
        "the time of its last acked message",
        "each of `[[positions]]`, the connection of the source",
        _NOT_SAVED,
    ),
    Permission(
        PUBLISH,
        "{api}.STREAM.INFO.KV_{bucket}",
        Use.CHECKPOINTS,
        "whether the bucket exists",
        "each of `[[positions]]`, the connection of the destination",
        _NOT_SAVED,
    ),
    Permission(
        PUBLISH,
        "{api}.STREAM.CREATE.KV_{bucket}",
        Use.CHECKPOINTS,
        "to create the bucket",
        "each of `[[positions]]` whose bucket does not exist, the connection of the destination",
        _NOT_SAVED,
        first_start=True,
    ),
    Permission(
        PUBLISH,
        "{kv}.{bucket}.{key}",
        Use.CHECKPOINTS,
        "checkpoints",
        "each of `[[positions]]`, the connection of the destination",
        _NOT_SAVED,
    ),
    Permission(
        PUBLISH,
        "_INBOX.>",
        Use.SERVICE,
        "answers to nats service",
        _OF_SERVICE,
        _NOT_OFFERED,
        optional=True,
        details=", at the inbox of who asks",
    ),
    Permission(
        PUBLISH,
        "{counted}",
        Use.RETRIES,
        "the count of scheduled retries",
        _OF_RETRIES,
        "lost schedules are not reported",
        optional=True,
    ),
    Permission(
        PUBLISH,
        "{api}.STREAM.PURGE.{retries}",
        Use.RETRIES,
        "retries that are done, to delete them",
        _OF_RETRIES,
        "they stay in their stream, and lost schedules are not reported",
        optional=True,
    ),
    Permission(
        SUBSCRIBE,
        "{source}",
        Use.SUBJECT,
        "messages",
        "each route from a subject, with its queue group if it has one",
        "`NATS_SUBSCRIBE_ERROR` with `permission_denied`, counted in `router_nats_subscribe_failures_total`; the route "
        f"is `failed` and retries; {_NOT_READY}",
        details=" of a route",
    ),
    Permission(
        SUBSCRIBE,
        "{inbox_prefix}.>",
        Use.INBOX,
        "PubAcks, messages of streams, answers of the JetStream API",
        "each connection; optional without JetStream",
        "JetStream publishes fail and routes from streams are `failed` with `permission_denied`: "
        "`NATS_PUBLISH_WITH_ACK_ERROR`, `NATS_SUBSCRIBE_ERROR`, counted in "
        "`router_nats_publish_with_ack_failures_total`, `router_nats_subscribe_failures_total`; "
        f"{_NOT_READY}",
    ),
    Permission(
        SUBSCRIBE,
        "$JS.ACK.{stream}.{durable}.>",
        Use.SHARED_CONSUMER,
        "whether another process is handling messages",
        "each route from a stream without `standby`, when a process starts",
        "messages delivered earlier are waited for until their ack wait is over",
        optional=True,
        details=" that the durable has delivered",
    ),
    Permission(
        SUBSCRIBE,
        "$JS.ACK.*.*.{stream}.{durable}.>",
        Use.SHARED_CONSUMER,
        "the same, of acks with domain and account",
        "each route from a stream without `standby`, when a process starts",
        "messages delivered earlier are waited for until their ack wait is over",
        optional=True,
    ),
    Permission(
        SUBSCRIBE,
        "$JS.EVENT.ADVISORY.CONSUMER.*.{stream}.{durable}",
        Use.CONSUMER,
        "what servers report about the durable",
        "each route from a stream",
        _NO_ADVISORIES,
        optional=True,
        details=": quorum, leader, pause, deletion, a limit of deliveries",
    ),
    Permission(
        SUBSCRIBE,
        "$JS.EVENT.ADVISORY.STREAM.*.{stream}",
        Use.CONSUMER,
        "what servers report about the stream",
        "each route from a stream",
        _NO_ADVISORIES,
        optional=True,
        details=": quorum, leader, deletion, edits",
    ),
    Permission(
        SUBSCRIBE,
        "$JS.EVENT.ADVISORY.STREAM.*.{target}",
        Use.STREAM_OF_DESTINATION,
        "what servers report about the stream",
        "each JetStream destination",
        _NO_ADVISORIES,
        optional=True,
        details="; `*` if only the server knows the stream of a destination",
    ),
    Permission(
        SUBSCRIBE,
        f"{SERVICES}.*",
        Use.SERVICE,
        "requests of nats service to all services",
        _OF_SERVICE,
        _NOT_OFFERED,
        optional=True,
        details=": `PING`, `INFO` and `STATS`",
    ),
    Permission(
        SUBSCRIBE,
        f"{SERVICES}.*.{SERVICE}",
        Use.SERVICE,
        "the same, to all routers",
        _OF_SERVICE,
        _NOT_OFFERED,
        optional=True,
    ),
    Permission(
        SUBSCRIBE,
        f"{SERVICES}.*.{SERVICE}.*",
        Use.SERVICE,
        "the same, to one process",
        _OF_SERVICE,
        _NOT_OFFERED,
        optional=True,
    ),
)
"""All permissions, in the order of the reference page and of `router-trio permissions`."""


class CommandPermission(NamedTuple):
    """A permission to publish that the user of a command needs. `at` is the connection, `sends` what it is for."""

    at: str
    subject: str
    sends: str
    optional: bool = False


AT_SOURCE, AT_DESTINATION, AT_DEAD_LETTERS = "source", "destination", "dead letters"

_SOURCE = (
    CommandPermission(AT_SOURCE, "{api}.STREAM.INFO.{stream}", "the range of the stream"),
    CommandPermission(AT_SOURCE, "{api}.STREAM.MSG.GET.{stream}", "its messages"),
)
_DURABLE = CommandPermission(AT_SOURCE, "{api}.CONSUMER.INFO.{stream}.{durable}", "how far the route is")
_COPIES = (
    CommandPermission(AT_DESTINATION, "{api}.STREAM.NAMES", "the stream of the copies, unless `stream` names it"),
    CommandPermission(AT_DESTINATION, "{api}.STREAM.INFO.{target}", "its range and limits"),
    CommandPermission(AT_DESTINATION, "{api}.STREAM.MSG.GET.{target}", "the copies"),
)
_FASTER = (
    ("{{api}}.CONSUMER.CREATE.{{{}}}.>", "to read faster, by a consumer"),
    ("{{api}}.CONSUMER.MSG.NEXT.{{{}}}.*", "its messages"),
    ("{{api}}.CONSUMER.DELETE.{{{}}}.*", "to delete it at the end"),
)


def _faster(at: str, stream: str) -> Iterator[CommandPermission]:
    """Yield the permissions by which a command reads a stream, given by its name in braces, with a consumer."""
    for subject, sends in _FASTER:
        yield CommandPermission(at, subject.format(stream), sends, optional=True)


_SEND = CommandPermission(AT_DESTINATION, "{destination}", "copies that are sent")
_LETTERS = (
    CommandPermission(AT_DEAD_LETTERS, "{api}.STREAM.NAMES", "the stream of the dead letters"),
    CommandPermission(AT_DEAD_LETTERS, "{api}.STREAM.INFO.{letters}", "its range"),
    CommandPermission(AT_DEAD_LETTERS, "{api}.STREAM.MSG.GET.{letters}", "the dead letters"),
)
_OF_A_SCHEDULE = "for a route with a `schedule` for retries: "
_RETRIES = (
    CommandPermission(AT_SOURCE, "{api}.STREAM.INFO.{retries}", f"{_OF_A_SCHEDULE}the range of its stream", True),
    CommandPermission(AT_SOURCE, "{api}.STREAM.MSG.GET.{retries}", f"{_OF_A_SCHEDULE}messages that wait", True),
    CommandPermission(
        AT_SOURCE, "{api}.CONSUMER.INFO.{retries}.{due}", f"{_OF_A_SCHEDULE}which of its messages are settled", True
    ),
)
_DELETE = CommandPermission(AT_DEAD_LETTERS, "{api}.STREAM.MSG.DELETE.{letters}", "to delete a dead letter")
_POSITION = (
    *_SOURCE,
    _DURABLE,
    CommandPermission(AT_SOURCE, "{api}.CONSUMER.INFO.{stream}.{consumer}", "how far the consumer is"),
    *_COPIES,
    CommandPermission(
        AT_DESTINATION, "{api}.STREAM.MSG.GET.KV_{bucket}", "the checkpoint, if the source can't be reached", True
    ),
)
_AUDIT = (
    *_SOURCE,
    *_faster(AT_SOURCE, "stream"),
    _DURABLE,
    *_COPIES,
    *_faster(AT_DESTINATION, "target"),
    *_LETTERS,
    *_faster(AT_DEAD_LETTERS, "letters"),
    *_RETRIES,
    *_faster(AT_SOURCE, "retries"),
)
_MEMBERS = "router-trio-members"
_PARTITIONS = (
    CommandPermission(AT_SOURCE, "{api}.STREAM.INFO.{stream}", "whether the stream has the partitions itself"),
    CommandPermission(AT_SOURCE, "{api}.STREAM.INFO.{stream}-{durable}", "otherwise the stream that has them"),
    CommandPermission(
        AT_SOURCE, "{api}.CONSUMER.INFO.{stream}-{durable}.*", "the durable of each partition, of either stream"
    ),
    CommandPermission(AT_SOURCE, f"{{api}}.STREAM.INFO.KV_{_MEMBERS}", "the processes that share the partitions"),
    CommandPermission(AT_SOURCE, f"{{api}}.STREAM.MSG.GET.KV_{_MEMBERS}", "what each of them leads"),
)
_CHANGE = (
    CommandPermission(AT_SOURCE, "{api}.STREAM.INFO.{stream}", "whether the stream has the partitions itself"),
    CommandPermission(AT_SOURCE, "{api}.STREAM.INFO.{stream}-{durable}", "otherwise the stream that has them"),
    CommandPermission(AT_SOURCE, "{api}.CONSUMER.LIST.{stream}-{durable}", "what is not settled, of either stream"),
)
_PAUSE = (
    CommandPermission(AT_SOURCE, "{api}.CONSUMER.INFO.{stream}.{durable}", "whether it is paused"),
    CommandPermission(AT_SOURCE, "{api}.CONSUMER.PAUSE.{stream}.{durable}", "to pause or resume"),
    CommandPermission(AT_SOURCE, "{api}.CONSUMER.DURABLE.CREATE.{stream}.{durable}", "the name in the metadata", True),
)

_SCHEDULES = (
    CommandPermission(AT_DESTINATION, "{api}.STREAM.NAMES", "the stream of delays, unless `stream` names it", True),
    CommandPermission(AT_DESTINATION, "{api}.STREAM.INFO.{target}", "its range"),
    CommandPermission(AT_DESTINATION, "{api}.STREAM.MSG.GET.{target}", "the schedules"),
)

OF_COMMANDS: Mapping[str, tuple[CommandPermission, ...]] = {
    "audit": _AUDIT,
    "audit --repair": (*_AUDIT, _SEND),
    "dead-letters list": _LETTERS,
    "dead-letters purge": (*_LETTERS, _DELETE),
    "dead-letters redrive": (
        *_LETTERS,
        _DELETE,
        CommandPermission(AT_SOURCE, "{api}.STREAM.INFO.{stream}", "whether the stream is still the same"),
        CommandPermission(
            AT_SOURCE, "{api}.STREAM.MSG.GET.{stream}", "newer messages, if it keeps one of each subject", True
        ),
        *_COPIES,
        CommandPermission(
            AT_DESTINATION, "{api}.CONSUMER.LIST.{target}", "what a work-queue or interest stream delivered", True
        ),
        _SEND,
    ),
    "diff --last": _SOURCE,
    "find": (*_SOURCE, _DURABLE, *_COPIES, *_LETTERS, *_RETRIES),
    "partitions": _PARTITIONS,
    "partitions --move": (
        *_PARTITIONS,
        CommandPermission(AT_SOURCE, f"{{kv}}.{_MEMBERS}.{{stream}}.{{durable}}.moved", "the move"),
    ),
    "partitions --change": _CHANGE,
    "partitions --change --apply": (
        *_CHANGE,
        CommandPermission(AT_SOURCE, f"{{kv}}.{_MEMBERS}.{{stream}}.{{durable}}.change", "that no other one does it"),
        CommandPermission(AT_SOURCE, f"{{api}}.STREAM.INFO.KV_{_MEMBERS}", "the same"),
        CommandPermission(AT_SOURCE, f"{{api}}.STREAM.MSG.GET.KV_{_MEMBERS}", "the same"),
        CommandPermission(AT_SOURCE, f"{{api}}.STREAM.CREATE.KV_{_MEMBERS}", "the same, if no router has run", True),
        CommandPermission(AT_SOURCE, "{api}.STREAM.UPDATE.{stream}-{durable}", "the change, of either stream"),
        CommandPermission(AT_SOURCE, "{api}.STREAM.MSG.GET.{stream}-{durable}", "the last message that it copied"),
        CommandPermission(AT_SOURCE, "{api}.STREAM.PURGE.{stream}-{durable}", "to empty it, when all is settled"),
        CommandPermission(
            AT_SOURCE, "{api}.CONSUMER.DELETE.{stream}-{durable}.*", "to delete durables of old partitions"
        ),
        CommandPermission(
            AT_SOURCE, "{api}.CONSUMER.INFO.{stream}-{durable}.*", "for a work queue: whether it is paused", True
        ),
        CommandPermission(
            AT_SOURCE, "{api}.CONSUMER.PAUSE.{stream}-{durable}.*", "for a work queue: to pause while it stops", True
        ),
        CommandPermission(
            AT_SOURCE,
            "{api}.CONSUMER.DURABLE.CREATE.{stream}-{durable}.*",
            "for a work queue or a stream with the partitions itself: to change or create durables",
            True,
        ),
    ),
    "pause": _PAUSE,
    "position": _POSITION,
    "position --apply": (
        *_POSITION,
        CommandPermission(AT_DESTINATION, "{api}.CONSUMER.INFO.{target}.{consumer}", "whether the durable exists"),
        CommandPermission(AT_DESTINATION, "{api}.CONSUMER.DURABLE.CREATE.{target}.{consumer}", "to create it"),
    ),
    "replay": (
        *_SOURCE,
        _DURABLE,
        *_faster(AT_SOURCE, "stream"),
        _SEND,
    ),
    "resume": _PAUSE,
    "schedules list": _SCHEDULES,
    "schedules cancel": (
        *_SCHEDULES,
        CommandPermission(AT_DESTINATION, "{api}.STREAM.MSG.DELETE.{target}", "to cancel a delayed copy", True),
        CommandPermission(AT_SOURCE, "{prefix}.x.{route}", "the record of a cancelled retry"),
    ),
    "schedules fire": (
        *_SCHEDULES,
        CommandPermission(AT_DESTINATION, "{destination}", "the copy of a delay", True),
        CommandPermission(AT_SOURCE, "{prefix}.d.{route}", "a retry that is due now"),
    ),
    "trace": (
        CommandPermission(AT_SOURCE, "{subject}", "the message that is traced, and not delivered"),
        CommandPermission(AT_SOURCE, "{inbox_prefix}.>", "the reports of the servers"),
        CommandPermission(AT_DESTINATION, "{destination}", "copies that are traced, and not delivered"),
        CommandPermission(AT_DESTINATION, "{inbox_prefix}.>", "the reports of the servers"),
    ),
}
"""The permissions of the user of each command. Every command also subscribes below the inbox prefix."""

LIKE_THE_ROUTER = "check"
"""The command that tests the permissions of the router, and needs all of them."""


def command_names(wanted: str) -> list[str]:
    """Return the commands of the table for a name such as `dead-letters` or `audit --repair`; empty for none."""
    if wanted in OF_COMMANDS:
        return [wanted]
    return [one for one in OF_COMMANDS if one.startswith(f"{wanted} ")]


ACK, PULL, REQUEST = "ack", "pull", "request"
"""The kinds of a `Cause`."""

_ACK_SUBJECT = "$JS.ACK."
_NEXT = ".CONSUMER.MSG.NEXT."
_ACK_TOKENS = 9


class Cause(NamedTuple):
    """The purpose of a publish to a JetStream subject. `pattern` is the permission that it needs."""

    kind: str
    pattern: str
    stream: str = ""
    durable: str = ""


def cause_of(subject: str, api: str = API) -> Cause | None:
    """Return the purpose of a router's publish to a JetStream subject; None for any other subject."""
    if subject.startswith(_ACK_SUBJECT):
        words = subject.split(".")
        tokens = ack_reply.tokens(subject.encode("utf-8", "surrogateescape"))
        if len(tokens) < _ACK_TOKENS:
            return None
        at = 2 if len(words) == len(tokens) else 4
        return Cause(ACK, ".".join([*words[: at + 2], ">"]), words[at], words[at + 1])
    if not subject.startswith((f"{api}.", "$JS.")):
        return None
    _, found, named = subject.partition(_NEXT)
    if found:
        stream, _, durable = named.partition(".")
        return Cause(PULL, subject, stream, durable)
    return Cause(REQUEST, subject) if subject.startswith(f"{api}.") or ".API." in subject else None
