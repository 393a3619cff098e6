"""The supervisor of a connection, on a fake network and a clock that jumps: hours of outages in milliseconds."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from itertools import pairwise
from math import inf
from typing import Any

import pytest
import trio
import trio.testing
from trio.testing import MockClock

import router_trio.connection.attempts
from router_trio import Fate, Live, Receipt, Router, Settings
from router_trio.connection.backoff import ReconnectPlan
from router_trio.connection.supervisor import HAND_OVER_WITHIN
from router_trio.errors import (
    AuthorizationError,
    CertificateError,
    ConnectionExhaustedError,
    LinkError,
    PublishError,
)
from router_trio.link import Link, LinkListener
from router_trio.outbox.outbox import Outbox
from router_trio.outbox.retries import ACK_BUDGET
from router_trio.testing import FakeBroker
from tests.support.watch import Watch, assert_accounted, core_route, settings, watched

A, B, C = "nats://a:4222", "nats://b:4222", "nats://c:4222"
REFUSED = LinkError("nobody listens there")
BIG = b"x" * 100_000
"""Three of these are more than the socket buffer of a fake link takes."""


class Network:
    """A fake broker behind the name of every server, and trouble on the way to some of them.

    A server in `brokers` is one of its own.
    """

    def __init__(self) -> None:
        self.broker = FakeBroker()
        self.brokers: dict[str, FakeBroker] = {}
        self.trouble: dict[str, LinkError] = {}
        self.delays: dict[str, float] = {}
        self.lame_ducks = False
        self.dials: list[tuple[float, str]] = []
        self.most_links = 0

    @asynccontextmanager
    async def connect(self, server: str, inbox: bytes, listener: LinkListener) -> AsyncIterator[Link]:
        """See `link.Connect`."""
        self.dials.append((trio.current_time(), server))
        if server in self.trouble:
            raise self.trouble[server]
        await trio.sleep(self.delays.get(server, 0.0))
        async with self.brokers.get(server, self.broker).connect(server, inbox, listener) as link:
            self.most_links = max(self.most_links, self.broker.links)
            async with trio.open_nursery() as nursery:
                if self.lame_ducks:
                    nursery.start_soon(self._soon_a_lame_duck, listener)
                yield link
                nursery.cancel_scope.cancel()

    async def _soon_a_lame_duck(self, listener: LinkListener) -> None:
        await trio.sleep(0.001)
        listener.lame_duck()

    def is_away(self) -> None:
        """No server answers, and links break."""
        self.broker.down()

    @property
    def dialled(self) -> list[str]:
        """Which server each attempt was for."""
        return [server for _, server in self.dials]

    @property
    def pauses(self) -> list[float]:
        """Seconds between the attempts."""
        return [round(later - earlier, 6) for (earlier, _), (later, _) in pairwise(self.dials)]


@pytest.fixture
def network() -> Network:
    return Network()


@pytest.fixture
def no_luck(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every delay is as long as it may be."""

    def longest(*args: Any, **options: Any) -> ReconnectPlan:
        return ReconnectPlan(*args, **options | {"uniform": lambda _, bound: bound})

    monkeypatch.setattr(router_trio.connection.attempts, "ReconnectPlan", longest)


def patient(url: str | list[str] = A, **connection: Any) -> Settings:
    """Settings with the delays of a real configuration."""
    usual = {"reconnect_delay": "1s", "max_reconnect_delay": "30s", "liveness_interval": "5s"}
    return settings(url, **{**usual, **connection})


@asynccontextmanager
async def opened(network: Network, config: Settings, **options: Any) -> AsyncIterator[tuple[Watch, Live]]:
    """A router on this network, under watch."""
    async with watched(config, connect=lambda name, one: network.connect, **options) as watch:
        assert watch.live is not None
        yield watch, watch.live


# --- attempts ---


async def test_the_first_retry_comes_within_a_tenth_of_a_second(network: Network, autojump_clock: MockClock) -> None:
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


@pytest.mark.usefixtures("no_luck")
async def test_attempts_come_ever_more_slowly_up_to_the_maximum(network: Network, autojump_clock: MockClock) -> None:
    async with opened(network, patient()) as (watch, _):
        await trio.sleep(60)
        network.is_away()
        await watch.until("NATS_CONNECTION_FAILED", 9, within=200)
        assert network.pauses[1:] == [1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0, 30.0]
        assert [event.delay_ms for event in watch.of("NATS_RECONNECT_ATTEMPT")][:3] == [100, 1000, 2000]
        network.broker.up()
        restored = await watch.until("NATS_CONNECTION_RESTORED", within=40)
        assert restored.reconnect_attempts == 10


@pytest.mark.usefixtures("no_luck")
async def test_only_a_stable_link_starts_the_backoff_anew(network: Network, autojump_clock: MockClock) -> None:
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


async def test_servers_take_turns_and_the_one_that_was_lost_is_tried_first(
    network: Network, autojump_clock: MockClock
) -> None:
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
    network.is_away()
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


async def test_the_gauge_goes_from_connected_over_reconnecting_and_back(
    network: Network, autojump_clock: MockClock
) -> None:
    async with opened(network, patient()) as (watch, live):
        since = live.connections["main"].state.since
        network.is_away()
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


@pytest.mark.usefixtures("no_luck")
async def test_after_a_round_it_keeps_trying_at_the_longest_delay(network: Network, autojump_clock: MockClock) -> None:
    network.is_away()
    async with opened(network, patient(reconnect_attempts=3)) as (watch, live):
        exhausted = await watch.until("NATS_RECONNECT_EXHAUSTED")
        assert (exhausted.reconnect_attempts, exhausted.action) == (3, "keep_trying")
        await watch.until("NATS_RECONNECT_EXHAUSTED", 2, within=120)
        assert network.pauses == [0.1, 1.0, 30.0, 30.0, 30.0]
        attempts = [(event.attempt, event.max_attempts) for event in watch.of("NATS_CONNECTION_FAILED")]
        assert attempts == [(1, 3), (2, 3), (3, 3)] * 2
        assert live.connections["main"].state.exhausted == 2
        network.broker.up()
        await watch.until("NATS_CONNECTION_ESTABLISHED", within=40)


async def test_after_a_round_it_stops_if_it_was_told_to(network: Network, autojump_clock: MockClock) -> None:
    network.is_away()
    watch = Watch()
    config = patient(reconnect_attempts=3, on_reconnect_exhausted="stop")
    with pytest.raises(ConnectionExhaustedError, match=r"connection 'main': 3 attempts failed.*fake broker is down"):
        async with opened(network, config, watch=watch):
            await trio.sleep_forever()
    (exhausted,) = watch.of("NATS_RECONNECT_EXHAUSTED")
    assert (exhausted.reconnect_attempts, exhausted.action) == (3, "stop")
    assert len(network.dials) == 3
    assert watch.gauges["main"][-1] == 0.0


async def test_it_stops_after_an_outage_too_and_says_what_was_left(network: Network, autojump_clock: MockClock) -> None:
    watch = Watch()
    config = patient(reconnect_attempts=4, on_reconnect_exhausted="stop")
    receipts: list[Receipt] = []

    async def run() -> None:
        async with opened(network, config, watch=watch) as (_, live):
            network.is_away()
            await watch.until("NATS_CONNECTION_LOST")
            receipts.append(await live.publish("out", b"left behind"))
            await trio.sleep_forever()

    with pytest.raises(ConnectionExhaustedError):
        await run()
    # Nothing can be sent any more: the shutdown does not wait for it.
    assert trio.current_time() - watch.of("NATS_RECONNECT_EXHAUSTED")[0].at < 0.1
    assert receipts[0].fate == Fate("dropped", "shutdown")
    assert watch.live is not None
    assert watch.live.unsettled == 1
    assert_accounted(watch.live)


# --- refusals ---


@pytest.mark.parametrize("error", [AuthorizationError("wrong password"), CertificateError("who signed that?")])
async def test_a_refusal_at_the_first_connect_is_fatal_and_bare(
    network: Network, error: LinkError, autojump_clock: MockClock
) -> None:
    network.trouble = {A: error}
    watch = Watch()
    with pytest.raises(type(error)) as caught:
        async with opened(network, patient(), watch=watch):
            pytest.fail("the body was entered")
    assert caught.value is error
    (failed,) = watch.of("NATS_CONNECTION_FAILED")
    assert failed.reason == error.reason
    assert len(network.dials) == 1


async def test_a_server_that_is_away_and_then_refuses_is_fatal_too(network: Network, autojump_clock: MockClock) -> None:
    network.is_away()

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


async def test_reasons_tell_failures_apart(network: Network, autojump_clock: MockClock) -> None:
    network.trouble = {
        A: LinkError("can't be resolved", reason="dns"),
        B: LinkError("nobody listens"),
        C: LinkError("the server is full", reason="max_connections"),
    }
    async with opened(network, patient([A, B, C])) as (watch, _):
        await watch.until("NATS_CONNECTION_FAILED", 3)
        told = [(event.server, event.reason) for event in watch.of("NATS_CONNECTION_FAILED")]
        assert told == [(A, "dns"), (B, "network"), (C, "max_connections")]
        network.trouble = {}
        await watch.until("NATS_CONNECTION_ESTABLISHED")


async def test_an_unknown_error_is_fatal_and_bare(network: Network, autojump_clock: MockClock) -> None:
    error = ZeroDivisionError("a fault of ours")

    @asynccontextmanager
    async def connect(server: str, inbox: bytes, listener: LinkListener) -> AsyncIterator[Link]:
        raise error
        yield

    with pytest.raises(ZeroDivisionError) as caught:
        async with Router(patient(), connect=lambda name, one: connect).open():
            await trio.sleep_forever()
    assert caught.value is error


# --- half-open links ---


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


async def test_a_stall_that_is_shorter_is_lived_through(network: Network, autojump_clock: MockClock) -> None:
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


async def test_a_link_that_is_closed_by_us_says_so(network: Network, autojump_clock: MockClock) -> None:
    async with opened(network, patient()) as (watch, live):
        live.connections["main"].close_link()
        lost = await watch.until("NATS_CONNECTION_LOST")
        assert (lost.reason, lost.detail) == ("closed", "closed by the router")
        await watch.until("NATS_CONNECTION_RESTORED")


# --- lame duck mode ---


async def test_a_lame_duck_is_left_before_it_ends(network: Network, autojump_clock: MockClock) -> None:
    async with opened(network, patient([A, B])) as (watch, live):
        await trio.sleep(60)
        network.broker.lame_duck()
        restored = await watch.until("NATS_CONNECTION_RESTORED")
        (lost,) = watch.of("NATS_CONNECTION_LOST")
        assert (lost.reason, lost.server) == ("lame_duck", A)
        assert restored.server == "b:4222"
        assert restored.at == lost.at == 60.0
        assert network.dialled == [A, B]
        assert network.most_links == 2
        await trio.sleep(1)
        assert network.broker.links == 1
        assert watch.count("NATS_LAME_DUCK") == 1
        assert watch.codes.index("NATS_LAME_DUCK") < watch.codes.index("NATS_RECONNECT_ATTEMPT")
        await live.publish("out", b"still there")
    assert [one.payload for one in network.broker.published] == [b"still there"]


async def test_what_is_unconfirmed_on_a_lame_duck_is_sent_again_on_the_next_link(
    network: Network, autojump_clock: MockClock
) -> None:
    network.broker.add_stream("OUT", ["out.>"])
    async with opened(network, patient([A, B])) as (watch, live):
        receipts = [await live.publish("out.1", b"%d" % number) for number in range(20)]
        network.broker.lame_duck()
        await watch.until("NATS_LAME_DUCK")
        receipts += [await live.publish("out.1", b"%d" % number) for number in range(20, 40)]
        await watch.until("NATS_CONNECTION_RESTORED")
        receipts += [await live.publish("out.1", b"%d" % number) for number in range(40, 60)]
        assert {(await receipt.settled()).name for receipt in receipts} == {"fenced"}
        assert_accounted(live)
    stored = [int(one.payload) for one in network.broker.messages("OUT")]
    assert list(dict.fromkeys(stored)) == list(range(60))


async def test_a_lame_duck_that_answers_no_more_is_left_in_time(network: Network, autojump_clock: MockClock) -> None:
    """What is in flight is not waited for longer than two seconds; then it goes to the next server."""
    network.brokers[B] = FakeBroker()
    async with opened(network, patient([A, B], liveness_interval="30s")) as (watch, live):
        network.broker.lame_duck()
        await watch.until("NATS_LAME_DUCK")
        network.broker.blackhole()
        receipts = [await live.publish("out", b"%d" % number) for number in range(3)]
        restored = await watch.until("NATS_CONNECTION_RESTORED")
        assert restored.at == HAND_OVER_WITHIN == 2.0
        assert {(await receipt.settled()).name for receipt in receipts} == {"fenced"}
    assert [one.payload for one in network.brokers[B].published] == [b"0", b"1", b"2"]


async def test_a_lame_duck_that_dies_while_it_is_left_is_not_waited_for(
    network: Network, autojump_clock: MockClock
) -> None:
    network.brokers[B] = FakeBroker()
    async with opened(network, patient([A, B], liveness_interval="30s")) as (watch, live):
        network.broker.lame_duck()
        await watch.until("NATS_LAME_DUCK")
        network.broker.blackhole()
        receipt = await live.publish("out", b"x")
        await trio.sleep(0.5)
        network.broker.cut()
        restored = await watch.until("NATS_CONNECTION_RESTORED")
        assert restored.at == 0.5
        assert (await receipt.settled()).name == "fenced"


async def test_what_is_due_on_a_link_that_is_left_waits_for_the_next_one(
    network: Network, autojump_clock: MockClock
) -> None:
    """A refused publish is to be tried again, on a link that gets nothing more: that must keep nobody busy."""
    network.brokers[B] = FakeBroker()
    network.brokers[B].add_stream("OUT", ["stored"])
    async with opened(network, patient([A, B], liveness_interval="30s")) as (watch, live):
        async with trio.open_nursery() as nursery:
            refused = await in_background(nursery, partial(live.publish_with_ack, "stored", b"x"))
            network.broker.lame_duck()
            await watch.until("NATS_LAME_DUCK")
            network.broker.blackhole()
            receipt = await live.publish("out", b"y")
            restored = await watch.until("NATS_CONNECTION_RESTORED")
            assert restored.at == HAND_OVER_WITHIN
        (stored,) = refused
        assert stored.status in ("queued", "acked"), "whether it hears of the move or of the ack first is open"
        assert (await stored.settled()).name == "acked"
        assert (await receipt.settled()).name == "fenced"


async def test_a_lame_duck_without_another_server_is_kept_to_its_end(
    network: Network, autojump_clock: MockClock
) -> None:
    async with opened(network, patient()) as (watch, live):
        network.broker.lame_duck()
        await watch.until("NATS_LAME_DUCK")
        await trio.sleep(30)
        assert live.connections["main"].connected
        network.broker.cut()
        await watch.until("NATS_CONNECTION_RESTORED")
        assert network.dialled == [A, A]


async def test_a_move_that_nobody_takes_is_counted_and_the_old_link_is_kept(
    network: Network, autojump_clock: MockClock
) -> None:
    network.trouble = {B: LinkError("nobody listens"), C: AuthorizationError("not you")}
    async with opened(network, patient([A, B, C])) as (watch, live):
        network.broker.lame_duck()
        await watch.until("NATS_CONNECTION_FAILED", 2)
        told = [(event.server, event.reason) for event in watch.of("NATS_CONNECTION_FAILED")]
        assert told == [(B, "network"), (C, "authorization")]
        await trio.sleep(1)
        state = live.connections["main"].state
        assert (state.gauge, state.reconnect_attempts, state.reconnect_failures) == (1.0, 2, 2)


async def test_a_lame_duck_that_dies_during_the_move_leaves_no_second_link_behind(
    network: Network, autojump_clock: MockClock
) -> None:
    network.delays = {B: 1.0}
    async with opened(network, patient([A, B])) as (watch, live):
        network.broker.lame_duck()
        await watch.until("NATS_RECONNECT_ATTEMPT")
        await trio.sleep(0.5)
        assert network.dialled == [A, B]
        network.broker.cut()
        await watch.until("NATS_CONNECTION_RESTORED")
        await trio.sleep(60)
        assert network.broker.links == 1
        assert live.connections["main"].connected


@pytest.mark.parametrize("servers", [[A, B], [A, B, C]])
async def test_servers_that_are_all_lame_ducks_are_not_hammered(
    network: Network, autojump_clock: MockClock, no_luck: None, servers: list[str]
) -> None:
    network.lame_ducks = True
    async with opened(network, patient(servers)):
        await trio.sleep(15)
    # At most one each at once; behind that every second, two seconds, four.
    assert len(network.dials) <= 1 + 5 * len(servers)


async def test_two_lame_ducks_in_turn(network: Network, autojump_clock: MockClock) -> None:
    async with opened(network, patient([A, B])) as (watch, live):
        for number in range(1, 6):
            network.broker.lame_duck()
            await watch.until("NATS_CONNECTION_RESTORED", number)
            await trio.sleep(10)
            assert network.broker.links == 1
        assert network.dialled == [A, B, A, B, A, B]
        assert watch.count("NATS_LAME_DUCK") == 5
        assert live.connections["main"].state.lost == 5


# --- a full queue ---


async def fill(network: Network, live: Live) -> list[Receipt]:
    """Fill the socket buffer of a link that hears nothing, and the queue of five behind it."""
    network.broker.blackhole()
    receipts = [await live.publish("out", BIG) for _ in range(3)]
    await trio.testing.wait_all_tasks_blocked()
    receipts += [await live.publish("out", BIG) for _ in range(5)]
    assert (live.ledger()["main"]["pending"], live.ledger()["main"]["in_flight"]) == (5, 3)
    return receipts


async def in_background(nursery: trio.Nursery, job: Callable[[], Awaitable[Any]]) -> list[Any]:
    """Start it, and let it get as far as it can without the clock. Its result, or error, will be in the list."""
    results: list[Any] = []

    async def run() -> None:
        try:
            results.append(await job())
        except PublishError as error:
            results.append(error)

    nursery.start_soon(run)
    await trio.testing.wait_all_tasks_blocked()
    return results


@pytest.mark.parametrize("policy", ["drop_oldest", "reject", "block"])
async def test_a_publisher_waits_for_room_on_a_slow_link_under_every_policy(
    network: Network, policy: str, autojump_clock: MockClock
) -> None:
    config = patient(max_pending_operations=5, on_pending_full=policy)
    async with opened(network, config) as (watch, live), trio.open_nursery() as nursery:
        receipts = await fill(network, live)
        waiting = await in_background(nursery, partial(live.publish, "out", b"last"))
        assert waiting == []
        network.broker.up()
        await trio.testing.wait_all_tasks_blocked()
        assert [one.status for one in waiting] == ["sent"]
        assert {(await one.settled()).name for one in (*receipts, *waiting)} == {"fenced"}
        assert watch.count("NATS_QUEUE_FULL") == 0


async def test_of_many_that_wait_for_room_each_wakes_the_next_also_one_that_does_nothing_with_it(
    network: Network, monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock
) -> None:
    blocked = True
    monkeypatch.setattr(Outbox, "blocks", property(lambda outbox: blocked))
    async with opened(network, patient()) as (_, live), trio.open_nursery() as nursery:
        waiting = [await in_background(nursery, live.connections["main"].room) for _ in range(5)]
        blocked = False
        live.connections["main"]._room.unpark()
        await trio.testing.wait_all_tasks_blocked()
        assert waiting == [[None]] * 5


@pytest.mark.parametrize("policy", ["drop_oldest", "reject", "block", "fail_open"])
async def test_a_publisher_that_waits_hears_of_the_loss_of_the_link(
    network: Network, policy: str, autojump_clock: MockClock
) -> None:
    """What it was waiting for is over: from then on the rules for no connection hold."""
    how = {"fail_open": True} if policy == "fail_open" else {"on_pending_full": policy}
    async with (
        opened(network, patient(max_pending_operations=5, **how)) as (watch, live),
        trio.open_nursery() as nursery,
    ):
        receipts = await fill(network, live)
        waiting = await in_background(nursery, partial(live.publish, "out", b"last"))
        await watch.until("NATS_CONNECTION_LOST")
        await trio.testing.wait_all_tasks_blocked()
        if policy == "drop_oldest":
            assert [one.status for one in waiting] == ["queued"]
            assert [one.fate for one in receipts] == [Fate("dropped", "queue_full")] * 4 + [None] * 4
        elif policy == "reject":
            assert [one.reason for one in waiting] == ["queue_full"]
        elif policy == "fail_open":
            assert [one.status for one in waiting] == ["failed_open"]
            assert {one.fate for one in receipts} == {Fate("failed_open", "not_connected")}
        else:
            assert waiting == []
        assert_accounted(live)
        network.broker.up()
        await watch.until("NATS_CONNECTION_RESTORED", within=60)
        await trio.testing.wait_all_tasks_blocked()
        assert len(waiting) == 1


async def test_a_blocked_publisher_goes_on_when_the_oldest_expire(network: Network, autojump_clock: MockClock) -> None:
    network.is_away()
    config = patient(max_pending_operations=5, on_pending_full="block", pending_max_age="10s")
    async with opened(network, config) as (watch, live), trio.open_nursery() as nursery:
        receipts = [await live.publish("out", b"x") for _ in range(5)]
        waiting = await in_background(nursery, partial(live.publish, "out", b"last"))
        assert waiting == []
        await trio.sleep(11.1)
        assert {one.fate for one in receipts} == {Fate("dropped", "expired")}
        assert [one.status for one in waiting] == ["queued"]
        assert watch.count("NATS_PENDING_DROPPED") == 5
        counters = live.connections["main"].outbox.counters
        assert counters.failed["publish", "not_connected"] == 6
        await trio.sleep(11.1)
        assert waiting[0].fate == Fate("dropped", "expired")
        assert counters.dropped["expired"] == 6


async def test_a_blocked_publisher_goes_on_when_what_uses_up_the_share_fails(
    network: Network, autojump_clock: MockClock
) -> None:
    """Nothing was written meanwhile: room comes from a publish that nobody took. Others never wait for it."""
    config = patient(max_pending_operations=1, on_pending_full="block")
    async with opened(network, config) as (_, live), trio.open_nursery() as nursery:
        publish = partial(live.publish_with_ack, "nobody.listens", b"x", timeout=1.5 * ACK_BUDGET)
        refused = await in_background(nursery, publish)
        await trio.sleep(ACK_BUDGET / 2)
        waiting = await in_background(nursery, publish)
        assert (refused, waiting) == ([], [])
        assert (await live.publish("out", b"last")).status == "sent"
        assert live.ledger()["main"]["accepted"] == 2
        await trio.sleep(ACK_BUDGET / 2 + 1)
        assert [one.reason for one in refused] == ["no_responders"]
        assert live.ledger()["main"]["accepted"] == 3


async def test_expiry_in_an_outage_and_the_rest_is_sent_after_it(network: Network, autojump_clock: MockClock) -> None:
    config = patient(pending_max_age="10s", max_reconnect_delay="1s")
    async with opened(network, config) as (watch, live):
        network.is_away()
        await watch.until("NATS_CONNECTION_LOST")
        old = [await live.publish("out", b"old") for _ in range(3)]
        await trio.sleep(6)
        new = [await live.publish("out", b"new") for _ in range(2)]
        await trio.sleep(6)
        network.broker.up()
        await watch.until("NATS_RETRY_COMPLETE", within=60)
        assert {one.fate for one in old} == {Fate("dropped", "expired")}
        assert {(await one.settled()).name for one in new} == {"fenced"}
        (complete,) = watch.of("NATS_RETRY_COMPLETE")
        assert (complete.success_count, complete.failed_count) == (2, 0)


async def test_fail_open_keeps_nothing_and_goes_on_after_the_outage(
    network: Network, autojump_clock: MockClock
) -> None:
    async with opened(network, patient(fail_open=True)) as (watch, live):
        network.is_away()
        await watch.until("NATS_CONNECTION_LOST")
        receipts = [await live.publish("out", b"x") for _ in range(3)]
        assert {one.status for one in receipts} == {"failed_open"}
        assert live.connections["main"].outbox.counters.failed["publish", "not_connected"] == 3
        network.broker.up()
        await watch.until("NATS_CONNECTION_RESTORED")
        receipt = await live.publish("out", b"y")
        assert (await receipt.settled()).name == "fenced"
        assert watch.count("NATS_RETRY_PENDING") == 0
    assert [one.payload for one in network.broker.published] == [b"y"]


async def test_the_drain_says_when_it_starts_and_what_came_of_it(network: Network, autojump_clock: MockClock) -> None:
    network.broker.add_stream("OUT", ["stored.>"])
    async with opened(network, patient()) as (watch, live):
        network.is_away()
        await watch.until("NATS_CONNECTION_LOST")
        receipts = [await live.publish("out", b"%d" % number) for number in range(5)]
        receipts += [await live.publish_with_ack("stored.1", b"%d" % number) for number in range(5, 10)]
        network.broker.deny_publish("out")
        network.broker.up()
        complete = await watch.until("NATS_RETRY_COMPLETE")
        assert watch.of("NATS_RETRY_PENDING")[0].pending_count == 10
        assert (complete.success_count, complete.failed_count) == (5, 5)
        fates = [(await one.settled()).name for one in receipts]
        assert fates == ["failed"] * 5 + ["acked"] * 5
        order = ["NATS_CONNECTION_RESTORED", "NATS_RETRY_PENDING", "NATS_RETRY_COMPLETE"]
        assert [code for code in watch.codes if code in order] == order


# --- the end ---


async def test_cancelled_open_at_any_step_leaves_nothing_and_the_books_add_up(
    network: Network, autojump_clock: MockClock
) -> None:
    """Cancel after the first step of the scheduler, after the second, and so on, until nothing is left to cancel."""
    steps = 0
    entered = 0
    while True:
        steps += 1
        assert steps < 1000, "it never finishes"
        lives: list[Live] = []
        with trio.CancelScope() as scope, cancelling_after(steps, scope):
            await open_and_publish(Network(), lives)
        entered += bool(lives)
        for live in lives:
            assert_accounted(live)
            entry = live.ledger()["main"]
            assert entry["pending"] == entry["in_flight"] == 0
            assert live.unsettled >= entry["settled"]["dropped"]
        assert tasks_of_the_router() == []
        if not scope.cancelled_caught:
            break
    assert steps > 60
    assert entered > 30


async def open_and_publish(network: Network, lives: list[Live]) -> None:
    config = settings([A, B], routes=[core_route("in.*", "out.{{wildcard(1)}}")])
    async with Router(config, connect=lambda name, one: network.connect).open() as live:
        lives.append(live)
        for number in range(5):
            await live.publish("in.1", b"%d" % number)
        network.broker.cut()
        await trio.sleep(0.01)
        for number in range(5):
            await live.publish("in.1", b"%d" % number)
        network.broker.lame_duck()
        await trio.sleep(0.01)


class CancelAfter(trio.abc.Instrument):
    """Cancels a scope after so many steps of tasks."""

    def __init__(self, steps: int, scope: trio.CancelScope) -> None:
        self._left = steps
        self._scope = scope

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        self._left -= 1
        if self._left == 0:
            self._scope.cancel()


class cancelling_after:
    """Let `CancelAfter` watch the body."""

    def __init__(self, steps: int, scope: trio.CancelScope) -> None:
        self._instrument = CancelAfter(steps, scope)

    def __enter__(self) -> None:
        trio.lowlevel.add_instrument(self._instrument)

    def __exit__(self, *_: object) -> None:
        trio.lowlevel.remove_instrument(self._instrument)


def tasks_of_the_router() -> list[str]:
    """Names of tasks of this package that are still there."""
    root = trio.lowlevel.current_root_task()
    assert root is not None
    found = []
    tasks = [root]
    while tasks:
        task = tasks.pop()
        tasks.extend(child for nursery in task.child_nurseries for child in nursery.child_tasks)
        if task.name.startswith("router_trio."):
            found.append(task.name)
    return found


@pytest.mark.parametrize("first", ["cancel", "cut"])
async def test_a_link_that_dies_while_the_router_is_cancelled_is_no_error(
    network: Network, first: str, autojump_clock: MockClock
) -> None:
    with trio.CancelScope() as scope:
        async with opened(network, patient()):
            for what in (scope.cancel, network.broker.cut) if first == "cancel" else (network.broker.cut, scope.cancel):
                what()
            await trio.sleep_forever()
    assert scope.cancelled_caught


async def test_an_error_of_the_body_comes_out_bare(network: Network, autojump_clock: MockClock) -> None:
    error = KeyError("of the body")
    with pytest.raises(KeyError) as caught:
        async with Router(patient(), connect=lambda name, one: network.connect).open():
            raise error
    assert caught.value is error


async def test_what_is_accepted_is_settled_when_the_router_is_left(network: Network, autojump_clock: MockClock) -> None:
    async with opened(network, patient()) as (_, live):
        receipts = [await live.publish("out", b"x") for _ in range(1000)]
    assert {one.fate for one in receipts} == {Fate("fenced")}
    assert live.unsettled == 0


async def test_what_is_accepted_is_settled_when_the_router_is_cancelled(
    network: Network, autojump_clock: MockClock
) -> None:
    receipts: list[Receipt] = []
    with trio.CancelScope() as scope:
        async with opened(network, patient()) as (_, live):
            for _ in range(100):
                receipts.append(await live.publish("out", b"x"))
            scope.cancel()
            await trio.sleep_forever()
    assert {one.fate for one in receipts} == {Fate("fenced")}
    assert trio.current_time() < 0.1
