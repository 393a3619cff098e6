"""Links of a router that is under test."""

from __future__ import annotations

from router_trio.connection.supervisor import Connection


def close_link(connection: Connection) -> None:
    """Close the live link; the supervisor will reconnect."""
    session = connection.listener.session
    assert session is not None, "there is no link"
    session.end()
