"""Findings about the servers of connections, and about the streams of `[[streams]]`. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from router_trio.errors.quotes import excerpt
from router_trio.nats.jetstream.api import ConsumerInfo, StreamInfo
from router_trio.nats.jetstream.streams import stream_config
from router_trio.online.facts import ERROR, NOTE, WARNING, Facts, Finding, Found, UnaskedError, Unknown, known
from router_trio.online.parts import Declared, Server, declared_in, destinations_of, sources_of
from router_trio.settings.permissions import Grant, permissions_of

OLDEST = (2, 10)
"""The oldest nats-server that is supported."""

SKEW = 5.0
"""Seconds by which the clocks of server and router may differ without a warning."""

MOST_NAMED = 3
"""Maximum number of routes that the finding of a permission names."""

LEVELS = {"allow_message_ttl": 1, "allow_message_schedules": 2, "allow_batched": 4}
"""The level of the JetStream API that keys of `[[streams]]` need."""


def no_jetstream(facts: Facts, server: Server) -> Iterator[Found]:
    """Find a connection without JetStream, where routes need it."""
    why = facts.server(server.connection).no_jetstream
    if why is not None:
        yield Found(ERROR, server.path, f"{why}; routes read or send to streams here, so they fail; enable JetStream")


def server_too_old(facts: Facts, server: Server) -> Iterator[Found]:
    """Find a server that is older than what the configuration needs."""
    found = facts.server(server.connection)
    if found.major_minor is None:
        return
    for since, path, what in _needs(facts, server):
        if found.major_minor < since:
            version = ".".join(map(str, since))
            text = f"the server has version {excerpt(found.version)}, and {what} needs {version}; update the server"
            yield Found(ERROR, path, text)


def _needs(facts: Facts, server: Server) -> Iterator[tuple[tuple[int, int], str, str]]:
    """Yield each version that is needed at a server, with the path of a key and what needs it."""
    here = server.connection
    yield OLDEST, server.path, "router-trio"
    for source in sources_of(facts.settings):
        if source.connection == here and source.route.source.standby:
            yield (2, 11), f"{source.path}.standby", "standby"
        if source.connection == here and source.route.source.partitions is not None:
            entire = source.route.source.partition_by is None
            what = "partitions without partition_by" if entire else "partitions"
            yield (2, 12) if entire else (2, 11), f"{source.path}.partitions", what
    for to in destinations_of(facts.settings):
        if to.connection == here and to.to.ttl:
            yield (2, 11), f"{to.section}.ttl", "ttl"
        if to.connection == here and to.to.delay is not None:
            yield (2, 12), to.delay_path, "delay" if to.delay_path.endswith(".delay") else "schedule"
    for one in declared_in(facts.settings):
        if one.connection == here and one.stream.partitions is not None and one.stream.partition_by is None:
            yield (2, 12), f"{one.path}.partitions", "partitions without partition_by"
        if one.connection == here and one.stream.allow_message_ttl:
            yield (2, 11), f"{one.path}.allow_message_ttl", "allow_message_ttl"
        if one.connection == here and one.stream.allow_message_schedules:
            yield (2, 12), f"{one.path}.allow_message_schedules", "allow_message_schedules"
        if one.connection == here and one.stream.allow_batched:
            yield (2, 14), f"{one.path}.allow_batched", "allow_batched"


def clocks_differ(facts: Facts, server: Server) -> Iterator[Found]:
    """Find a server whose clock differs from ours."""
    skew = facts.server(server.connection).skew
    if skew is not None and abs(skew) > SKEW:
        way = "ahead of" if skew > 0 else "behind"
        text = (
            f"the clock of the server is {abs(skew):.0f} s {way} this machine's: times and ages that the router "
            "reports, and ranges of times in commands, are wrong by that; synchronize the clocks"
        )
        yield Found(WARNING, server.path, text)


def permission_missing(facts: Facts, server: Server) -> Iterator[Found]:
    """Find permissions that the user of a connection lacks."""
    found = facts.server(server.connection)
    unknown: Unknown | None = None
    for grant in permissions_of(facts.settings, server.connection):
        why = found.permissions.get((grant.kind, grant.subject))
        if isinstance(why, Unknown):
            unknown = why if unknown is None or unknown.reported else unknown
        elif why is not None:
            cure = f"grant {grant.kind} {excerpt(grant.subject)!r}, as `router-trio permissions` prints it"
            is_needed = not grant.optional and not (grant.first_start and _is_made(facts, server.connection, grant))
            yield Found(ERROR if is_needed else NOTE, server.path, f"{why}; it is for {_purpose(grant)}; {cure}")
    if unknown is not None:
        raise UnaskedError(unknown)


def _is_made(facts: Facts, connection: str, grant: Grant) -> bool:
    """Return True if everything exists that is made with a permission of the first start, as far as that is known."""
    known = facts.server(connection)
    _, creates, durable = grant.subject.partition(".CONSUMER.DURABLE.CREATE.")
    if creates:
        stream, _, name = durable.partition(".")
        return isinstance(known.consumers.get((stream, name)), ConsumerInfo)
    _, _, stream = grant.subject.partition(".STREAM.CREATE.")
    return isinstance(known.streams.get(stream), StreamInfo)


def _purpose(grant: Grant) -> str:
    routes = [name for parts in grant.reasons.values() for noun, name in parts if noun == "route"]
    named = list(dict.fromkeys(routes))
    more = f" and {len(named) - MOST_NAMED} more" if len(named) > MOST_NAMED else ""
    of = f" of {', '.join(map(excerpt, named[:MOST_NAMED]))}{more}" if named else ""
    return f"{'; '.join(grant.reasons)}{of}"


FINDINGS: tuple[Finding[Server], ...] = (no_jetstream, server_too_old, permission_missing, clocks_differ)
"""Each finding about the server of a connection."""


def declared_differs(facts: Facts, declared: Declared) -> Iterator[Found]:
    """Find a stream that is not as `[[streams]]` describes it."""
    info = facts.stream(declared.connection, declared.stream.name)
    for difference in () if info is None else declared.stream.config.differences(stream_config(info)):
        key = difference.partition(" ")[0]
        text = f"{difference}; the router does not change the stream: edit it, or change the key"
        yield Found(WARNING, f"{declared.path}.{key}", f"stream {declared.stream.name!r}: {text}")


def declared_overlaps(facts: Facts, declared: Declared) -> Iterator[Found]:
    """Find a stream that can't be created, because another one takes its subjects."""
    if facts.stream(declared.connection, declared.stream.name) is not None:
        return
    names = known(facts.server(declared.connection).takers.get(declared.path, ()))
    if names:
        text = (
            f"stream {declared.stream.name!r} can't be created, because {excerpt(', '.join(names))} takes some of its "
            "subjects; choose other subjects, or that name"
        )
        yield Found(ERROR, f"{declared.path}.subjects", text)


def level_too_low(facts: Facts, declared: Declared) -> Iterator[Found]:
    """Find a stream on a server whose JetStream API lacks a key of it."""
    info = facts.stream(declared.connection, declared.stream.name)
    for key, level in LEVELS.items():
        if info is not None and 0 < info.level < level and getattr(declared.stream, key):
            text = f"needs level {level} of the JetStream API, and the stream's server has {info.level}; update it"
            yield Found(ERROR, f"{declared.path}.{key}", text)


def to_be_created(facts: Facts, declared: Declared) -> Iterator[Found]:
    """Note a stream that does not exist yet."""
    if facts.stream(declared.connection, declared.stream.name) is None:
        text = f"stream {declared.stream.name!r} does not exist; the router creates it at its start"
        yield Found(NOTE, declared.path, text)


DECLARED: tuple[Finding[Declared], ...] = (declared_overlaps, level_too_low, declared_differs, to_be_created)
"""Each finding about a stream of `[[streams]]`."""
