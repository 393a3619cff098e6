"""Routes as plans: which messages they take, and where each would go. Pure; shared by routing and by `explain`."""

from __future__ import annotations

from base64 import urlsafe_b64encode
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from random import randrange
from typing import Any

from router_trio.errors import MappingError
from router_trio.quotes import quoted
from router_trio.settings import DestinationSettings, RouteSettings, Settings
from router_trio.subjects.mapping import Mapping
from router_trio.subjects.patterns import matches, reserved_namespace

Handler = Callable[..., Any]

_DIGEST_BYTES = 12
"""Enough that no two copies of one message get the same id, by chance or on purpose."""


@dataclass(frozen=True, slots=True)
class Destination:
    """One place that a route sends to. `template` is the configured subject; it labels metrics and spans.

    `carries_reply`: the reply subject of a core message goes along. `keep` are the control headers that may pass.
    `own_ids`: the `Nats-Msg-Id` of a copy is made of its place in the source, whatever the sender has given it.
    """

    route: str
    connection: str
    template: str
    jetstream: bool
    mapping: Mapping
    carries_reply: bool
    keep: tuple[str, ...]
    own_ids: bool
    inbox_prefix: str

    def subject_for(self, subject: str) -> str:
        """Return where a message with this subject goes. Raises `MappingError`."""
        target = self.mapping.apply(subject)
        self.check_reserved(target)
        return target

    def check_reserved(self, target: str) -> None:
        """Raise `MappingError` (`reserved_subject`) for a subject to which only the configuration may send.

        It was made from what the sender chose, and would be answered by servers, or taken for an answer, with the
        router's rights.
        """
        namespace = reserved_namespace(target, self.mapping.literal_start, self.inbox_prefix)
        if namespace is not None:
            raise MappingError(
                f"the message would go to {quoted(target)}, below {namespace}, reserved for NATS itself; begin "
                f"the destination {self.template!r} with a token of your own, or write {namespace!r} if it is meant",
                reason="reserved_subject",
            )

    def copy_id(self, target: bytes) -> bytes:
        """Return what tells a copy to this subject from all other copies of its message: the end of its `Nats-Msg-Id`.

        It is made of route, template and subject, so that the same copy has the same id whoever sends it, over
        whichever connection, before and after a restart. A subject drawn at random tells nothing.
        """
        which = [self.route.encode(), self.template.encode(), target if self.mapping.deterministic else b""]
        digest = blake2b(b"\0".join(which), digest_size=_DIGEST_BYTES).digest()
        return b":" + urlsafe_b64encode(digest)


@dataclass(frozen=True, slots=True)
class RoutePlan:
    """One route, compiled. `pattern` is what its subjects match: the subscription, or a stream's filter or `>`."""

    name: str
    connection: str
    pattern: str
    destinations: tuple[Destination, ...]
    settings: RouteSettings
    handler: Handler | None = field(default=None, compare=False)

    @property
    def stream(self) -> str | None:
        """The stream that it reads, or None for a core subscription."""
        return self.settings.source.stream

    @property
    def connections(self) -> frozenset[str]:
        """The connections that its destinations need."""
        return frozenset(destination.connection for destination in self.destinations)


def compile_routes(
    settings: Settings,
    handlers: dict[str, Handler] | None = None,
    random: Callable[[int], int] = randrange,
) -> list[RoutePlan]:
    """Compile the routes of validated settings, in order. `handlers` are those of routes that have one, by name."""
    plans = []
    for route in settings.routes:
        source = route.source
        destinations = tuple(_destination(settings, route, to, random) for to in route.to)
        handler = (handlers or {}).get(route.name)
        plans.append(RoutePlan(route.name, source.connection, source.pattern, destinations, route, handler))
    return plans


def _destination(
    settings: Settings, route: RouteSettings, to: DestinationSettings, random: Callable[[int], int]
) -> Destination:
    source = route.source
    return Destination(
        route=route.name,
        connection=to.connection,
        template=to.subject,
        jetstream=to.jetstream,
        mapping=source.mapping(to.subject, random),
        carries_reply=to.reply or to.connection == source.connection,
        keep=tuple(to.headers.keep),
        own_ids=source.own_ids,
        inbox_prefix=settings.connections[to.connection].inbox_prefix,
    )


def routes_for(plans: Sequence[RoutePlan], subject: str) -> list[RoutePlan]:
    """The routes that would take a message with this subject, in order."""
    return [plan for plan in plans if matches(plan.pattern, subject)]
