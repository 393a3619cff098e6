"""`/readyz` of a simulated router."""

from __future__ import annotations

from collections.abc import Collection

import trio

from router_trio import Live
from router_trio.telemetry.http.status import readiness


def reasons(live: Live) -> list[dict[str, str]]:
    """Return the reasons why it is not ready; none if it is."""
    found: list[dict[str, str]] = readiness(live, trio.current_time())[1]["reasons"]
    return found


def unready(live: Live, full: Collection[str], of: str | None, *, but_breakers: bool) -> str | None:
    """Return the reported problem of one route or anywhere, or None. `full` are routes that may report it forever.

    A revoked permission is known to be restored only after a successful publish.
    """
    breakers = {one.why_open for route in live.routes for one in route.breakers}
    wrong = [
        one
        for one in reasons(live)
        if "permission_denied" not in one["reason"]
        and not (but_breakers and one["reason"] in breakers)
        and one.get("route") not in full
        and of in (None, one.get("route"))
    ]
    return str(wrong) if wrong else None


def is_full(live: Live, name: str) -> bool:
    """Return True if a route reports that its consumer delivers nothing new, since too many messages are
    unacknowledged.
    """
    return any(route.name == name and "max_ack_pending" in (route.unready or "") for route in live.routes)


def is_held_up(live: Live, name: str) -> bool:
    """Return True if a breaker of a route is not closed: it may be ready all the same, see `RouteState.held_up`."""
    return any(one.state != "closed" for route in live.routes if route.name == name for one in route.breakers)


def settled(live: Live, name: str) -> int:
    """Return the number of messages of a route that have a fate, without those returned to their stream."""
    fates = [route.fates for route in live.routes if route.name == name]
    return sum(count for one in fates for fate, count in one.items() if fate != "returned")
