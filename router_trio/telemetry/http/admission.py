"""Decide which connections are kept and which requests are answered, by counting and without I/O.

A connection is either waiting (for its headers, or for its next request) or being answered. A waiting connection may be
closed at any time: HTTP allows it, and nothing is lost. So a new connection is always accepted. If there are too many,
the oldest waiting connection of the peer with the most waiting connections is closed instead. The limit of requests is
lower than the limit of connections, in total and per peer, so there is always a waiting connection to close. A probe
does not count as a request: beyond the limit it is answered while its connection counts as waiting, and that connection
may be closed before the answer is complete.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar


class HasPeer(Protocol):
    """A connection, compared by identity."""

    @property
    def peer(self) -> str:
        """The address of the client."""
        ...


C = TypeVar("C", bound=HasPeer)


@dataclass(frozen=True, slots=True)
class Limits:
    """Maximum numbers of connections and of requests being answered, in total and per peer."""

    connections: int
    connections_per_peer: int
    requests: int
    requests_per_peer: int


@dataclass(slots=True)
class _Peer(Generic[C]):
    # Oldest first. A dict, because connections are often removed from the middle.
    waiting: dict[C, None] = field(default_factory=dict)
    answering: set[C] = field(default_factory=set)


class Admission(Generic[C]):
    """The connections of one server, admitted within limits."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._peers: dict[str, _Peer[C]] = {}
        self._count = 0
        self._answering = 0

    def arrive(self, connection: C) -> C | None:
        """Add a connection, as waiting. Return the one to close for it, which may be `connection` itself, or None."""
        evicted: C | None = None
        peer = self._peers.get(connection.peer)
        if peer is not None and len(peer.waiting) + len(peer.answering) >= self._limits.connections_per_peer:
            evicted = self._evict(peer) or connection
        elif self._count >= self._limits.connections:
            greediest = max(self._peers.values(), key=lambda one: len(one.waiting))
            evicted = self._evict(greediest) or connection
        if evicted is not connection:
            self.wait(connection)
        return evicted

    def may_answer(self, connection: C) -> bool:
        """Return True if the request of this connection may be answered. It counts as answered until `wait` or `leave`.

        Otherwise the connection stays waiting. Always False for a connection that was evicted.
        """
        peer = self._peers.get(connection.peer)
        if peer is None or connection not in peer.waiting:
            return False
        if self._answering >= self._limits.requests or len(peer.answering) >= self._limits.requests_per_peer:
            return False
        self.leave(connection)
        self._peers.setdefault(connection.peer, _Peer()).answering.add(connection)
        self._answering += 1
        self._count += 1
        return True

    def wait(self, connection: C) -> None:
        """Record that the connection waits for its first request, or for the next one."""
        self.leave(connection)
        self._peers.setdefault(connection.peer, _Peer()).waiting[connection] = None
        self._count += 1

    def leave(self, connection: C) -> None:
        """Record that the connection has ended. Does nothing if it was evicted."""
        peer = self._peers.get(connection.peer)
        if peer is None:
            return
        if connection in peer.answering:
            peer.answering.remove(connection)
            self._answering -= 1
        elif connection in peer.waiting:
            del peer.waiting[connection]
        else:
            return
        self._count -= 1
        if not peer.waiting and not peer.answering:
            del self._peers[connection.peer]

    def _evict(self, peer: _Peer[C]) -> C | None:
        oldest = next(iter(peer.waiting), None)
        if oldest is not None:
            self.leave(oldest)
        return oldest
