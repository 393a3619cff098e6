"""A full queue of a connection: which publishers wait for room, which are woken, and what an outage does to them."""

from __future__ import annotations

from functools import partial

import pytest
import trio
import trio.testing
from trio.testing import MockClock

from router_trio import Fate, Live, Receipt
from router_trio.outbox.outbox import Outbox
from router_trio.outbox.retries import ACK_BUDGET
from tests.support.watch import assert_accounted
from tests.unit.connection.network import Network, in_background, opened, patient

BIG = b"x" * 100_000
"""Three of these are more than the socket buffer of a fake link holds."""


async def fill_queue(network: Network, live: Live) -> list[Receipt]:
    """Fill the socket buffer of a link to a silent server, and the queue of five behind it."""
    network.broker.blackhole()
    receipts = [await live.publish("out", BIG) for _ in range(3)]
    await trio.testing.wait_all_tasks_blocked()
    receipts += [await live.publish("out", BIG) for _ in range(5)]
    assert (live.ledger()["main"]["pending"], live.ledger()["main"]["in_flight"]) == (5, 3)
    return receipts


@pytest.mark.parametrize("policy", ["drop_oldest", "reject", "block"])
async def test_a_publisher_waits_for_room_on_a_slow_link_whatever_the_policy(
    network: Network, policy: str, autojump_clock: MockClock
) -> None:
    config = patient(max_pending_operations=5, on_pending_full=policy)
    async with opened(network, config) as (watch, live), trio.open_nursery() as nursery:
        receipts = await fill_queue(network, live)
        waiting = await in_background(nursery, partial(live.publish, "out", b"last"))
        assert waiting == []
        network.broker.up()
        await trio.testing.wait_all_tasks_blocked()
        assert [one.status for one in waiting] == ["sent"]
        assert {(await one.settled()).name for one in (*receipts, *waiting)} == {"fenced"}
        assert watch.count("NATS_QUEUE_FULL") == 0


async def test_each_publisher_waiting_for_room_wakes_the_next_even_if_it_uses_none(
    network: Network, monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock
) -> None:
    blocked = True
    monkeypatch.setattr(Outbox, "blocks", property(lambda outbox: blocked))
    async with opened(network, patient()) as (_, live), trio.open_nursery() as nursery:
        waiting = [await in_background(nursery, live.connections["main"].wait_for_capacity) for _ in range(5)]
        blocked = False
        live.connections["main"]._room.unpark()
        await trio.testing.wait_all_tasks_blocked()
        assert waiting == [[None]] * 5


@pytest.mark.parametrize("policy", ["drop_oldest", "reject", "block", "fail_open"])
async def test_a_waiting_publisher_is_woken_when_the_link_is_lost(
    network: Network, policy: str, autojump_clock: MockClock
) -> None:
    """Waiting for room on the link is over: from then on the rules for a missing connection apply."""
    how = {"fail_open": True} if policy == "fail_open" else {"on_pending_full": policy}
    async with (
        opened(network, patient(max_pending_operations=5, **how)) as (watch, live),
        trio.open_nursery() as nursery,
    ):
        receipts = await fill_queue(network, live)
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


async def test_a_blocked_publisher_continues_when_the_oldest_expire(
    network: Network, autojump_clock: MockClock
) -> None:
    network.take_down()
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


async def test_a_blocked_publisher_continues_when_a_publish_that_uses_up_the_share_fails(
    network: Network, autojump_clock: MockClock
) -> None:
    """Nothing was written meanwhile: the room was that of a publish without responders. Other publishes never wait."""
    config = patient(max_pending_operations=1, on_pending_full="block")
    async with opened(network, config) as (_, live), trio.open_nursery() as nursery:
        publish = partial(live.publish_with_ack, "unheard.x", b"x", timeout=1.5 * ACK_BUDGET)
        refused = await in_background(nursery, publish)
        await trio.sleep(ACK_BUDGET / 2)
        waiting = await in_background(nursery, publish)
        assert (refused, waiting) == ([], [])
        assert (await live.publish("out", b"last")).status == "sent"
        assert live.ledger()["main"]["accepted"] == 2
        await trio.sleep(ACK_BUDGET / 2 + 1)
        assert [one.reason for one in refused] == ["no_responders"]
        assert live.ledger()["main"]["accepted"] == 3


async def test_publishes_expire_in_an_outage_and_the_rest_is_sent_after_it(
    network: Network, autojump_clock: MockClock
) -> None:
    config = patient(pending_max_age="10s", max_reconnect_delay="1s")
    async with opened(network, config) as (watch, live):
        network.take_down()
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


async def test_fail_open_keeps_nothing_and_publishes_again_after_the_outage(
    network: Network, autojump_clock: MockClock
) -> None:
    async with opened(network, patient(fail_open=True)) as (watch, live):
        network.take_down()
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


async def test_the_start_and_the_result_of_a_drain_are_reported(network: Network, autojump_clock: MockClock) -> None:
    network.broker.add_stream("OUT", ["stored.>"])
    async with opened(network, patient()) as (watch, live):
        network.take_down()
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
