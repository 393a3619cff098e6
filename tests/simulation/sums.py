"""What adds up at any moment, and what is bounded: ledgers, and what a route has in hand. Each gives what is wrong."""

from __future__ import annotations

from collections.abc import Iterator

from router_trio import Live
from router_trio.routing.stream.source import StreamSource


def ledgers(live: Live) -> Iterator[str]:
    """What was accepted by a connection is pending, in flight, or has one fate.

    What is pending has bytes, and nothing else.
    """
    for name, entry in live.ledger().items():
        waiting = live.connections[name].outbox.pending_bytes
        if waiting < 0 or (waiting and not entry["pending"]):
            yield f"{name} {entry}, and {waiting} bytes are pending"
        if entry["accepted"] != entry["pending"] + entry["in_flight"] + sum(entry["settled"].values()):
            yield f"{name} {entry}"


def route_ledgers(live: Live) -> Iterator[str]:
    """What a route received is in hand or has one fate. Not at events: some are told in the middle of a batch."""
    for route in live.routes:
        if route.in_hand < 0 or route.received_in_all != route.in_hand + sum(route.settled.values()):
            yield f"{route.name}: {route.received_in_all} received, {route.in_hand} in hand, {route.settled}"


def bounds(live: Live) -> Iterator[str]:
    """A route has no more of a stream in hand than twice what its settings say."""
    for connection in live.connections.values():
        for source in connection._sources:
            if isinstance(source, StreamSource):
                bound = 2 * source._routing.plan.settings.source.max_in_flight
                in_hand = source.keeper.hand.count
                if in_hand > bound:
                    yield f"{source.state.name} has {in_hand} in hand, more than {bound}"
