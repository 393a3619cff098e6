"""Every permission that a router needs of a server, as a table, and which of them a refused subject belongs to.

A server refuses a publish by naming its subject, and nothing else. So whatever is written and is no publish of a route
or a program is recognized here by its subject. `docs/reference/permissions.md` is made from the table, and
`docs/deploy/nats-permissions.conf` is held to it. Pure.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

from router_trio.protocol import ack_reply

PUBLISH: Literal["publish"] = "publish"
SUBSCRIBE: Literal["subscribe"] = "subscribe"

API = "$JS.API"
"""Where the JetStream API is, unless the connection has a `domain` or an `api_prefix`."""


@dataclass(frozen=True, slots=True)
class Permission:
    """A permission. `subject` has the names of a configuration in braces, `api` among them.

    `sends`: what is sent, or subscribed to. `needed`: by which connections. `refused`: what is seen without it.
    `optional`: the router works without it, and says what it can't tell then.
    """

    kind: Literal["publish", "subscribe"]
    subject: str
    sends: str
    needed: str
    refused: str
    optional: bool = False

    def of(self, names: Mapping[str, str]) -> str:
        """Return the subject with the names of a configuration. Raises `KeyError` if one is missing."""
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
        "acks, naks, terms, signs that a message is still being worked on",
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
        f"is `failed` and tries again; {_NOT_READY}",
    ),
    Permission(
        PUBLISH,
        "{api}.STREAM.INFO.{stream}",
        "is the stream there, and is it the one that it was",
        "each route from a stream",
        "as for pulls",
    ),
    Permission(
        PUBLISH,
        "{api}.CONSUMER.INFO.{stream}.{durable}",
        "is the durable there, and how far it is",
        "each route from a stream",
        "as for pulls",
    ),
    Permission(
        PUBLISH,
        "{api}.CONSUMER.DURABLE.CREATE.{stream}.{durable}",
        "create the durable; lift its limit of deliveries",
        "each route from a stream whose durable does not exist",
        "as for pulls; where the durable exists, nothing",
    ),
    Permission(
        PUBLISH,
        "{api}.CONSUMER.UNPIN.{stream}.{durable}",
        "give up the lead",
        "routes with `standby`",
        "another process takes over five seconds later",
        optional=True,
    ),
    Permission(
        PUBLISH,
        "{api}.STREAM.MSG.GET.{stream}",
        "look at single messages: whether a stream went back in time, or a message is gone",
        "each route from a stream",
        "what can't be found out counts as doubtful, or waits for its ack wait",
        optional=True,
    ),
    Permission(
        PUBLISH,
        "{api}.STREAM.NAMES",
        "which stream takes the subjects of a destination",
        "each connection with a JetStream destination",
        "`NATS_DESTINATIONS_UNKNOWN`; what publishes meet tells alone whether a destination takes messages",
        optional=True,
    ),
    Permission(
        PUBLISH,
        "{api}.STREAM.INFO.{target}",
        "does the stream of a destination take messages",
        "each connection with a JetStream destination",
        "the stream counts as fine until it refuses a message",
        optional=True,
    ),
    Permission(
        PUBLISH,
        "{api}.STREAM.INFO.{made}",
        "is a stream of `[[streams]]` there, and is it as the settings say",
        "each connection with `[[streams]]`",
        "`NATS_STREAM_NOT_MADE` with `permission_denied`; `/readyz` names it",
    ),
    Permission(
        PUBLISH,
        "{api}.STREAM.CREATE.{made}",
        "make a stream of `[[streams]]` that is absent",
        "each connection with `[[streams]]` that are absent",
        "`NATS_STREAM_NOT_MADE` with `permission_denied`; `/readyz` names it",
    ),
    Permission(
        SUBSCRIBE,
        "{source}",
        "the subject of a route, with its queue group",
        "each route from a subject",
        "`NATS_SUBSCRIBE_ERROR` with `permission_denied`, counted in `router_nats_subscribe_failures_total`; the route "
        f"is `failed` and tries again; {_NOT_READY}",
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
        "is another process at work on what the durable has delivered",
        "each route from a stream, when a process begins",
        "what was delivered before is waited for until its ack wait is over",
        optional=True,
    ),
)
"""All of them, in the order of the page."""

ACK, PULL, REQUEST = "ack", "pull", "request"
"""Kinds of causes."""

_ACK_SUBJECT = "$JS.ACK."
_NEXT = ".CONSUMER.MSG.NEXT."
_ACK_TOKENS = 9


class Cause(NamedTuple):
    """Why something was published to a subject of JetStream's. `pattern`: the permission that it needs."""

    kind: str
    pattern: str
    stream: str = ""
    durable: str = ""


def cause_of(subject: str, api: str = API) -> Cause | None:
    """Return what a router publishes to a subject of JetStream's; None if it is no such subject."""
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
