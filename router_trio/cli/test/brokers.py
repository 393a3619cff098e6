"""Fake brokers for one example: one for each connection, with the streams that its routes need.

A configuration has the subjects of a stream only if it is in `[[streams]]`. Any other stream takes the subjects that
its routes filter. A stream that is read without a filter takes the subject of the message, unless another stream has
it. All other JetStream publishes are stored in one additional stream.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from operator import itemgetter

from router_trio.protocol.permissions import API
from router_trio.settings import RouteSettings, Settings, SourceSettings
from router_trio.settings.examples import ExampleMessage
from router_trio.subjects.patterns import matches, overlaps
from router_trio.testing import FakeBroker
from router_trio.testing.streams import EPOCH


@dataclass(frozen=True, slots=True)
class Entry:
    """The connection on which a message is published, the stream that stores it, and the routes that receive it."""

    connection: str
    stream: str | None
    routes: tuple[str, ...]


def entry_of(message: ExampleMessage, routes: Sequence[RouteSettings]) -> Entry | None:
    """Return where a message is published; None if no route takes it."""
    takers = [
        route
        for route in routes
        if any(matches(pattern, message.subject) for pattern in route.source.patterns)
        and message.connection in (None, route.source.connection)
    ]
    if not takers:
        return None
    connection = takers[0].source.connection
    here = [route for route in takers if route.source.connection == connection]
    streams = [(not route.source.subjects, name) for route in here if (name := _stream(route.source)) is not None]
    # One stream stores it: the first one with a matching filter, else the first one without a filter.
    stream = next((name for _, name in sorted(streams, key=itemgetter(0))), None)
    receiving = tuple(route.name for route in here if _stream(route.source) in (None, stream))
    return Entry(connection, stream, receiving)


def brokers_for(settings: Settings, message: ExampleMessage, entry: Entry) -> dict[str, FakeBroker]:
    """Return a broker for each connection, by name, with everything that the routes need to run."""
    # Clocks that differ make streams with one name different streams.
    brokers = {name: FakeBroker(epoch=EPOCH + number) for number, name in enumerate(settings.connections)}
    for name, broker in brokers.items():
        taken: list[str] = []
        for stream, subjects in _streams(settings, name).items():
            # A subject that two streams seem to have belongs to the first one.
            own = [subject for subject in subjects if not any(overlaps(subject, other) for other in taken)]
            if (name, stream) == (entry.connection, entry.stream) and not any(
                matches(pattern, message.subject) for pattern in (*taken, *own)
            ):
                own.append(message.subject)
            taken += own
            broker.add_stream(stream, own, allow_message_schedules=True)
        broker.add_stream(_rest(settings), [">"], fallback=True, allow_message_schedules=True)
    return brokers


def _streams(settings: Settings, connection: str) -> dict[str, list[str]]:
    """Return the subjects of the streams of a connection, by name.

    The streams of `[[streams]]` come first, then those that routes read with a filter, then those without one.
    """
    declared_here = [one for one in settings.streams if one.connection == connection and not one.is_copy]
    streams = {stream.name: list(stream.subjects) for stream in declared_here}
    declared = frozenset(streams)
    for source in sorted((route.source for route in settings.routes), key=lambda source: not source.subjects):
        name = _stream(source)
        if name is not None and name not in declared and source.connection == connection:
            subjects = streams.setdefault(name, [])
            subjects += [subject for subject in source.subjects if subject not in subjects]
    for route in settings.routes:
        for to in route.to:
            kind = to.kind_for(route.source.kind)
            name = kind.stream(to)
            if kind.is_bucket and to.connection == connection and name is not None and name not in declared:
                streams[name] = [f"{kind.subject_prefix(to, API)}>"]  # a bucket takes all its keys
    return streams


def _stream(source: SourceSettings) -> str | None:
    return source.kind.stream(source)


def _rest(settings: Settings) -> str:
    """Return a stream name that the configuration does not use."""
    taken = {_stream(route.source) for route in settings.routes} | {stream.name for stream in settings.streams}
    name = "REST"
    while name in taken:
        name += "_"
    return name
