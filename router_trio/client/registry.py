"""The registry of an open router: its connections, their publishers, and its routes.

A program reads it through `Live`; the run of the router fills it, and a reload replaces parts.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from router_trio.client.publisher import ConnectionPublisher, HeldPublisher, Publisher
from router_trio.connection.supervisor import Connection
from router_trio.errors import ConfigurationError, Problem
from router_trio.routing.route_counts import continue_counts, counts_of, fold, total
from router_trio.states import RouteState

MOST_PAST_ROUTES = 1000
"""Removed routes whose counts are kept."""


class Registry:
    """Connections and publishers by name, and routes in the order of the settings."""

    def __init__(self) -> None:
        self.connections: dict[str, Connection] = {}
        self._publishers: dict[str, ConnectionPublisher] = {}
        self._only: ConnectionPublisher | None = None
        self._routes: dict[str, RouteState] = {}
        self._leaving: dict[RouteState, None] = {}
        self._cached_routes: tuple[RouteState, ...] | None = None
        """The routes, cached while no reload has left earlier generations behind."""
        self._past: dict[str, RouteState] = {}

    @property
    def routes(self) -> tuple[RouteState, ...]:
        """The routes of the settings, followed by removed ones that still have messages in hand."""
        # A scrape reads this once per metric, and a router may have a thousand routes.
        if self._cached_routes is not None:
            return self._cached_routes
        self._forget_settled()
        leaving = [one for one in map(total, self._leaving) if one.in_hand]
        found = (*map(total, self._routes.values()), *leaving)
        if not self._leaving and not any(one.earlier for one in self._routes.values()):
            self._cached_routes = found
        return found

    def publisher(self, connection: str | None) -> ConnectionPublisher:
        """Return the publisher of a connection, which may be omitted if there is one. Raises `ConfigurationError`."""
        if connection is None and self._only is not None:
            return self._only
        publisher = self._publishers.get(connection or "")
        if publisher is None:
            known = ", ".join(sorted(self._publishers))
            wrong = "name the connection" if connection is None else f"there is no connection {connection!r}"
            raise ConfigurationError([Problem("connection", f"{wrong}; there are {known}")], "publish")
        return publisher

    def put_connection(self, name: str, connection: Connection, publisher: ConnectionPublisher) -> None:
        """Use this connection under this name from now on."""
        self.connections[name] = connection
        self._put_publisher(name, publisher)

    def hold_publishers(self, name: str) -> None:
        """Make programs that publish on a connection wait, until it is replaced or removed.

        Those that wait for room are included: a queue that is full may never have room again.
        """
        before = self._publishers[name]
        assert isinstance(before, Publisher), "publishers are held once"
        held = HeldPublisher(partial(self.publisher, name), before)
        self._put_publisher(name, held)
        before.hand_over(held)

    def remove_connection(self, name: str) -> None:
        """Remove the connection with this name."""
        del self.connections[name]
        self._put_publisher(name, None)

    def release_publishers(self) -> None:
        """Let held publishers continue on the connections that were not replaced, because the router ends."""
        for name, publisher in tuple(self._publishers.items()):
            if isinstance(publisher, HeldPublisher):
                publisher.before.take_back()
                self._put_publisher(name, publisher.before)

    def put_route(self, state: RouteState) -> None:
        """Show this route under its name from now on."""
        self._routes[state.name] = state
        self._cached_routes = None

    def remove_route(self, name: str) -> None:
        """Remove the route with this name. What it has in hand is shown until it is settled."""
        state = self._routes.pop(name)
        state.is_leaving = True
        self._cached_routes = None
        self._leaving[state] = None
        self._past[name] = state
        if len(self._past) > MOST_PAST_ROUTES:
            del self._past[next(iter(self._past))]

    def continue_counts(self, state: RouteState) -> None:
        """Let a route continue the counts of a removed one with the same name, if there was one."""
        past = self._past.pop(state.name, None)
        if past is not None:
            self._leaving.pop(past, None)
            continue_counts(state, past)

    def _forget_settled(self) -> None:
        """Keep only the counts of removed routes that are settled."""
        leaving, self._leaving = self._leaving, {}
        for one in leaving:
            fold(one)
            if one.earlier or not one.is_settled:
                self._leaving[one] = None
            elif self._past.get(one.name) is one:
                self._past[one.name] = counts_of(one)

    def past_route(self, name: str) -> RouteState | None:
        """Return the counts of a removed route; None if there is none with that name."""
        past = self._past.get(name)
        return None if past is None else total(past)

    def put_in_order(self, names: Sequence[str]) -> None:
        """Show the routes in this order, at the end of a reload."""
        self._forget_settled()  # once: thousands may have been removed
        self._routes = {name: self._routes[name] for name in names if name in self._routes}
        self._cached_routes = None

    def _put_publisher(self, name: str, publisher: ConnectionPublisher | None) -> None:
        before = self._publishers.pop(name, None)
        if publisher is not None:
            self._publishers[name] = publisher
        self._only = next(iter(self._publishers.values())) if len(self._publishers) == 1 else None
        if isinstance(before, HeldPublisher):
            before.release()
