"""A link that falls silent: it is given up in time, and not too early."""

from __future__ import annotations

import pytest
import trio
import trio.testing
from trio.testing import MockClock

from router_trio import Live
from tests.support.links import close_link
from tests.unit.connection.network import Network, opened, patient


@pytest.mark.parametrize("phase", [0.0, 0.1, 0.3, 0.5, 0.7, 0.74, 0.75, 0.76, 0.9, 1.1, 1.24, 1.26, 1.49])
@pytest.mark.parametrize("busy", [False, True])
async def test_a_half_open_link_is_lost_within_two_intervals(
    network: Network, phase: float, busy: bool, autojump_clock: MockClock
) -> None:
    interval = 4.0
    async with opened(network, patient(liveness_interval="4s")) as (watch, live):
        async with trio.open_nursery() as nursery:
            if busy:
                nursery.start_soon(publish_for_ever, live)
            await trio.sleep((2 + phase) * interval)
            network.broker.blackhole()
            silent_since = trio.current_time()
            lost = await watch.until("NATS_CONNECTION_LOST")
            nursery.cancel_scope.cancel()
        assert interval <= lost.at - silent_since <= 2 * interval
        assert lost.reason == "liveness"
        network.broker.up()
        await watch.until("NATS_CONNECTION_RESTORED", within=60)


async def publish_for_ever(live: Live) -> None:
    while True:
        await live.publish("out", b"x")
        await trio.sleep(0.3)


async def test_a_shorter_stall_does_not_end_the_link(network: Network, autojump_clock: MockClock) -> None:
    async with opened(network, patient(liveness_interval="4s")) as (watch, _):
        for phase in range(40):
            network.broker.stall(0.95 * 4.0)
            await trio.sleep(8.0 + phase / 10)
        assert watch.count("NATS_CONNECTION_LOST") == 0


async def test_an_idle_link_stays_ready(network: Network, autojump_clock: MockClock) -> None:
    async with opened(network, patient()) as (watch, live):
        state = live.connections["main"].state
        assert state.unready(trio.current_time()) is None
        for _ in range(100):
            await trio.sleep(1.7)
            assert state.unready(trio.current_time()) is None
        network.broker.blackhole()
        await watch.until("NATS_CONNECTION_LOST")
        assert "half open" in str(state.unready(trio.current_time()))
        network.broker.up()
        await watch.until("NATS_CONNECTION_RESTORED", within=60)
        assert state.unready(trio.current_time()) is None


async def test_a_link_closed_by_the_router_is_reported_as_such(network: Network, autojump_clock: MockClock) -> None:
    async with opened(network, patient()) as (watch, live):
        close_link(live.connections["main"])
        lost = await watch.until("NATS_CONNECTION_LOST")
        assert (lost.reason, lost.detail) == ("closed", "closed by the router")
        await watch.until("NATS_CONNECTION_RESTORED")
