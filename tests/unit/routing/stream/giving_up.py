"""A route from a stream that has dead letters, on a fake broker with a stream for them."""

from __future__ import annotations

from typing import Any

from router_trio.testing import FakeBroker
from router_trio.testing.streams import StoredMessage
from tests.support.world import World

DEAD: dict[str, Any] = {"subject": "dead.{{wildcard(1)}}"}
FROM: dict[str, Any] = {"stream": "IN", "durable": "router", "filter": "in.*", "dead_letter": DEAD}
NAME = "Router-Dead-Letter-"


def brokers() -> dict[str, FakeBroker]:
    """`main` has the streams `IN`, `OUT` and `DEAD`."""
    broker = FakeBroker()
    broker.add_stream("IN", ["in.*"])
    broker.add_stream("OUT", ["out.>"])
    broker.add_stream("DEAD", ["dead.>"])
    return {"main": broker}


def dead(w: World) -> list[StoredMessage]:
    """What the stream `DEAD` holds."""
    return w.broker.messages("DEAD")
