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
    """Wait until one of the connections comes or goes."""

    async def changed(connection: Connection) -> None:
        await connection.changed()
        nursery.cancel_scope.cancel()

    async with trio.open_nursery() as nursery:
        for connection in connections:
            nursery.start_soon(changed, connection)
