"""Promises of `router_trio.link` about lookups of streams and consumers."""

from __future__ import annotations

from dataclasses import replace
from math import inf

import pytest
import trio
import trio.testing

from router_trio.errors import SourceError
from router_trio.errors.reasons import LOOKUP_FAILED
from router_trio.link import LOOKUP_WITHIN, ConsumerState, Link, PullConsumer, StreamState
from router_trio.protocol import ack_reply
from router_trio.protocol.framing import RawMessage, header_block, payload
from router_trio.protocol.headers import find_number
from router_trio.protocol.stream_config import StreamSubjects
from tests.contract.orders import SPEC, sequences
from tests.contract.peers import Peer, link_of
from tests.support.recorder import Recorder, operation_with_ack


async def test_streams_are_found_by_the_subjects_they_take(peer: Peer) -> None:
    await peer.add_stream("ORDERS", ["orders.>", "old.*.x"])
    await peer.add_stream("OTHER", ["other.a", "other.b"])
    async with link_of(peer) as link:
        for subject, names in {
            "orders.new": ["ORDERS"],
            "orders.*": ["ORDERS"],
            "old.>": ["ORDERS"],
            "other.*": ["OTHER"],
            "other.c": [],
            "*.a": ["ORDERS", "OTHER"],
            ">": ["ORDERS", "OTHER"],
            "none.>": [],
        }.items():
            assert sorted(await link.find_streams(subject)) == names, subject


async def holding(link: Link, stream: str, count: int) -> StreamState:
    """Return the state of a stream once it has stored `count` messages: a server sends PONG before it has stored
    them.
    """
    with trio.fail_after(10):
        while (state := await link.stream_state(stream)) is None or state.held < count:
            await trio.sleep(0.01)
    return state


async def test_the_state_of_a_stream_shows_whether_it_takes_a_message(peer: Peer) -> None:
    await peer.add_stream("ORDERS", ["orders.>"], max_messages=2)
    async with link_of(peer) as link:
        state = await link.stream_state("ORDERS")
        assert state is not None
        assert (state.name, state.subjects) == ("ORDERS", ("orders.>",))
        assert (state.refuses, state.room, state.held) == (None, (2, inf), 0)
        assert (state.duplicate_window, state.acks_before_writing) == (120.0, False)
        before = state
        await peer.publish("orders.new")
        state = await holding(link, "ORDERS", 1)
        assert (state.refuses, state.room) == (None, (1, inf))
        await peer.publish("orders.new")
        state = await holding(link, "ORDERS", 2)
        assert state.refuses is not None
        assert (state.refuses[0], state.room[0], state.held) == ("stream_full", 0, 2)
        assert before.has_more_room_than(state)
        assert not state.has_more_room_than(before)
        assert "'ORDERS' is full" in state.refuses[1]


async def test_a_stream_is_recognized_by_its_creation_time(peer: Peer) -> None:
    await peer.add_stream("ORDERS", ["orders.>"])
    async with link_of(peer) as link:
        consumer = await link.open_consumer(SPEC, Recorder())
        state = await link.stream_state("ORDERS")
        assert state is not None
        assert state.created == consumer.stream_created
        assert state.stores == consumer.limits.stores == StreamSubjects(("orders.>",))


@pytest.mark.real_needs_server(2, 12, lacks="persist_mode")
async def test_the_state_of_a_stream_shows_that_it_confirms_before_it_writes(peer: Peer) -> None:
    await peer.add_stream("ORDERS", ["orders.>"], persist_async=True)
    async with link_of(peer) as link:
        state = await link.stream_state("ORDERS")
        assert state is not None
        assert state.acks_before_writing


async def test_a_sealed_stream_is_reported_as_sealed_and_refuses(peer: Peer) -> None:
    await peer.add_stream("ORDERS", ["orders.>"])
    await peer.edit_stream("ORDERS", sealed=True)
    listener = Recorder()
    async with link_of(peer, listener) as link:
        state = await link.stream_state("ORDERS")
        assert state is not None
        assert state.refuses is not None
        assert state.refuses[0] == "stream_sealed"
        await link.send([operation_with_ack(1, b"orders.new")])
        await listener.until(lambda recorder: recorder.refusals)
    assert listener.refusals == {1: ("jetstream_10109", False)}


async def test_an_edited_or_deleted_stream_is_reported_as_such(peer: Peer) -> None:
    await peer.add_stream("ORDERS", ["orders.>"])
    async with link_of(peer) as link:
        await peer.edit_stream("ORDERS", "other.>")
        assert not await link.find_streams("orders.new")
        state = await link.stream_state("ORDERS")
        assert state is not None
        assert state.subjects == ("other.>",)
        await peer.delete_stream("ORDERS")
        assert await link.stream_state("ORDERS") is None


async def test_a_denied_lookup_raises_permission_denied_at_once(peer: Peer) -> None:
    async with link_of(peer) as link:
        began = trio.current_time()
        with pytest.raises(SourceError) as caught:
            await link.stream_state("SECRET")
        assert caught.value.reason == "permission_denied"
        assert caught.value.reason in LOOKUP_FAILED
        assert trio.current_time() - began < LOOKUP_WITHIN, "the server has reported it"
        assert await link.stream_state("ORDERS") is None


@pytest.mark.real_needs_server(2, 11, lacks="pause of consumers")
async def test_a_paused_consumer_is_reported_as_paused_until_it_resumes(peer: Peer) -> None:
    await peer.add_stream("ORDERS", ["orders.>"])
    async with link_of(peer) as link:
        consumer = await link.open_consumer(SPEC, Recorder())
        assert (await consumer.check()).paused is None
        await peer.pause_consumer("ORDERS", "router", 60.0)
        assert "is paused" in str((await consumer.check()).paused)
        await peer.pause_consumer("ORDERS", "router", 0.0)
        assert (await consumer.check()).paused is None


async def test_a_consumer_reports_when_too_many_unacked_messages_block_new_ones(peer: Peer, clock: object) -> None:
    await peer.add_stream("ORDERS", ["orders.>"])
    for _ in range(5):
        await peer.publish("orders.a")
    received = Recorder()
    async with link_of(peer) as link:
        consumer = await link.open_consumer(replace(SPEC, max_ack_pending=2), received)
        assert await consumer.check() == ConsumerState(None, 0, 2, 0, 5, deliveries=0, passed=0)
        consumer.pull(5, 5.0)
        first = await received.until_delivered(2)
        assert await consumer.check() == ConsumerState(None, 2, 2, 2, 3, deliveries=2, passed=0)
        link.nak(first[0][1], 0.0)
        again = (await received.until_delivered(3))[2]
        assert sequences([again]) == [1]
        assert await consumer.check() == ConsumerState(None, 2, 2, 2, 3, 3, 0), "a redelivery counts as no new message"
        link.ack([again[1]])
        assert sequences((await received.until_delivered(4))[3:]) == [3]
        assert await consumer.check() == ConsumerState(None, 2, 2, 3, 2, deliveries=4, passed=1)


async def test_a_consumer_reports_its_oldest_message_that_is_not_acked_or_not_delivered(
    peer: Peer, clock: object
) -> None:
    await peer.add_stream("ORDERS", ["orders.>"])
    received = Recorder()
    async with link_of(peer) as link:
        consumer = await link.open_consumer(replace(SPEC, filters=("orders.a", "orders.b.*")), received)
        assert (await consumer.check(oldest=True)).oldest is None
        for subject in ("orders.b", "orders.a", "orders.b.1", "orders.c", "orders.a"):
            await peer.publish(subject)
        await until_left(consumer, 3, oldest=2)
        state = await consumer.check(oldest=True)
        assert state.oldest is not None
        assert 0 <= state.time - state.oldest.time < 5e9, "both are times of the server"
        assert (await consumer.check()).oldest is None, "only if requested"

        consumer.pull(2, 5.0)
        first, second = await received.until_delivered(2)
        assert [pending(first), pending(second)] == [2, 1]
        link.ack([second[1]])
        await until_left(consumer, 2, oldest=2)  # one that was delivered, and the last one
        link.ack([first[1]])
        await until_left(consumer, 1, oldest=5)
        consumer.pull(1, 5.0)
        link.ack([(await received.until_delivered(3))[2][1]])
        await until_left(consumer, 0, oldest=None)


async def test_without_the_permission_to_look_messages_up_the_oldest_is_not_known(peer: Peer) -> None:
    await peer.add_stream("ORDERS", ["orders.>"])
    await peer.publish("orders.a")
    await peer.deny_publish("$JS.API.STREAM.MSG.GET.ORDERS")
    async with link_of(peer) as link:
        consumer = await link.open_consumer(SPEC, Recorder())
        for _ in range(2):
            state = await consumer.check(oldest=True)
            assert (state.oldest, state.undelivered) == (None, 1)


async def until_left(consumer: PullConsumer, count: int, *, oldest: int | None) -> None:
    """Wait until a consumer has that number of messages left, and check the sequence of the oldest of them.

    A server counts a message for its consumers some time after it has confirmed it.
    """
    with trio.fail_after(5):
        while (state := await consumer.check(oldest=True)).undelivered + state.unacked != count:
            await trio.sleep(0.01)
    assert (None if state.oldest is None else state.oldest.sequence) == oldest


def pending(raw: RawMessage) -> int:
    """Return the number of messages that were not delivered yet, from the ack subject."""
    return int(ack_reply.tokens(raw[1])[ack_reply.PENDING])


async def test_a_consumer_that_delivers_only_headers_is_refused_by_name(peer: Peer) -> None:
    await peer.add_stream("ORDERS", ["orders.>"])
    async with link_of(peer) as link:
        consumer = await link.open_consumer(SPEC, Recorder())
        await peer.edit_consumer("ORDERS", "router", headers_only=True)
        for refused in (consumer.check(), link.open_consumer(SPEC, Recorder())):
            with pytest.raises(SourceError, match="headers_only") as caught:
                await refused
            assert caught.value.reason == "consumer_mismatch"
        await peer.edit_consumer("ORDERS", "router", headers_only=False)
        assert (await consumer.check()).paused is None


async def test_a_deleted_consumer_is_reported_as_not_found(peer: Peer) -> None:
    await peer.add_stream("ORDERS", ["orders.>"])
    async with link_of(peer) as link:
        consumer = await link.open_consumer(SPEC, Recorder())
        await peer.delete_consumer("ORDERS", "router")
        with pytest.raises(SourceError) as caught:
            await consumer.check()
        assert caught.value.reason == "consumer_not_found"


async def test_a_message_without_its_payload_carries_the_payload_size(peer: Peer) -> None:
    await peer.add_stream("ORDERS", ["orders.>"])
    received = Recorder()
    async with link_of(peer) as link:
        consumer = await link.open_consumer(SPEC, received)
        await peer.edit_consumer("ORDERS", "router", headers_only=True)
        await peer.publish("orders.new", b"12345")
        consumer.pull(1, 5.0)
        (raw,) = await received.until_delivered(1)
    assert payload(raw) == b""
    assert find_number(header_block(raw), b"Nats-Msg-Size") == 5
