"""The gain of a second worker, where a handler takes a core: figures are printed, and the ratio is asserted."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import pytest
import trio

from tests.integration.workers import CONFIG, workers
from tests.support.raw_jetstream import JetStream
from tests.support.raw_nats import connect
from tests.support.servers import NatsServer

MESSAGES = 30_000
SECONDS = 4.0
ROUNDS = 3

BURNS = """
from time import thread_time

def handle(message):
    end = thread_time() + 0.0005
    while thread_time() < end:
        pass
    return message
"""


class Measured(NamedTuple):
    """Messages per second of time, and per second of the processor time of all processes of the router."""

    a_second: float
    a_processor_second: float


async def measured(server: NatsServer, stored: JetStream, folder: Path, number: int, durable: str) -> Measured:
    """Measure the given number of workers, from one stream to another."""
    config = CONFIG.replace("workers = 2", f"workers = {number}").replace(
        'durable = "router"', f'durable = "{durable}"'
    )
    config = config.replace('name = "stored"', 'name = "stored"\nhandler = "burns:handle"')
    async with workers(server, folder, config) as one:

        async def now() -> tuple[float, float, float]:
            messages = await one.metric("router_messages_routed_total", route="stored")
            return messages, trio.current_time(), await one.metric("process_cpu_seconds_total")

        await trio.sleep(0.5)  # all have begun; messages routed meanwhile do not count
        before = await now()
        await trio.sleep(SECONDS)
        after = await now()
        assert after[0] < MESSAGES
        messages, seconds, processor = (late - early for early, late in zip(before, after, strict=True))
        return Measured(messages / seconds, messages / processor)


@pytest.mark.nightly
@pytest.mark.timeout(300)
async def test_a_second_worker_on_a_second_core_adds_seven_tenths(server: NatsServer, tmp_path: Path) -> None:
    """Asserted of the processor time, which other load hardly changes: each worker has a core to itself."""
    (tmp_path / "burns.py").write_text(BURNS)
    async with connect(server.url) as client:
        stored = JetStream(client)
        await stored.create_stream("ORDERS", ["orders.*"], storage="memory")
        await stored.create_stream("STORED", ["stored.*"], storage="memory")
        await stored.publish_many((f"orders.{number}", b"x" * 128, None) for number in range(MESSAGES))
        ratios = []
        for turn in range(ROUNDS):
            one, two = [await measured(server, stored, tmp_path, number, f"of-{number}-{turn}") for number in (1, 2)]
            ratios.append(2 * two.a_processor_second / one.a_processor_second)
            print(
                f"\none worker {one.a_second:,.0f} messages a second, two {two.a_second:,.0f}: "
                f"{two.a_second / one.a_second:.2f} times; by processor time {ratios[-1]:.2f} times"
            )
        assert sorted(ratios)[ROUNDS // 2] >= 1.7
