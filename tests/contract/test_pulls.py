"""Promises of `router_trio.link` about pulls: what they deliver, and how they end."""

from __future__ import annotations

from router_trio.protocol import ack_reply
from router_trio.protocol.framing import delivered_size, header_block, payload
from router_trio.protocol.headers import status
from tests.contract.orders import SPEC, ending, sequences
from tests.contract.peers import Peer, link_of
from tests.support.recorder import Recorder, operation, operation_with_ack


async def test_a_pull_gets_the_oldest_messages_and_each_names_its_place_in_the_stream(peer: Peer) -> None:
    await peer.add_stream("ORDERS", ["orders.>"])
    for n in range(5):
        await peer.publish(f"orders.{n}", b"%d" % n)
    received = Recorder()
    async with link_of(peer) as link:
        consumer = await link.open_consumer(SPEC, received)
        assert consumer.ack_wait == 1.0
        consumer.pull(3, 5.0)
        first = await received.until_delivered(3)
        assert [raw[0] for raw in first] == [b"orders.0", b"orders.1", b"orders.2"]
        assert [payload(raw) for raw in first] == [b"0", b"1", b"2"]
        consumer.pull(10, 5.0)
        raws = await received.until_delivered(5)
    for n, raw in enumerate(raws, 1):
        words = raw[1].split(b".")
        assert words[:7] == [b"$JS", b"ACK", b"ORDERS", b"router", b"1", b"%d" % n, b"%d" % n]
        assert int(words[7]) > 1_600_000_000_000_000_000
        assert words[8:] == [b"%d" % (5 - n)]


async def test_a_pull_waits_for_messages_published_later(peer: Peer) -> None:
    await peer.add_stream("ORDERS", ["orders.>"])
    received = Recorder()
    async with link_of(peer) as link:
        consumer = await link.open_consumer(SPEC, received)
        consumer.pull(2, 5.0)
        await link.fence()
        await link.send([operation(1, b"orders.a", b"a"), operation(2, b"orders.b", b"b")])
        raws = await received.until_delivered(2)
    assert [payload(raw) for raw in raws] == [b"a", b"b"]


async def test_the_pulls_of_a_closed_link_get_nothing(peer: Peer, clock: object) -> None:
    await peer.add_stream("ORDERS", ["orders.>"])
    received = Recorder()
    async with link_of(peer) as link:
        consumer = await link.open_consumer(SPEC, Recorder())
        consumer.pull(2, 30.0)
        await link.fence()
    async with link_of(peer) as link:
        consumer = await link.open_consumer(SPEC, received)
        assert not consumer.progress.in_use
        await peer.publish("orders.a")
        consumer.pull(1, 5.0)
        (raw,) = await received.until_delivered(1)
    assert ack_reply.tokens(raw[1])[ack_reply.DELIVERIES] == b"1", "no delivery went to the closed link"


async def test_a_pull_that_expires_ends_with_status_408(peer: Peer, clock: object) -> None:
    await peer.add_stream("ORDERS", ["orders.>"])
    await peer.publish("orders.a")
    received = Recorder()
    async with link_of(peer) as link:
        consumer = await link.open_consumer(SPEC, received)
        consumer.pull(3, 0.3)
        message, ending = await received.until_delivered(2)
    assert sequences([message]) == [1]
    assert status(header_block(ending)) == (408, "Request Timeout")
    assert ending[1] == payload(ending) == b""


async def test_a_pull_ends_before_a_message_larger_than_its_remaining_bytes(peer: Peer) -> None:
    """Fake and real count the same size to the byte, including subject and reply."""
    await peer.add_stream("ORDERS", ["orders.>"])
    for n in range(12):
        await peer.publish("orders.a", b"x" * (100 * n))
    received = Recorder()
    async with link_of(peer) as link:
        consumer = await link.open_consumer(SPEC, received)
        consumer.pull(5, 5.0, 700)
        *messages, over = await received.until_delivered(4)
        assert sequences(messages) == [1, 2, 3]
        assert ending(over) == (409, "Message Size Exceeds MaxBytes", 2, 700 - delivered_size(messages))
        consumer.pull(5, 5.0, 100)
        (at_once,) = (await received.until_delivered(5))[4:]
        assert ending(at_once) == (409, "Message Size Exceeds MaxBytes", 5, 100)
        consumer.pull(2, 5.0, 5000)
        *messages, over = (await received.until_delivered(8))[5:]
        assert sequences(messages) == [4, 5]
        assert ending(over) == (409, "Batch Completed", 0, 5000 - delivered_size(messages))


async def test_a_pull_filled_to_the_last_byte_ends_without_a_status(peer: Peer, clock: object) -> None:
    await peer.add_stream("ORDERS", ["orders.>"])
    for _ in range(3):
        await peer.publish("orders.a", b"x" * 100)
    received = Recorder()
    async with link_of(peer) as link:
        consumer = await link.open_consumer(SPEC, received)
        consumer.pull(1, 5.0)
        (first,) = await received.until_delivered(1)
        consumer.pull(5, 5.0, delivered_size([first]))
        await link.fence()
        consumer.pull(5, 0.3, 10_000)
        _, second, third, over = await received.until_delivered(4)
    assert sequences([second, third]) == [2, 3]
    assert ending(over) == (408, "Request Timeout", 4, 10_000 - delivered_size([third]))


async def test_two_pulls_share_messages_and_one_that_is_too_large_ends_both(peer: Peer) -> None:
    await peer.add_stream("ORDERS", ["orders.>"])
    received = Recorder()
    async with link_of(peer) as link:
        consumer = await link.open_consumer(SPEC, received)
        consumer.pull(5, 5.0, 400)
        consumer.pull(5, 5.0, 500)
        await link.fence()
        await peer.publish("orders.a", b"x")
        await peer.publish("orders.a", b"x" * 1000)
        message, *over = await received.until_delivered(3)
    left = [ending(raw)[2:] for raw in over]
    assert sequences([message]) == [1]
    assert sum(messages or 0 for messages, _ in left) == 9
    assert sum(size or 0 for _, size in left) == 900 - delivered_size([message])


async def test_a_pull_ends_with_a_status_when_its_consumer_is_deleted(peer: Peer, clock: object) -> None:
    await peer.add_stream("ORDERS", ["orders.>"])
    received = Recorder()
    async with link_of(peer) as link:
        consumer = await link.open_consumer(SPEC, received)
        consumer.pull(3, 5.0)
        await link.fence()
        await peer.delete_consumer("ORDERS", "router")
        (ending,) = await received.until_delivered(1)
        assert status(header_block(ending)) == (409, "Consumer Deleted")
        consumer.pull(3, 5.0)
        no_responders = (await received.until_delivered(2))[1]
        assert status(header_block(no_responders))[0] == 503


async def test_a_pull_ends_with_a_status_when_its_stream_is_deleted_and_publishes_get_no_responders(peer: Peer) -> None:
    await peer.add_stream("ORDERS", ["orders.>"])
    listener, received = Recorder(), Recorder()
    async with link_of(peer, listener) as link:
        consumer = await link.open_consumer(SPEC, received)
        consumer.pull(3, 5.0)
        await link.fence()
        await peer.delete_stream("ORDERS")
        (ending,) = await received.until_delivered(1)
        assert status(header_block(ending)) == (409, "Consumer Deleted")
        await link.send([operation_with_ack(1, b"orders.new")])
        await listener.until(lambda recorder: recorder.refusals)
    assert listener.refusals == {1: ("no_responders", True)}


async def test_an_idle_pull_gets_heartbeats(peer: Peer, clock: object) -> None:
    await peer.add_stream("ORDERS", ["orders.>"])
    received = Recorder()
    async with link_of(peer) as link:
        consumer = await link.open_consumer(SPEC, received)
        consumer.pull(3, 30.0)
        (sign,) = await received.until_delivered(1, within=8.0)
    assert status(header_block(sign)) == (100, "Idle Heartbeat")
