"""The permissions that the user of each connection needs for a configuration: the table, filled in.

The table is in `protocol/permissions.py`. This module finds the parts of a configuration that its rows are for, with
their names. A further permission of such a part is a new row of the table, without a change here. Pure.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from router_trio.protocol.permissions import (
    AT_DEAD_LETTERS,
    AT_DESTINATION,
    AT_SOURCE,
    MEMBERS,
    OF_COMMANDS,
    PERMISSIONS,
    PUBLISH,
    SUBSCRIBE,
    Use,
    kv_below,
)
from router_trio.settings.checks.resolve import by_name, reaches, stream_read
from router_trio.settings.routes import DestinationSettings, RouteSettings
from router_trio.settings.routes.destination import destination_of, retries_of
from router_trio.settings.routes.sources.partitioned import derived_stream, durables
from router_trio.settings.settings import Settings
from router_trio.settings.streams import StreamSettings
from router_trio.subjects.patterns import INBOX_PREFIX, covers

ANY = "*"
"""The name of a stream that only the server knows."""

_OF_JETSTREAM = frozenset(
    {
        Use.CONSUMER,
        Use.PARTITIONS,
        Use.BUCKET,
        Use.STREAM_OF_DESTINATION,
        Use.DECLARED_STREAM,
        Use.POSITION,
        Use.CHECKPOINTS,
    }
)
"""The uses that need answers: without any of them, the subscription to them is optional."""


class Part(NamedTuple):
    """A part of a configuration that needs permissions, with the names that it has in the subjects of the table.

    `of` is the route, the stream of `[[streams]]` or the consumer of `[[positions]]` that it belongs to, `("", "")` for
    the entire connection.
    """

    use: Use
    names: Mapping[str, str]
    of: tuple[str, str] = ("", "")
    optional: bool = False


@dataclass
class Grant:
    """A granted permission: a subject, followed by a space and the queue group if it is only for that group.

    `reasons` are the rows of the table that it is for, each with the parts that need it.
    """

    kind: Literal["publish", "subscribe"]
    subject: str
    reasons: dict[str, list[tuple[str, str]]] = field(default_factory=dict)
    optional: bool = True
    first_start: bool = True
    """True if it is used only until everything exists that the router makes."""

    def add(self, sends: str, of: tuple[str, str], *, optional: bool, first_start: bool = False) -> None:
        """Add what is sent with this permission, and the part that needs it."""
        self.reasons.setdefault(sends, []).append(of)
        self.optional = self.optional and optional
        self.first_start = self.first_start and first_start

    def include(self, other: Grant) -> None:
        """Add everything that needs a permission which this one covers."""
        for sends, parts in other.reasons.items():
            self.reasons.setdefault(sends, []).extend(parts)
        self.optional = self.optional and other.optional
        self.first_start = self.first_start and other.first_start


def permissions_of(settings: Settings, connection: str) -> list[Grant]:
    """Return the least permissions that the user of a connection needs, in the order of the table.

    With them servers refuse nothing that the configuration makes the router do. Handlers and programs may send to other
    subjects.
    """
    here = settings.connections[connection]
    api = here.api
    names = {"api": api, "kv": kv_below(api), "domain": here.domain or "*", "inbox_prefix": here.inbox_prefix}
    names["members"] = MEMBERS
    found: dict[tuple[str, str], Grant] = {}
    parts = list(_parts(settings, connection))
    for row in PERMISSIONS:
        for part in parts:
            if part.use is row.use:
                subject = row.of({**names, **part.names})
                found.setdefault((row.kind, subject), Grant(row.kind, subject)).add(
                    row.sends, part.of, optional=row.optional or part.optional, first_start=row.first_start
                )
    return _without_covered(list(found.values()))


def permissions_of_commands(settings: Settings, connection: str, commands: Sequence[str]) -> list[Grant]:
    """Return the permissions that the user of a connection needs for commands of the table, on every route."""
    here = settings.connections[connection]
    found: dict[tuple[Literal["publish", "subscribe"], str], Grant] = {}
    for command in commands:
        for need in OF_COMMANDS[command]:
            for route in settings.routes:
                for names in _names_at(settings, connection, route, need.at):
                    try:
                        subject = need.subject.format_map(names)
                    except KeyError:
                        continue  # the route has nothing that this is for
                    grant = found.setdefault((PUBLISH, subject), Grant(PUBLISH, subject))
                    grant.add(need.sends, ("command", command), optional=need.optional)
    if found:
        inbox = f"{here.inbox_prefix}.>"
        grant = found.setdefault((SUBSCRIBE, inbox), Grant(SUBSCRIBE, inbox))
        for command in commands:
            grant.add("answers", ("command", command), optional=False)
    return _without_covered(list(found.values()))


def _names_at(settings: Settings, connection: str, route: RouteSettings, at: str) -> Iterator[dict[str, str]]:
    """Yield the names in the subjects of commands on a route, once for each of its parts at a connection."""
    here, source = settings.connections[connection], route.source
    names = {"api": here.api, "kv": kv_below(here.api), "inbox_prefix": here.inbox_prefix, "consumer": ANY}
    names |= {"bucket": ANY, "route": route.name}
    consumer = source.kind.consumer(source)
    if consumer is not None:
        names |= dict(zip(("stream", "durable"), consumer, strict=True))
    retry = None if route.retry is None else route.retry.schedule
    if at == AT_SOURCE and source.connection == connection:
        if retry is not None:
            names |= {"retries": retry.stream, "prefix": retry.prefix}
        for due in [None] if retry is None else retry.names(route.name).durables:
            for pattern in source.patterns:
                yield names | {"subject": pattern} | ({} if due is None else {"due": due})
    letter = route.dead_letter
    if at == AT_DEAD_LETTERS and letter is not None and letter.connection == connection:
        pattern = _pattern(settings, route, destination_of(letter, connection))
        yield names | {"letters": letter.stream or _taker(settings, connection, pattern)}
    if at == AT_DESTINATION:
        sent = [(to, to.kind_for(source.kind)) for to in route.to if to.connection == connection]
        for to, kind in sent:
            pattern = _pattern(settings, route, to)
            target = kind.stream(to) or _taker(settings, connection, pattern)
            yield names | {"destination": pattern} | ({"target": target} if kind.waits_for_puback else {})
        if retry is not None and source.connection == connection:
            yield names | {"target": retry.stream}


def handlers_of(settings: Settings, connection: str) -> list[str]:
    """Return the names of the routes whose handlers may send to other subjects on a connection."""
    return [
        route.name
        for route in settings.routes
        if route.handler is not None and any(to.connection == connection for to in route.to)
    ]


def _without_covered(grants: list[Grant]) -> list[Grant]:
    """Return the grants that no other one covers. Those of queue groups cover none and are covered by none.

    One that is needed is not covered by one that is optional, which may be left out.
    """
    widest = [grant for grant in grants if not any(_covers(one, grant) for one in grants)]
    for grant in grants:
        if grant not in widest:
            next(one for one in widest if _covers(one, grant)).include(grant)
    return widest


def _covers(wider: Grant, grant: Grant) -> bool:
    return (
        wider.kind == grant.kind
        and wider.subject != grant.subject
        and wider.optional <= grant.optional
        and wider.first_start <= grant.first_start
        and " " not in wider.subject + grant.subject
        and covers(wider.subject, grant.subject)
    )


# --- the parts of a configuration ---


def _parts(settings: Settings, connection: str) -> Iterator[Part]:
    found = list(_parts_with_names(settings, connection))
    yield from found
    if settings.router.service:
        yield Part(Use.SERVICE, {})
    yield Part(Use.INBOX, {}, optional=not any(part.use in _OF_JETSTREAM for part in found))


def _parts_with_names(settings: Settings, connection: str) -> Iterator[Part]:
    sent: list[tuple[RouteSettings, DestinationSettings]] = []
    for route in settings.routes:
        if route.source.connection == connection:
            yield from _parts_of_source(settings, route)
        for to in route.to:
            if to.connection == connection:
                sent.append((route, to))
                yield Part(Use.DESTINATION, {"destination": _pattern(settings, route, to)}, _named(route))
        if (letter := route.dead_letter) is not None and letter.connection == connection:
            to = destination_of(letter, connection)
            sent.append((route, to))
            yield Part(Use.DEAD_LETTERS, {"dead_letter": _pattern(settings, route, to)}, _named(route))
        if (retry := route.retry) is not None and retry.schedule is not None and route.source.connection == connection:
            to = retries_of(retry.schedule, route.name, connection)
            sent.append((route, to))
            yield Part(Use.DESTINATION, {"destination": _pattern(settings, route, to)}, _named(route))
            for durable in retry.schedule.names(route.name).durables:
                names = {"stream": retry.schedule.stream, "durable": durable}
                yield Part(Use.CONSUMER, names, _named(route))
                yield Part(Use.SHARED_CONSUMER, names, _named(route))
            counted = {"counted": f"{retry.schedule.prefix}.n", "retries": retry.schedule.stream}
            yield Part(Use.RETRIES, counted, _named(route))
    yield from _parts_of_streams(settings, connection, sent)
    for stream in settings.streams:
        if stream.connection == connection and not stream.is_copy:
            yield Part(Use.DECLARED_STREAM, {"made": stream.name}, ("stream", stream.name))
    yield from _parts_of_positions(settings, connection)


def _parts_of_source(settings: Settings, route: RouteSettings) -> Iterator[Part]:
    source, of = route.source, _named(route)
    subscription, consumer = source.kind.subscription(source), source.kind.consumer(source)
    if subscription is not None:
        subject, queue = subscription
        yield Part(Use.SUBJECT, {"source": subject if queue is None else f"{subject} {queue}"}, of)
    if consumer is not None and source.partitions is not None:
        yield from _parts_of_partitions(settings, route, *consumer)
    elif consumer is not None:
        names: dict[str, str] = dict(zip(("stream", "durable"), consumer, strict=True))
        yield Part(Use.CONSUMER, names, of)
        yield Part(Use.STANDBY if source.standby else Use.SHARED_CONSUMER, names, of)
    if route.respond:
        for pattern in (f"{INBOX_PREFIX}.>", *route.reply_to):
            yield Part(Use.ANSWERS, {"reply": pattern}, of)


def _parts_of_partitions(settings: Settings, route: RouteSettings, stream: str, durable: str) -> Iterator[Part]:
    """Yield what a route with partitions needs: all consumers of a copy are its own, in its stream only the durables.

    A stream that `[[streams]]` does not describe as one with partitions counts as one without.
    """
    of = _named(route)
    read = stream_read(route.source, settings.connections, by_name(settings.streams))
    if read is not None and read[1].partitions is not None:
        consumers = [(stream, one) for one in durables(route.source)]
    else:
        copy = derived_stream(stream, durable)
        consumers = [(copy, ANY)]
        names = {"copied": stream, "partitioned": stream, "stream": copy, "group_durable": durable}
        yield Part(Use.COPY, names, of)
    for name, consumer in consumers:
        names = {"stream": name, "durable": consumer}
        yield Part(Use.CONSUMER, names, of)
        yield Part(Use.STANDBY, names, of)
    yield Part(Use.PARTITIONS, {"group": f"{stream}.{durable}"}, of)


def _parts_of_positions(settings: Settings, connection: str) -> Iterator[Part]:
    """Yield what checkpoints need at the source and at the destination (see `position/checkpoints.py`)."""
    routes = {route.name: route for route in settings.routes}
    for position in settings.positions:
        route, of = routes[position.route], ("position", position.consumer)
        if route.source.connection == connection:
            stream = route.source.kind.stream(route.source)
            assert stream is not None, "only a route from a stream has positions"
            yield Part(Use.POSITION, {"copied": stream, "consumer": position.consumer}, of)
        if route.to[0].connection == connection:
            yield Part(Use.CHECKPOINTS, {"bucket": position.bucket, "key": position.key}, of)


def _parts_of_streams(
    settings: Settings, connection: str, sent: list[tuple[RouteSettings, DestinationSettings]]
) -> Iterator[Part]:
    """Yield the lookups of the streams of destinations (see `connection/destinations.py`)."""
    stored = [to.kind_for(route.source.kind).waits_for_puback for route, to in sent]
    # Core destinations are looked up only where streams are in use anyway.
    in_use = any(stored) or any(route.source.kind.redelivers for route, _ in sent)
    for (route, to), is_stored in zip(sent, stored, strict=True):
        stream = to.kind_for(route.source.kind).stream(to)
        if (stream is None and is_stored) or (not is_stored and in_use):
            yield Part(Use.FINDING_STREAMS, {}, _named(route))
        if is_stored:
            if stream is not None and to.kind_for(route.source.kind).is_bucket and route.source.kind.is_bucket:
                yield Part(Use.BUCKET, {"target": stream}, _named(route))
            target = stream or _taker(settings, connection, _pattern(settings, route, to))
            yield Part(Use.STREAM_OF_DESTINATION, {"target": target}, _named(route))


def _taker(settings: Settings, connection: str, pattern: str) -> str:
    """Return the only stream that takes a destination: one of `[[streams]]` that covers it; else `ANY`."""
    for stream in settings.streams:
        if _is_there(stream, connection, settings) and any(covers(one, pattern) for one in stream.subjects):
            return stream.name
    return ANY


def _is_there(stream: StreamSettings, connection: str, settings: Settings) -> bool:
    """Return True if a stream of `[[streams]]` is in the JetStream of a connection."""
    connections = settings.connections
    there, here = connections[stream.connection], connections[connection]
    return bool(reaches(stream.connection, connection, connections)) and there.api == here.api


def _pattern(settings: Settings, route: RouteSettings, to: DestinationSettings) -> str:
    """Return the narrowest pattern that matches every subject that is published to for a destination."""
    kind, api = to.kind_for(route.source.kind), settings.connections[to.connection].api
    return kind.stored_under(to, route.source.mapping(kind.published_to(to, api)).pattern)


def _named(route: RouteSettings) -> tuple[str, str]:
    return "route", route.name
