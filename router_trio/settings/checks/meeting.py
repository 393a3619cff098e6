"""Where connections meet, and what a route from a whole stream reads, as far as the configuration says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from router_trio.settings.routes import SourceSettings
from router_trio.settings.sections import ConnectionSettings
from router_trio.settings.streams import StreamSettings

Connections = Mapping[str, ConnectionSettings | None]

_LOGIN = ("credentials_file", "nkey_seed_file", "user", "password", "token")


def resolve_connection(name: str, connections: Mapping[str, object]) -> str:
    """Return the connection that a route means: by default the only one. Empty when that is unclear."""
    if name or len(connections) != 1:
        return name
    return next(iter(connections))


def meet_at(one: str, other: str, connections: Connections) -> bool | None:
    """Return True if what is sent on one connection arrives on the other, None if it may: with another login."""
    if one == other:
        return True
    ours, theirs = connections.get(one), connections.get(other)
    if ours is None or theirs is None:
        return False
    if servers_of(ours).isdisjoint(servers_of(theirs)):
        return False
    return True if _login(ours) == _login(theirs) else None


def servers_of(connection: ConnectionSettings) -> frozenset[str]:
    """Return the servers of a connection, each as one text: without any it is connected to the embedded one."""
    return frozenset(f"{url.host.lower()}:{url.port}" for url in connection.servers) or frozenset(("embedded",))


Streams = Mapping[str, Sequence[tuple[int, StreamSettings]]]
"""The entries of `[[streams]]` with each name, and their numbers."""


def by_name(streams: Sequence[StreamSettings | None]) -> Streams:
    """Return entries by the name of their stream, so that none has to be looked for among thousands."""
    found: dict[str, list[tuple[int, StreamSettings]]] = {}
    for number, stream in enumerate(streams):
        if stream is not None:
            found.setdefault(stream.name, []).append((number, stream))
    return found


def stream_read(
    source: SourceSettings, connections: Connections, streams: Streams
) -> tuple[int, StreamSettings] | None:
    """Return the entry of `[[streams]]` that makes the stream of a source, with its number; or None.

    It may be that of another connection which leads to the same JetStream.
    """
    at = resolve_connection(source.connection, connections)
    for number, stream in streams.get(source.kind.stream(source) or "", ()):
        made_at = resolve_connection(stream.connection, connections)
        if meet_at(made_at, at, connections) and _api(connections.get(made_at)) == _api(connections.get(at)):
            return number, stream
    return None


def _login(connection: ConnectionSettings) -> tuple[object, ...]:
    urls = {(url.user, url.password, url.token) for url in connection.servers}
    return (*(getattr(connection, key) for key in _LOGIN), frozenset(urls))


def _api(connection: ConnectionSettings | None) -> tuple[object, ...]:
    """Return what decides which JetStream is asked, of those that the servers of a connection reach."""
    return () if connection is None else (connection.domain, connection.api_prefix)
