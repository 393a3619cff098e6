"""Links with faults, over the fake broker."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from router_trio.faults import Faults
from router_trio.link import Link
from router_trio.testing import FakeBroker
from tests.support.recorder import INBOX, Recorder


def with_orders() -> FakeBroker:
    """Return a broker with a stream."""
    broker = FakeBroker()
    broker.add_stream("ORDERS", ["orders.*"])
    return broker


@asynccontextmanager
async def faulty(broker: FakeBroker, faults: Faults, listener: Recorder | None = None) -> AsyncIterator[Link]:
    async with faults.around(broker.connect)("nats://fake:4222", INBOX, listener or Recorder()) as link:
        yield link
