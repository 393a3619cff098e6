"""Promises of `router_trio.link` about publishes to a stream."""

from __future__ import annotations

import pytest

from router_trio.protocol.headers import Headers, encode
from tests.contract.peers import Peer, link_of
from tests.support.recorder import Recorder, operation, operation_with_ack


async def test_pub_acks_reach_the_listener_with_stream_and_sequence(peer: Peer) -> None:
    await peer.add_stream("ORDERS", ["orders.>"])
    listener = Recorder()
    async with link_of(peer, listener) as link:
        await link.send([operation_with_ack(n, b"orders.new", b"%d" % n) for n in range(41, 44)])
        await listener.until(lambda recorder: len(recorder.acks) == 3)
    assert listener.acks == {41: ("ORDERS", 1, False), 42: ("ORDERS", 2, False), 43: ("ORDERS", 3, False)}
    assert await peer.payloads("ORDERS") == [b"41", b"42", b"43"]


async def test_a_message_id_seen_before_is_acked_as_a_duplicate_of_the_first(peer: Peer) -> None:
    await peer.add_stream("ORDERS", ["orders.>"])
    listener = Recorder()
    headers = encode(Headers({"Nats-Msg-Id": "order-7"}))
    async with link_of(peer, listener) as link:
        await link.send([operation_with_ack(1, b"orders.new", b"first", headers=headers)])
        await link.send([operation_with_ack(2, b"orders.new", b"other")])
        await link.send([operation_with_ack(3, b"orders.new", b"again", headers=headers)])
        await listener.until(lambda recorder: len(recorder.acks) == 3)
    assert listener.acks == {1: ("ORDERS", 1, False), 2: ("ORDERS", 2, False), 3: ("ORDERS", 1, True)}
    assert await peer.payloads("ORDERS") == [b"first", b"other"]


async def test_a_core_publish_is_stored_too_and_gets_no_ack(peer: Peer) -> None:
    await peer.add_stream("ORDERS", ["orders.>"])
    listener = Recorder()
    async with link_of(peer, listener) as link:
        await link.send([operation(1, b"orders.new", b"core")])
        await link.send([operation_with_ack(2, b"orders.new", b"with ack")])
        await listener.until(lambda recorder: recorder.acks)
    assert listener.acks == {2: ("ORDERS", 2, False)}
    assert await peer.payloads("ORDERS") == [b"core", b"with ack"]


async def test_a_publish_that_no_stream_takes_fails_with_no_responders_and_can_be_retried(peer: Peer) -> None:
    await peer.add_stream("ORDERS", ["orders.>"])
    listener = Recorder()
    async with link_of(peer, listener) as link:
        await link.send([operation_with_ack(1, b"unheard.x"), operation_with_ack(2, b"orders.new")])
        await listener.until(lambda recorder: recorder.acks and recorder.refusals)
    assert listener.refusals == {1: ("no_responders", True)}
    assert listener.acks == {2: ("ORDERS", 1, False)}


async def test_a_full_stream_refuses_for_good(peer: Peer) -> None:
    await peer.add_stream("ORDERS", ["orders.>"], max_messages=1)
    listener = Recorder()
    async with link_of(peer, listener) as link:
        await link.send([operation_with_ack(1, b"orders.new", b"in"), operation_with_ack(2, b"orders.new", b"out")])
        await listener.until(lambda recorder: recorder.acks and recorder.refusals)
    assert listener.refusals == {2: ("limit", False)}
    assert await peer.payloads("ORDERS") == [b"in"]


async def test_a_publish_sent_at_once_is_stored_after_earlier_ones_and_acked(peer: Peer) -> None:
    await peer.add_stream("ORDERS", ["orders.>"])
    listener = Recorder()
    async with link_of(peer, listener) as link:
        await link.send([operation_with_ack(1, b"orders.new", b"1")])
        if peer.server.startswith("wss://"):
            pytest.skip("a stream with TLS is written by a task of its own")
        assert link.can_send_at_once
        too_large = operation_with_ack(3, b"orders.new", b"x" * (link.max_payload + 1))
        refusals = link.send_at_once([operation_with_ack(2, b"orders.new", b"2"), too_large])
        assert [(one.operation, one.reason) for one in refusals] == [(too_large, "too_large")]
        assert not link.send_at_once([operation(4, b"orders.new", b"4")], fenced=True)
        await link.fence()
        await listener.until(lambda recorder: len(recorder.acks) == 2)
    assert listener.acks == {1: ("ORDERS", 1, False), 2: ("ORDERS", 2, False)}
    assert await peer.payloads("ORDERS") == [b"1", b"2", b"4"]
