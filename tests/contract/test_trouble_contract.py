"""The fake broker makes the same trouble as a real server, wherever a single server can show it.

Elections, lost answers, travel times and streams that go back in time can't be compared: a single server on the
loopback
has none of them.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import trio
import trio.testing

from router_trio.protocol.framing import header_block, payload
from router_trio.protocol.headers import find
from tests.contract.orders import SPEC
from tests.contract.peers import Peer, link_of
from tests.support.recorder import Recorder, operation

MAX_CONTROL_LINE = 4096


def subject_of(control_line: int) -> bytes:
    """Return a subject with which a publish without payload has a control line of this length after its verb."""
    return b"s" * (control_line - len(b" 0"))


async def test_a_control_line_of_the_maximum_length_is_accepted(peer: Peer) -> None:
    received = Recorder()
    subject = subject_of(MAX_CONTROL_LINE)
    async with link_of(peer) as link:
        await link.subscribe("*", received)
        await link.send([operation(1, subject)])
        await link.fence()
        assert [raw[0] for raw in received.messages] == [subject]


async def test_a_longer_control_line_is_not_written(peer: Peer) -> None:
    async with link_of(peer) as link:
        (refusal,) = await link.send([operation(1, subject_of(MAX_CONTROL_LINE + 1))])
        assert (refusal.reason, refusal.retriable) == ("too_large", False)
        await link.fence()


@pytest.mark.real_needs_server(2, 11, lacks="pause of consumers")
async def test_a_paused_durable_delivers_nothing_until_it_resumes(peer: Peer, clock: object) -> None:
    await peer.add_stream("ORDERS", ["orders.>"])
    received = Recorder()
    async with link_of(peer) as link:
        consumer = await link.open_consumer(SPEC, received)
        await peer.pause_consumer("ORDERS", "router", 1.0)
        consumer.pull(3, 10.0)
        await peer.publish("orders.a", b"a")
        await trio.sleep(0.4)
        assert not received.messages
        (raw,) = await received.until_delivered(1)
    assert payload(raw) == b"a"


async def test_a_durable_edited_to_headers_only_delivers_the_size_instead_of_the_payload(
    peer: Peer, clock: object
) -> None:
    await peer.add_stream("ORDERS", ["orders.>"])
    received = Recorder()
    async with link_of(peer) as link:
        consumer = await link.open_consumer(SPEC, received)
        await peer.edit_consumer("ORDERS", "router", ack_wait=1.0, headers_only=True)
        await peer.publish("orders.a", b"four")
        consumer.pull(1, 5.0)
        (raw,) = await received.until_delivered(1)
    assert payload(raw) == b""
    assert find(header_block(raw), b"Nats-Msg-Size") == b"4"


async def test_a_durable_with_an_edited_ack_wait_redelivers_after_the_new_one(peer: Peer, clock: object) -> None:
    await peer.add_stream("ORDERS", ["orders.>"])
    received = Recorder()
    async with link_of(peer) as link:
        consumer = await link.open_consumer(replace(SPEC, ack_wait=30.0), received)
        await peer.edit_consumer("ORDERS", "router", ack_wait=0.5)
        consumer.pull(2, 10.0)
        await peer.publish("orders.a", b"a")
        first, again = await received.until_delivered(2)
    assert first[1].split(b".")[4:6] == [b"1", b"1"]
    assert again[1].split(b".")[4:6] == [b"2", b"1"]


@pytest.mark.parametrize(("before", "after"), [(30.0, 0.8), (0.8, 1.6)])
async def test_an_edited_ack_wait_also_holds_for_delivered_messages(
    before: float, after: float, peer: Peer, clock: object
) -> None:
    await peer.add_stream("ORDERS", ["orders.>"])
    await peer.publish("orders.a")
    received = Recorder()
    async with link_of(peer) as link:
        consumer = await link.open_consumer(replace(SPEC, ack_wait=before), received)
        consumer.pull(2, 10.0)
        await received.until_delivered(1)
        delivered_at = trio.current_time()
        await trio.sleep(0.3)
        await peer.edit_consumer("ORDERS", "router", ack_wait=after)
        assert (await consumer.check()).ack_wait == after
        await received.until_delivered(2)
        took = trio.current_time() - delivered_at
    assert after - 0.1 < took < after + 5.0


@pytest.mark.parametrize(("delay", "longer"), [(3.0, -2.0), (1.0, 1.0)])
async def test_an_edited_ack_wait_changes_the_delay_of_a_nak_by_the_difference(
    delay: float, longer: float, peer: Peer, clock: object
) -> None:
    await peer.add_stream("ORDERS", ["orders.>"])
    await peer.publish("orders.a")
    received = Recorder()
    async with link_of(peer) as link:
        consumer = await link.open_consumer(replace(SPEC, ack_wait=30.0), received)
        consumer.pull(2, 10.0)
        link.nak((await received.until_delivered(1))[0][1], delay)
        returned_at = trio.current_time()
        await link.fence()
        await trio.sleep(0.3)
        await peer.edit_consumer("ORDERS", "router", ack_wait=30.0 + longer)
        await received.until_delivered(2)
        took = trio.current_time() - returned_at
    assert delay + longer - 0.1 < took < delay + longer + 1.5


async def test_an_edited_ack_wait_does_not_delay_a_message_that_is_due(peer: Peer, clock: object) -> None:
    await peer.add_stream("ORDERS", ["orders.>"])
    await peer.publish("orders.a")
    received = Recorder()
    async with link_of(peer) as link:
        consumer = await link.open_consumer(replace(SPEC, ack_wait=5.0), received)
        consumer.pull(1, 10.0)
        link.nak((await received.until_delivered(1))[0][1], 0.0)
        await link.fence()
        await trio.sleep(0.3)
        await peer.edit_consumer("ORDERS", "router", ack_wait=30.0)
        edited_at = trio.current_time()
        consumer.pull(1, 10.0)
        await received.until_delivered(2)
        took = trio.current_time() - edited_at
    assert took < 1.0


async def test_a_consumer_of_a_deleted_stream_gets_the_messages_of_its_successor_of_the_same_name(
    peer: Peer, clock: object
) -> None:
    await peer.add_stream("ORDERS", ["orders.>"])
    received = Recorder()
    async with link_of(peer) as link:
        consumer = await link.open_consumer(SPEC, received)
        await peer.delete_stream("ORDERS")
        await peer.add_stream("ORDERS", ["orders.>"])
        await link.open_consumer(SPEC, Recorder())
        await peer.publish("orders.a", b"of the new one")
        consumer.pull(1, 5.0)
        (raw,) = await received.until_delivered(1)
    assert payload(raw) == b"of the new one"
