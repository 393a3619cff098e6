"""Circles of routes: what one sends comes back to it over others, and every message is sent for ever.

A route that feeds itself is refused by `loops`. Here routes are followed over all connections to one server, with the
subjects that are left of what began: what surely comes back is refused, and what may come back is warned about. A route
with a `hop_limit` ends every circle that it is in, unless that goes over its dead letters, which nothing counts.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from router_trio.errors import MappingError, Problem, SubjectError
from router_trio.settings.checks.configuration import RouteParts
from router_trio.settings.checks.meeting import Connections, meet_at, resolve_connection, stream_read
from router_trio.settings.checks.streams import valid_patterns
from router_trio.settings.routes import SourceSettings
from router_trio.settings.streams import StreamSettings
from router_trio.subjects.patterns import is_valid_subject, matches
from router_trio.subjects.shapes import Patterns, Shape, example, mapped, meet

ROUNDS = 3
"""How often an example has to come back to count as one that always does."""

MOST_SHAPES = 64
"""Of one route, in the search from one route: more are not followed."""


class Way(NamedTuple):
    """One way through a route: in by a pattern of its source, out by a destination.

    `entry` is what `subject` maps from: the pattern, or `>` for a whole stream, whose subjects are kept as they are.
    """

    route: int
    pattern: str
    entry: str
    key: str
    subject: str
    connection: str
    always: bool
    """True if every message that matches goes there, as the configuration has it."""
    dead: bool
    """True for dead letters."""

    def sends(self, shape: Shape) -> Shape:
        """Return the shape of what it makes of messages that match its pattern and have this shape."""
        return mapped(self.entry, self.subject, shape)


@dataclass(frozen=True, slots=True)
class _Node:
    """A route, or what is usable of one."""

    name: str
    connection: str
    source: SourceSettings
    patterns: Sequence[str]
    ways: Sequence[Way]


class Circle(NamedTuple):
    """A circle: the ways around it, the shape with which it begins, and True if it surely is one."""

    ways: Sequence[Way]
    shape: Shape
    surely: bool


def circles(
    connections: Connections, routes: Sequence[RouteParts], streams: Sequence[StreamSettings | None] = ()
) -> Iterator[tuple[Problem, bool]]:
    """Yield a problem for each circle, and True if every message that is in it stays in it.

    What is absent of them is passed over.
    """
    nodes = {index: node for index, route in enumerate(routes) if (node := _node(index, route, connections, streams))}
    followed = _in_circles(_follow(nodes, connections))
    told: set[frozenset[int]] = set()
    refused: set[int] = set()
    for start in sorted(followed):
        if start in refused:
            continue  # when that circle is mended, the others are found
        for circle in _from(start, nodes, followed, connections):
            routes_in_it = frozenset(way.route for way in circle.ways)
            if routes_in_it not in told:
                told.add(routes_in_it)
                refused |= routes_in_it if circle.surely else set()
                yield _problem(circle, nodes), circle.surely


def circles_for_sure(
    connections: Connections, routes: Sequence[RouteParts], streams: Sequence[StreamSettings | None]
) -> list[Problem]:
    """Return a problem for each circle that every message in it stays in."""
    return [problem for problem, surely in circles(connections, routes, streams) if surely]


def _problem(circle: Circle, nodes: Mapping[int, _Node]) -> Problem:
    first, shape = circle.ways[0], circle.shape
    told = (
        f"what route {nodes[first.route].name!r} takes {'comes' if circle.surely else 'may come'} back to it: it sends "
    )
    for way, following in zip(circle.ways, [*circle.ways[1:], first], strict=True):
        shape = way.sends(shape)
        told += f"{'.'.join(shape)!r} to route {nodes[following.route].name!r}"
        told += ", which sends " if following is not first else ""
        shape = meet(shape, tuple(following.pattern.split("."))) or shape
    return Problem(f"routes[{first.route}].{first.key}", f"{told}; {_cure(circle, nodes)}")


def _cure(circle: Circle, nodes: Mapping[int, _Node]) -> str:
    counting = [f"route {nodes[way.route].name!r}" for way in circle.ways if not way.dead]
    if not counting:
        return "send to other subjects, or narrow a source"
    on = "one of these routes" if len(counting) == len(circle.ways) else " or ".join(counting)
    return f"send to other subjects, narrow a source, or set hop_limit on {on}"


# --- the routes ------------------------------------------------------------------------------------------------------


def _node(
    index: int, route: RouteParts, connections: Connections, streams: Sequence[StreamSettings | None]
) -> _Node | None:
    source = route.source
    if source is None:
        return None
    connection = resolve_connection(source.connection, connections)
    patterns = [one for _, one in valid_patterns(_patterns(source, connections, streams))]
    choosing = route.when is not None or route.handler is not None
    choosing |= route.strategy not in (None, "all") and len(route.to) > 1
    ways: list[Way] = []
    for number, to in enumerate(route.to if route.hop_limit is None else ()):
        if to is not None:
            always = not choosing and to.when is None and to.mirror in (None, 1)
            ways += _ways(
                index,
                source,
                patterns,
                f"to[{number}].subject",
                to.subject,
                resolve_connection(to.connection, connections),
                always,
            )
    if route.dead_letter is not None:
        letter = route.dead_letter
        at = resolve_connection(letter.connection or source.connection, connections)
        ways += _ways(index, source, patterns, "dead_letter.subject", letter.subject, at, always=False, dead=True)
    return _Node(route.name or "", connection, source, patterns, ways)


def _ways(
    index: int,
    source: SourceSettings,
    patterns: Sequence[str],
    key: str,
    subject: str,
    connection: str,
    always: bool,
    dead: bool = False,
) -> Iterator[Way]:
    try:
        mapping = source.mapping(subject)
    except (MappingError, SubjectError):
        return
    for pattern in patterns:
        entry = pattern if source.subject or source.filters else ">"
        yield Way(index, pattern, entry, key, subject, connection, always and mapping.deterministic, dead)


def _patterns(
    source: SourceSettings, connections: Connections, streams: Sequence[StreamSettings | None]
) -> Sequence[str]:
    """Return what a route takes. Of a whole stream only `[[streams]]` knows what is in it."""
    if source.stream is None or source.filters:
        return source.patterns if source.subject or source.filters else ()
    found = stream_read(source, connections, streams)
    return () if found is None else found[1].subjects


# --- the search ------------------------------------------------------------------------------------------------------


def _follow(nodes: Mapping[int, _Node], connections: Connections) -> dict[int, set[int]]:
    """Return which routes may get what a route sends, itself only over another connection: `loops` has the rest."""
    sources = Patterns()
    for index, node in nodes.items():
        for pattern in node.patterns:
            sources.add(pattern, index)
    after: dict[int, set[int]] = {index: set() for index in nodes}
    for index, node in nodes.items():
        for way in node.ways:
            for other in sources.meeting(way.sends(tuple(way.pattern.split(".")))):
                at = nodes[other].connection
                if (other, at) != (index, way.connection) and meet_at(way.connection, at, connections) is not False:
                    after[index].add(other)
    return after


def _in_circles(after: Mapping[int, set[int]]) -> dict[int, set[int]]:
    """Leave out the routes that nothing comes to, or that send to none: they are in no circle."""
    left = set(after)
    while True:
        sent_to = {other for index in left for other in after[index] & left}
        kept = {index for index in left & sent_to if after[index] & left}
        if kept == left:
            return {index: after[index] & left for index in left}
        left = kept


def _from(
    start: int,
    nodes: Mapping[int, _Node],
    after: Mapping[int, set[int]],
    connections: Connections,
) -> Iterator[Circle]:
    """Find the circles of which this route is the first: the shortest for each way that leaves it."""
    for pattern in nodes[start].patterns:
        begun = tuple(pattern.split("."))
        waiting: list[tuple[int, str, Shape, tuple[Way, ...], bool]] = [(start, pattern, begun, (), True)]
        seen: dict[int, set[tuple[str, Shape]]] = defaultdict(set)
        while waiting:
            index, entry, shape, path, sure = waiting.pop(0)
            for way in nodes[index].ways:
                if way.pattern != entry:
                    continue
                sent = way.sends(shape)
                for other in sorted(one for one in after[index] if one >= start):
                    node = nodes[other]
                    together = meet_at(way.connection, node.connection, connections)
                    if together is False or (other == index and way.connection == node.connection):
                        continue
                    for taken in node.patterns:
                        met = meet(sent, tuple(taken.split(".")))
                        if met is None:
                            continue
                        step = (*path, way)
                        known = sure and way.always and together is True
                        if other == start and taken == pattern:
                            yield Circle(step, met, known and _stays(step, nodes, met))
                        elif (taken, met) not in seen[other] and len(seen[other]) < MOST_SHAPES:
                            seen[other].add((taken, met))
                            waiting.append((other, taken, met, step, known))


def _stays(path: Sequence[Way], nodes: Mapping[int, _Node], shape: Shape) -> bool:
    """Return True if an example goes round again and again."""
    subject = example(shape)
    for way in [*path] * ROUNDS:
        if not matches(way.pattern, subject):
            return False
        try:
            subject = nodes[way.route].source.mapping(way.subject).apply(subject)
        except MappingError:
            return False
    return is_valid_subject(subject) and matches(path[0].pattern, subject)
