"""Check the values of a configuration against each other, beyond the type of each.

Every check looks only at what it is given and skips what is absent: sections that pydantic refused arrive as None, so
that one mistake doesn't hide the others. Nothing here connects anywhere; files are only looked for.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from router_trio.errors import MappingError, Problem, SubjectError
from router_trio.errors.quotes import looks_secret
from router_trio.protocol.control_headers import CONTROL_HEADERS, is_control_header
from router_trio.protocol.stream_config import StreamSubjects
from router_trio.settings.checks.content import check_content
from router_trio.settings.checks.files import check_files
from router_trio.settings.checks.flow import check_flow, check_retry, check_schedule, check_shared_limit
from router_trio.settings.checks.handlers import check_reply_to, check_respond
from router_trio.settings.checks.loops import feeds_itself, feeds_itself_through
from router_trio.settings.checks.resolve import Connections, Streams, by_name, resolve_connection, stream_read
from router_trio.settings.checks.streams import valid_patterns
from router_trio.settings.checks.transports import check_transport
from router_trio.settings.examples import ExampleSettings
from router_trio.settings.patterns import NOT_IN_NAMES, check_own_subject, misplaced_placeholder
from router_trio.settings.problems import suggestion
from router_trio.settings.retry import DeadLetterSettings, RetrySettings
from router_trio.settings.routes import DestinationSettings, LimitSettings, RouteSettings, SourceSettings
from router_trio.settings.routes.destination import destination_of
from router_trio.settings.routes.source import check_source
from router_trio.settings.routes.sources.stream import STREAM
from router_trio.settings.sections import ConnectionSettings
from router_trio.settings.streams import StreamSettings
from router_trio.subjects.patterns import covers, validate_subject

# A TOML key without quotes, so that key paths and environment variables can name every connection.
_CONNECTION_NAME = re.compile(r"[A-Za-z0-9_-]+")


@dataclass(frozen=True, slots=True)
class RouteParts:
    """A route, or the usable parts of one."""

    name: str | None
    source: SourceSettings | None
    to: Sequence[DestinationSettings | None]
    handler: str | None
    when: str | None = None
    key: str | None = None
    strategy: str | None = None
    retry: RetrySettings | None = None
    dead_letter: DeadLetterSettings | None = None
    limit: LimitSettings | None = None
    hop_limit: int | None = None
    respond: bool = False
    has_to: bool = True
    concurrency: int = 1
    reply_to: Sequence[str] = ()

    @classmethod
    def of(cls, route: RouteSettings) -> RouteParts:
        """Return the parts of a complete route."""
        return cls(
            route.name,
            route.source,
            route.to,
            route.handler,
            route.when,
            route.key,
            route.strategy,
            route.retry,
            route.dead_letter,
            route.limit,
            route.hop_limit,
            respond=route.respond,
            has_to=bool(route.to),
            concurrency=route.concurrency,
            reply_to=route.reply_to,
        )


def check(
    connections: Connections | None,
    routes: Sequence[RouteParts],
    examples: Sequence[ExampleSettings | None],
    workers: int = 1,
    streams: Sequence[StreamSettings | None] = (),
) -> list[Problem]:
    """Return every problem. `connections` is None if not even their names are known.

    `streams` are used here only to check routes; `check_streams` checks the streams themselves.
    """
    problems: list[Problem] = []
    if connections is not None:
        problems += _check_connections(connections)
    named = by_name(streams)
    for index, route in enumerate(routes):
        problems += _check_route(f"routes[{index}]", route, connections, named)
        problems += check_shared(f"routes[{index}]", route.source, route.limit, workers)
    problems += _check_uniqueness(routes, connections or {})
    problems += _check_examples(examples, connections)
    return problems


def check_shared(
    path: str, source: SourceSettings | None, limit: LimitSettings | None, workers: int
) -> Iterator[Problem]:
    """Yield each problem of a route that `workers` workers can't share."""
    if source is not None and workers > 1:
        yield from source.kind.check_shared(f"{path}.from", source, workers)
    yield from check_shared_limit(path, limit, workers)


# --- connections -----------------------------------------------------------------------------------------------------


def _check_connections(connections: Connections) -> Iterator[Problem]:
    if not connections:
        yield Problem(
            "connections",
            "no connection is configured; add [connections.main] with servers = ['nats://127.0.0.1:4222']",
        )
    for name, connection in connections.items():
        path = f"connections.{name}"
        if not _CONNECTION_NAME.fullmatch(name) or "__" in name:
            yield Problem(
                path, "a connection's name has only letters, digits, '-' and single '_'; give it another name"
            )
        if connection is not None:
            yield from check_own_subject(f"{path}.inbox_prefix", connection.inbox_prefix)
            yield from _check_api(path, connection)
            yield from _check_authentication(path, connection)
            yield from check_files(path, connection)
            yield from check_transport(path, connection)


def _check_api(path: str, connection: ConnectionSettings) -> Iterator[Problem]:
    if connection.domain is not None and connection.api_prefix is not None:
        yield Problem(f"{path}.api_prefix", "domain and api_prefix exclude each other; keep one of them")
    if connection.domain is not None and (found := NOT_IN_NAMES.search(connection.domain)):
        text = f"{connection.domain!r} contains {found[0]!r}, which NATS does not allow; remove it"
        yield Problem(f"{path}.domain", text)
    elif connection.api_prefix is not None:
        try:
            validate_subject(connection.api_prefix, what="api_prefix")
        except SubjectError as error:
            yield Problem(f"{path}.api_prefix", str(error))


def _check_authentication(path: str, connection: ConnectionSettings) -> Iterator[Problem]:
    given = {
        "credentials_file": connection.credentials_file,
        "nkey_seed_file": connection.nkey_seed_file,
        "token": connection.token,
        "user": connection.user if connection.user is not None else connection.password,
        "servers": next((url for url in connection.servers if url.has_credentials), None),
    }
    methods = [key for key, value in given.items() if value is not None]
    if connection.user is not None and looks_secret(connection.user):
        yield Problem(f"{path}.user", "is a key, not a name; write it into a file, and give its path as nkey_seed_file")
    for key in methods[1:]:
        what = "the user part of a server's URL" if key == "servers" else key
        yield Problem(f"{path}.{key}", f"{methods[0]} and {what} exclude each other; keep one way to authenticate")
    if connection.user is not None and connection.password is None:
        yield Problem(f"{path}.password", "missing; a user needs a password")
    if connection.password is not None and connection.user is None:
        yield Problem(f"{path}.user", "missing; a password needs a user")


# --- routes ----------------------------------------------------------------------------------------------------------


def _check_route(path: str, route: RouteParts, connections: Connections | None, streams: Streams) -> Iterator[Problem]:
    if route.name is not None and not route.name.isprintable():
        yield Problem(f"{path}.name", "has control characters; give it a name that can be printed")
    if route.handler is not None and not _is_handler(route.handler):
        yield Problem(f"{path}.handler", f"{route.handler!r} is not of the form 'package.module:function'")
    source = route.source
    yield from check_respond(path, respond=route.respond, has_to=route.has_to, source=source)
    yield from check_reply_to(path, respond=route.respond, reply_to=route.reply_to)
    pattern: str | None = None
    if source is not None:
        source_problems = list(check_source(f"{path}.from", source))
        yield from source_problems
        yield from _check_connection(f"{path}.from.connection", source.connection, connections)
        # A mapping from an invalid source would only repeat its problem.
        pattern = None if source_problems else source.pattern
    # An unknown source is treated as a stream, which may have every key.
    kind = STREAM if source is None else source.kind
    from_stream = kind.is_stored
    yield from check_content(
        path,
        when=route.when,
        key=route.key,
        strategy=route.strategy,
        to=route.to,
        from_stream=from_stream,
    )
    yield from check_flow(path, limit=route.limit, to=route.to, from_stream=from_stream)
    for index, destination in enumerate(route.to):
        if destination is None:
            continue
        where = f"{path}.to[{index}]"
        yield from _check_connection(f"{where}.connection", destination.connection, connections)
        yield from _check_headers(f"{where}.headers", destination)
        its_kind = destination.kind_for(kind)
        yield from its_kind.check(where, destination)
        unsuited = list(its_kind.check_source(where, destination, kind))
        yield from unsuited
        named = bool(getattr(destination, its_kind.key)) and not unsuited
        if source is not None and pattern is not None and named:
            sent = (destination.connection, its_kind.template(destination))
            yield from _check_subject(f"{where}.{its_kind.key}", route, source, sent, connections, streams)
            for other in its_kind.other_templates(destination):
                sent = (destination.connection, other)
                yield from _check_subject(f"{where}.schedule_prefix", route, source, sent, connections, streams)
                yield from _check_schedules(where, destination, connections or {}, streams)
    yield from _check_last_writer(path, route)
    yield from check_retry(f"{path}.retry", route.retry)
    yield from check_schedule(f"{path}.retry.schedule", route.retry, source)
    if route.dead_letter is not None:
        where, letter = f"{path}.dead_letter", route.dead_letter
        end = destination_of(letter, "")
        yield from end.kind_for(kind).check(where, end)
        if letter.connection:
            yield from _check_connection(f"{where}.connection", letter.connection, connections)
        if source is not None and pattern is not None:
            sent = (letter.connection or source.connection, letter.subject)
            yield from _check_subject(f"{where}.subject", route, source, sent, connections, streams, dead=True)


def _check_last_writer(path: str, route: RouteParts) -> Iterator[Problem]:
    """Yield each problem of a destination with several writers, whose value decides whether a message is sent."""
    for index, destination in enumerate(route.to):
        if destination is not None and destination.last_writer:
            where = f"{path}.to[{index}].last_writer"
            if len(route.to) > 1:
                yield Problem(where, "needs a route with one destination; give each destination a route of its own")
            if route.handler is not None:
                yield Problem(where, "can't be combined with a handler; remove one of them")


def _check_subject(
    path: str,
    route: RouteParts,
    source: SourceSettings,
    sent: tuple[str, str],
    connections: Connections | None,
    streams: Streams,
    *,
    dead: bool = False,
) -> Iterator[Problem]:
    """Check the connection and subject that messages of a valid source are sent to. `dead`: they are dead letters."""
    connection, subject = sent
    if (wrong := misplaced_placeholder(subject)) is not None:
        yield Problem(path, wrong)
        return
    try:
        source.mapping(subject)
    except (MappingError, SubjectError) as error:
        yield Problem(path, str(error))
        return
    known = connections or {}
    if resolve_connection(source.connection, known) != resolve_connection(connection, known):
        return  # another connection to the same server: see `circles`
    if route.hop_limit and not dead:
        return  # dead letters are not counted, so a hop limit would not stop them
    text, narrow = _feeding(route, source, subject, known, streams)
    if text:
        cure = f"send to other subjects or {narrow}" if dead else f"send to other subjects, {narrow}, or set hop_limit"
        yield Problem(path, f"{text}, so the route would feed itself; {cure}{'' if dead else ' if it is intended'}")


def _check_schedules(
    path: str, to: DestinationSettings, connections: Connections, streams: Streams
) -> Iterator[Problem]:
    """Check the streams of `[[streams]]` that would store the schedules of delayed copies."""
    for _, stream in (one for same in streams.values() for one in same):
        there = resolve_connection(stream.connection, connections) == resolve_connection(to.connection, connections)
        if there and any(covers(one, f"{to.schedule_prefix}.*") for _, one in valid_patterns(stream.subjects)):
            loses = stream.config.loses_schedules
            if loses is not None and not stream.allow_message_schedules:
                yield Problem(f"{path}.delay", loses.replace("allow_msg_schedules", "allow_message_schedules"))


def _feeding(
    route: RouteParts,
    source: SourceSettings,
    subject: str,
    connections: Connections,
    streams: Streams,
) -> tuple[str, str]:
    """Return how messages of a route return to it, and how to narrow its source; two empty texts if they do not."""
    if source.subjects:
        own = next((one for one in source.subjects if feeds_itself(one, subject)), None)
        text = f"{subject!r} can match the route's own source {own!r} on the same connection"
        return ("", "") if own is None else (text, "narrow the source")
    found = stream_read(source, connections, streams)
    if found is None:
        return "", ""  # only the server knows the subjects of the stream
    number, stream = found
    subjects = tuple(one for _, one in valid_patterns(stream.subjects))
    # A source with partitions gets the subjects that the stream takes.
    transform = stream.transform if source.partitions is None else None
    taken = StreamSubjects(subjects, transform)
    text = f"{subject!r} is taken by the stream {stream.name!r} (streams[{number}]), and route "
    text += f"{route.name!r} reads all of it"
    return (
        (text, "set `filter` to the subjects that it should read")
        if feeds_itself_through(taken, (), subject)
        else ("", "")
    )


def _check_headers(path: str, destination: DestinationSettings) -> Iterator[Problem]:
    for index, name in enumerate(destination.headers.keep):
        if not is_control_header(name):
            yield Problem(
                f"{path}.keep[{index}]",
                f"{name!r} is not a control header, so it passes anyway; remove it. Control headers are "
                f"{', '.join(CONTROL_HEADERS)}",
            )


def _check_connection(path: str, name: str, connections: Connections | None) -> Iterator[Problem]:
    # Without any connection there is a problem at `connections` already.
    if not connections:
        return
    if not resolve_connection(name, connections):
        yield Problem(path, f"missing; there are several connections, name one of {', '.join(map(repr, connections))}")
    elif name and name not in connections:
        yield Problem(path, f"there is no connection {name!r}; {suggestion(name, connections)}")


def _is_handler(text: str) -> bool:
    module, _, function = text.partition(":")
    return all(part.isidentifier() for part in (*module.split("."), *function.split(".")))


def _check_uniqueness(routes: Sequence[RouteParts], connections: Connections) -> Iterator[Problem]:
    names: dict[str, int] = {}
    consumers: dict[tuple[str, str, str], int] = {}
    for index, route in enumerate(routes):
        if route.name is not None:
            first = names.setdefault(route.name, index)
            if first != index:
                text = f"{route.name!r} is the name of routes[{first}] already; choose another"
                yield Problem(f"routes[{index}].name", text, other=f"routes[{first}]")
        source = route.source
        consumer = None if source is None else source.kind.consumer(source)
        if source is not None and consumer is not None:
            stream, durable = consumer
            connection = resolve_connection(source.connection, connections)
            first = consumers.setdefault((connection, stream, durable), index)
            if first != index:
                yield Problem(
                    f"routes[{index}].from.durable",
                    f"routes[{first}] uses the consumer {durable!r} of stream {stream!r} already, "
                    "and each would get only a part; choose another name",
                    other=f"routes[{first}]",
                )


# --- tests -----------------------------------------------------------------------------------------------------------


def _check_examples(examples: Sequence[ExampleSettings | None], connections: Connections | None) -> Iterator[Problem]:
    names: dict[str, int] = {}
    for index, example in enumerate(examples):
        if example is None:
            continue
        first = names.setdefault(example.name, index)
        if first != index:
            text = f"{example.name!r} is the name of tests[{first}] already; choose another"
            yield Problem(f"tests[{index}].name", text, other=f"tests[{first}]")
        if example.message.connection is not None:
            yield from _check_connection(f"tests[{index}].message.connection", example.message.connection, connections)
        for number, expected in enumerate(example.expect):
            if expected.connection is not None:
                yield from _check_connection(
                    f"tests[{index}].expect[{number}].connection", expected.connection, connections
                )
