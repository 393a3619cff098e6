"""Promises of `router_trio.link` about standby consumers: one leads, and another takes the lead when it is silent."""

from __future__ import annotations

from dataclasses import replace

import pytest
import trio

from router_trio.errors import SourceError
from router_trio.link import LEAD_ENDS_AFTER, ConsumerState, Link
from router_trio.protocol.framing import payload
from tests.contract.orders import SPEC, sequences
from tests.contract.peers import Peer, link_of
from tests.support.recorder import Recorder

pytestmark = pytest.mark.real_needs_server(2, 11, lacks="pinned consumers")

STANDBY = replace(SPEC, standby=True)
HELD_EVERY = 0.5


def ignore(stream_created: str, state: ConsumerState) -> None:
    """Ignore what is learned of the durable while waiting for the lead."""


async def test_the_leader_gets_the_messages(peer: Peer, clock: trio.abc.Clock | None) -> None:
    await peer.add_stream("ORDERS", ["orders.>"])
    await peer.publish("orders.new", b"1")
    await peer.publish("orders.new", b"2")
    received = Recorder()
    async with link_of(peer) as link:
        pin = await link.take_the_lead(STANDBY, ignore)
        consumer = await link.open_consumer(replace(STANDBY, pin=pin), received)
        assert consumer.progress.in_use is False, "no other process uses it"
        unacked = await consumer.unacked(1)
        if unacked:  # a real server names the leader with the first message, which is then redelivered
            await consumer.again(unacked)
        consumer.pull(2, 5.0)
        assert [payload(raw) for raw in await received.until_delivered(2)] == [b"1", b"2"]
        assert await link.take_the_lead(replace(STANDBY, pin=pin), ignore) == pin, "the lead is still valid"
        assert (await consumer.check()).paused is None


async def test_a_lead_kept_on_another_link_gets_a_new_pin(peer: Peer, clock: trio.abc.Clock | None) -> None:
    await peer.add_stream("ORDERS", ["orders.>"])
    await peer.publish("orders.new", b"1")
    await peer.publish("orders.new", b"2")
    received = Recorder()
    async with link_of(peer) as first, link_of(peer) as second:
        pin = await first.take_the_lead(STANDBY, ignore)
        consumer = await first.open_consumer(replace(STANDBY, pin=pin), received)
        consumer.pull(9, 5.0)
        await received.until_delivered(1)
        with trio.fail_after(LEAD_ENDS_AFTER):
            new = await second.take_the_lead(replace(STANDBY, pin=pin), ignore)
            assert new != pin
            delivered = Recorder()
            leading = await second.open_consumer(replace(STANDBY, pin=new), delivered)
            await leading.again((await leading.unacked(1)) or ())
            leading.pull(2, 5.0)
            assert [payload(raw) for raw in await delivered.until_delivered(2)] == [b"1", b"2"]


@pytest.mark.nightly  # on a busy machine a second's delay makes the server give the lead away
async def test_another_process_waits_until_the_lead_is_released(peer: Peer, clock: trio.abc.Clock | None) -> None:
    await peer.add_stream("ORDERS", ["orders.>"])
    await peer.publish("orders.new", b"1")
    async with link_of(peer) as first, link_of(peer) as second:
        pin = await first.take_the_lead(STANDBY, ignore)
        consumer = await first.open_consumer(replace(STANDBY, pin=pin), Recorder())
        taken: list[str] = []

        async with trio.open_nursery() as nursery:

            @nursery.start_soon
            async def wait() -> None:
                taken.append(await second.take_the_lead(STANDBY, ignore))
                nursery.cancel_scope.cancel()

            for _ in range(round(1.5 * LEAD_ENDS_AFTER / HELD_EVERY)):
                consumer.hold_lead()
                await trio.sleep(HELD_EVERY)
            assert not taken, "the lead is held"
            consumer.release_lead()
            await peer.publish("orders.new", b"2")
            with trio.fail_after(LEAD_ENDS_AFTER / 2):
                await trio.sleep_forever()
        assert taken != [pin]


async def test_a_lead_that_is_not_held_ends_and_its_holder_is_notified(
    peer: Peer, clock: trio.abc.Clock | None
) -> None:
    await peer.add_stream("ORDERS", ["orders.>"])
    await peer.publish("orders.new", b"1")
    received = Recorder()
    async with link_of(peer) as first, link_of(peer) as second:
        pin = await first.take_the_lead(STANDBY, ignore)
        consumer = await first.open_consumer(replace(STANDBY, pin=pin), received)
        async with trio.open_nursery() as nursery:

            @nursery.start_soon
            async def publish() -> None:
                while True:  # a real server names the leader with a message
                    await trio.sleep(0.5)
                    await peer.publish("orders.new", b"2")

            with trio.fail_after(LEAD_ENDS_AFTER + 2.0):
                assert await second.take_the_lead(STANDBY, ignore) != pin
            nursery.cancel_scope.cancel()
        consumer.pull(1, 5.0)
        status = await received.until_delivered(1)
        assert b" 423 " in status[0][4]


async def test_a_sign_that_keeps_the_lead_moves_the_next_redelivery(peer: Peer, clock: trio.abc.Clock | None) -> None:
    await peer.add_stream("ORDERS", ["orders.>"])
    for number in (1, 2, 3):
        await peer.publish("orders.new", b"%d" % number)
    received, proved = Recorder(), trio.Event()
    async with link_of(peer) as link:
        pin = await link.take_the_lead(replace(STANDBY, ack_wait=30.0), ignore)
        consumer = await link.open_consumer(replace(STANDBY, ack_wait=30.0, pin=pin), received)
        consumer.watch_lead(lambda sent_at: proved.set(), proved.set)
        if unacked := await consumer.unacked(1):
            await consumer.again(unacked)
        consumer.pull(3, 5.0)
        await received.until_delivered(3)
        await consumer.again([1, 2, 3])
        assert consumer.hold_lead()
        with trio.fail_after(5):
            await proved.wait()
        consumer.pull(3, 5.0)
        assert sequences((await received.until_delivered(6))[3:]) == [2, 3, 1]
        await consumer.again([1, 2, 3])
        consumer.pull(3, 5.0)
        assert sequences((await received.until_delivered(9))[6:]) == [1, 2, 3]


async def test_requests_of_the_former_leader_do_not_change_the_order_of_redeliveries(
    peer: Peer, clock: trio.abc.Clock | None
) -> None:
    """They are behind the request that took the lead, and the server ends them when a message is due."""
    await peer.add_stream("ORDERS", ["orders.>"])
    for number in range(5):
        await peer.publish("orders.new", b"%d" % number)
    spec, received, again = replace(STANDBY, ack_wait=30.0), Recorder(), Recorder()
    async with link_of(peer) as first, peer.connect(peer.server, b"_INBOX.other", Recorder()) as second:
        pin = await first.take_the_lead(spec, ignore)
        consumer = await first.open_consumer(replace(spec, pin=pin), received)
        consumer.pull(9, 30.0)
        await received.until_delivered(4)
        taken: list[str] = []
        async with trio.open_nursery() as nursery:

            @nursery.start_soon
            async def wait() -> None:
                taken.append(await second.take_the_lead(spec, ignore))

            await trio.sleep(0.5)  # its request waits
            consumer.pull(9, 30.0)
            await first.fence()
            consumer.release_lead()
            await first.fence()
            await peer.publish("orders.new", b"6")
        leading = await second.open_consumer(replace(spec, pin=taken[0]), again)
        unacked = await leading.unacked(1)
        assert unacked
        assert await leading.again(unacked)
        leading.pull(len(unacked), 5.0)
        assert sequences(await again.until_delivered(len(unacked))) == list(unacked)


async def test_another_process_that_waits_does_not_change_the_order_of_redeliveries(
    peer: Peer, clock: trio.abc.Clock | None
) -> None:
    await peer.add_stream("ORDERS", ["orders.>"])
    for number in range(6):
        await peer.publish("orders.new", b"%d" % number)
    spec, received, again = replace(STANDBY, ack_wait=30.0), Recorder(), Recorder()
    async with (
        link_of(peer) as first,
        peer.connect(peer.server, b"_INBOX.other", Recorder()) as second,
        peer.connect(peer.server, b"_INBOX.third", Recorder()) as third,
        trio.open_nursery() as nursery,
    ):
        pin = await first.take_the_lead(spec, ignore)
        consumer = await first.open_consumer(replace(spec, pin=pin), received)
        consumer.pull(6, 30.0)
        await received.until_delivered(5)  # the request for the lead got the first one
        taken: list[tuple[Link, str]] = []

        async def wait(link: Link) -> None:
            taken.append((link, await link.take_the_lead(spec, ignore)))

        nursery.start_soon(wait, second)
        await trio.sleep(0.5)
        nursery.start_soon(wait, third)
        await trio.sleep(0.5)  # the requests of both wait
        consumer.release_lead()
        await first.fence()
        await peer.publish("orders.new", b"6")
        while not taken:
            await trio.sleep(0.05)
        leader, pin = taken[0]
        leading = await leader.open_consumer(replace(spec, pin=pin), again)
        unacked = await leading.unacked(1)
        assert unacked
        assert list(unacked[:6]) == [1, 2, 3, 4, 5, 6]
        assert await leading.again(unacked)
        for count in range(1, len(unacked) + 1):
            await trio.sleep(0.2)  # nothing of the leader waits at the server
            leading.pull(1, 5.0)
            await again.until_delivered(count)
        assert sequences(await again.until_delivered(len(unacked))) == list(unacked)
        nursery.cancel_scope.cancel()


async def test_a_consumer_of_the_other_kind_is_refused(peer: Peer) -> None:
    await peer.add_stream("ORDERS", ["orders.>"])
    async with link_of(peer) as link:
        await link.open_consumer(SPEC, Recorder())
        with pytest.raises(SourceError, match="priority group") as caught:
            await link.take_the_lead(STANDBY, ignore)
        assert caught.value.reason == "consumer_mismatch"
        await peer.delete_consumer("ORDERS", "router")
        await peer.publish("orders.new", b"1")
        await link.take_the_lead(STANDBY, ignore)
        with pytest.raises(SourceError, match="priority group") as caught:
            await link.open_consumer(SPEC, Recorder())
        assert caught.value.reason == "consumer_mismatch"


async def test_taking_the_lead_without_a_stream_raises_stream_not_found(peer: Peer) -> None:
    async with link_of(peer) as link:
        with pytest.raises(SourceError) as caught:
            await link.take_the_lead(STANDBY, ignore)
        assert caught.value.reason == "stream_not_found"


async def test_a_waiting_standby_learns_the_progress_of_the_durable_and_its_deletion(
    peer: Peer, clock: trio.abc.Clock | None
) -> None:
    await peer.add_stream("ORDERS", ["orders.>"])
    for _ in range(3):
        await peer.publish("orders.new")
    received, learned = Recorder(), list[tuple[str, ConsumerState]]()
    async with link_of(peer) as first, link_of(peer) as second:
        pin = await first.take_the_lead(STANDBY, ignore)
        consumer = await first.open_consumer(replace(STANDBY, pin=pin), received)
        async with trio.open_nursery() as nursery:

            @nursery.start_soon
            async def hold() -> None:
                while True:
                    consumer.hold_lead()
                    await trio.sleep(HELD_EVERY)

            @nursery.start_soon
            async def settle_and_delete() -> None:
                await trio.sleep(1.0)
                await consumer.again((await consumer.unacked(1)) or ())
                consumer.pull(2, 5.0)
                first.ack([raw[1] for raw in await received.until_delivered(2)])
                with trio.fail_after(10):
                    while learned[-1][1].passed != 2:
                        await trio.sleep(0.1)
                nursery.cancel_scope.deadline = trio.current_time() + 5.0
                await peer.delete_consumer("ORDERS", "router")

            with pytest.raises(SourceError) as caught:
                await second.take_the_lead(STANDBY, lambda *seen: learned.append(seen))
            assert caught.value.reason == "consumer_deleted"
            nursery.cancel_scope.cancel()
    created, states = {created for created, _ in learned}, [state for _, state in learned]
    assert created == {consumer.stream_created}
    assert [states[0].passed, states[-1].passed] == [0, 2]
    assert states[0].undelivered + states[0].unacked == 3
    assert (states[-1].undelivered, states[-1].unacked) == (1, 0)
    assert states[1].oldest is not None, "looked up at once, since there are messages"
    assert states[1].oldest.sequence == 1
    assert states[-1].oldest is not None
    assert states[-1].oldest.sequence == 3


async def test_a_consumer_is_unled_while_it_has_messages_and_no_client_has_its_lead(
    peer: Peer, clock: trio.abc.Clock | None
) -> None:
    await peer.add_stream("ORDERS", ["orders.>"])

    async def is_unled() -> bool:
        return (await link.lead_state(STANDBY.stream, STANDBY.durable)).unled

    async with link_of(peer) as link:
        assert await is_unled(), "there is no such consumer"
        consumer = await link.open_consumer(STANDBY, Recorder())
        assert not await is_unled(), "it has no messages"
        await peer.publish("orders.new", b"1")
        assert await is_unled()
        await peer.pause_consumer(STANDBY.stream, STANDBY.durable, 60.0)
        paused = await link.lead_state(STANDBY.stream, STANDBY.durable)
        assert not paused.unled, "it has no leader because it is paused"
        assert paused.paused is not None
        assert "paused on the server" in paused.paused
        await peer.pause_consumer(STANDBY.stream, STANDBY.durable, 0.0)
        assert (await link.lead_state(STANDBY.stream, STANDBY.durable)).paused is None
        consumer.close()
        pin = await link.take_the_lead(STANDBY, ignore)
        assert not await is_unled()
        leading = await link.open_consumer(replace(STANDBY, pin=pin), Recorder())
        leading.pull(1, 5.0)
        leading.hold_lead()
        assert not await is_unled()
        leading.release_lead()
        with trio.fail_after(1.0):
            while not await is_unled():  # the message is not acked
                await trio.sleep(0.05)


@pytest.mark.parametrize("kept", [False, True], ids=["new", "kept on another link"])
async def test_a_paused_consumer_gives_no_lead_until_it_resumes(
    kept: bool, peer: Peer, clock: trio.abc.Clock | None
) -> None:
    await peer.add_stream("ORDERS", ["orders.>"])
    await peer.publish("orders.new", b"1")
    pin = None
    async with link_of(peer) as link:
        if kept:
            pin = await link.take_the_lead(STANDBY, ignore)
        else:
            await link.open_consumer(STANDBY, Recorder())
    await peer.pause_consumer(STANDBY.stream, STANDBY.durable, 60.0)
    async with link_of(peer) as link:
        with trio.move_on_after(LEAD_ENDS_AFTER + 4.0) as waiting:
            await link.take_the_lead(replace(STANDBY, pin=pin), ignore)
        assert waiting.cancelled_caught, "nothing is delivered that could name the leader"
        await peer.pause_consumer(STANDBY.stream, STANDBY.durable, 0.0)
        with trio.fail_after(10.0):
            assert await link.take_the_lead(STANDBY, ignore)


async def test_a_lead_that_may_not_be_looked_up_is_not_known(peer: Peer) -> None:
    await peer.add_stream("ORDERS", ["orders.>"])
    await peer.deny_publish(f"$JS.API.CONSUMER.INFO.{STANDBY.stream}.{STANDBY.durable}")
    async with link_of(peer) as link:
        with pytest.raises(SourceError) as caught:
            await link.lead_state(STANDBY.stream, STANDBY.durable)
        assert caught.value.reason == "permission_denied"
