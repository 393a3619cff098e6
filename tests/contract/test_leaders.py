"""Promises of `router_trio.link` about a stream and a durable without a leader.

The real one is on three servers. Two of them hang, and the link is to the third, which led neither.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from router_trio.errors import SourceError, reasons
from router_trio.link import Link
from router_trio.nats.link import Dialer
from router_trio.settings import ConnectionSettings
from router_trio.testing import FakeBroker
from tests.contract.orders import SPEC
from tests.support.raw_jetstream import JetStream
from tests.support.raw_nats import connect
from tests.support.recorder import INBOX, Recorder
from tests.support.servers import cluster

Depose = Callable[[], None]


@asynccontextmanager
async def place(kind: str, tmp_path: Path) -> AsyncIterator[tuple[Link, Depose]]:
    """Yield a link to a server with the stream ORDERS and its durable, and what leaves both without a leader."""
    if kind == "fake":
        broker = FakeBroker()
        broker.add_stream("ORDERS", ["orders.>"])
        async with broker.connect("nats://fake:4222", INBOX, Recorder()) as fake:
            yield fake, lambda: broker.trouble.elect("ORDERS", 60.0)
        return
    async with cluster(tmp_path) as group:
        async with connect(group.urls[0]) as client:
            stream = JetStream(client)
            await stream.create_stream("ORDERS", ["orders.>"], num_replicas=3)
            await stream.create_consumer("ORDERS", SPEC.durable)
            leaders = {
                (await stream.stream_info("ORDERS"))["cluster"]["leader"],
                (await stream.consumer_info("ORDERS", SPEC.durable))["cluster"]["leader"],
            }
        node = next(one for one in group.servers if one.name not in leaders)

        def depose() -> None:
            for one in group.servers:
                if one is not node:
                    one.stop()

        try:
            dial = Dialer(ConnectionSettings(servers=[node.url]), "main")
            async with dial(node.url, INBOX, Recorder()) as link:
                yield link, depose
        finally:
            for one in group.servers:
                one.cont()


async def test_a_durable_without_a_leader_can_not_be_checked(kind: str, tmp_path: Path, clock: object) -> None:
    async with place(kind, tmp_path) as (link, depose):
        consumer = await link.open_consumer(SPEC, Recorder())
        assert (await consumer.check()).unacked == 0
        depose()
        with pytest.raises(SourceError) as raised:
            await consumer.check()
        assert raised.value.reason in (reasons.TIMEOUT, reasons.JETSTREAM_UNAVAILABLE)
