"""Routes from a stream with dead letters, on a fake broker with a stream for these."""

from __future__ import annotations

from typing import Any

from router_trio.testing import FakeBroker
from router_trio.testing.streams import StoredMessage
from tests.support.world import World

DEAD: dict[str, Any] = {"subject": "dead.{{wildcard(1)}}"}
FROM: dict[str, Any] = {"stream": "IN", "durable": "router", "filter": "in.*", "dead_letter": DEAD}
NAME = "Router-Dead-Letter-"


def brokers() -> dict[str, FakeBroker]:
    """Return a broker `main` with the streams `IN`, `OUT` and `DEAD`."""
    broker = FakeBroker()
    broker.add_stream("IN", ["in.*"])
    broker.add_stream("OUT", ["out.>"])
    broker.add_stream("DEAD", ["dead.>"])
    return {"main": broker}


def dead(w: World) -> list[StoredMessage]:
    """Return the messages in the stream `DEAD`."""
    return w.broker.messages("DEAD")
