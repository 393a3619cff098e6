"""The gain of concurrent handler calls, the cost of the order of keys, and a proof that a used key leaves nothing
behind.

By the autojump clock, bytecode instructions and traced memory: the same on every machine, however busy it is.
"""

from __future__ import annotations

import gc
import tracemalloc
from collections.abc import Callable
from dataclasses import replace

import pytest
import trio
from trio.testing import MockClock

from router_trio import Message
from router_trio.nats.jetstream.pubacks import PubAcks
from router_trio.routing.kept_route import KeptRoute
from router_trio.routing.policy.key_queues import KeyQueues
from router_trio.routing.stream.cursor import StreamCursor
from router_trio.routing.stream.source import StreamSource
from tests.performance.instructions import Bench, delivered, instructions, puback, stream_route
from tests.support.compiled import looks_inside
from tests.support.measured import needs_full_speed
from tests.support.offers import next_order
from tests.support.world import all_acked, handled, one_broker, world

KEYS = 200
MESSAGES = 1_000


async def seconds(concurrency: int, messages: int) -> float:
    """Return how long messages of 200 keys take, each 10 ms in the handler, from one stream to another."""

    async def handler(message: Message) -> Message:
        await trio.sleep(0.01)
        return message

    route = handled(
        handler,
        to={"subject": "out.{{wildcard(1)}}", "jetstream": True},
        stream="IN",
        durable="router",
        filter="in.*",
        concurrency=concurrency,
    )
    brokers = one_broker()
    for number in range(messages):
        brokers["main"].publish(f"in.{number % KEYS}", b"%d" % number)
    async with world(handlers=[route], brokers=brokers) as w:
        began = trio.current_time()
        await all_acked(w, messages)
        return trio.current_time() - began


async def test_64_calls_at_a_time_are_at_least_55_times_as_fast_as_one(autojump_clock: MockClock) -> None:
    one, many = await seconds(1, 1_000), await seconds(64, 16_000)
    assert 16 * one / many >= 55


async def shout(message: Message) -> Message:
    return message.replace(payload=message.payload.upper())


def run_of(concurrency: int) -> Callable[[], None]:
    """Return a run that takes messages of 200 keys from a stream, through a handler that does not block, to a stream,
    and acks them.
    """
    bench = Bench(1, routes=[stream_route() | {"concurrency": concurrency}])
    (routing,) = bench.routings
    routing.plan = replace(routing.plan, handler=shout)
    source = StreamSource(routing, bench.connection, lambda event: None)
    route, hand = KeptRoute(routing, source), source.keeper.hand
    hand.cursor = StreamCursor("x")
    acks = PubAcks(bench.connection.listener)
    first = 1

    def run() -> None:
        nonlocal first
        numbers = range(first, first + MESSAGES)
        first += MESSAGES
        source.received([delivered(number, KEYS) for number in numbers])
        while hand.count:
            order = next_order(bench.outbox)
            assert route._begin_some() is None
            bench.written()
            acks.read([puback(one) for one in range(order, next_order(bench.outbox))])
            bench.connection.listener.read_done()
        assert len(bench.answers) == MESSAGES
        bench.answers.clear()

    return run


@looks_inside
async def test_the_order_of_keys_adds_less_than_half_to_the_cost(autojump_clock: MockClock) -> None:
    """A handler that does not wait then keeps seven tenths of its rate."""
    costs = []
    for concurrency in (1, 2):
        run = run_of(concurrency)
        run()
        costs.append(instructions(run) / MESSAGES)
    assert costs[1] < costs[0] / 0.7, costs


@needs_full_speed
@pytest.mark.timeout(120)
@pytest.mark.parametrize("count", [100_000, pytest.param(1_000_000, marks=pytest.mark.nightly)])
def test_keys_that_are_used_once_leave_nothing_behind(count: int) -> None:
    queues: KeyQueues[int] = KeyQueues()
    gc.collect()
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        for number in range(count):
            queues.add(b"%d" % number, number, number)
            if number >= 1_000:
                item = queues.take_next()
                assert item is not None
                queues.finished(b"%d" % item, item)
        highest = tracemalloc.get_traced_memory()[1] - before
        while (item := queues.take_next()) is not None:
            queues.finished(b"%d" % item, item)
        left = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert highest < 2_000 * 1_000, "what 1,000 messages in hand take, and no more"
    assert left < 500_000, "a dict stays as large as it was with those 1,000"
