"""Failed publishes: the caller's result, what is kept, its fate, the counters (exactly once), and no copy too many.

The matrix {publish, publish_with_ack} x {error, timeout, close_connection, not connected} x {queueing, fail-open},
against a real server with a stream that stores every message. docs/testing.md has the list of scenarios.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import pytest
import trio

from router_trio import Fate, Receipt
from router_trio.errors import PublishError
from router_trio.faults import Faults, close_connection, error, timeout
from router_trio.router import real_network
from tests.support.proxy import TcpProxy
from tests.support.raw_jetstream import JetStream
from tests.support.raw_nats import connect
from tests.support.servers import NatsServer
from tests.support.settings import settings
from tests.support.watch import Watch, assert_survived, cut_off, let_in, until_settled, watched

OPERATIONS = ("publish", "publish_with_ack")
ERRORS = {"publish": "NATS_PUBLISH_ERROR", "publish_with_ack": "NATS_PUBLISH_WITH_ACK_ERROR"}
QUEUED = {"publish": "NATS_PUBLISH_QUEUED", "publish_with_ack": "NATS_PUBLISH_WITH_ACK_QUEUED"}
FATES = {"publish": "fenced", "publish_with_ack": "acked"}
SUBJECT = "kept.1"


@dataclass
class Case:
    """A cell of the matrix."""

    operation: str
    fail_open: bool
    watch: Watch
    faults: Faults
    stream: JetStream

    async def publish(self, payload: bytes = b"x") -> Receipt:
        """Publish, and raise a `PublishError` ungrouped."""
        publish = getattr(self.watch.router, self.operation)
        receipt = await publish(SUBJECT, payload)
        assert isinstance(receipt, Receipt)
        return receipt

    async def stored(self) -> list[bytes]:
        """Return the stored messages, in order. No `Nats-Msg-Id` is there twice."""
        messages = await self.stream.stream_messages("KEPT")
        ids = Counter(message.header("Nats-Msg-Id") for message in messages if message.header("Nats-Msg-Id"))
        assert not ids or max(ids.values()) == 1
        return [message.payload for message in messages]

    def counted(self) -> dict[str, float]:
        """Return the operation's counters that are not zero: `succeeded`, and each reason of a failure."""
        counters = self.watch.router.connections["main"].outbox.counters
        assert self.watch.metric(f"router_nats_{self.operation}_total") == counters.succeeded[self.operation]
        found: dict[str, float] = {"succeeded": counters.succeeded[self.operation]}
        for (operation, reason), count in counters.failed.items():
            assert operation == self.operation
            assert self.watch.metric(f"router_nats_{operation}_failures_total", reason=reason) == count
            found[reason] = count
        return {name: count for name, count in found.items() if count}

    def settled(self) -> dict[str, int]:
        """Return how many publishes have which fate."""
        ledger = self.watch.router.ledger()["main"]
        return {name: count for name, count in ledger["settled"].items() if count}


@pytest.fixture(params=["queueing", "fail_open"])
def mode(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=OPERATIONS)
def operation(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
async def case(server: NatsServer, proxy: TcpProxy, operation: str, mode: str) -> AsyncIterator[Case]:
    async with opened(server, proxy, operation, fail_open=mode == "fail_open") as case:
        yield case


@asynccontextmanager
async def opened(server: NatsServer, proxy: TcpProxy, operation: str, *, fail_open: bool) -> AsyncIterator[Case]:
    faults = Faults()
    async with connect(server.url) as client:
        stream = JetStream(client)
        await stream.create_stream("KEPT", ["kept.*"])
        config = settings(proxy.url, fail_open=fail_open)
        async with watched(config, connect=faults.around_factory(real_network)) as watch:
            yield Case(operation, fail_open, watch, faults, stream)


async def failed(case: Case) -> Fate:
    """Publish a message that is going to fail while connected; check the caller's result and return the fate."""
    if case.operation == "publish_with_ack" and not case.fail_open:
        with pytest.raises(PublishError) as caught:
            await case.publish()
        return Fate("failed", caught.value.reason)
    receipt = await case.publish()
    assert receipt.status == ("sent" if case.operation == "publish" else "failed_open")
    return await receipt.settled()


async def test_error(case: Case) -> None:
    case.faults.inject(case.operation, error("overloaded"), times=1)
    assert await failed(case) == Fate("failed_open" if case.fail_open else "failed", "overloaded")
    assert case.counted() == {"overloaded": 1}
    assert await (await case.publish(b"next")).settled()
    assert case.counted() == {"overloaded": 1, "succeeded": 1}
    assert case.settled() == {"failed_open" if case.fail_open else "failed": 1, FATES[case.operation]: 1}
    assert await case.stored() == [b"next"]
    seen = [ERRORS[case.operation], *(["NATS_PUBLISH_FAIL_OPEN"] if case.fail_open else [])]
    await assert_survived(case.watch, losses=0, seen=seen)
    assert [case.watch.count(code) for code in seen] == [1] * len(seen)


async def test_timeout(case: Case) -> None:
    case.faults.inject(case.operation, timeout(0.2), times=1)
    began = trio.current_time()
    assert await failed(case) == Fate("failed_open" if case.fail_open else "failed", "timeout")
    assert 0.19 < trio.current_time() - began < 2
    assert case.counted() == {"timeout": 1}
    assert await (await case.publish(b"next")).settled()
    assert case.counted() == {"timeout": 1, "succeeded": 1}
    assert await case.stored() == [b"next"]
    seen = [ERRORS[case.operation], *(["NATS_PUBLISH_FAIL_OPEN"] if case.fail_open else [])]
    await assert_survived(case.watch, losses=0, seen=seen)
    assert [case.watch.count(code) for code in seen] == [1] * len(seen)


async def test_close_connection(case: Case) -> None:
    """The link dies before the write: the publish is kept and sent on the next one, or dropped."""
    case.faults.inject(case.operation, close_connection(), times=1)
    receipt = await case.publish()
    if case.operation == "publish_with_ack":
        assert receipt.status == ("failed_open" if case.fail_open else "queued"), "the link went while it waited"
    else:
        assert receipt.status == "sent"
    fate = await receipt.settled()
    await case.watch.until("NATS_CONNECTION_RESTORED")
    if case.fail_open:
        assert fate == Fate("failed_open", "not_connected")
        assert case.counted() == {"not_connected": 1}
        assert await case.stored() == []
        await assert_survived(case.watch, seen=["NATS_CONNECTION_LOST", "NATS_PUBLISH_FAIL_OPEN"])
        assert case.watch.count("NATS_RETRY_PENDING") == 0
    else:
        assert (fate.name, fate.reason, fate.duplicate) == (FATES[case.operation], None, False)
        assert case.counted() == {"succeeded": 1}, "no failure of it was reported"
        assert await case.stored() == [b"x"]
        await assert_survived(case.watch, seen=["NATS_CONNECTION_LOST", "NATS_RETRY_PENDING", "NATS_RETRY_COMPLETE"])
        assert case.watch.metric("router_nats_pending_operations_retry_success_total") == 1
    assert case.settled() == {fate.name: 1}


async def test_not_connected(case: Case, proxy: TcpProxy) -> None:
    await cut_off(proxy, case.watch)
    receipts = [await case.publish(b"%d" % number) for number in range(10)]
    assert {receipt.status for receipt in receipts} == {"failed_open" if case.fail_open else "queued"}
    assert case.counted() == {"not_connected": 10}, "each, once, before its caller had an answer"
    assert case.watch.metric("router_nats_pending_operations_count") == (0 if case.fail_open else 10)
    if case.fail_open:
        assert {receipt.fate for receipt in receipts} == {Fate("failed_open", "not_connected")}
    else:
        assert {receipt.fate for receipt in receipts} == {None}
    # Three more outages, each in the middle of the drain: publishes that are sent again are stored once.
    for _ in range(3):
        await let_in(proxy, case.watch)
        await cut_off(proxy, case.watch)
    await let_in(proxy, case.watch)
    await until_settled(case.watch.router)
    assert case.counted() == {"not_connected": 10}, "a retry is no second failure, and no success either"
    if case.fail_open:
        assert await case.stored() == []
        assert case.settled() == {"failed_open": 10}
        await assert_survived(case.watch, losses=4, seen=["NATS_PUBLISH_FAIL_OPEN"])
        assert case.watch.count("NATS_PUBLISH_FAIL_OPEN") == 10
    else:
        numbers = [b"%d" % number for number in range(10)]
        stored = await case.stored()
        # A core publish that was written and not fenced may arrive twice; in order in any case.
        assert (stored if case.operation == "publish_with_ack" else list(dict.fromkeys(stored))) == numbers
        assert case.settled() == {FATES[case.operation]: 10}
        await assert_survived(case.watch, losses=4, seen=[QUEUED[case.operation], "NATS_RETRY_COMPLETE"])
        assert case.watch.count(QUEUED[case.operation]) == 10
