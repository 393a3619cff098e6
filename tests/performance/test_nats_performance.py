"""The costs of the queue and the backoff, and their bounds. `pytest -s` shows the figures.

Figures depend on the machine and are printed only; asserted are counts, bounds, and ratios of the same work done twice
in different sizes. docs/testing.md has the list of scenarios.
"""

from __future__ import annotations

import gc
import random
import statistics
import time
import tracemalloc
from collections.abc import Sequence

import trio
import trio.testing

from router_trio import Receipt
from router_trio.connection.backoff import FIRST_RETRY_WITHIN, ReconnectPlan, full_jitter
from router_trio.events import Event
from router_trio.settings import ConnectionSettings
from router_trio.testing import FakeBroker
from tests.support.proxy import TcpProxy
from tests.support.raw_nats import connect
from tests.support.servers import NatsServer
from tests.support.settings import settings
from tests.support.watch import Watch, assert_survived, cut_off, let_in, watched

PAYLOAD = b"x" * 128


def say(what: str, **figures: float) -> None:
    """Print figures, integers without a fraction."""
    told = ", ".join(f"{name.replace('_', ' ')} {value:,.6g}" for name, value in figures.items())
    print(f"\n{what}: {told}")


async def publish_many(watch: Watch, count: int, payload: bytes = PAYLOAD) -> list[Receipt]:
    return [await watch.router.publish("out", payload) for _ in range(count)]


async def test_queue_limit_adequacy(proxy: TcpProxy) -> None:
    """Measure how long an outage the default queue bridges, by operations and by bytes; beyond that the oldest is
    dropped.
    """
    limit = ConnectionSettings().max_pending_operations
    assert limit == 1000
    async with watched(settings(proxy.url)) as watch:
        await cut_off(proxy, watch)
        receipts = await publish_many(watch, limit)
        assert watch.metric("router_nats_pending_operations_dropped_total") == 0, "the limit itself fits"
        receipts += await publish_many(watch, 2 * limit)
        assert watch.metric("router_nats_pending_operations_count") == limit
        assert watch.metric("router_nats_pending_operations_dropped_total", reason="queue_full") == 2 * limit
        assert watch.count("NATS_QUEUE_FULL") == 2 * limit
        await let_in(proxy, watch)
        fates = [(await receipt.settled()).name for receipt in receipts]
        assert fates == ["dropped"] * 2 * limit + ["fenced"] * limit
        await assert_survived(watch, seen=["NATS_QUEUE_FULL", "NATS_RETRY_COMPLETE"])
    async with watched(settings(proxy.url, max_pending_operations=1_000_000, max_pending_bytes="64KiB")) as watch:
        await cut_off(proxy, watch)
        await publish_many(watch, 1000)
        kept = watch.metric("router_nats_pending_operations_count")
        assert watch.router.connections["main"].outbox.pending_bytes <= 64 * 1024
        assert 64 * 1024 / (len(PAYLOAD) + 64) < kept < 64 * 1024 / len(PAYLOAD)
        await let_in(proxy, watch)
        await assert_survived(watch, seen=["NATS_QUEUE_FULL"])
    say("seconds that the default queue bridges", at_10_a_second=limit / 10, at_100=limit / 100, at_1000=limit / 1000)


async def test_queue_memory_at_high_traffic(autojump_clock: trio.testing.MockClock) -> None:
    """A full queue costs a small multiple of its contents, however much more is published."""
    broker = FakeBroker()
    limit = 5_000
    config = settings("nats://fake:4222", max_pending_operations=limit)
    async with watched(config, Forgetful(), connect=lambda name, settings: broker.connect) as watch:
        broker.down()
        await watch.until("NATS_CONNECTION_LOST")
        tracemalloc.start()
        try:
            await publish_and_forget(watch, limit)
            full = traced()
            await publish_and_forget(watch, 4 * limit)
            over = traced()
        finally:
            tracemalloc.stop()
        say("memory of a queued publish of 128 bytes", bytes_each=full / limit, growth_when_overrun=over / full)
        assert watch.metric("router_nats_pending_operations_count") == limit
        assert full / limit < 1024
        assert over / full < 1.1
        assert watch.metric("router_nats_pending_operations_dropped_total", reason="queue_full") == 4 * limit
        broker.up()
        await watch.until("NATS_RETRY_COMPLETE")
        await assert_survived(watch, seen=["NATS_RETRY_PENDING"])
    assert [message.payload for message in broker.published] == [PAYLOAD] * limit


class Forgetful(Watch):
    """Keeps no event that can occur for every message, so that only the router's own memory counts."""

    def __call__(self, event: Event) -> None:
        if not event.per_message:
            super().__call__(event)


async def publish_and_forget(watch: Watch, count: int) -> None:
    for _ in range(count):
        await watch.router.publish("out", PAYLOAD)


def traced() -> int:
    gc.collect()
    return tracemalloc.get_traced_memory()[0]


async def test_drain_time_after_recovery(server: NatsServer, proxy: TcpProxy) -> None:
    """Draining eight times as many messages takes about eight times as long, not sixty-four."""
    small, large = 2_000, 16_000
    times: dict[int, list[float]] = {small: [], large: []}
    async with watched(settings(proxy.url, max_pending_operations=large)) as watch:
        losses = 0
        for count in (small, large) * 3:
            await cut_off(proxy, watch)
            losses += 1
            receipts = await publish_many(watch, count)
            proxy.accept()
            await watch.until("NATS_RETRY_COMPLETE", losses)
            took = watch.of("NATS_RETRY_COMPLETE")[-1].at - watch.of("NATS_RETRY_PENDING")[-1].at
            times[count].append(took)
            assert {(await receipt.settled()).name for receipt in receipts} == {"fenced"}
            assert watch.of("NATS_RETRY_COMPLETE")[-1].success_count == count
        await assert_survived(watch, losses=losses)
    best = {count: min(found) for count, found in times.items()}
    say("drain", messages_a_second=large / best[large], seconds_for_16000=best[large])
    assert best[large] / best[small] < 3 * large / small


def test_backoff_delay_calculation() -> None:
    """Full jitter: uniform below a bound that doubles from the base."""
    dice = random.Random(1)
    base, maximum, draws = 1.0, 30.0, 20_000
    began = time.perf_counter()
    for step in range(8):
        bound = min(FIRST_RETRY_WITHIN, maximum) if step == 0 else min(maximum, base * 2 ** (step - 1))
        delays = [full_jitter(step, base, maximum, dice.uniform) for _ in range(draws)]
        assert 0 <= min(delays) <= bound / 100
        assert bound * 0.99 <= max(delays) <= bound
        assert abs(statistics.fmean(delays) - bound / 2) < bound / 50
    say("a delay", microseconds=(time.perf_counter() - began) / draws / 8 * 1e6)


def test_backoff_limit() -> None:
    """However long an outage lasts, no delay exceeds the maximum, and none takes longer to compute than another."""
    plan = ReconnectPlan(["one", "two"], attempts=10, base=1.0, maximum=30.0, stable_after=5.0)
    delays: list[float] = []
    costs: list[float] = []
    for _ in range(20):
        began = time.process_time()
        for _ in range(5_000):
            delays.append(plan.next(float(len(delays))).delay)
            if plan.exhausted:
                plan.new_round()
        costs.append(time.process_time() - began)
    say("100,000 attempts", longest_delay=max(delays), mean_of_the_last_half=statistics.fmean(delays[50_000:]))
    assert max(delays) <= 30.0
    assert 14.0 < statistics.fmean(delays[50_000:]) < 16.0, "half of the maximum, on average"
    assert min(costs[10:]) < 3 * min(costs[:10])


async def test_order_of_retries(server: NatsServer, proxy: TcpProxy) -> None:
    """Cut three times in the middle of the drain: messages accepted first arrive first, each time."""
    count = 6_000
    async with connect(server.url) as client:
        subscription = await client.subscribe("out")
        async with watched(settings(proxy.url, max_pending_operations=count)) as watch:
            live = watch.router
            await cut_off(proxy, watch)
            receipts = [await live.publish("out", b"%d" % number + PAYLOAD) for number in range(count)]
            for restored in (1, 2, 3):
                proxy.cut_after(count * len(PAYLOAD) // 4, "to_server")
                proxy.accept()
                await watch.until("NATS_CONNECTION_LOST", restored + 1)
            await let_in(proxy, watch)
            assert {(await receipt.settled()).name for receipt in receipts} == {"fenced"}
            losses = watch.count("NATS_CONNECTION_LOST")
            await assert_survived(watch, losses=losses, seen=["NATS_RETRY_COMPLETE"])
            retried = watch.metric("router_nats_pending_operations_retry_total")
            assert watch.metric("router_nats_pending_operations_retry_success_total") == count
        await client.ping()
        arrived = [int(message.payload.removesuffix(PAYLOAD)) for message in subscription.waiting()]
    say("a drain that was cut", losses=losses, retried=retried, arrived=len(arrived), published=count)
    assert list(dict.fromkeys(arrived)) == list(range(count))
    assert all(behind_by_a_resend(run) for run in runs(arrived)), "each drain is in order in itself"
    assert len(arrived) < count * (losses + 1)


def runs(numbers: Sequence[int]) -> list[list[int]]:
    """Split where a number is not larger than the one before: there another drain began."""
    found: list[list[int]] = [[]]
    for number in numbers:
        if found[-1] and number <= found[-1][-1]:
            found.append([])
        found[-1].append(number)
    return found


def behind_by_a_resend(run: Sequence[int]) -> bool:
    """Return True if nothing is missing in it."""
    return list(run) == list(range(run[0], run[0] + len(run)))


async def test_no_retry_storm(autojump_clock: trio.testing.MockClock) -> None:
    """An hour away costs a few hundred attempts and no resend; a missing stream, four retries a second."""
    broker = FakeBroker()
    config = settings("nats://fake:4222", reconnect_delay="1s", max_reconnect_delay="30s", liveness_interval="5s")
    async with watched(config, connect=lambda name, settings: broker.connect) as watch:
        await trio.sleep(10)
        broker.down()
        await watch.until("NATS_CONNECTION_LOST")
        before = broker.connect_attempts
        receipts = await publish_many(watch, 1000)
        await trio.sleep(3600)
        attempts = broker.connect_attempts - before
        assert 3600 / 30 < attempts < 3600 / 10
        assert broker.published == [], "nothing was written"
        broker.up()
        assert {(await receipt.settled()).name for receipt in receipts} == {"fenced"}
        assert len(broker.published) == 1000, "each was sent once"
        assert watch.metric("router_nats_pending_operations_retry_total") == 1000
        # A subject without a stream: a thousand publishes wait behind one that is tried.
        written = len(broker.published)
        async with trio.open_nursery() as nursery:
            for _ in range(1000):
                nursery.start_soon(watch.router.publish_with_ack, "sink.1", b"x", None, None, 60.0)
            await trio.sleep(10)
            tried = len(broker.published) - written
            broker.add_stream("SINK", ["sink.*"])
        say("no storm", attempts_in_an_hour=attempts, tries_in_10_s_of_1000_held=tried)
        assert tried <= 1000 + 10 * 5, "each once at the most, and then one at a time"
        assert len(broker.messages("SINK")) == 1000
        await assert_survived(watch, seen=["NATS_RETRY_COMPLETE"])
