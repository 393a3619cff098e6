"""The view that telemetry has of a router: its plain state, read and never changed.

Telemetry is below the router and must not import it, so the shape that it reads is a protocol here. Everything behind
it is an attribute read: a scrape or a status page never waits for the tasks that do the work.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Protocol

from router_trio.outbox.ledger import Counters, Ledger
from router_trio.states import ConnectionState, RouteState


class OutboxView(Protocol):
    """The publishes of one connection: an `Outbox`, or those of several processes together."""

    @property
    def pending(self) -> int:
        """Operations accepted and not written."""
        ...

    @property
    def pending_bytes(self) -> int:
        """Bytes of their frames."""
        ...

    @property
    def in_flight(self) -> int:
        """Operations written and not confirmed."""
        ...

    @property
    def oldest_age(self) -> float:
        """Seconds since the oldest pending operation was accepted; 0 when nothing is pending."""
        ...

    @property
    def max_operations(self) -> int:
        """Most operations that may be pending."""
        ...

    @property
    def max_bytes(self) -> int:
        """Most bytes that may be pending."""
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
        """Return the destinations that do not confirm what they are sent."""
        ...


class ConnectionView(Protocol):
    """A named connection."""

    @property
    def state(self) -> ConnectionState:
        """Its state and lifecycle counters."""
        ...

    @property
    def outbox(self) -> OutboxView:
        """Its queue, ledger and operation counters."""
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
        """The Unix time at which it took effect."""
        ...

    @property
    def last_error(self) -> str | None:
        """The problems of the last reload, one a line; None if it was accepted."""
        ...


class RouterView(Protocol):
    """A whole router."""

    @property
    def name(self) -> str:
        """The name from the settings."""
        ...

    @property
    def connections(self) -> Mapping[str, ConnectionView]:
        """Its connections by name; empty while it is being built."""
        ...

    @property
    def routes(self) -> Sequence[RouteState]:
        """Its routes."""
        ...

    @property
    def config(self) -> ConfigView:
        """Its configuration."""
        ...

    @property
    def fatal(self) -> str | None:
        """Why the router can't go on, or None."""


@cache
def package_version() -> str:
    """The version of the installed distribution, `0` when it runs from a bare source tree."""
    # Imported here, because nothing that routes needs it.
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("router-trio")
    except PackageNotFoundError:
        return "0"
