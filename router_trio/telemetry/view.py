"""What telemetry sees of a router: its plain state, read and never changed.

Telemetry is below the router and must not import it, so the shape that it reads is a protocol here. Everything behind
it is an attribute read: a scrape or a status page never waits for the tasks that do the work.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Protocol

from router_trio.outbox.outbox import Outbox
from router_trio.states import ConnectionState, RouteState


class ConnectionView(Protocol):
    """One named connection."""

    @property
    def state(self) -> ConnectionState:
        """Its state and lifecycle counters."""
        ...

    @property
    def outbox(self) -> Outbox:
        """Its queue, ledger and operation counters."""
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
