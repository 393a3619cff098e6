"""The table of all permissions that a router needs, and the purpose of a publish that a server has refused.

A server that refuses a publish names its subject only. So publishes other than those of routes and programs are
recognized here by their subjects. `docs/reference/permissions.md` is generated from the table, and a test compares
`docs/deploy/nats-permissions.conf` with it. Pure.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

from router_trio.protocol import ack_reply

PUBLISH: Literal["publish"] = "publish"
SUBSCRIBE: Literal["subscribe"] = "subscribe"

API = "$JS.API"
"""The prefix of the JetStream API, unless the connection has a `domain` or an `api_prefix`."""


@dataclass(frozen=True, slots=True)
class Permission:
    """A permission. `subject` has the names of a configuration in braces, `api` among them.

    `sends` is what is published or subscribed to, `needed` which routes or connections need it, and `refused` what
    happens without it. If `optional`, the router works without it, and reports what it can't determine.
    """

    kind: Literal["publish", "subscribe"]
    subject: str
    sends: str
    needed: str
    refused: str
    optional: bool = False

    def of(self, names: Mapping[str, str]) -> str:
        """Return the subject with the names of a configuration filled in. Raises `KeyError` if one is missing."""
        return self.subject.format_map(names)


_NOT_READY = "`/readyz` names the subject and the cure"

PERMISSIONS: tuple[Permission, ...] = (
    Permission(
        PUBLISH,
        "{destination}",
        "messages to a destination, to `[routes.dead_letter]`, or by a program",
        "each destination, its connection",
        "the message fails with `permission_denied`: `NATS_PUBLISH_ERROR` or `NATS_PUBLISH_WITH_ACK_ERROR`, counted "
        "in `router_nats_publish_failures_total` or `router_nats_publish_with_ack_failures_total`; a stream redelivers "
        f"it; {_NOT_READY}",
    ),
    Permission(
        PUBLISH,
        "{reply}",
        "answers of a route with `reply`, to the reply subjects of requests",
        "routes that answer",
        "the answer fails with `permission_denied`: `NATS_PUBLISH_ERROR`, counted in "
        "`router_nats_publish_failures_total`",
    ),
    Permission(
        PUBLISH,
        "$JS.ACK.{stream}.{durable}.>",
        "acks, naks, terms, and progress acks for messages that are still being handled",
        "each route from a stream",
        "`NATS_ACK_ERROR` or `NATS_NAK_ERROR` with `permission_denied`, counted in `router_nats_ack_failures_total` or "
        f"`router_nats_nak_failures_total`; the stream redelivers after the ack wait; {_NOT_READY}",
    ),
    Permission(
        PUBLISH,
        "{api}.CONSUMER.MSG.NEXT.{stream}.{durable}",
        "pulls: requests for the next messages; with `standby` also for the lead",
        "each route from a stream",
        "`NATS_SUBSCRIBE_ERROR` with `permission_denied`, counted in `router_nats_subscribe_failures_total`; the route "
        f"is `failed` and retries; {_NOT_READY}",
    ),
    Permission(
        PUBLISH,
        "{api}.STREAM.INFO.{stream}",
        "whether the stream exists, and is still the same",
        "each route from a stream",
        "as for pulls",
    ),
    Permission(
        PUBLISH,
        "{api}.CONSUMER.INFO.{stream}.{durable}",
        "whether the durable exists, and its position",
        "each route from a stream",
        "as for pulls",
    ),
    Permission(
        PUBLISH,
        "{api}.CONSUMER.DURABLE.CREATE.{stream}.{durable}",
        "to create the durable; to remove its limit of deliveries",
        "each route from a stream whose durable does not exist",
        "as for pulls; where the durable exists, nothing",
    ),
    Permission(
        PUBLISH,
        "{api}.CONSUMER.UNPIN.{stream}.{durable}",
        "to give up the lead",
        "routes with `standby`",
        "another process takes over five seconds later",
        optional=True,
    ),
    Permission(
        PUBLISH,
        "{api}.STREAM.MSG.GET.{stream}",
        "lookups of single messages: whether a stream was restored, or a message was deleted; the age of the oldest "
        "one by which a route is behind",
        "each route from a stream",
        "without the lookup the router waits for the ack wait, or assumes the less favourable case, and estimates the "
        "age",
        optional=True,
    ),
    Permission(
        PUBLISH,
        "{api}.STREAM.NAMES",
        "which stream accepts the subjects of a destination",
        "each connection with a JetStream destination",
        "`NATS_DESTINATIONS_UNKNOWN`; only publishes show whether a destination accepts messages",
        optional=True,
    ),
    Permission(
        PUBLISH,
        "{api}.STREAM.INFO.{target}",
        "whether the stream of a destination accepts messages",
        "each connection with a JetStream destination",
        "the stream counts as accepting messages until it refuses one",
        optional=True,
    ),
    Permission(
        PUBLISH,
        "{api}.STREAM.INFO.{made}",
        "whether a stream of `[[streams]]` exists, and is as configured",
        "each connection with `[[streams]]`",
        "`NATS_STREAM_NOT_MADE` with `permission_denied`; `/readyz` names it",
    ),
    Permission(
        PUBLISH,
        "{api}.STREAM.CREATE.{made}",
        "to create a stream of `[[streams]]` that does not exist",
        "each connection with `[[streams]]` that do not exist",
        "`NATS_STREAM_NOT_MADE` with `permission_denied`; `/readyz` names it",
    ),
    Permission(
        SUBSCRIBE,
        "{source}",
        "the subject of a route, with its queue group",
        "each route from a subject",
        "`NATS_SUBSCRIBE_ERROR` with `permission_denied`, counted in `router_nats_subscribe_failures_total`; the route "
        f"is `failed` and retries; {_NOT_READY}",
    ),
    Permission(
        SUBSCRIBE,
        "{inbox_prefix}.>",
        "PubAcks, messages of streams, answers of the JetStream API",
        "each connection with JetStream",
        "JetStream publishes fail and routes from streams are `failed` with `permission_denied`: "
        "`NATS_PUBLISH_WITH_ACK_ERROR`, `NATS_SUBSCRIBE_ERROR`, counted in "
        "`router_nats_publish_with_ack_failures_total`, `router_nats_subscribe_failures_total`; "
        f"{_NOT_READY}",
    ),
    Permission(
        SUBSCRIBE,
        "$JS.ACK.{stream}.{durable}.>",
        "whether another process is handling messages that the durable has delivered",
        "each route from a stream, when a process starts",
        "messages delivered earlier are waited for until their ack wait is over",
        optional=True,
    ),
)
"""All permissions, in the order of the reference page."""

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
