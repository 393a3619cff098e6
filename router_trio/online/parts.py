"""The parts of a configuration that findings are about. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from router_trio.protocol.stream_config import StreamSubjects
from router_trio.settings import RouteSettings, Settings
from router_trio.settings.checks.resolve import reaches
from router_trio.settings.routes import DestinationSettings
from router_trio.settings.routes.destination import destination_of, retries_of
from router_trio.settings.routes.destinations.kind import DestinationKind
from router_trio.settings.routes.sources.partitioned import derived_stream
from router_trio.settings.streams import StreamSettings
from router_trio.subjects.patterns import matches_tokens
from router_trio.subjects.shapes import Shape, mapped, meet


@dataclass(frozen=True, slots=True)
class Server:
    """The server of a connection."""

    connection: str

    @property
    def path(self) -> str:
        """The path of its section."""
        return f"connections.{self.connection}"


@dataclass(frozen=True, slots=True)
class Source:
    """The source of a route that reads a stream.

    One with partitions reads the durables of `Facts.durables`, each with its `partition`, and not `durable` itself.
    """

    path: str
    route: RouteSettings
    connection: str
    stream: str
    durable: str
    partition: int | None = None

    @property
    def key_path(self) -> str:
        """The path of the key that names the stream or bucket."""
        return f"{self.path}.{self.route.source.kind.key}"

    @property
    def copy(self) -> str:
        """The name of the stream that copies `stream` for this route, if that has no partitions itself."""
        return derived_stream(self.stream, self.durable)


@dataclass(frozen=True, slots=True)
class Destination:
    """A destination, or the dead letters, of a route that a stream stores. `path` is that of its subject.

    `stream` is the name of the stream if the configuration contains it.
    """

    path: str
    route: RouteSettings
    connection: str
    to: DestinationSettings
    template: str
    stream: str | None
    is_dead_letter: bool = False

    @property
    def is_bucket(self) -> bool:
        """True if it is a KV bucket."""
        return self.kind.is_bucket

    @property
    def kind(self) -> DestinationKind:
        """Its kind."""
        return self.to.kind_for(self.route.source.kind)

    @property
    def is_retry(self) -> bool:
        """True if it is the stream in which failed messages wait for their next attempt."""
        return ".retry.schedule." in self.path

    @property
    def delay_path(self) -> str:
        """The path of the key by which its messages are delayed."""
        return self.path if self.is_retry else f"{self.section}.delay"

    @property
    def section(self) -> str:
        """The path of its section."""
        return self.path.rpartition(".")[0]


@dataclass(frozen=True, slots=True)
class Declared:
    """A stream of `[[streams]]`."""

    path: str
    stream: StreamSettings

    @property
    def connection(self) -> str:
        """The name of its connection."""
        return self.stream.connection


def sources_of(settings: Settings) -> Iterator[Source]:
    """Yield the sources of all routes that read a stream."""
    for index, route in enumerate(settings.routes):
        consumer = route.source.kind.consumer(route.source)
        if consumer is not None:
            yield Source(f"routes[{index}].from", route, route.source.connection, *consumer)


def partitioned_in(settings: Settings) -> Iterator[Source]:
    """Yield the sources that have partitions."""
    yield from (one for one in sources_of(settings) if one.route.source.partitions is not None)


def destinations_of(settings: Settings) -> Iterator[Destination]:
    """Yield the destinations and dead letters of all routes that streams store."""
    for index, route in enumerate(settings.routes):
        ends = [(f"routes[{index}].to[{number}]", to, False) for number, to in enumerate(route.to)]
        if (letter := route.dead_letter) is not None:
            ends.append((f"routes[{index}].dead_letter", destination_of(letter, letter.connection), True))
        if route.retry is not None and (schedule := route.retry.schedule) is not None:
            retries = retries_of(schedule, route.name, route.source.connection)
            where, kind = f"routes[{index}].retry.schedule.stream", retries.kind_for(route.source.kind)
            yield Destination(where, route, retries.connection, retries, kind.template(retries), schedule.stream)
        for path, to, dead in ends:
            kind = to.kind_for(route.source.kind)
            if kind.waits_for_puback:
                template = kind.template(to)
                yield Destination(f"{path}.{kind.key}", route, to.connection, to, template, kind.stream(to), dead)


def declared_in(settings: Settings) -> Iterator[Declared]:
    """Yield the streams of `[[streams]]`, without the copies that routes make."""
    for index, stream in enumerate(settings.streams):
        if not stream.is_copy:
            yield Declared(f"streams[{index}]", stream)


def declared_for(settings: Settings, connection: str) -> list[Declared]:
    """Return the streams of `[[streams]]` in the JetStream that a connection reaches."""
    known = settings.connections
    return [
        one
        for one in declared_in(settings)
        if reaches(one.connection, connection, known) and known[one.connection].api == known[connection].api
    ]


def same_jetstream(settings: Settings, one: str, other: str) -> bool:
    """Return True if two connections certainly reach the same JetStream."""
    known = settings.connections
    return bool(reaches(one, other, known)) and known[one].api == known[other].api


def sent_by(to: Destination, read: StreamSubjects | None) -> list[Shape]:
    """Return the shapes of the subjects that a route sends to a destination.

    `read` are the subjects of the stream that it reads, None if they are not known.
    """
    if published := to.kind.stored_under(to.to, ""):
        return [tuple(published.split("."))]
    patterns = [(one, tuple(one.split("."))) for one in to.route.source.patterns]
    shapes: list[tuple[str, Shape]] = []
    if read is not None and not read.has_others and read.transform is None:
        stored = [tuple(one.split(".")) for one in read.taken]
        pairs = ((one, meet(shape, other)) for one, shape in patterns for other in stored)
        shapes = [(one, shape) for one, shape in pairs if shape is not None]
    shapes = shapes or patterns  # a filter that matches nothing is a finding of its own
    return list(dict.fromkeys(mapped(one, to.template, shape) for one, shape in shapes))


def taken_by(shape: Shape, subjects: Sequence[str]) -> bool:
    """Return True if one of a stream's subjects takes every subject of a shape."""
    for subject in subjects:
        wider = subject.split(".")
        if matches_tokens(wider, shape) and (wider[-1] == ">" or shape[-1] != ">"):
            return True
    return False
