"""Find circles over what the servers show: other routers' durables, and streams that republish or copy. Pure.

`settings.checks.circles` follows the routes of a configuration. Here their messages are followed from subject to
stream and on, as the server moves them. A durable of another router has in its metadata where its route sends.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from router_trio.errors.quotes import excerpt
from router_trio.nats.jetstream.flows import StreamFlow
from router_trio.online.facts import WARNING, Facts, Finding, Found
from router_trio.settings import RouteSettings
from router_trio.settings.checks.resolve import reaches, servers_of
from router_trio.subjects.shapes import Shape, mapped, meet

MOST_STEPS = 20_000
"""Maximum number of places at which messages are followed, for one route."""

MOST_TOKENS = 32
"""Maximum number of tokens of a subject that are followed: a circle may make subjects longer each time."""


@dataclass(frozen=True, slots=True)
class Circulating:
    """A route whose messages are followed."""

    path: str
    route: RouteSettings


class _Place(NamedTuple):
    """Where messages of a shape are: in a stream of a connection's server, or on their way to any that wants them."""

    connection: str
    stream: str
    shape: Shape


class _Trail(NamedTuple):
    """A step on the way of messages: what moves them, and the step before."""

    text: str
    before: _Trail | None
    outside: bool
    """True if it, or a step before, is not in the configuration."""


_Step = tuple[_Place, _Trail]


def circulating(facts: Facts) -> list[Circulating]:
    """Return the routes whose messages are followed: those without a declared limit."""
    return [
        Circulating(f"routes[{index}]", route)
        for index, route in enumerate(facts.settings.routes)
        if not route.hop_limit
    ]


def circle_over_servers(facts: Facts, part: Circulating) -> Iterator[Found]:
    """Find a route whose messages return to it over other routers, or streams that republish, mirror or source."""
    follow = _Follow(facts)
    waiting: deque[tuple[_Place, _Trail]] = deque(follow.sent_by(part.route, None))
    seen = {place for place, _ in waiting}
    for _ in range(MOST_STEPS):
        if not waiting:
            return
        place, trail = waiting.popleft()
        if trail.outside and follow.reads(part.route, place):
            way, at = [trail.text], trail.before
            while at is not None:
                way.append(at.text)
                at = at.before
            text = (
                f"messages of route {part.route.name!r} may return to it: {', '.join(reversed(way))}, which the route "
                "reads; send to other subjects, narrow a source, or set hop_limit on the route if it is intended"
            )
            yield Found(WARNING, part.path, text)
            return
        for following, step in follow.after(place, trail):
            if len(following.shape) <= MOST_TOKENS and following not in seen:
                seen.add(following)
                waiting.append((following, step))


class _Follow:
    """Moves messages as the routes and the servers do."""

    def __init__(self, facts: Facts) -> None:
        self._known = facts.settings.connections
        self._routes = facts.settings.routes
        self._flows = facts.flows()
        own = ((one.source.connection, one.source.kind.consumer(one.source)) for one in self._routes)
        self._own = {(connection, consumer) for connection, consumer in own if consumer is not None}

    def _same(self, one: str, other: str) -> bool:
        return reaches(one, other, self._known) is not False

    def reads(self, route: RouteSettings, place: _Place) -> bool:
        """Return True if a route receives some of the messages at a place."""
        return self._same(route.source.connection, place.connection) and bool(self._read(route, place))

    def _read(self, route: RouteSettings, place: _Place) -> list[tuple[str, Shape]]:
        """Return the patterns of a route that messages at a place match, and the shapes of these messages."""
        source = route.source
        if (source.kind.stream(source) or "") != place.stream:
            return []
        pairs = ((one, meet(tuple(one.split(".")), place.shape)) for one in source.patterns)
        return [(one, shape) for one, shape in pairs if shape is not None]

    def sent_by(self, route: RouteSettings, place: _Place | None, trail: _Trail | None = None) -> Iterator[_Step]:
        """Yield where a route sends messages that are at a place, or all of its messages."""
        source = route.source
        read = [(one, tuple(one.split("."))) for one in source.patterns] if place is None else self._read(route, place)
        ends = [(to.connection, to.kind_for(source.kind).template(to)) for to in route.to if not to.last_writer]
        for pattern, shape in read:
            for connection, template in ends:
                sent = mapped(pattern, template, shape)
                text = f"route {route.name!r} sends {'.'.join(sent)!r}"
                outside = trail is not None and trail.outside
                yield _Place(connection, "", sent), _Trail(text, trail, outside)

    def after(self, place: _Place, trail: _Trail) -> Iterator[_Step]:
        """Yield where messages at a place go next."""
        for route in self._routes:
            if not route.hop_limit and self._same(route.source.connection, place.connection):
                yield from self.sent_by(route, place, trail)
        for connection, flows in self._flows.items():
            if self._same(connection, place.connection):
                for flow in flows.values():
                    yield from self._moved(connection, flow, place, trail)

    def _moved(self, connection: str, flow: StreamFlow, place: _Place, trail: _Trail) -> Iterator[_Step]:
        if not place.stream:
            for subject in flow.subjects:
                if (met := meet(tuple(subject.split(".")), place.shape)) is not None:
                    yield _Place(connection, flow.name, flow.stored(met)), trail
            return
        for origin in flow.origins:
            if origin.name == place.stream:
                for shape in origin.copied(place.shape):
                    text = f"stream {flow.name!r} copies from stream {origin.name!r}"
                    yield _Place(connection, flow.name, flow.stored(shape)), _Trail(text, trail, True)
        if flow.name != place.stream:
            return
        if flow.republish is not None:
            source, destination = flow.republish
            if (met := meet(tuple(source.split(".")), place.shape)) is not None:
                sent = mapped(source, destination, met)
                text = f"stream {flow.name!r} republishes as {'.'.join(sent)!r}"
                yield _Place(connection, "", sent), _Trail(text, trail, True)
        for reader in flow.readers:
            here = (one for one in self._known if self._same(one, connection))
            if any((one, (flow.name, reader.durable)) in self._own for one in here):
                continue
            for pattern in reader.filters or (">",):
                met = meet(tuple(pattern.split(".")), place.shape)
                for server, template in reader.sends if met is not None else ():
                    assert met is not None
                    sent = mapped(pattern, template, met)
                    text = (
                        f"route {excerpt(reader.route)!r} of another router (durable {reader.durable!r}) sends "
                        f"{excerpt('.'.join(sent))!r}"
                    )
                    for to in self._named(connection, server):
                        yield _Place(to, "", sent), _Trail(text, trail, True)

    def _named(self, connection: str, server: str) -> list[str]:
        """Return the connection to a server that a durable names, `""` for its own; none if it is not known here."""
        if not server:
            return [connection]
        return [name for name, one in self._known.items() if server in servers_of(one)][:1]


FINDINGS: tuple[Finding[Circulating], ...] = (circle_over_servers,)
"""Each finding about the way of a route's messages."""
