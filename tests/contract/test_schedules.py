"""Promises of `router_trio.link` about message schedules: messages that a stream publishes later."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest
import trio

from router_trio.link import SchedulesCount, SchedulesSpec
from router_trio.protocol import schedules
from router_trio.protocol.framing import header_block, payload
from router_trio.protocol.headers import Headers, decode, encode
from router_trio.protocol.stream_config import StreamConfig
from router_trio.testing.streams import EPOCH
from tests.contract.orders import SPEC, sequences
from tests.contract.peers import Peer, link_of
from tests.support.recorder import Recorder, operation_with_ack

pytestmark = pytest.mark.real_needs_server(2, 12, lacks="message schedules")

DELAYED = StreamConfig("DELAYED", ("later.*", "out.*"), duplicate_window=1.0, allow_message_schedules=True)
READER = replace(SPEC, stream="DELAYED", filters=("out.*",))

LATEST = 1.6
"""Seconds after its time within which a stream publishes a schedule: its timer has a resolution of a second."""


def schedule(kind: str, seconds: float, *, target: bytes = b"out.a", message_id: str = "order-7") -> bytes:
    """Return the header block of a schedule that is due in `seconds`."""
    now = EPOCH + trio.current_time() if kind == "fake" else time.time()
    block = encode(Headers({"X-Kept": "1", "Nats-Msg-Id": message_id}))
    return schedules.scheduled(block, int((now + seconds) * 1e9), target)


async def test_a_stream_reports_whether_it_keeps_schedules(peer: Peer) -> None:
    await peer.add_stream("PLAIN", ["plain"])
    async with link_of(peer) as link:
        assert await link.ensure_stream(DELAYED) == (DELAYED, True)
        found, plain = await link.stream_state("DELAYED"), await link.stream_state("PLAIN")
    assert found is not None
    assert plain is not None
    assert found.loses_schedules is None
    assert "set allow_msg_schedules" in str(plain.loses_schedules)


async def test_a_schedule_is_published_when_it_is_due_without_its_id(peer: Peer, kind: str, clock: object) -> None:
    listener, reader, core = Recorder(), Recorder(), Recorder()
    async with link_of(peer, listener) as link:
        await link.ensure_stream(DELAYED)
        await link.subscribe("out.*", core)
        (await link.open_consumer(READER, reader)).pull(10, 10.0)
        block, began = schedule(kind, 1.2), trio.current_time()
        await link.send([operation_with_ack(1, b"later.x", b"body", headers=block)])
        (raw,) = await reader.until_delivered(1)
        assert 1.2 <= trio.current_time() - began <= 1.2 + LATEST
    assert listener.acks == {1: ("DELAYED", 1, False)}
    assert (raw[0], payload(raw), sequences([raw])) == (b"out.a", b"body", [2])
    assert dict(decode(header_block(raw))) == {
        "X-Kept": "1",
        "Router-Message-Id": "order-7",
        "Nats-Scheduler": "later.x",
        "Nats-Schedule-Next": "purge",
    }
    assert not core.messages


ODD_LINES = [
    (b"Nats-Schedule-z", b""),
    (b"X: a\nNats-Schedule-z", b"X: a\n"),
    (b"X: a\nNats-Schedule: b\nY: c", b"X: a\n"),
    (b"X: a\nNats-Expected-z", b"X: a\n"),
    (b"X: a\nnats-schedule-z", b"X: a\nnats-schedule-z\r\n"),
    (b"X: a\n Nats-Schedule-z", b"X: a\n Nats-Schedule-z\r\n"),
    (b"X: a\rNats-Schedule-z", b"X: a\rNats-Schedule-z\r\n"),
    (b"X: a\nNats-Msg-Id: b", b"X: a\nNats-Msg-Id: b\r\n"),
    (b"X: a\nNats-TTL: 7", b"X: a\nNats-TTL: 7\r\n"),
]


@pytest.mark.parametrize(("lines", "left"), ODD_LINES)
async def test_lines_that_begin_like_a_header_of_schedules_are_cut_up_to_the_next_crlf(
    lines: bytes, left: bytes, peer: Peer, kind: str, clock: object
) -> None:
    """Behind any LF, and without a colon. So the next header is no header any more, if the LF was a bare one."""
    reader = Recorder()
    async with link_of(peer) as link:
        await link.ensure_stream(DELAYED)
        (await link.open_consumer(READER, reader)).pull(10, 10.0)
        block = schedule(kind, -60.0).replace(b"X-Kept", lines + b"\r\nX-Kept")
        await link.send([operation_with_ack(1, b"later.x", headers=block)])
        (raw,) = await reader.until_delivered(1)
    added = b"Nats-Scheduler: later.x\r\nNats-Schedule-Next: purge\r\n\r\n"
    kept = b"X-Kept: 1\r\nRouter-Message-Id: order-7\r\n"
    assert header_block(raw).replace(b"\r\n\r\n", b"\r\n") == b"NATS/1.0\r\n" + left + kept + added[:-2]


async def test_a_schedule_of_the_past_is_published_at_once(peer: Peer, kind: str, clock: object) -> None:
    reader = Recorder()
    async with link_of(peer) as link:
        await link.ensure_stream(DELAYED)
        (await link.open_consumer(READER, reader)).pull(10, 10.0)
        await link.send([operation_with_ack(1, b"later.x", headers=schedule(kind, -60.0))])
        await reader.until_delivered(1, within=1.0)


async def test_a_subject_has_one_schedule_the_last_one(peer: Peer, kind: str, clock: object) -> None:
    listener, reader = Recorder(), Recorder()
    async with link_of(peer, listener) as link:
        await link.ensure_stream(DELAYED)
        (await link.open_consumer(READER, reader)).pull(10, 10.0)
        for number in (1, 2):
            block = schedule(kind, 0.2 * number, message_id=f"id-{number}")
            await link.send([operation_with_ack(number, b"later.x", b"%d" % number, headers=block)])
        await link.send([operation_with_ack(3, b"later.x", b"again", headers=block)])
        await listener.until(lambda recorder: len(recorder.acks) == 3)
        await reader.until_delivered(1)
        await trio.sleep(LATEST)
    assert listener.acks[3] == ("DELAYED", 2, True)
    # Unacked, it may have been redelivered.
    assert {(payload(raw), *sequences([raw])) for raw in reader.messages} == {(b"2", 3)}


async def test_schedules_that_a_stream_does_not_take_are_refused(peer: Peer, kind: str) -> None:
    listener = Recorder()
    await peer.add_stream("PLAIN", ["plain.*"])
    async with link_of(peer, listener) as link:
        await link.ensure_stream(DELAYED)
        there = schedule(kind, 60.0)
        refused = {
            1: (b"plain.x", schedule(kind, 60.0, target=b"plain.y")),
            2: (b"later.x", schedule(kind, 60.0, target=b"plain.y")),
            3: (b"out.a", there),
            4: (b"later.x", there.replace(b"@at 2", b"@never 2")),
        }
        await link.send([operation_with_ack(n, subject, headers=block) for n, (subject, block) in refused.items()])
        await listener.until(lambda recorder: len(recorder.refusals) == 4)
    codes = {1: 10188, 2: 10190, 3: 10190, 4: 10189}
    assert {n: reason for n, (reason, _) in listener.refusals.items()} == {
        n: f"jetstream_{code}" for n, code in codes.items()
    }


RETRY = StreamConfig("RETRY", ("retry.>",), allow_message_schedules=True)
RETRIES = SchedulesSpec("RETRY", "retry", "retry.d.a", "due")
DUE = replace(SPEC, stream="RETRY", durable="due", filters=("retry.d.a",))


async def test_schedules_are_counted_until_they_are_published(peer: Peer, kind: str, clock: object) -> None:
    """Also when what they published was acked, and is deleted."""
    listener, reader = Recorder(), Recorder()
    async with link_of(peer, listener) as link:
        await link.ensure_stream(RETRY)
        assert await link.count_schedules(RETRIES) == SchedulesCount(0, 0, 0, 0)
        consumer = await link.open_consumer(DUE, reader)
        for n, seconds in enumerate((-1.0, -1.0, 60.0)):
            block = schedule(kind, seconds, target=b"retry.d.a", message_id=f"id-{n}")
            await link.send([operation_with_ack(n, b"retry.s.a.%d" % n, headers=block)])
        await listener.until(lambda recorder: len(recorder.acks) == 3)
        consumer.pull(2, 10.0)
        raws = await reader.until_delivered(2)
        assert await link.count_schedules(RETRIES) == SchedulesCount(3, 2, 1, 0)
        assert not link.ack([raw[1] for raw in raws])
        await consumer.acks_processed()
        for _ in range(3):
            assert await link.count_schedules(RETRIES) == SchedulesCount(3, 2, 1, 0)
        block = schedule(kind, -1.0, target=b"retry.d.a", message_id="id-3")
        await link.send([operation_with_ack(3, b"retry.s.a.3", headers=block)])
        await listener.until(lambda recorder: len(recorder.acks) == 4)
        consumer.pull(1, 10.0)
        await reader.until_delivered(3)
        assert await link.count_schedules(RETRIES) == SchedulesCount(4, 3, 1, 0)


async def test_a_schedule_that_was_deleted_is_lost_and_reported_once(peer: Peer, kind: str, clock: object) -> None:
    listener = Recorder()
    async with link_of(peer, listener) as link:
        await link.ensure_stream(RETRY)
        await link.count_schedules(RETRIES)
        for n in range(3):
            block = schedule(kind, 60.0, target=b"retry.d.a", message_id=f"id-{n}")
            await link.send([operation_with_ack(n, b"retry.s.a.%d" % n, headers=block)])
        await listener.until(lambda recorder: len(recorder.acks) == 3)
        await peer.delete_schedule("RETRY", "retry.s.a.1")
        found = await link.count_schedules(RETRIES)
        assert found == SchedulesCount(3, 0, 2, 0)
        assert found.lost == 1
        assert await link.count_schedules(RETRIES) == SchedulesCount(2, 0, 2, 0)


async def test_a_count_shows_that_the_record_of_earlier_ones_is_gone(peer: Peer, kind: str) -> None:
    async with link_of(peer, Recorder()) as link:
        for _ in range(2):
            await link.ensure_stream(RETRY)
            assert [(await link.count_schedules(RETRIES)).is_first for _ in range(2)] == [True, False]
            await peer.delete_stream("RETRY")
        if kind == "real":  # the fake keeps its record elsewhere
            await link.ensure_stream(RETRY)
            await peer.publish("retry.n", b"{}")
            assert [(await link.count_schedules(RETRIES)).is_first for _ in range(2)] == [True, False]
            await peer.publish("retry.n", b"junk of another client")
            assert [(await link.count_schedules(RETRIES)).is_first for _ in range(2)] == [True, False]


async def test_a_count_has_the_last_sequence_and_the_creation_of_its_stream(peer: Peer, kind: str) -> None:
    listener = Recorder()
    async with link_of(peer, listener) as link:
        await link.ensure_stream(RETRY)
        before = await link.count_schedules(RETRIES)
        for n in range(3):
            block = schedule(kind, 60.0, target=b"retry.d.a", message_id=f"id-{n}")
            await link.send([operation_with_ack(n, b"retry.s.a.%d" % n, headers=block)])
        await listener.until(lambda recorder: len(recorder.acks) == 3)
        count, state = await link.count_schedules(RETRIES), await link.stream_state("RETRY")
    assert state is not None
    assert all(sequence is not None for _, sequence, _ in listener.acks.values())
    assert before.created == count.created == state.created
    assert count.last_sequence == max(sequence or 0 for _, sequence, _ in listener.acks.values())
    assert not count.in_flux


async def test_schedules_that_were_lost_before_the_first_count_are_not_reported(peer: Peer, kind: str) -> None:
    listener = Recorder()
    async with link_of(peer, listener) as link:
        await link.ensure_stream(RETRY)
        for n in range(2):
            block = schedule(kind, 60.0, target=b"retry.d.a", message_id=f"id-{n}")
            await link.send([operation_with_ack(n, b"retry.s.a.%d" % n, headers=block)])
        await listener.until(lambda recorder: len(recorder.acks) == 2)
        if kind == "real":
            await peer.delete_schedule("RETRY", "retry.s.a.1")
            assert await link.count_schedules(RETRIES) == SchedulesCount(1, 0, 1, 0)
        assert (await link.count_schedules(RETRIES)).lost == 0


async def test_the_subjects_of_a_stream_are_counted(peer: Peer, kind: str) -> None:
    listener = Recorder()
    async with link_of(peer, listener) as link:
        await link.ensure_stream(RETRY)
        assert await link.count_subjects("RETRY", "retry.s.a.*") == 0
        for n in range(3):
            block = schedule(kind, 60.0, target=b"retry.d.a", message_id=f"id-{n}")
            await link.send([operation_with_ack(n, b"retry.s.%b.%d" % (b"ab"[n // 2 :][:1], n), headers=block)])
        await listener.until(lambda recorder: len(recorder.acks) == 3)
        assert await link.count_subjects("RETRY", "retry.s.a.*") == 2
        assert await link.count_subjects("RETRY", "retry.s.>") == 3
