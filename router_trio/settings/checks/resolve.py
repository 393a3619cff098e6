"""Resolve which connection, server and stream a route uses, as far as the configuration tells."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from router_trio.settings.routes import SourceSettings
from router_trio.settings.routes.sources.partitioned import derived_stream
from router_trio.settings.sections import ConnectionSettings
from router_trio.settings.streams import StreamSettings

Connections = Mapping[str, ConnectionSettings | None]

_LOGIN = ("credentials_file", "nkey_seed_file", "user", "password", "token")


def resolve_connection(name: str, connections: Mapping[str, object]) -> str:
    """Return the name of the connection of a route: by default the only one there is; empty if there are several."""
    if name or len(connections) != 1:
        return name
    return next(iter(connections))


def reaches(one: str, other: str, connections: Connections) -> bool | None:
    """Return True if messages sent on one connection arrive on the other, None if they may: the logins differ."""
    if one == other:
        return True
    ours, theirs = connections.get(one), connections.get(other)
    if ours is None or theirs is None:
        return False
    if servers_of(ours).isdisjoint(servers_of(theirs)):
        return False
    return True if _login(ours) == _login(theirs) else None


def servers_of(connection: ConnectionSettings) -> frozenset[str]:
    """Return the servers of a connection, each as one text: `embedded` if it has none."""
    return frozenset(f"{url.host.lower()}:{url.port}" for url in connection.servers) or frozenset(("embedded",))


Streams = Mapping[str, Sequence[tuple[int, StreamSettings]]]
"""The entries of `[[streams]]` with each name, and their numbers."""


def by_name(streams: Sequence[StreamSettings | None]) -> Streams:
    """Return the entries by the name of their stream: there may be thousands."""
    found: dict[str, list[tuple[int, StreamSettings]]] = {}
    for number, stream in enumerate(streams):
        if stream is not None:
            found.setdefault(stream.name, []).append((number, stream))
    return found


def stream_read(
    source: SourceSettings, connections: Connections, streams: Streams
) -> tuple[int, StreamSettings] | None:
    """Return the entry of `[[streams]]` that creates the stream of a source, with its number; or None.

    The entry may name another connection to the same JetStream.
    """
    return _entry(source.kind.stream(source), source, connections, streams)


def copy_read(source: SourceSettings, connections: Connections, streams: Streams) -> tuple[int, StreamSettings] | None:
    """Return the entry of `[[streams]]` for the copy of its stream that a partitioned source may read; or None."""
    consumer = source.kind.consumer(source)
    if source.partitions is None or consumer is None:
        return None
    return _entry(derived_stream(*consumer), source, connections, streams)


def subjects_read(source: SourceSettings, stream: StreamSettings) -> Sequence[str]:
    """Return the patterns of the subjects with which a source gets the messages of a stream of `[[streams]]`.

    A source with `partitions` gets them without the token of the partition.
    """
    return stream.stored_under if source.partitions is None else stream.subjects


def _entry(
    name: str | None, source: SourceSettings, connections: Connections, streams: Streams
) -> tuple[int, StreamSettings] | None:
    at = resolve_connection(source.connection, connections)
    for number, stream in streams.get(name or "", ()):
        made_at = resolve_connection(stream.connection, connections)
        if reaches(made_at, at, connections) and _api(connections.get(made_at)) == _api(connections.get(at)):
            return number, stream
    return None


def _login(connection: ConnectionSettings) -> tuple[object, ...]:
    urls = {(url.user, url.password, url.token) for url in connection.servers}
    return (*(getattr(connection, key) for key in _LOGIN), frozenset(urls))


def _api(connection: ConnectionSettings | None) -> tuple[object, ...]:
    """Return the keys that select one JetStream among those that the servers of a connection reach."""
    return () if connection is None else (connection.domain, connection.api_prefix)
