"""The connections that a route sends to."""

from __future__ import annotations

from collections.abc import Sequence

import trio

from router_trio.connection.supervisor import Connection
from router_trio.routing.outlets.outlet import Outlet


def connections_of(outlets: Sequence[Outlet]) -> tuple[Connection, ...]:
    """Return the connections of destinations, each once."""
    return tuple({outlet.connection.name: outlet.connection for outlet in outlets}.values())


async def first_change(connections: Sequence[Connection]) -> None:
    """Wait until one of the connections comes or goes, from this very call on."""
    # No tasks: a connection that comes before they begin would have come unnoticed.
    change = trio.Event()
    for connection in connections:
        connection.when_changed(change.set)
    try:
        await change.wait()
    finally:
        for connection in connections:
            connection.stop_notifying(change.set)
