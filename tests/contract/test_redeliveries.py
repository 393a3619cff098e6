"""Promises of `router_trio.link` about acks, naks and signs of work: what is redelivered, when, and in which order."""

from __future__ import annotations

from dataclasses import replace

import pytest
import trio
import trio.testing

from router_trio.link import SIGN_OF_WORK_EVERY, Limits
from router_trio.protocol.framing import header_block
from router_trio.protocol.headers import status
from tests.contract.orders import SPEC, delivered, ending, publish_orders, sequences
from tests.contract.peers import Peer, link_of
from tests.support.recorder import Recorder


async def test_an_unacked_message_is_redelivered_and_an_acked_one_is_not(peer: Peer, clock: object) -> None:
    await peer.add_stream("ORDERS", ["orders.>"])
    await peer.publish("orders.a")
    await peer.publish("orders.b")
    received = Recorder()
    async with link_of(peer) as link:
        consumer = await link.open_consumer(SPEC, received)
        consumer.pull(2, 5.0)
        first = await received.until_delivered(2)
        assert not link.ack([first[0][1]])
        consumer.pull(2, 2.5)
        again = (await received.until_delivered(3))[2]
        assert sequences([again]) == [2]
        assert delivered(again) == 2
        assert not link.ack([again[1]])
        ending = (await received.until_delivered(4))[3]
    assert status(header_block(ending))[0] == 408


async def test_a_nak_redelivers_a_message_after_its_delay(peer: Peer, clock: object) -> None:
    await peer.add_stream("ORDERS", ["orders.>"])
    await peer.publish("orders.a")
    received = Recorder()
    async with link_of(peer) as link:
        consumer = await link.open_consumer(replace(SPEC, ack_wait=30.0), received)
        consumer.pull(3, 10.0)
        first = (await received.until_delivered(1))[0]
        asked_at = trio.current_time()
        link.nak(first[1], 0.0)
        second = (await received.until_delivered(2))[1]
        link.nak(second[1], 0.5)
        third = (await received.until_delivered(3))[2]
        took = trio.current_time() - asked_at
    assert [delivered(raw) for raw in (first, second, third)] == [1, 2, 3]
    assert 0.5 <= took < 3.0


async def test_in_progress_restarts_the_ack_wait(peer: Peer, clock: object) -> None:
    await peer.add_stream("ORDERS", ["orders.>"])
    await peer.publish("orders.a")
    received = Recorder()
    async with link_of(peer) as link:
        consumer = await link.open_consumer(SPEC, received)
        consumer.pull(2, 30.0)
        first = (await received.until_delivered(1))[0]
        started_at = trio.current_time()
        for _ in range(4):
            await trio.sleep(0.5)
            link.in_progress(first[1])
        again = (await received.until_delivered(2))[1]
        took = trio.current_time() - started_at
    assert delivered(again) == 2
    assert took >= 2.9  # four times half a second, then the ack wait


async def test_a_message_is_delivered_at_most_max_deliver_times(peer: Peer, clock: object) -> None:
    await peer.add_stream("ORDERS", ["orders.>"])
    await peer.publish("orders.a")
    received = Recorder()
    async with link_of(peer) as link:
        consumer = await link.open_consumer(replace(SPEC, ack_wait=0.3, max_deliver=2), received)
        consumer.pull(3, 2.0)
        *messages, ending = await received.until_delivered(3)
    assert [delivered(raw) for raw in messages] == [1, 2]
    assert status(header_block(ending))[0] == 408


async def test_max_ack_pending_holds_back_messages_until_one_is_acked(peer: Peer, clock: object) -> None:
    await publish_orders(peer, 3)
    received = Recorder()
    async with link_of(peer) as link:
        consumer = await link.open_consumer(replace(SPEC, ack_wait=30.0, max_ack_pending=2), received)
        consumer.pull(3, 0.4)
        *messages, ending = await received.until_delivered(3)
        assert sequences(messages) == [1, 2]
        assert status(header_block(ending))[0] == 408
        consumer.pull(3, 5.0)
        assert not link.ack([messages[0][1]])
        third = (await received.until_delivered(4))[3]
    assert sequences([third]) == [3]


async def test_messages_that_use_up_max_ack_pending_are_redelivered_before_new_ones(peer: Peer, clock: object) -> None:
    await publish_orders(peer, 4)
    received = Recorder()
    async with link_of(peer) as link:
        consumer = await link.open_consumer(replace(SPEC, max_ack_pending=2), received)
        consumer.pull(6, 5.0)
        await received.until_delivered(2)
        full = await consumer.check()
        again = (await received.until_delivered(4))[2:]
        after = await consumer.check()
        assert not link.ack([raw[1] for raw in again])
        new = (await received.until_delivered(6))[4:]
        freed = await consumer.check()
    assert (full.unacked, full.max_ack_pending, full.delivered, full.undelivered) == (2, 2, 2, 2)
    assert sequences(again) == [1, 2]
    assert (after.unacked, after.delivered, after.undelivered) == (2, 2, 2)
    assert sequences(new) == [3, 4]
    assert (freed.unacked, freed.delivered, freed.undelivered) == (2, 4, 0)


async def test_an_ack_counts_on_another_link_for_an_earlier_delivery_and_when_repeated(
    peer: Peer, clock: object
) -> None:
    await publish_orders(peer, 2)
    received = Recorder()
    async with link_of(peer) as link:
        consumer = await link.open_consumer(SPEC, received)
        consumer.pull(3, 5.0)
        earlier, _, again = (await received.until_delivered(3))[:3]
        assert sequences([earlier, again]) == [1, 1]
    async with link_of(peer) as link:
        consumer = await link.open_consumer(SPEC, Recorder())
        for _ in range(2):
            assert not link.ack([earlier[1]])
            await link.fence()
            with trio.fail_after(5):
                while (await consumer.check()).unacked != 1:
                    await trio.sleep(0.01)
        assert (await consumer.check()).passed == 1


async def test_messages_that_a_lost_link_left_unacked_are_redelivered_on_the_next_one(
    peer: Peer, clock: object
) -> None:
    await peer.add_stream("ORDERS", ["orders.>"])
    await peer.publish("orders.a")
    first, second = Recorder(), Recorder()
    async with link_of(peer) as link:
        consumer = await link.open_consumer(SPEC, first)
        consumer.pull(5, 30.0)
        await first.until_delivered(1)
    async with link_of(peer) as link:
        consumer = await link.open_consumer(SPEC, second)
        consumer.pull(5, 5.0)
        (raw,) = await second.until_delivered(1)
    assert sequences([raw]) == [1]
    assert delivered(raw) == 2


async def test_requested_redeliveries_arrive_at_once_and_before_new_messages(peer: Peer) -> None:
    await peer.add_stream("ORDERS", ["orders.>"])
    spec = replace(SPEC, ack_wait=30.0)
    for n in range(5):
        await peer.publish(f"orders.{n}")
    first, second = Recorder(), Recorder()
    async with link_of(peer) as link:
        consumer = await link.open_consumer(spec, first)
        consumer.pull(4, 30.0)
        raws = await first.until_delivered(4)
        assert not link.ack([raws[1][1]])
        await link.fence()
    async with link_of(peer) as link:
        consumer = await link.open_consumer(spec, second)
        # The second is acked, the fifth was never delivered, a sixth does not exist: the request leaves those alone.
        await consumer.again([1, 2, 3, 5, 6])
        consumer.pull(10, 5.0)
        again = await second.until_delivered(3)
    assert sequences(again) == [1, 3, 5]
    assert [delivered(raw) for raw in again] == [2, 2, 1]


async def test_requested_redeliveries_keep_their_order_whatever_was_due_before(peer: Peer) -> None:
    await publish_orders(peer, 5)
    received = Recorder()
    async with link_of(peer) as link:
        consumer = await link.open_consumer(replace(SPEC, ack_wait=30.0), received)
        consumer.pull(5, 30.0)
        await received.until_delivered(5)
    async with link_of(peer) as link:
        again = Recorder()
        consumer = await link.open_consumer(replace(SPEC, ack_wait=30.0), again)
        await consumer.again([4])
        assert await consumer.again([1, 2, 3, 4, 5])
        consumer.pull(10, 5.0)
        raws = await again.until_delivered(5)
    assert sequences(raws) == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("known", [None, "1970-01-01T00:00:00Z"])
async def test_a_sign_of_work_marks_the_consumer_as_in_use(known: str | None, peer: Peer, clock: object) -> None:
    """The worker neither pulls nor acks. Others see it that know nothing of the stream, or know another incarnation."""
    await peer.add_stream("ORDERS", ["orders.>"])
    await peer.publish("orders.a")
    spec, received = replace(SPEC, ack_wait=30.0, stream_created=known), Recorder()
    async with link_of(peer) as link, peer.connect(peer.server, b"_INBOX.other", Recorder()) as other:
        consumer = await link.open_consumer(spec, received)
        consumer.pull(1, 5.0)
        await received.until_delivered(1)

        async def work() -> None:
            while True:
                consumer.say_at_work()
                await trio.sleep(SIGN_OF_WORK_EVERY)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(work)
            assert (await other.open_consumer(spec, Recorder())).progress.in_use
            nursery.cancel_scope.cancel()
        await trio.sleep(SIGN_OF_WORK_EVERY)
        assert not (await other.open_consumer(spec, Recorder())).progress.in_use


async def test_a_sign_of_work_changes_no_order(peer: Peer, clock: object) -> None:
    """The messages that it leaves are redelivered after the ack wait, the oldest first."""
    await publish_orders(peer, 3)
    first, again = Recorder(), Recorder()
    async with link_of(peer) as link:
        consumer = await link.open_consumer(SPEC, first)
        consumer.pull(3, 5.0)
        await first.until_delivered(3)
        await trio.sleep(SPEC.ack_wait / 2)
        consumer.say_at_work()
        await link.fence()
    async with link_of(peer) as link:
        consumer = await link.open_consumer(SPEC, again)
        await trio.sleep(SPEC.ack_wait)
        consumer.pull(3, 5.0)
        raws = await again.until_delivered(3)
    assert sequences(raws) == [1, 2, 3]


async def test_the_limit_on_deliveries_of_a_durable_is_lifted(peer: Peer, clock: object) -> None:
    """The limit counts deliveries, including those to lost links, and not failures."""
    await peer.add_stream("ORDERS", ["orders.>"])
    await peer.publish("orders.a")
    async with link_of(peer) as link:
        consumer = await link.open_consumer(replace(SPEC, max_deliver=2), Recorder())
        assert consumer.limits == Limits(2, SPEC.max_ack_pending, "limits")
        assert not consumer.lifted
    received = Recorder()
    async with link_of(peer) as link:
        consumer = await link.open_consumer(SPEC, received)
        assert consumer.limits == Limits(-1, SPEC.max_ack_pending, "limits")
        assert list(consumer.lifted) == ["max_deliver = 2"]
        consumer.pull(10, 5.0)
        for number in range(1, 6):
            link.nak((await received.until_delivered(number))[-1][1], 0.0)
        assert [delivered(raw) for raw in received.messages] == [1, 2, 3, 4, 5]


async def test_a_limit_on_deliveries_that_is_set_later_is_lifted_by_the_next_check(peer: Peer, clock: object) -> None:
    await peer.add_stream("ORDERS", ["orders.>"])
    async with link_of(peer) as link:
        consumer = await link.open_consumer(SPEC, Recorder())
        await peer.edit_consumer("ORDERS", "router", max_deliver=3)
        assert list((await consumer.check()).lifted) == ["max_deliver = 3"]
        assert not (await consumer.check()).lifted
        assert not consumer.lifted


async def test_a_terminated_message_is_not_redelivered(peer: Peer, clock: object) -> None:
    await peer.add_stream("ORDERS", ["orders.>"])
    await peer.publish("orders.a")
    received = Recorder()
    async with link_of(peer) as link:
        consumer = await link.open_consumer(replace(SPEC, ack_wait=0.3), received)
        consumer.pull(2, 1.5)
        link.term((await received.until_delivered(1))[0][1], "malformed")
        *messages, ending = await received.until_delivered(2)
    assert len(messages) == 1
    assert status(header_block(ending))[0] == 408
    assert await peer.payloads("ORDERS") == [b""], "the stream keeps it"


async def test_a_due_message_that_no_pull_has_room_for_goes_behind_all_others(peer: Peer) -> None:
    """A new message in its place is still the next one. So is a due one if another pull has room for it."""
    await peer.add_stream("ORDERS", ["orders.>"])
    for size in (600, 10, 10, 900):
        await peer.publish("orders.a", b"x" * size)
    spec, first, again = replace(SPEC, ack_wait=30.0), Recorder(), Recorder()
    async with link_of(peer) as link:
        consumer = await link.open_consumer(spec, first)
        consumer.pull(3, 5.0)
        await first.until_delivered(3)
    async with link_of(peer) as link:
        consumer = await link.open_consumer(spec, again)
        await consumer.again([1, 2, 3])
        consumer.pull(3, 5.0, 500)
        (refused,) = await again.until_delivered(1)
        assert ending(refused) == (409, "Message Size Exceeds MaxBytes", 3, 500)
        consumer.pull(1, 5.0)
        assert sequences((await again.until_delivered(2))[1:]) == [2]
        await consumer.again([1, 3])
        consumer.pull(2, 5.0)
        assert sequences((await again.until_delivered(4))[2:]) == [1, 3], "requested again, they are in order again"
        consumer.pull(1, 5.0, 500)
        assert ending((await again.until_delivered(5))[4]) == (409, "Message Size Exceeds MaxBytes", 1, 500)
        await peer.publish("orders.a", b"x")
        consumer.pull(2, 5.0)
        assert sequences((await again.until_delivered(7))[5:]) == [4, 5]


async def test_messages_a_busy_server_was_still_sending_keep_their_order(peer: Peer) -> None:
    """The server notices message by message that the link is lost, perhaps while redelivery is being requested."""
    await peer.add_stream("ORDERS", ["orders.>"])
    count = 1_000
    for n in range(count):
        await peer.publish(f"orders.{n}", b"x" * 5_000)
    first, again = Recorder(), Recorder()
    spec = replace(SPEC, ack_wait=30.0)
    async with link_of(peer) as link:
        consumer = await link.open_consumer(spec, first)
        consumer.pull(count, 30.0)
        await first.until_delivered(1)
    async with peer.connect(peer.server, b"_INBOX.other", Recorder()) as link:
        consumer = await link.open_consumer(replace(spec, stream_created=consumer.stream_created), again)
        unacked = await consumer.unacked(1)
        assert unacked
        await consumer.again(unacked)
        consumer.pull(count, 30.0)
        raws = await again.until_delivered(count)
    assert sequences(raws) == [*range(1, count + 1)]
