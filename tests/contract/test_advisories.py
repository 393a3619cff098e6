"""Promises of `router_trio.link` about advisories, and about messages at the limit of deliveries of their durable."""

from __future__ import annotations

from dataclasses import replace

import trio

from router_trio.protocol import ack_reply, framing
from router_trio.protocol.advisories import DELETED, MAX_DELIVERIES, PAUSE, Advisory, read_advisory, subjects_of
from tests.contract.orders import SPEC, delivered, publish_orders, sequences
from tests.contract.peers import Peer, link_of
from tests.support.recorder import Recorder


def read(received: Recorder) -> list[Advisory]:
    return [found for raw in received.messages if (found := read_advisory(raw)) is not None]


async def test_advisories_are_received_until_listening_stops(peer: Peer, clock: object) -> None:
    await peer.add_stream("ORDERS", ["orders.>"])
    heard = Recorder()
    async with link_of(peer) as link:
        await link.open_consumer(SPEC, Recorder())
        assert await link.listen([*subjects_of("ORDERS"), *subjects_of("ORDERS", "router")], heard) == []
        await peer.pause_consumer("ORDERS", "router", 60.0)
        await peer.delete_consumer("ORDERS", "router")
        with trio.fail_after(5):
            while [one.kind for one in read(heard)] != [PAUSE, DELETED]:
                await trio.sleep(0.05)
        assert {(one.stream, one.durable) for one in read(heard)} == {("ORDERS", "router")}
        link.stop_listening([*subjects_of("ORDERS")])
        await link.fence()
        await peer.delete_stream("ORDERS")
        await link.fence()
        assert len(read(heard)) == 2


async def test_refused_advisories_are_returned_and_the_others_are_received(peer: Peer, clock: object) -> None:
    heard = Recorder()
    async with link_of(peer) as link:
        ((subject, words),) = await link.listen(["secret.a", "open.a"], heard)
        assert subject == "secret.a"
        assert "Permissions Violation" in words
        await peer.publish("secret.a", b"1")
        await peer.publish("open.a", b"2")
        await heard.until_delivered(1)
        assert [framing.payload(raw) for raw in heard.messages] == [b"2"]


async def test_a_message_at_the_limit_is_counted_stored_and_claimed_once(peer: Peer, clock: object) -> None:
    await publish_orders(peer, 3)
    received, heard = Recorder(), Recorder()
    async with link_of(peer) as link:
        consumer = await link.open_consumer(replace(SPEC, ack_wait=0.3, max_deliver=1), received)
        assert not await link.listen([*subjects_of("ORDERS", "router")], heard)
        consumer.pull(3, 2.0)
        raws = await received.until_delivered(3)
        link.ack([raws[1][1]])
        await link.fence()
        consumer.pull(1, 2.0)
        with trio.fail_after(5):
            while len([one for one in read(heard) if one.kind == MAX_DELIVERIES]) < 2:
                await trio.sleep(0.05)
    async with link_of(peer) as link:
        consumer = await link.open_consumer(SPEC, Recorder())
        state = await consumer.check()
        assert (state.unacked, state.redelivered, state.given_up) == (0, 2, 2)
        stored = await consumer.stored(1, 9, 9)
        assert [(raw[0], framing.payload(raw)) for raw in stored] == [(raw[0], framing.payload(raw)) for raw in raws]
        assert sequences([*stored]) == [1, 2, 3]
        assert [ack_reply.tokens(one[1])[ack_reply.TIME] for one in stored] == [
            ack_reply.tokens(one[1])[ack_reply.TIME] for one in raws
        ]
        assert sequences([*await consumer.stored(2, 9, 1)]) == [2]
        assert await consumer.stored(4, 9, 9) == []
        assert await consumer.claim(1, 3) is None, "another number is counted"
        tried = [(1, 2), (2, 1), (3, 1), (1, 0)]
        assert [await consumer.claim(*one) for one in tried] == [True, False, True, False]
        assert (await consumer.check()).given_up == 0
    assert delivered(raws[0]) == 1


async def test_messages_are_claimed_on_the_link_that_created_the_durable(peer: Peer, clock: object) -> None:
    await publish_orders(peer, 2)
    received = Recorder()
    async with link_of(peer) as link:
        consumer = await link.open_consumer(replace(SPEC, ack_wait=0.3, max_deliver=2), received)
        with trio.fail_after(5):
            while (await consumer.check()).given_up < 2:
                consumer.pull(2, 0.3)
                await trio.sleep(0.2)
        stored = await consumer.stored(1, 9, 9)
        assert [int(ack_reply.tokens(raw[1])[ack_reply.NUMBER]) for raw in stored] == [4, 4], "the last delivery"
        assert [await consumer.claim(*one) for one in ((1, 2), (2, 1))] == [True, True]
