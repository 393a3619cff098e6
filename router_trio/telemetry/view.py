"""The view that telemetry has of a router: its plain state, which telemetry reads and never changes.

Telemetry is below the router and must not import it, so the state is described by protocols here. All of it is read
from attributes: a scrape or a status page never waits for the tasks that do the work.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from router_trio.outbox.ledger import Counters, Ledger
from router_trio.states import ConnectionState, RouteState


class OutboxView(Protocol):
    """The publishes of one connection: an `Outbox`, or the outboxes of several processes combined."""

    @property
    def pending(self) -> int:
        """The number of operations accepted but not yet written."""
        ...

    @property
    def pending_bytes(self) -> int:
        """The size of the pending operations' frames in bytes."""
        ...

    @property
    def in_flight(self) -> int:
        """The number of operations written but not yet confirmed."""
        ...

    @property
    def oldest_age(self) -> float:
        """Seconds since the oldest pending operation was accepted; 0 if nothing is pending."""
        ...

    @property
    def max_operations(self) -> int:
        """The maximum number of pending operations."""
        ...

    @property
    def max_bytes(self) -> int:
        """The maximum size of the pending operations in bytes."""
        ...

    @property
    def ledger(self) -> Ledger:
        """The counts of accepted and settled operations."""
        ...

    @property
    def counters(self) -> Counters:
        """The counts of operations by outcome."""
        ...

    def unanswered_destinations(self) -> list[str]:
        """Return the destinations that do not confirm the publishes sent to them."""
        ...


class ConnectionView(Protocol):
    """A named connection."""

    @property
    def state(self) -> ConnectionState:
        """The state and the lifecycle counters of the connection."""
        ...

    @property
    def outbox(self) -> OutboxView:
        """The queue, the ledger and the operation counters of the connection."""
        ...


class ConfigView(Protocol):
    """The configuration of a router: a `ConfigState`, or that of several processes combined."""

    @property
    def hash(self) -> str:
        """The hash of the configuration in force."""
        ...

    @property
    def hashes(self) -> Sequence[str]:
        """The hashes of all configurations in force: several if workers run different ones."""
        ...

    @property
    def files(self) -> Sequence[str]:
        """The files that the configuration in force was read from."""
        ...

    @property
    def loaded_at(self) -> float:
        """The Unix time at which the configuration in force took effect."""
        ...

    @property
    def last_error(self) -> str | None:
        """The problems of the last reload, one per line; None if it was accepted."""
        ...

    @property
    def reloads(self) -> Mapping[str, int]:
        """The number of reloads since the start, by outcome: `accepted` and `refused`."""
        ...


class RouterView(Protocol):
    """The state of a router."""

    @property
    def name(self) -> str:
        """The name of the router, from its settings."""
        ...

    @property
    def connections(self) -> Mapping[str, ConnectionView]:
        """The connections by name; empty until they have been created."""
        ...

    @property
    def routes(self) -> Sequence[RouteState]:
        """The states of the routes."""
        ...

    @property
    def config(self) -> ConfigView:
        """The configuration in force, and the result of the last reload."""
        ...

    @property
    def fatal(self) -> str | None:
        """The reason why the router can't continue, or None."""
