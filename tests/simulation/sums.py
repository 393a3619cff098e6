"""Sums that hold at any moment, and bounds: ledgers, and the messages that a route has in hand. Each function returns
the violations.
"""

from __future__ import annotations

from collections.abc import Iterator

from router_trio import Live
from router_trio.routing.stream.source import StreamSource


def ledgers(live: Live) -> Iterator[str]:
    """Check that each publish accepted by a connection is pending, in flight, or has one fate.

    Pending publishes have bytes, and no others have.
    """
    for name, entry in live.ledger().items():
        waiting = live.connections[name].outbox.pending_bytes
        if waiting < 0 or (waiting and not entry["pending"]):
            yield f"{name} {entry}, and {waiting} bytes are pending"
        if entry["accepted"] != entry["pending"] + entry["in_flight"] + sum(entry["settled"].values()):
            yield f"{name} {entry}"


def route_ledgers(live: Live) -> Iterator[str]:
    """Check that each message a route received is in hand or has one fate. Not valid at events: some are emitted within
    a batch.
    """
    for route in live.routes:
        if route.in_hand < 0 or route.received_in_all != route.in_hand + sum(route.settled.values()):
            yield f"{route.name}: {route.received_in_all} received, {route.in_hand} in hand, {route.settled}"


def bounds(live: Live) -> Iterator[str]:
    """Check that a route has no more stream messages in hand than twice its configured limit."""
    for connection in live.connections.values():
        for source in connection._sources:
            if isinstance(source, StreamSource):
                bound = 2 * source._routing.plan.settings.source.max_in_flight
                in_hand = source.keeper.hand.count
                if in_hand > bound:
                    yield f"{source.state.name} has {in_hand} in hand, more than {bound}"
