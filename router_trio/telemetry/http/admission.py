"""Decide which clients may stay connected, and whose requests are answered: by numbers, without I/O.

A connection either waits (for its headers to arrive, or for its next request) or is being answered. One that waits can
be closed at any time: HTTP allows it, and nothing is lost. So a new connection is always taken in, and where there are
too many, one that waits is closed for it: the oldest of the peer that has the most. Requests are bounded below the
connections, in all and for each peer, so that there is always one that waits. A probe needs no place among those
requests: beyond their number it is answered as one that waits, and may be closed in the middle of it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar


class HasPeer(Protocol):
    """A connection, told apart by identity."""

    @property
    def peer(self) -> str:
        """The address that it comes from."""
        ...


C = TypeVar("C", bound=HasPeer)


@dataclass(frozen=True, slots=True)
class Limits:
    """Connections, and those of them that are being answered; each in all and of one peer."""

    connections: int
    connections_per_peer: int
    requests: int
    requests_per_peer: int


@dataclass(slots=True)
class _Peer(Generic[C]):
    # Oldest first. A dict, since one is often taken out of the middle.
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
        """Take in a connection, which waits; return the one to close for it. That may be `connection` itself."""
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
        """Return True if the request of this connection may be answered; then it is answered until `wait` or `leave`.

        Otherwise the connection waits, as before. One that was evicted is not taken in again.
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
        """Record that the connection is gone. Does nothing if it was evicted."""
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
