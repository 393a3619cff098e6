"""The supervisor of a connection, on a fake network and a clock that jumps: attempts, rounds and refusals."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import pairwise
from math import inf

import pytest
import trio
import trio.testing
from trio.testing import MockClock

from router_trio import Fate, Receipt, Router
from router_trio.errors import AuthorizationError, CertificateError, ConnectionExhaustedError, LinkError
from router_trio.link import Link, LinkListener
from tests.support.watch import Watch, assert_accounted
from tests.unit.connection.network import A, B, C, Network, opened, patient

REFUSED = LinkError("connection refused")


# --- attempts ---


async def test_the_first_retry_is_made_within_a_tenth_of_a_second(network: Network, autojump_clock: MockClock) -> None:
    async with opened(network, patient()) as (watch, live):
        await trio.sleep(60)
        network.broker.cut()
        restored = await watch.until("NATS_CONNECTION_RESTORED")
        (lost,) = watch.of("NATS_CONNECTION_LOST")
        (attempt,) = watch.of("NATS_RECONNECT_ATTEMPT")
        assert restored.at - lost.at <= 0.1
        assert restored.outage_seconds == pytest.approx(restored.at - lost.at, abs=1e-5)
        assert (restored.reconnect_attempts, attempt.attempt) == (1, 1)
        assert attempt.delay_ms <= 100
        state = live.connections["main"].state
        assert (state.established, state.lost, state.restored) == (1, 1, 1)
        assert (state.reconnect_attempts, state.reconnect_failures, state.failures) == (1, 0, 0)


@pytest.mark.usefixtures("longest_delays")
async def test_attempts_are_made_ever_more_slowly_up_to_the_maximum(
    network: Network, autojump_clock: MockClock
) -> None:
    async with opened(network, patient()) as (watch, _):
        await trio.sleep(60)
        network.take_down()
        await watch.until("NATS_RECONNECT_EXHAUSTED", within=200)
        attempts = watch.of("NATS_RECONNECT_ATTEMPT")
        # Early attempts have the number of the one after them, which is made when the backoff says.
        in_time = {event.attempt: event.at for event in attempts}
        pauses = [round(later - earlier, 6) for earlier, later in pairwise(in_time.values())]
        assert pauses == [1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0, 30.0, 30.0]
        network.broker.up()
        restored = await watch.until("NATS_CONNECTION_RESTORED", within=40)
        assert restored.reconnect_attempts == watch.count("NATS_RECONNECT_ATTEMPT") > len(attempts) > 10


@pytest.mark.usefixtures("longest_delays")
async def test_no_delay_is_longer_than_half_of_the_outage(network: Network, autojump_clock: MockClock) -> None:
    async with opened(network, patient()) as (watch, _):
        await trio.sleep(60)
        network.take_down()
        lost = await watch.until("NATS_CONNECTION_LOST")
        await trio.sleep(10)
        network.broker.up()
        restored = await watch.until("NATS_CONNECTION_RESTORED", within=40)
        assert restored.outage_seconds < 10 * 1.5
        for event in watch.of("NATS_RECONNECT_ATTEMPT"):
            delay = event.delay_ms / 1000
            assert delay <= max(1.0, (event.at - delay - lost.at) / 2) + 0.001


@pytest.mark.usefixtures("longest_delays")
async def test_a_server_that_is_away_at_the_start_is_tried_as_in_an_outage(
    network: Network, autojump_clock: MockClock
) -> None:
    network.take_down()
    async with opened(network, patient()) as (watch, _):
        await trio.sleep(10)
        network.broker.up()
        established = await watch.until("NATS_CONNECTION_ESTABLISHED", within=40)
        assert established.at < 10 * 1.5


@pytest.mark.usefixtures("longest_delays")
async def test_only_a_stable_link_resets_the_backoff(network: Network, autojump_clock: MockClock) -> None:
    async with opened(network, patient()) as (watch, _):
        for number in range(1, 5):
            await trio.sleep(0.5)
            network.broker.cut()
            await watch.until("NATS_CONNECTION_RESTORED", number, within=60)
        assert [event.delay_ms for event in watch.of("NATS_RECONNECT_ATTEMPT")] == [100, 1000, 2000, 4000]
        await trio.sleep(5)
        network.broker.cut()
        await watch.until("NATS_CONNECTION_RESTORED", 5)
        assert watch.of("NATS_RECONNECT_ATTEMPT")[-1].delay_ms == 100


async def test_servers_take_turns_and_the_lost_one_is_tried_first(network: Network, autojump_clock: MockClock) -> None:
    network.trouble = {A: REFUSED}
    async with opened(network, patient([A, B, C])) as (watch, live):
        await watch.until("NATS_CONNECTION_ESTABLISHED")
        assert network.dialled == [A, B]
        assert live.connections["main"].state.server == "b:4222"
        network.trouble = {A: REFUSED, B: REFUSED}
        network.broker.cut()
        await watch.until("NATS_CONNECTION_RESTORED")
        assert network.dialled == [A, B, B, C]
        assert live.connections["main"].state.server == "c:4222"


async def test_discovered_servers_are_used(network: Network, autojump_clock: MockClock) -> None:
    async with opened(network, patient()) as (watch, live):
        network.broker.announce_servers("a:4222", "b:4222")
        await trio.sleep(60)
        network.trouble = {A: REFUSED}
        network.broker.cut()
        await watch.until("NATS_CONNECTION_RESTORED")
        assert network.dialled == [A, A, B]
        assert live.connections["main"].state.server == "b:4222"


async def test_open_waits_for_the_first_attempt_and_not_for_the_server(
    network: Network, autojump_clock: MockClock
) -> None:
    network.take_down()
    async with opened(network, patient()) as (watch, live):
        assert trio.current_time() == 0
        connection = live.connections["main"]
        assert connection.first_attempt_over.is_set()
        assert not connection.connected
        assert watch.codes == ["NATS_CONNECTION_FAILED", "ROUTER_STARTED"]
        assert (connection.state.failures, connection.state.reconnect_failures) == (1, 0)
        await watch.until("NATS_CONNECTION_FAILED", 3)
        assert (connection.state.failures, connection.state.reconnect_failures) == (3, 2)
        assert connection.state.gauge == 0.0
        network.broker.up()
        await watch.until("NATS_CONNECTION_ESTABLISHED")
        assert (connection.state.established, connection.state.restored) == (1, 0)
        assert watch.gauges["main"] == [0.0, 1.0]


async def test_the_gauge_shows_connected_then_reconnecting_then_connected(
    network: Network, autojump_clock: MockClock
) -> None:
    async with opened(network, patient()) as (watch, live):
        since = live.connections["main"].state.since
        network.take_down()
        await watch.until("NATS_CONNECTION_FAILED", 2)
        state = live.connections["main"].state
        assert (state.gauge, state.server, state.attempts) == (0.5, None, 2)
        assert "the fake broker is down" in str(state.last_error)
        assert state.since >= since
        network.broker.up()
        await watch.until("NATS_CONNECTION_RESTORED")
        assert (state.gauge, state.server, state.attempts, state.last_error) == (1.0, "a:4222", 0, None)
        assert watch.gauges["main"] == [1.0, 0.5, 1.0]


async def test_an_attempt_takes_no_longer_than_connect_timeout(network: Network, autojump_clock: MockClock) -> None:
    network.delays = {A: inf}
    async with opened(network, patient([A, B], connect_timeout="3s")) as (watch, live):
        assert trio.current_time() == 3.0
        (failed,) = watch.of("NATS_CONNECTION_FAILED")
        assert (failed.reason, failed.server, failed.detail) == ("timeout", A, "no connection within 3 s")
        await watch.until("NATS_CONNECTION_ESTABLISHED")
        assert live.connections["main"].state.server == "b:4222"


async def test_connect_timeout_does_not_bound_the_life_of_the_link(network: Network, autojump_clock: MockClock) -> None:
    async with opened(network, patient(connect_timeout="3s")) as (watch, _):
        await trio.sleep(1000)
        assert watch.count("NATS_CONNECTION_LOST") == 0


# --- rounds ---


@pytest.mark.usefixtures("longest_delays")
async def test_after_a_round_it_keeps_trying_at_the_maximum_delay(network: Network, autojump_clock: MockClock) -> None:
    network.take_down()
    async with opened(network, patient(reconnect_attempts=3)) as (watch, live):
        exhausted = await watch.until("NATS_RECONNECT_EXHAUSTED")
        assert (exhausted.reconnect_attempts, exhausted.action) == (3, "keep_trying")
        second = await watch.until("NATS_RECONNECT_EXHAUSTED", 2, within=120)
        assert network.pauses[:2] == [0.1, 1.0]
        assert second.at - exhausted.at == pytest.approx(3 * 30.0)
        attempts = [(event.attempt, event.max_attempts) for event in watch.of("NATS_CONNECTION_FAILED")]
        assert list(dict.fromkeys(attempts[3:])) == attempts[:3] == [(1, 3), (2, 3), (3, 3)]
        assert second.reconnect_attempts == len(attempts[3:]), "the early attempts failed, too"
        assert live.connections["main"].state.exhausted == 2
        network.broker.up()
        await watch.until("NATS_CONNECTION_ESTABLISHED", within=40)


async def test_after_a_round_it_stops_if_configured_to(network: Network, autojump_clock: MockClock) -> None:
    network.take_down()
    watch = Watch()
    config = patient(reconnect_attempts=3, on_reconnect_exhausted="stop")
    with pytest.raises(ConnectionExhaustedError, match=r"connection 'main': 3 attempts failed.*fake broker is down"):
        async with opened(network, config, watch=watch):
            await trio.sleep_forever()
    (exhausted,) = watch.of("NATS_RECONNECT_EXHAUSTED")
    assert (exhausted.reconnect_attempts, exhausted.action) == (3, "stop")
    assert len(network.dials) == 3
    assert watch.gauges["main"][-1] == 0.0


async def test_a_stop_after_an_outage_reports_the_unsettled_publishes(
    network: Network, autojump_clock: MockClock
) -> None:
    watch = Watch()
    config = patient(reconnect_attempts=4, on_reconnect_exhausted="stop")
    receipts: list[Receipt] = []

    async def run() -> None:
        async with opened(network, config, watch=watch) as (_, live):
            network.take_down()
            await watch.until("NATS_CONNECTION_LOST")
            receipts.append(await live.publish("out", b"left behind"))
            await trio.sleep_forever()

    with pytest.raises(ConnectionExhaustedError):
        await run()
    # Nothing can be sent any more, so the shutdown does not wait.
    assert trio.current_time() - watch.of("NATS_RECONNECT_EXHAUSTED")[0].at < 0.1
    assert receipts[0].fate == Fate("dropped", "shutdown")
    assert watch.live is not None
    assert watch.live.unsettled == 1
    assert_accounted(watch.live)


# --- refusals ---


@pytest.mark.parametrize("error", [AuthorizationError("wrong password"), CertificateError("who signed that?")])
async def test_a_refusal_at_the_first_connect_is_fatal_and_names_its_connection(
    network: Network, error: LinkError, autojump_clock: MockClock
) -> None:
    network.trouble = {A: error}
    watch = Watch()
    with pytest.raises(type(error)) as caught:
        async with opened(network, patient(), watch=watch):
            pytest.fail("the body was entered")
    assert str(caught.value) == f"connection 'main' to {A}: {error}"
    assert caught.value.__cause__ is error
    (failed,) = watch.of("NATS_CONNECTION_FAILED")
    assert failed.reason == error.reason
    assert len(network.dials) == 1


async def test_a_refusal_by_a_server_that_was_unreachable_before_is_fatal_too(
    network: Network, autojump_clock: MockClock
) -> None:
    network.take_down()

    async def run() -> None:
        async with opened(network, patient()) as (watch, _):
            await watch.until("NATS_CONNECTION_FAILED", 2)
            network.broker.refuse_credentials()
            network.broker.up()
            await trio.sleep_forever()

    with pytest.raises(AuthorizationError):
        await run()


@pytest.mark.parametrize("error", [AuthorizationError("wrong password"), CertificateError("who signed that?")])
async def test_a_refusal_after_an_established_link_is_an_outage(
    network: Network, error: LinkError, autojump_clock: MockClock
) -> None:
    async with opened(network, patient()) as (watch, _):
        network.trouble = {A: error}
        network.broker.cut()
        failed = await watch.until("NATS_CONNECTION_FAILED", 3)
        assert failed.reason == error.reason
        network.trouble = {}
        await watch.until("NATS_CONNECTION_RESTORED")


async def test_each_kind_of_failure_has_its_reason(network: Network, autojump_clock: MockClock) -> None:
    network.trouble = {
        A: LinkError("can't be resolved", reason="dns"),
        B: LinkError("connection refused"),
        C: LinkError("the server is full", reason="max_connections"),
    }
    async with opened(network, patient([A, B, C])) as (watch, _):
        await watch.until("NATS_CONNECTION_FAILED", 3)
        reasons = [(event.server, event.reason) for event in watch.of("NATS_CONNECTION_FAILED")]
        assert reasons == [(A, "dns"), (B, "network"), (C, "max_connections")]
        network.trouble = {}
        await watch.until("NATS_CONNECTION_ESTABLISHED")


async def test_an_unknown_error_is_raised_unwrapped(network: Network, autojump_clock: MockClock) -> None:
    error = ZeroDivisionError("a fault of ours")

    @asynccontextmanager
    async def connect(server: str, inbox: bytes, listener: LinkListener) -> AsyncIterator[Link]:
        raise error
        yield

    with pytest.raises(ZeroDivisionError) as caught:
        async with Router(patient(), connect=lambda name, one: connect).open():
            await trio.sleep_forever()
    assert caught.value is error


async def test_a_link_that_ends_during_a_read_does_not_affect_the_next_one(
    network: Network, autojump_clock: MockClock
) -> None:
    async with opened(network, patient()) as (watch, live):
        connection = live.connections["main"]
        calls: list[str] = []
        connection.listener.read_begins()
        connection.listener.when_read_done(lambda: calls.append("done"))
        network.broker.cut()
        await watch.until("NATS_CONNECTION_RESTORED")
        assert calls == ["done"]
        receipt = await live.publish("out.x", b"1")
        with trio.fail_after(1):
            assert (await receipt.settled()).delivered
