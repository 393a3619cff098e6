"""A server in lame duck mode is left without a loss, or kept if there is no other."""

from __future__ import annotations

from functools import partial

import pytest
import trio
import trio.testing
from trio.testing import MockClock

from router_trio.connection.supervisor import HAND_OVER_WITHIN
from router_trio.errors import AuthorizationError, LinkError
from router_trio.testing import FakeBroker
from tests.support.watch import assert_accounted
from tests.unit.connection.network import A, B, C, Network, in_background, opened, patient


async def test_a_lame_duck_is_left_before_it_ends(network: Network, autojump_clock: MockClock) -> None:
    async with opened(network, patient([A, B])) as (watch, live):
        await trio.sleep(60)
        network.broker.lame_duck()
        restored = await watch.until("NATS_CONNECTION_RESTORED")
        (lost,) = watch.of("NATS_CONNECTION_LOST")
        assert (lost.reason, lost.server) == ("lame_duck", A)
        assert restored.server == "nats://b:4222"
        assert restored.at == lost.at == 60.0
        assert network.dialled == [A, B]
        assert network.most_links == 2
        await trio.sleep(1)
        assert network.broker.links == 1
        assert watch.count("NATS_LAME_DUCK") == 1
        assert watch.codes.index("NATS_LAME_DUCK") < watch.codes.index("NATS_RECONNECT_ATTEMPT")
        await live.publish("out", b"still there")
    assert [one.payload for one in network.broker.published] == [b"still there"]


async def test_publishes_unconfirmed_on_a_lame_duck_are_resent_on_the_next_link(
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


async def test_a_lame_duck_that_stops_answering_is_left_in_time(network: Network, autojump_clock: MockClock) -> None:
    """Wait no longer than two seconds for publishes in flight; then they are sent to the next server."""
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


async def test_a_lame_duck_that_dies_while_it_is_being_left_is_not_waited_for(
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


async def test_a_retry_due_on_a_link_that_is_being_left_waits_for_the_next_link(
    network: Network, autojump_clock: MockClock
) -> None:
    """A refused publish is due on a link that gets nothing more: the sender must not spin meanwhile."""
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
        assert stored.status in ("queued", "acked"), "the move and the ack may be noticed in either order"
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


async def test_a_failed_move_is_counted_and_the_old_link_is_kept(
    network: Network, autojump_clock: MockClock, longest_delays: None
) -> None:
    network.trouble = {B: LinkError("connection refused"), C: AuthorizationError("not you")}
    async with opened(network, patient([A, B, C])) as (watch, live):
        network.broker.lame_duck()
        await watch.until("NATS_CONNECTION_FAILED", 2)
        reasons = [(event.server, event.reason) for event in watch.of("NATS_CONNECTION_FAILED")]
        assert reasons == [(B, "network"), (C, "authorization")]
        await trio.sleep(0.5)
        state = live.connections["main"].state
        assert (state.gauge, state.reconnect_attempts, state.reconnect_failures) == (1.0, 2, 2)


async def test_a_failed_move_is_retried_with_growing_delays(
    network: Network, autojump_clock: MockClock, longest_delays: None
) -> None:
    network.trouble = {B: LinkError("connection refused")}
    async with opened(network, patient([A, B])) as (watch, live):
        network.broker.lame_duck()
        await trio.sleep(60)
        assert live.connections["main"].connected
        assert network.dialled[:4] == [A, B, B, B]
        assert network.pauses[1:6] == [1.0, 2.0, 4.0, 8.0, 16.0]
        network.trouble = {}
        restored = await watch.until("NATS_CONNECTION_RESTORED")
        assert restored.server == "nats://b:4222"
        assert watch.of("NATS_CONNECTION_LOST")[0].reason == "lame_duck"
        assert network.broker.links == 1


async def test_a_lame_duck_is_left_for_a_server_announced_later(network: Network, autojump_clock: MockClock) -> None:
    async with opened(network, patient()) as (watch, _):
        network.broker.lame_duck()
        await trio.sleep(10)
        network.broker.announce_servers("b:4222")
        restored = await watch.until("NATS_CONNECTION_RESTORED")
        assert (restored.at, restored.server) == (10.0, "nats://b:4222")


async def test_a_new_link_to_a_lame_duck_is_left_too(network: Network, autojump_clock: MockClock) -> None:
    network.brokers[A] = FakeBroker()
    network.brokers[A]._network.is_lame = True
    async with opened(network, patient([A, B])) as (watch, live):
        await watch.until("NATS_CONNECTION_RESTORED")
        await trio.sleep(1)
        assert live.connections["main"].state.server == "b:4222"
        assert watch.codes.index("NATS_CONNECTION_ESTABLISHED") < watch.codes.index("NATS_LAME_DUCK")


async def test_the_next_server_may_become_a_lame_duck_while_the_previous_one_is_being_left(
    network: Network, autojump_clock: MockClock
) -> None:
    network.brokers |= {B: FakeBroker(), C: FakeBroker()}
    async with opened(network, patient([A, B, C], liveness_interval="30s")) as (watch, live):
        network.broker.lame_duck()
        await watch.until("NATS_LAME_DUCK")
        network.broker.blackhole()
        await live.publish("out", b"keeps the old link for two seconds")
        await trio.sleep(0.5)
        assert network.brokers[B].links == 1
        network.brokers[B].lame_duck()
        await watch.until("NATS_CONNECTION_RESTORED", 2)
        await trio.sleep(1)
        assert [event.server for event in watch.of("NATS_LAME_DUCK")] == [A, B]
        assert live.connections["main"].state.server == "c:4222"


async def test_a_lame_duck_that_dies_during_the_move_leaves_no_second_link(
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
async def test_servers_that_are_all_lame_ducks_are_not_flooded_with_attempts(
    network: Network, autojump_clock: MockClock, longest_delays: None, servers: list[str]
) -> None:
    network.lame_ducks = True
    async with opened(network, patient(servers)):
        await trio.sleep(15)
    # At most one attempt each at once; then after one second, two seconds, four.
    assert len(network.dials) <= 1 + 5 * len(servers)


async def test_one_lame_duck_after_another_is_left(network: Network, autojump_clock: MockClock) -> None:
    async with opened(network, patient([A, B])) as (watch, live):
        for number in range(1, 6):
            network.broker.lame_duck()
            await watch.until("NATS_CONNECTION_RESTORED", number)
            await trio.sleep(10)
            assert network.broker.links == 1
        assert network.dialled == [A, B, A, B, A, B]
        assert watch.count("NATS_LAME_DUCK") == 5
        assert live.connections["main"].state.lost == 5
