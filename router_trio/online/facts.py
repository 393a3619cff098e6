"""The answers of the servers of a configuration, and what could not be asked. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal, NamedTuple, TypeVar

from router_trio.nats.info import DEFAULT_MAX_PAYLOAD
from router_trio.nats.jetstream.api import ConsumerInfo, StreamInfo
from router_trio.nats.jetstream.flows import StreamFlow
from router_trio.nats.jetstream.sourced_stream import Partitioned
from router_trio.online.parts import Destination, Source
from router_trio.settings import Settings
from router_trio.settings.checks.resolve import by_name, stream_read
from router_trio.settings.routes.sources.partitioned import durables

T = TypeVar("T")

Severity = Literal["error", "warning", "note"]
ERROR: Severity = "error"
"""Something will fail, or messages are or will be lost or doubled."""
WARNING: Severity = "warning"
"""Messages can be lost or doubled, or the router does not work as configured."""
NOTE: Severity = "note"

Key = tuple[str, str]
"""A kind, `publish` or `subscribe`, and the subject of a permission."""


class Found(NamedTuple):
    """A finding: its severity, the path of the key, and what is wrong, with the cure."""

    severity: Severity
    path: str
    text: str


Finding = Callable[["Facts", T], Iterator[Found]]
"""Yields each finding of one kind for a part of a configuration. Raises `UnaskedError` for an unknown fact."""


@dataclass(frozen=True, slots=True)
class Unknown:
    """A fact that could not be asked, and why. If `reported`, a finding of its own names the cause and the cure."""

    why: str
    reported: bool = False


class UnaskedError(Exception):
    """A finding needs a fact that could not be asked."""

    def __init__(self, unknown: Unknown) -> None:
        super().__init__(unknown.why)
        self.unknown = unknown


@dataclass(frozen=True, slots=True)
class ServerFacts:
    """The answers of the server of one connection. None stands for what does not exist.

    `max_payload` is in bytes. `skew` is how far its clock is ahead of ours, in seconds, None if it does not report its
    time. `takers` contains the names of the streams that take subjects of a destination, by its path.
    `permissions` contains for each permission why it is missing, or None if it is granted. `untested` is why
    permissions to publish could not be tested, or None. `no_jetstream` is why there is no JetStream, or None.
    `partitioned` contains the partitions of streams that have some, by name.
    """

    version: str = ""
    major_minor: tuple[int, int] | None = None
    max_payload: int = DEFAULT_MAX_PAYLOAD
    no_jetstream: str | None = None
    skew: float | None = None
    streams: Mapping[str, StreamInfo | Unknown | None] = field(default_factory=dict)
    consumers: Mapping[tuple[str, str], ConsumerInfo | Unknown | None] = field(default_factory=dict)
    takers: Mapping[str, tuple[str, ...] | Unknown] = field(default_factory=dict)
    permissions: Mapping[Key, str | Unknown | None] = field(default_factory=dict)
    untested: str | None = None
    partitioned: Mapping[str, Partitioned] = field(default_factory=dict)
    flows: Mapping[str, StreamFlow] | Unknown = field(default_factory=dict)
    """The ways of messages through all of its streams, by name."""


@dataclass(frozen=True, slots=True)
class Facts:
    """A configuration and what is known of its servers. `outage` is the longest planned one, in seconds, if given."""

    settings: Settings
    servers: Mapping[str, ServerFacts | Unknown]
    outage: float | None = None

    def server(self, connection: str) -> ServerFacts:
        """Return what the server of a connection answered. Raises `UnaskedError`, as all methods do."""
        return known(self.servers[connection])

    def stream(self, connection: str, name: str) -> StreamInfo | None:
        """Return a stream; None if it does not exist."""
        return known(self.server(connection).streams.get(name))

    def consumer(self, connection: str, stream: str, durable: str) -> ConsumerInfo | None:
        """Return a consumer; None if it does not exist."""
        return known(self.server(connection).consumers.get((stream, durable)))

    def partitions(self, connection: str, name: str) -> Partitioned | None:
        """Return the partitions of a stream; None if it has none, or does not exist."""
        return self.server(connection).partitioned.get(name)

    def has_partitions(self, source: Source) -> bool:
        """Return True if the stream of a route has partitions itself, or is to be created with them."""
        here = self.server(source.connection)
        if here.streams.get(source.stream) is None:
            created = stream_read(source.route.source, self.settings.connections, by_name(self.settings.streams))
            return created is not None and created[1].partitions is not None
        return source.stream in here.partitioned

    def durables(self, source: Source) -> list[Source]:
        """Return the sources of the partitions of a route: each with the stream that it is read from, and its durable.

        Raises `UnaskedError` if that stream is not known.
        """
        self.stream(source.connection, source.stream)
        has = self.has_partitions(source)
        read = source.stream if has else source.copy
        names = durables(source.route.source)
        return [replace(source, stream=read, durable=one, partition=number) for number, one in enumerate(names)]

    def flows(self) -> dict[str, Mapping[str, StreamFlow]]:
        """Return what the streams of each connection do with messages, as far as that is known."""
        known = ((name, one.flows) for name, one in self.servers.items() if isinstance(one, ServerFacts))
        return {name: flows for name, flows in known if not isinstance(flows, Unknown)}

    def takers(self, to: Destination) -> list[StreamInfo]:
        """Return the streams that store messages of a destination."""
        server = self.server(to.connection)
        names = known(server.takers[to.path]) if to.stream is None else (to.stream,)
        found = (known(server.streams.get(name)) for name in names)
        return [one for one in found if one is not None]


def known(fact: T | Unknown) -> T:
    """Return a fact. Raises `UnaskedError` if it could not be asked."""
    if isinstance(fact, Unknown):
        raise UnaskedError(fact)
    return fact
