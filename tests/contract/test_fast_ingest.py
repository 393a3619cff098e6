"""What `router_trio.link` promises of batches of fast ingest (ADR-50)."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import pytest

from router_trio.link import Link, StreamConfig
from router_trio.outbox.operation import Operation
from router_trio.protocol import fast_ingest, framing
from router_trio.protocol.headers import Headers, encode
from tests.contract.peers import Peer, link_of
from tests.support.recorder import INBOX, Recorder, operation_with_ack

pytestmark = pytest.mark.real_needs_server(2, 14, lacks="fast ingest")

BATCH = b"one-1"


def in_batch(
    sequence: int,
    payload: bytes = b"",
    *,
    flow: int = 10,
    batch: bytes = BATCH,
    subject: bytes = b"in.a",
    message_id: str = "",
    last: bool = False,
) -> Operation:
    """A message of a batch."""
    headers = encode(Headers({"Nats-Msg-Id": message_id})) if message_id else b""
    found = operation_with_ack(1000 + sequence, subject, payload, headers=headers)
    reply = fast_ingest.reply_to(fast_ingest.reply_prefix(INBOX, batch, flow), sequence, last=last)
    found.frame = framing.readdressed(found.frame, reply)  # type: ignore[misc]
    return found


@asynccontextmanager
async def batched_stream(peer: Peer, listener: Recorder, **changes: object) -> AsyncIterator[Link]:
    """A link whose user has seen that a stream takes batches."""
    async with link_of(peer, listener) as link:
        await link.ensure_stream(StreamConfig("IN", ("in.>",), allow_batched=True, **changes))  # type: ignore[arg-type]
        state = await link.stream_state("IN")
        assert state is not None
        assert state.batched
        yield link


def ended(recorder: Recorder) -> Sequence[tuple[object, ...]]:
    return [one for one in recorder.flow if one[0] == "ended"]


def told(recorder: Recorder) -> list[tuple[object, ...]]:
    """What was answered: of answers that say how far a batch is stored the last, since a link may tell no other."""
    last: list[tuple[object, ...]] = []
    for one in recorder.flow:
        if one[0] == "stored" and one[2] and last and last[-1][0] == "stored":
            last.pop()
        if one[0] != "stored" or one[2]:
            last.append(one)
    return last


async def test_a_stream_that_does_not_allow_it_says_so(peer: Peer) -> None:
    await peer.add_stream("PLAIN", ["plain"])
    async with link_of(peer) as link:
        state = await link.stream_state("PLAIN")
        assert state is not None
        assert not state.batched


async def test_one_answer_is_for_many_messages_and_the_end_confirms_the_rest(peer: Peer) -> None:
    listener = Recorder()
    async with batched_stream(peer, listener) as link:
        await link.send([in_batch(number, b"%d" % number) for number in range(1, 26)])
        await listener.until(lambda recorder: ("stored", BATCH, 20) in recorder.flow)
        assert told(listener) == [("stored", BATCH, 20)]
        assert {one[2] for one in listener.flow} <= {0, 10, 20}
        await link.send([in_batch(26, b"26", last=True)])
        await listener.until(ended)
    assert told(listener)[1:] == [("ended", BATCH, 26)]
    assert await peer.payloads("IN") == [b"%d" % number for number in range(1, 27)]


async def test_a_message_that_is_missing_ends_the_batch_before_it(peer: Peer) -> None:
    listener = Recorder()
    async with batched_stream(peer, listener) as link:
        await link.send([in_batch(number, b"%d" % number) for number in (1, 2, 4, 5)])
        await listener.until(lambda recorder: len(ended(recorder)) >= 3)
    # The gap, the end with what is stored, and what comes for a batch that there is no more.
    assert told(listener) == [("ended", BATCH, None), ("ended", BATCH, 2), ("ended", BATCH, None)]
    assert await peer.payloads("IN") == [b"1", b"2"]


async def test_a_message_that_is_refused_ends_the_batch_and_what_is_before_it_is_stored(peer: Peer) -> None:
    listener = Recorder()
    async with batched_stream(peer, listener, max_messages=3, discard="new") as link:
        await link.send([in_batch(number, b"%d" % number) for number in (1, 2, 3, 4, 5)])
        await listener.until(lambda recorder: len(ended(recorder)) >= 2)
    assert told(listener) == [("refused", BATCH, 4, "limit", False), ("ended", BATCH, 3), ("ended", BATCH, None)]
    assert await peer.payloads("IN") == [b"1", b"2", b"3"]


async def test_a_first_message_that_is_refused_leaves_no_batch(peer: Peer) -> None:
    listener = Recorder()
    async with batched_stream(peer, listener, max_messages=1, discard="new") as link:
        await link.send([operation_with_ack(1, b"in.a", b"full")])
        await listener.until(lambda recorder: recorder.acks)
        await link.send([in_batch(1), in_batch(2)])
        await listener.until(ended)
    assert told(listener) == [("refused", BATCH, 1, "limit", False), ("ended", BATCH, None)]


async def test_what_the_stream_has_already_counts_as_stored(peer: Peer) -> None:
    listener = Recorder()
    async with batched_stream(peer, listener) as link:
        await link.send([in_batch(number, b"%d" % number, message_id=f"m{number % 4}") for number in range(1, 9)])
        await link.send([in_batch(9, message_id="m1", last=True)])
        await listener.until(ended)
    assert told(listener) == [("ended", BATCH, 9)]
    assert await peer.payloads("IN") == [b"1", b"2", b"3", b"4"]


async def test_several_batches_of_a_stream_do_not_disturb_each_other(peer: Peer) -> None:
    listener = Recorder()
    async with batched_stream(peer, listener) as link:
        await link.send([in_batch(1, b"a"), in_batch(1, b"b", batch=b"two-1"), in_batch(2, b"c", last=True)])
        await link.send([in_batch(2, b"d", batch=b"two-1", last=True)])
        await listener.until(lambda recorder: len(ended(recorder)) == 2)
    assert ended(listener) == [("ended", BATCH, 2), ("ended", b"two-1", 2)]
    assert await peer.payloads("IN") == [b"a", b"b", b"c", b"d"]


async def test_no_stream_for_the_subject_refuses_that_message(peer: Peer) -> None:
    listener = Recorder()
    async with batched_stream(peer, listener) as link:
        await link.send([in_batch(1, b"1"), in_batch(2, subject=b"nobody.home"), in_batch(3, b"3")])
        await listener.until(lambda recorder: len(ended(recorder)) >= 2)
    found = told(listener)
    assert ("refused", BATCH, 2, "no_responders", True) in found
    assert ("ended", BATCH, 1) in found
    assert await peer.payloads("IN") == [b"1"]


async def test_the_two_kinds_of_publishes_stay_in_order(peer: Peer) -> None:
    listener = Recorder()
    async with batched_stream(peer, listener) as link:
        await link.send([operation_with_ack(1, b"in.a", b"1"), in_batch(1, b"2"), operation_with_ack(2, b"in.a", b"3")])
        await link.send([in_batch(2, b"4", last=True)])
        await listener.until(ended)
    assert listener.acks == {1: ("IN", 1, False), 2: ("IN", 3, False)}
    assert await peer.payloads("IN") == [b"1", b"2", b"3", b"4"]


async def test_a_stream_that_no_longer_allows_it_takes_nothing_of_a_batch(peer: Peer) -> None:
    listener = Recorder()
    async with batched_stream(peer, listener) as link:
        await peer.edit_stream("IN", batched=False)
        await link.send([in_batch(1), in_batch(2)])
        await listener.until(lambda recorder: len(ended(recorder)) == 2)
    assert told(listener) == [("ended", BATCH, None)] * 2
    assert await peer.payloads("IN") == []


async def test_a_batch_of_one_is_answered_as_any_publish(peer: Peer) -> None:
    listener = Recorder()
    async with batched_stream(peer, listener) as link:
        await link.send([in_batch(1, b"1", last=True)])
        await listener.until(ended)
    assert told(listener) == [("ended", BATCH, 1)]
