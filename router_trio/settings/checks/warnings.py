"""Warn of valid settings that are probably mistakes, for `check`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatchcase

from router_trio.errors import Problem
from router_trio.errors.quotes import excerpt
from router_trio.settings.checks.files import empty_files
from router_trio.settings.checks.loops import chosen_by_sender
from router_trio.settings.checks.resolve import Streams, by_name, resolve_connection, subjects_read
from router_trio.settings.routes import RouteSettings
from router_trio.settings.sections import ConnectionSettings
from router_trio.settings.streams import StreamSettings
from router_trio.settings.units import format_duration
from router_trio.subjects.mapping import unused_wildcards
from router_trio.subjects.patterns import overlaps


def warnings(
    connections: Mapping[str, ConnectionSettings],
    routes: Sequence[RouteSettings],
    streams: Sequence[StreamSettings] = (),
    route_metrics: Sequence[str] = (),
) -> Iterator[Problem]:
    """Yield every warning about a valid configuration, with the path of its key."""
    if not routes:
        yield Problem("routes", "there are none, so nothing is routed; add [[routes]], or routes in code")
    for index, pattern in enumerate(route_metrics):
        if pattern != "*" and not any(fnmatchcase(route.name, pattern) for route in routes):
            yield Problem(
                f"telemetry.route_metrics[{index}]",
                f"{excerpt(pattern)!r} matches the name of no route, so it has no effect; correct or remove it",
            )
    for name, connection in connections.items():
        yield from _hasty(f"connections.{name}", connection)
        yield from empty_files(f"connections.{name}", connection)
        yield from _announced(f"connections.{name}", connection)
    named = by_name(streams)
    for index, route in enumerate(routes):
        yield from _first_tokens(f"routes[{index}]", route)
        yield from _dropped_tokens(f"routes[{index}]", route)
        yield from ignored(f"routes[{index}]", route)
        yield from _filters(f"routes[{index}]", route, connections, named)
        if route.concurrency > 1 and route.handler is None:
            yield Problem(
                f"routes[{index}].concurrency",
                "counts calls of a handler, and the route has none: it has no effect; name a handler, or remove it",
            )
        yield from _unused_dead_letters(f"routes[{index}]", route)
        yield from _key_of_partitions(f"routes[{index}]", route)
        if (file := route.schema_file) is not None:
            yield from (Problem(f"routes[{index}].schema", f"{file.path!r}, {text}") for text in file.schema.warnings)
        yield from _order_of_delays(f"routes[{index}]", route)
        yield from route.source.kind.warnings(f"routes[{index}].from", route.source)


def _unused_dead_letters(path: str, route: RouteSettings) -> Iterator[Problem]:
    if route.dead_letter is None or not route.retries_without_end:
        return
    used = "is used only for messages that the handler rejects" if route.handler is not None else "is never used"
    cure = "set `attempts` in [routes.retry], such as attempts = 5, or remove it"
    yield Problem(
        f"{path}.dead_letter", f"{used}: without `attempts`, a message that fails is retried without end; {cure}"
    )


HASTY_CONNECT_TIMEOUT = 0.25
HASTY_LIVENESS_INTERVAL = 0.5
HASTY_MAX_RECONNECT_DELAY = 0.25
"""Seconds. Smaller values work on one machine, and hardly over a network."""


def _hasty(path: str, connection: ConnectionSettings) -> Iterator[Problem]:
    timeout, interval = connection.connect_timeout, connection.liveness_interval
    base, longest = connection.reconnect_delay, connection.max_reconnect_delay
    if timeout < HASTY_CONNECT_TIMEOUT:
        yield Problem(
            f"{path}.connect_timeout",
            f"{format_duration(timeout)} is short for a connect with TLS and a handshake over a network: attempts may "
            "fail for that reason alone; use 2s",
        )
    if interval < HASTY_LIVENESS_INTERVAL:
        yield Problem(
            f"{path}.liveness_interval",
            f"{format_duration(interval)} is short: a server that is busy for a moment counts as lost; use 5s",
        )
    if longest < HASTY_MAX_RECONNECT_DELAY:
        yield Problem(
            f"{path}.max_reconnect_delay",
            f"{format_duration(longest)} is short: each router tries a server that is away, or overloaded, many "
            "times a second; use 30s",
        )
    if longest < base:
        yield Problem(
            f"{path}.max_reconnect_delay",
            f"{format_duration(longest)} is less than reconnect_delay, {format_duration(base)}: the delay never grows",
        )


def _announced(path: str, connection: ConnectionSettings) -> Iterator[Problem]:
    """Warn of servers behind a gateway, where those that they announce are probably not reachable."""
    if any(server.path for server in connection.servers) and not connection.ignore_announced:
        yield Problem(
            f"{path}.ignore_announced",
            "false, and a server has a path, as behind a gateway: the servers that it announces are tried without the "
            "path, and are probably not reachable; set it to true, and list all addresses of the gateway",
        )


def _first_tokens(path: str, route: RouteSettings) -> Iterator[Problem]:
    for index, destination in enumerate(route.to):
        kind = destination.kind_for(route.source.kind)
        template = kind.template(destination)
        first = template.split(".")[0]
        if chosen_by_sender(first):
            yield Problem(
                f"{path}.to[{index}].{kind.key}",
                f"the first token of {template!r} is {first!r}: the sender of a message chooses it, and "
                "so where the message goes. A subject that begins with '$' or is an inbox fails, any other is sent; "
                "begin with a token of your own",
            )


def _filters(
    path: str, route: RouteSettings, connections: Mapping[str, ConnectionSettings], streams: Streams
) -> Iterator[Problem]:
    """Yield a warning if a filter matches no subject of its stream in `[[streams]]`."""
    source = route.source
    for index, stream in streams.get(source.kind.stream(source) or "", ()):
        if resolve_connection(stream.connection, connections) != resolve_connection(source.connection, connections):
            continue
        subjects = subjects_read(source, stream)
        for one in source.subjects:
            if not any(overlaps(one, subject) for subject in subjects):
                taken = excerpt(", ".join(subjects))
                yield Problem(
                    f"{path}.from.filter",
                    f"{one!r} matches none of the subjects of streams[{index}] ({stream.name}), which are {taken}: the "
                    "route would receive nothing; correct the filter or the subjects",
                )


def _key_of_partitions(path: str, route: RouteSettings) -> Iterator[Problem]:
    """Warn of a key whose messages may be in different partitions, which different processes route."""
    source = route.source
    if source.partitions is not None and source.partition_by is None and route.key is not None:
        yield Problem(
            f"{path}.key",
            "keeps the order of its values only within a partition, and the entire subject determines that: name the "
            "wildcards of the filter that the key is made of as partition_by, or remove the key",
        )


def _order_of_delays(path: str, route: RouteSettings) -> Iterator[Problem]:
    """Warn of delayed copies and scheduled retries of a route that keeps the order of a key."""
    if route.retry is not None and route.retry.schedule is not None and route.key is not None:
        yield Problem(
            f"{path}.retry.schedule",
            "later messages do not wait for one that is scheduled: the order of `key` ends with its failure",
        )
    for index, destination in enumerate(route.to):
        if destination.delay is not None and route.key is not None:
            yield Problem(
                f"{path}.to[{index}].delay",
                "copies are published when they are due, and not in the order of their messages: the order of `key` "
                "ends here",
            )


def _dropped_tokens(path: str, route: RouteSettings) -> Iterator[Problem]:
    """Warn of a destination that keeps the end of a subject and drops a wildcard token before it."""
    for index, destination in enumerate(route.to):
        kind = destination.kind_for(route.source.kind)
        template = kind.template(destination)
        if not template.endswith(">"):
            continue
        for pattern in route.source.patterns:
            dropped = unused_wildcards(pattern, template)
            if dropped:
                several = ", ".join(f"{{{{wildcard({number})}}}}" for number in dropped)
                yield Problem(
                    f"{path}.to[{index}].{kind.key}",
                    f"{template!r} leaves out what stands for '*' in {pattern!r}, so that messages of "
                    f"different subjects get one; put {several} where it belongs",
                )


def ignored(path: str, route: RouteSettings) -> Iterator[Problem]:
    """Yield a warning about each key of a route that no longer has an effect."""
    for key, instead in (("max_deliver", "attempts"), ("nak_delay", "initial")):
        if key in route.source.model_fields_set:
            yield Problem(
                f"{path}.from.{key}",
                f"is ignored, and will be refused by 1.0: write {instead} in [routes.retry] instead, and remove it",
            )
