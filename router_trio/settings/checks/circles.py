"""Find circles of routes, in which messages return to a route over other routes and are sent for ever.

Only `router-trio check` looks for them; at run time a `hop_limit` ends them (see docs/decisions/circles.md). A route
that feeds itself is refused by `loops`. Here routes are followed over all connections to one server, with the subjects
that can still occur. A route with a `hop_limit` ends every circle that it is in, unless the circle uses its dead
letters, which are not counted. The time grows with the number of routes and of the ways between them, up to
`MOST_LOOKS`: ways are followed only among routes that reach each other, and each route is reported in one circle at
most.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from router_trio.errors import MappingError, Problem
from router_trio.settings.checks.resolve import Streams, by_name, reaches, servers_of, stream_read, subjects_read
from router_trio.settings.routes import RouteSettings, SourceSettings
from router_trio.settings.sections import ConnectionSettings
from router_trio.settings.streams import StreamSettings
from router_trio.subjects.mapping import Mapping as SubjectMapping
from router_trio.subjects.patterns import is_valid_subject, matches
from router_trio.subjects.shapes import Patterns, Shape, example, mapped, meet

ROUNDS = 3
"""Rounds after which an example message counts as one that circulates for ever."""

MOST_SHAPES = 64
"""Maximum number of messages that a search follows at one route."""

MOST_LOOKS = 1_000_000
"""Maximum number of tokens and ways to compare, in some seconds. With more, `check` reports an incomplete search."""

MOST_NAMED = 8
"""Maximum number of routes that the problem of a circle names."""

Connections = Mapping[str, ConnectionSettings]


class _Way(NamedTuple):
    """A way out of a route, for messages that match one pattern of its source."""

    route: int
    name: str
    pattern: str
    mapped_from: str
    """The pattern that `subject` maps from: `>` for an entire stream, whose subjects are kept."""
    key: str
    subject: str
    connection: str
    mapping: SubjectMapping
    always: bool
    """True if every matching message is sent there, by the configuration."""
    dead: bool
    """True for dead letters."""

    def sends(self, shape: Shape) -> Shape:
        """Return the shape of the copies of messages that match its pattern and have this shape."""
        return mapped(self.mapped_from, self.subject, shape)


class _Entry(NamedTuple):
    """A pattern of a route's source, and the ways out of it."""

    route: int
    connection: str
    shape: Shape
    ways: Sequence[_Way]


class _Circle(NamedTuple):
    ways: Sequence[_Way]
    shape: Shape
    """The shape with which the circle begins."""


def certain_circles(
    connections: Connections, routes: Sequence[RouteSettings], streams: Sequence[StreamSettings] = ()
) -> Iterator[Problem]:
    """Yield a problem for each circle that no message leaves. The configuration must be valid otherwise."""
    return CircleSearch(connections, routes, streams, certain=True).problems()


def possible_circles(
    connections: Connections, routes: Sequence[RouteSettings], streams: Sequence[StreamSettings] = ()
) -> Iterator[Problem]:
    """Yield a problem for each circle that messages may stay in. The configuration must have no certain circles."""
    return CircleSearch(connections, routes, streams, certain=False).problems()


class CircleSearch:
    """Find circles: `certain` ones over ways that every message takes, or others."""

    def __init__(
        self,
        connections: Connections,
        routes: Sequence[RouteSettings],
        streams: Sequence[StreamSettings],
        *,
        certain: bool,
    ) -> None:
        self._connections = connections
        self._certain = certain
        named = by_name(streams)
        self._entries = [
            entry
            for index, route in enumerate(routes)
            for entry in _entries(index, route, connections, named, certain=certain)
        ]
        self._servers = {name: servers_of(connection) for name, connection in connections.items()}
        self._index = Patterns()
        for number, entry in enumerate(self._entries):
            for server in self._servers[entry.connection]:
                self._index.add((server, *entry.shape), number)
        self._known: dict[tuple[str, Shape], frozenset[int]] = {}
        self._meets: dict[tuple[str, str], bool] = {}
        self._followed = 0

    def problems(self) -> Iterator[Problem]:
        """Yield a problem for each circle, each route in one at most, and one if the search is incomplete."""
        reported: set[int] = set()
        for within in _components(self._links(), len(self._entries)):
            for start in sorted(within):
                if self._entries[start].route in reported:
                    continue  # the others are found when that circle is broken
                circle = self._circle_from(start, within)
                if circle is None:
                    within.discard(start)  # a circle over other routes does not include this one
                    continue
                reported.update(way.route for way in circle.ways)
                yield self._problem(circle)
        if self._is_exhausted and not self._certain:
            text = "too many lead to each other to follow all ways, so a circle may be missed; send to "
            yield Problem("routes", f"{text}subjects that begin with a token of their own, or set hop_limit")

    def _links(self) -> list[list[int]]:
        """Return the graph of entries: ways that send the same share a node, behind those of the entries."""
        links: list[list[int]] = [[] for _ in self._entries]
        numbers: dict[tuple[str, Shape], int] = {}
        for number, entry in enumerate(self._entries):
            for way in entry.ways:
                sent = (way.connection, way.sends(entry.shape))
                if sent not in numbers:
                    numbers[sent] = len(links)
                    links.append(sorted(self._reached(*sent)))
                links[number].append(numbers[sent])
        return links

    def _reached(self, connection: str, sent: Shape) -> frozenset[int]:
        """Return the entries that may receive messages of a shape sent on a connection."""
        found = self._known.get((connection, sent))
        if found is None:
            if self._is_exhausted:
                return frozenset()
            found = frozenset().union(*(self._index.meeting((one, *sent)) for one in self._servers[connection]))
            self._followed += len(found)
            self._known[connection, sent] = found
        return found

    def _circle_from(self, start: int, within: set[int]) -> _Circle | None:
        """Return the shortest circle from an entry back to it within these entries, or None."""
        waiting: deque[tuple[int, Shape, _Trail | None]] = deque([(start, self._entries[start].shape, None)])
        seen: dict[int, set[Shape]] = defaultdict(set)
        while waiting and not self._is_exhausted:
            number, shape, before = waiting.popleft()
            for way in self._entries[number].ways:
                sent, trail = way.sends(shape), _Trail(way, before)
                for other in sorted(self._reached(way.connection, sent) & within):
                    self._followed += 1
                    entry = self._entries[other]
                    met = meet(sent, entry.shape) if self._leads(way, entry) else None
                    if met is None:
                        continue
                    if other == start:
                        circle = _Circle(trail.ways(), met)
                        if not self._certain or _stays(circle):
                            return circle
                    elif met not in seen[other] and len(seen[other]) < MOST_SHAPES:
                        seen[other].add(met)
                        waiting.append((other, met, trail))
        return None

    def _leads(self, way: _Way, entry: _Entry) -> bool:
        if way.route == entry.route and way.connection == entry.connection:
            return False  # a route that feeds itself was refused, or is intended
        key = (way.connection, entry.connection)
        if key not in self._meets:
            together = reaches(*key, self._connections)
            self._meets[key] = together is True or (together is None and not self._certain)
        return self._meets[key]

    @property
    def looked_at(self) -> int:
        """The number of tokens and ways compared so far: the cost."""
        return self._followed + self._index.looked_at

    @property
    def _is_exhausted(self) -> bool:
        return self.looked_at > MOST_LOOKS

    def _problem(self, circle: _Circle) -> Problem:
        first, shape = circle.ways[0], circle.shape
        text = f"messages of route {first.name!r} {'return' if self._certain else 'may return'} to it: it sends "
        left_out = len(circle.ways) - MOST_NAMED
        for place, (way, following) in enumerate(zip(circle.ways, [*circle.ways[1:], first], strict=True)):
            shape = way.sends(shape)
            if place < MOST_NAMED - 1 or following is first:
                text += f"{'.'.join(shape)!r} to route {following.name!r}"
                text += ", which sends " if following is not first else ""
            elif place == MOST_NAMED - 1:
                text += f"on over {left_out} more, and the last one sends "
            shape = meet(shape, tuple(following.pattern.split("."))) or shape
        return Problem(f"routes[{first.route}].{first.key}", f"{text}; {_cure(circle)}")


class _Trail(NamedTuple):
    """The ways on the path of a search, the last one first."""

    way: _Way
    before: _Trail | None

    def ways(self) -> Sequence[_Way]:
        found: list[_Way] = []
        at: _Trail | None = self
        while at is not None:
            found.append(at.way)
            at = at.before
        return found[::-1]


def _stays(circle: _Circle) -> bool:
    """Return True if an example message circulates for ever."""
    subject = example(circle.shape)
    for way in [*circle.ways] * ROUNDS:
        if not matches(way.pattern, subject):
            return False
        try:
            subject = way.mapping.apply(subject)
        except MappingError:
            return False
    return is_valid_subject(subject) and matches(circle.ways[0].pattern, subject)


def _cure(circle: _Circle) -> str:
    counting = list(dict.fromkeys(f"route {way.name!r}" for way in circle.ways if not way.dead))
    if not counting:
        return "send to other subjects, or narrow a source"
    on = " or ".join(counting) if any(way.dead for way in circle.ways) else "one of these routes"
    return f"send to other subjects, narrow a source, or set hop_limit on {on}"


def _components(links: Sequence[Sequence[int]], entries: int) -> list[set[int]]:
    """Return the strongly connected sets of entries, in order: Tarjan's algorithm, with an explicit stack."""
    found: list[set[int]] = []
    place: dict[int, int] = {}
    lowest: dict[int, int] = {}
    path: list[int] = []
    finished: set[int] = set()
    for root in range(entries):
        following = [(root, iter(links[root]))] if root not in place else []
        while following:
            at, rest = following[-1]
            if at not in place:
                place[at] = lowest[at] = len(place)
                path.append(at)
            for other in rest:
                if other not in place:
                    following.append((other, iter(links[other])))
                    break
                if other not in finished:
                    lowest[at] = min(lowest[at], place[other])
            else:
                following.pop()
                if following:
                    above = following[-1][0]
                    lowest[above] = min(lowest[above], lowest[at])
                if lowest[at] == place[at]:
                    component = [path.pop()]
                    while component[-1] != at:
                        component.append(path.pop())
                    finished.update(component)
                    if len(component) > 1:
                        found.append({one for one in component if one < entries})
    return sorted(found, key=min)


# --- the routes ------------------------------------------------------------------------------------------------------


def _entries(
    index: int,
    route: RouteSettings,
    connections: Connections,
    streams: Streams,
    *,
    certain: bool,
) -> Iterator[_Entry]:
    source = route.source
    choosing = route.when is not None or route.handler is not None
    choosing |= route.strategy != "all" and len(route.to) > 1
    sent = [
        (
            f"to[{number}].{to.kind_for(source.kind).key}",
            to.kind_for(source.kind).template(to),
            to.connection,
            not choosing and to.when is None and to.mirror in (None, 1),
        )
        for number, to in enumerate(() if route.hop_limit else route.to)
        if not to.last_writer  # it sends nothing back
    ]
    if (letter := route.dead_letter) is not None:
        sent.append(("dead_letter.subject", letter.subject, letter.connection, False))
    ways = []
    for key, subject, connection, always in sent:
        mapping = source.mapping(subject)
        always = always and mapping.deterministic
        if always or not certain:
            ways.append((key, subject, connection, mapping, always, key.startswith("dead_letter")))
    for pattern in _patterns(source, connections, streams):
        mapped_from = pattern if source.subjects else ">"
        leading = [_Way(index, route.name, pattern, mapped_from, *way) for way in ways]
        yield _Entry(index, source.connection, tuple(pattern.split(".")), leading)


def _patterns(source: SourceSettings, connections: Connections, streams: Streams) -> Sequence[str]:
    """Return the patterns that a route reads. Those of an entire stream are known only from `[[streams]]`."""
    if source.subjects or not source.kind.is_stored:
        return source.patterns
    found = stream_read(source, connections, streams)
    return () if found is None else subjects_read(source, found[1])
