"""Circles of routes: what one sends comes back to it over others, and every message is sent for ever.

Only `router-trio check` looks for them; at run time a `hop_limit` ends them (see docs/decisions/circles.md). A route
that feeds itself is refused by `loops`. Here routes are followed over all connections to one server, with the subjects
that are left of those that it began with. A route with a `hop_limit` ends every circle that it is in, unless that goes
over its dead letters, which are not counted.

The time grows with the number of routes and of the ways between them, up to `MOST_LOOKS`: ways are followed only among
routes that reach each other, and each route is reported in one circle at most.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from router_trio.errors import MappingError, Problem
from router_trio.settings.checks.resolve import Streams, by_name, reaches, servers_of, stream_read
from router_trio.settings.routes import RouteSettings, SourceSettings
from router_trio.settings.sections import ConnectionSettings
from router_trio.settings.streams import StreamSettings
from router_trio.subjects.mapping import Mapping as SubjectMapping
from router_trio.subjects.patterns import is_valid_subject, matches
from router_trio.subjects.shapes import Patterns, Shape, example, mapped, meet

ROUNDS = 3
"""How often an example has to come back to count as one that always does."""

MOST_SHAPES = 64
"""Of the messages that a search brings to one route: with more, it follows no further ones there."""

MOST_LOOKS = 1_000_000
"""Tokens and ways that are looked at, for some seconds: then `check` says that it has not followed all."""

MOST_NAMED = 8
"""Routes of one circle that its problem names."""

Connections = Mapping[str, ConnectionSettings]


class _Way(NamedTuple):
    """A way out of a route, for messages that match one pattern of its source."""

    route: int
    name: str
    pattern: str
    mapped_from: str
    """The pattern that `subject` maps from: `>` for a whole stream, whose subjects are kept as they are."""
    key: str
    subject: str
    connection: str
    mapping: SubjectMapping
    always: bool
    """True if every message that matches goes there, as the configuration has it."""
    dead: bool
    """True for dead letters."""

    def sends(self, shape: Shape) -> Shape:
        """Return the shape of what it makes of messages that match its pattern and have this shape."""
        return mapped(self.mapped_from, self.subject, shape)


class _Entry(NamedTuple):
    """A pattern of a route's source, and the ways that lead on from there."""

    route: int
    connection: str
    shape: Shape
    ways: Sequence[_Way]


class _Circle(NamedTuple):
    ways: Sequence[_Way]
    shape: Shape
    """With which it begins."""


def certain_circles(
    connections: Connections, routes: Sequence[RouteSettings], streams: Sequence[StreamSettings] = ()
) -> Iterator[Problem]:
    """Yield a problem for each circle that every message in it stays in. The configuration must be valid otherwise."""
    return CircleSearch(connections, routes, streams, certain=True).problems()


def possible_circles(
    connections: Connections, routes: Sequence[RouteSettings], streams: Sequence[StreamSettings] = ()
) -> Iterator[Problem]:
    """Yield a problem for each circle that messages may stay in, of a configuration without certain ones."""
    return CircleSearch(connections, routes, streams, certain=False).problems()


class CircleSearch:
    """Looks for circles: `certain` ones over ways that every message takes, or others."""

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
        """Yield a problem for each circle, each route in one at most, and one if not all ways were followed."""
        reported: set[int] = set()
        for within in _components(self._links(), len(self._entries)):
            for start in sorted(within):
                if self._entries[start].route in reported:
                    continue  # when that circle is mended, the others are found
                circle = self._circle_from(start, within)
                if circle is None:
                    within.discard(start)  # what goes round over others never comes through here
                    continue
                reported.update(way.route for way in circle.ways)
                yield self._problem(circle)
        if self._is_exhausted and not self._certain:
            told = "so many lead to each other that not all ways were followed, and a circle may be missed; send to "
            yield Problem("routes", f"{told}subjects that begin with a token of their own, or set hop_limit")

    def _links(self) -> list[list[int]]:
        """Return for each entry what its ways may lead to: shared by those that send the same, it has a number too."""
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
        """Return the entries that may get messages of a shape that are sent on a connection."""
        found = self._known.get((connection, sent))
        if found is None:
            if self._is_exhausted:
                return frozenset()
            found = frozenset().union(*(self._index.meeting((one, *sent)) for one in self._servers[connection]))
            self._followed += len(found)
            self._known[connection, sent] = found
        return found

    def _circle_from(self, start: int, within: set[int]) -> _Circle | None:
        """Return the shortest circle that begins with an entry and stays among these, if there is one."""
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
            return False  # that it would feed itself was refused, or is meant
        key = (way.connection, entry.connection)
        if key not in self._meets:
            together = reaches(*key, self._connections)
            self._meets[key] = together is True or (together is None and not self._certain)
        return self._meets[key]

    @property
    def looked_at(self) -> int:
        """Tokens and ways that were looked at: the cost so far."""
        return self._followed + self._index.looked_at

    @property
    def _is_exhausted(self) -> bool:
        return self.looked_at > MOST_LOOKS

    def _problem(self, circle: _Circle) -> Problem:
        first, shape = circle.ways[0], circle.shape
        told = f"what route {first.name!r} takes {'comes' if self._certain else 'may come'} back to it: it sends "
        left_out = len(circle.ways) - MOST_NAMED
        for place, (way, following) in enumerate(zip(circle.ways, [*circle.ways[1:], first], strict=True)):
            shape = way.sends(shape)
            if place < MOST_NAMED - 1 or following is first:
                told += f"{'.'.join(shape)!r} to route {following.name!r}"
                told += ", which sends " if following is not first else ""
            elif place == MOST_NAMED - 1:
                told += f"on over {left_out} more, the last of which sends "
            shape = meet(shape, tuple(following.pattern.split("."))) or shape
        return Problem(f"routes[{first.route}].{first.key}", f"{told}; {_cure(circle)}")


class _Trail(NamedTuple):
    """The ways that a search has come, the last one first."""

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
    """Return True if an example goes round again and again."""
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
    """Return the sets of entries that reach each other over these links, in order: Tarjan's algorithm, with a stack."""
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
            f"to[{number}].subject",
            to.kind_for(source.kind).template(to),
            to.connection,
            not choosing and to.when is None and to.mirror in (None, 1),
        )
        for number, to in enumerate(route.to if route.hop_limit is None else ())
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
    """Return what a route takes. Of a whole stream only `[[streams]]` knows what is in it."""
    if source.subjects or not source.kind.is_stored:
        return source.patterns
    found = stream_read(source, connections, streams)
    return () if found is None else found[1].subjects
