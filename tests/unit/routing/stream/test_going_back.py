"""A source stream that is rolled back while messages are in hand, and cases that only look like it."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from itertools import count
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from router_trio.link import ConsumerSpec
from router_trio.message import Message
from router_trio.nats.jetstream.api import nanoseconds, stream_info
from router_trio.nats.jetstream.streams import evidence_of_going_back, is_doubtful
from router_trio.testing.subscriptions import FakePullConsumer
from tests.support.eventually import eventually
from tests.support.raw_server import CREATED, stream_answer
from tests.support.world import (
    LOCAL,
    REMOTE,
    all_acked,
    fill,
    handled,
    numbers,
    one_broker,
    stream,
    to,
    two_brokers,
    unacked,
    world,
)

# --- routes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kept", [0, 3])
async def test_messages_in_hand_of_an_earlier_incarnation_ack_nothing_of_the_current_one(
    autojump_clock: MockClock, kept: int
) -> None:
    brokers = two_brokers()
    async with world([REMOTE], brokers=brokers) as w:
        brokers["edge"].stall(5.0)
        fill(w.broker, 5)
        await eventually(lambda: w.entry("edge")["in_flight"] == 5)
        w.broker.trouble.restore("IN", kept)
        fill(w.broker, 5, first=5)
        await w.watch.until("STREAM_WENT_BACK")
        await eventually(lambda: w.route.received == 10)
        assert unacked(w) == kept + 5
        await eventually(lambda: len(w.payloads("OUT", "edge")) == 10)
        assert w.successes("ack") == 5
        await eventually(lambda: unacked(w) == 0, 60)
        assert w.payloads("OUT", "edge") == numbers(10)
        assert w.watch.count("STREAM_WENT_BACK") == 1


@pytest.mark.parametrize("kept", [0, 6])
@pytest.mark.parametrize("new", [2, 4, 10, 30])
@pytest.mark.parametrize("deleted", [False, True])
async def test_a_stream_that_was_rolled_back_while_the_link_was_down_is_routed_from_its_start(
    autojump_clock: MockClock, kept: int, new: int, deleted: bool
) -> None:
    brokers = two_brokers()
    async with world([REMOTE], brokers=brokers) as w:
        fill(w.broker, 10)
        await all_acked(w, 10)
        await w.lose("main")
        w.broker.trouble.restore("IN", kept)
        fill(w.broker, new, first=10)
        if deleted:
            w.broker.delete_consumer("IN", "router")
        await w.find("main")
        await eventually(lambda: len(w.payloads("OUT", "edge")) == 10 + new)
        await eventually(lambda: unacked(w) == 0)
        assert w.payloads("OUT", "edge") == numbers(10 + new)
        assert w.watch.count("STREAM_WENT_BACK") == 1


async def test_unsent_acks_are_not_sent_to_a_stream_that_was_rolled_back(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    brokers = two_brokers()
    server, sent = brokers["main"]._server, Counter[bytes]()
    ack = server.ack

    def count_acks(reply: bytes, now: float, by: bytes) -> None:
        sent[reply] += 1
        ack(reply, now, by)

    monkeypatch.setattr(server, "ack", count_acks)
    async with world([REMOTE], brokers=brokers) as w:
        brokers["edge"].stall(1.0)
        fill(w.broker, 5)
        await eventually(lambda: w.entry("edge")["in_flight"] == 5)
        await w.lose("main")
        await eventually(lambda: w.failures("ack") == {"not_connected": 5})
        w.broker.trouble.restore("IN", 0)
        fill(w.broker, 5, first=5)
        await w.find("main")
        await all_acked(w, 5)
        assert w.payloads("OUT", "edge") == numbers(10)
        assert sent.total() == 5


async def test_messages_that_a_recreated_durable_delivered_to_an_earlier_pull_are_redelivered_at_once(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pull in transit when the durable was recreated reaches the new one, as both have one name."""
    pull = FakePullConsumer.pull
    pulls = 0

    def count_pulls(self: FakePullConsumer, *what: Any) -> None:
        nonlocal pulls
        pulls += 1
        pull(self, *what)

    monkeypatch.setattr(FakePullConsumer, "pull", count_pulls)
    route = stream("IN", "out.{{wildcard(1)}}", filter="in.*", max_in_flight=10)
    async with world([route], brokers=one_broker()) as w:
        w.broker.trouble.travel(lambda: 0.05)
        sent = 0
        while pulls < 2:
            fill(w.broker, 1, first=sent)
            sent += 1
            await trio.sleep(0.1)
        made = trio.current_time()
        w.broker.trouble.recreate("IN", "router")
        fill(w.broker, 5, first=sent)
        await w.watch.until("NATS_SUBSCRIBE_ERROR")
        assert unacked(w) == 5, "delivered to a consumer that is closed by now"
        await eventually(lambda: unacked(w) == 0 and w.payloads("OUT")[-1] == b"%d" % (sent + 4), 20.0)
        assert trio.current_time() < made + 5.0
        assert w.payloads("OUT") == numbers(sent + 5)


async def test_a_durable_is_recreated_within_a_stream_that_was_restored_before_a_new_process_received_anything(
    autojump_clock: MockClock,
) -> None:
    """The position is known from the durable alone. A durable recreated there would deliver nothing for long."""
    brokers = one_broker()
    broker = brokers["main"]
    async with world([LOCAL], brokers=brokers) as w:
        fill(broker, 20)
        await all_acked(w, 20)
    async with world([LOCAL], brokers=brokers) as w:
        await trio.sleep(1.0)
        broker.trouble.restore("IN", 1)
        broker.delete_consumer("IN", "router")
        await w.watch.until("STREAM_WENT_BACK")
        fill(broker, 3, first=20)
        await eventually(lambda: w.payloads("OUT")[-1:] == [b"22"], 10.0)


async def test_a_clock_that_is_set_back_is_not_a_stream_that_was_rolled_back(autojump_clock: MockClock) -> None:
    async with world([LOCAL], brokers=one_broker()) as w:
        sent = count()
        for seconds in (0, -1000, 500, -5000, 0):
            w.broker.trouble.set_clock(seconds)
            fill(w.broker, 5, first=5 * next(sent))
            await all_acked(w, 5 * (w.route.received // 5))
            w.broker.delete_consumer("IN", "router")
            await w.lose()
            await w.find()
        fill(w.broker, 5, first=25)
        await eventually(lambda: len(w.payloads("OUT")) == 30)
        assert w.payloads("OUT") == numbers(30)
        assert (w.route.received, w.route.duplicates) == (30, 0)
        assert w.watch.count("STREAM_WENT_BACK") == 0


async def test_a_stream_may_go_back_again_and_again(autojump_clock: MockClock) -> None:
    async with world([LOCAL], brokers=one_broker()) as w:
        for number in range(5):
            fill(w.broker, 5, first=5 * number)
            await all_acked(w, 5 * (number + 1))
            w.broker.trouble.restore("IN", 0)
            await trio.sleep(1)
        assert w.payloads("OUT") == numbers(25)
        assert w.watch.count("STREAM_WENT_BACK") == 4


async def test_copies_of_an_earlier_message_do_not_count_for_the_message_that_now_has_its_sequence(
    autojump_clock: MockClock,
) -> None:
    go_on = trio.Event()

    async def work(message: Message) -> Message:
        if message.payload == b"0":
            await go_on.wait()
        await trio.sleep(1.0)
        return message

    two = [to("out.one", jetstream=True), to("out.two", jetstream=True)]
    async with world(handlers=[handled(work, to=two, stream="IN", durable="router")], brokers=one_broker()) as w:
        fill(w.broker, 1)
        await eventually(lambda: w.route.received == 1)
        w.broker.trouble.restore("IN", 0)
        fill(w.broker, 1, first=1)
        await w.watch.until("STREAM_WENT_BACK")
        w.broker.deny_publish("out.two")
        go_on.set()
        await eventually(lambda: w.route.failed["permission_denied"] == 1)
        w.broker.allow_publish("out.two")
        await eventually(lambda: w.route.received == 2 and unacked(w) == 0)
        assert w.payloads("OUT") == [b"0", b"1", b"1"]


async def test_a_copy_taken_back_from_one_destination_is_sent_there_though_its_stream_was_rolled_back(
    autojump_clock: MockClock,
) -> None:
    brokers = two_brokers()
    both = [to("out.one", "edge", jetstream=True), to("out.two", "edge", jetstream=True)]
    async with world([stream("IN", *both, connection="main")], brokers=brokers) as w:
        brokers["edge"].stall(5.0)
        fill(w.broker, 1)
        await eventually(lambda: w.entry("edge")["in_flight"] == 2)
        # As when an earlier message is refused while this copy has not been resent yet, after a loss.
        outbox = w.live.connections["edge"].outbox
        await w.lose("edge")
        first = iter((True,))
        outbox.recall(lambda copy: next(first, False))
        assert w.entry("edge")["settled"]["failed"] == 1
        w.broker.trouble.restore("IN", 0)
        fill(w.broker, 1, first=1)
        await w.find("edge")
        await eventually(lambda: len(w.payloads("OUT", "edge")) == 4, 60)
        assert sorted(w.payloads("OUT", "edge")) == [b"0", b"0", b"1", b"1"]


async def test_a_stream_recognized_as_replaced_by_its_messages_is_the_same_on_the_next_link(
    autojump_clock: MockClock,
) -> None:
    """No pull waits while a destination is down, so no status shows that the durable was recreated."""
    brokers = two_brokers()
    async with world([stream("IN", to("core", "edge"), connection="main")], brokers=brokers) as w:
        fill(w.broker, 5)
        await all_acked(w, 5)
        await w.lose("edge")
        await trio.sleep(60.0)
        w.broker.trouble.recreate("IN", "router")
        fill(w.broker, 10, first=5)
        await w.find("edge")
        await all_acked(w, 15)
        assert w.watch.count("STREAM_WENT_BACK") == 1
        await w.lose("main")
        await w.find("main")
        fill(w.broker, 5, first=15)
        await all_acked(w, 20)
        w.broker.delete_consumer("IN", "router")
        fill(w.broker, 5, first=20)
        await all_acked(w, 25)
        assert [message.payload for message in brokers["edge"].published] == numbers(25)
        assert w.watch.count("STREAM_WENT_BACK") == 1
        w.broker.trouble.recreate("IN", "router")
        fill(w.broker, 5, first=25)
        await eventually(lambda: len(brokers["edge"].published) == 30)
        assert w.watch.count("STREAM_WENT_BACK") == 2


# --- evidence in the state of a stream -------------------------------------------------------------------------------

SPEC = ConsumerSpec(
    "S", "d", (), 30.0, -1, 10, start_sequence=8, stream_created=CREATED, last_sequence=7, last_time=7_000_000_000
)

PASSED = replace(SPEC, start_sequence=4, passed_sequence=3, passed_time=3_000_000_000)
"""As known by a process that received 3 before the rollback, and 7 after it."""


def stream_of(first: int, first_at: int, last: int, last_at: int, **changes: Any) -> Any:
    answer = stream_answer("S") | changes
    answer["state"] |= {
        "messages": last - first + 1,
        "first_seq": first,
        "first_ts": f"1970-01-01T00:00:{first_at:02}Z",
        "last_seq": last,
        "last_ts": f"1970-01-01T00:00:{last_at:02}Z",
    }
    return stream_info(json.dumps(answer).encode())


@pytest.mark.parametrize(
    "now",
    [
        stream_of(1, 1, 7, 7),
        stream_of(1, 1, 9, 9),
        stream_of(7, 7, 9, 9),
        stream_of(8, 7, 9, 9),
        stream_of(8, 8, 7, 7),  # purged
        stream_of(1, 50, 9, 9),  # the clock of the server was set back
        stream_of(1, 1, 9, 2),
    ],
)
def test_a_stream_that_continues_gives_no_evidence_of_going_back(now: Any) -> None:
    assert evidence_of_going_back(SPEC, now) is None


@pytest.mark.parametrize(
    ("now", "evidence"),
    [
        (stream_of(1, 1, 7, 7, created="2030-01-01T00:00:00Z"), "created again"),
        (stream_of(1, 1, 6, 6), "last sequence is 6"),
        (stream_of(1, 0, 0, 0), "last sequence is 0"),
        (stream_of(1, 1, 7, 8), "another message under sequence 7"),
        (stream_of(7, 8, 9, 9), "another message under sequence 7"),
    ],
)
def test_evidence_that_a_stream_was_rolled_back_is_found(now: Any, evidence: str) -> None:
    assert evidence in (evidence_of_going_back(SPEC, now) or "")
    assert evidence_of_going_back(replace(SPEC, stream_created=None), now) is None, "nothing was known of the stream"


def test_another_first_message_than_the_one_before_the_start_is_evidence_of_a_rollback() -> None:
    assert evidence_of_going_back(PASSED, stream_of(3, 4, 9, 9)) == "it has another message under sequence 3"
    assert evidence_of_going_back(PASSED, stream_of(3, 3, 9, 9)) is None


def test_a_stream_with_only_younger_messages_than_expected_is_doubtful() -> None:
    assert is_doubtful(SPEC, stream_of(1, 8, 20, 20))
    assert is_doubtful(PASSED, stream_of(1, 4, 20, 20))
    assert not is_doubtful(PASSED, stream_of(4, 4, 20, 20)), "purged or aged"
    assert not is_doubtful(PASSED, stream_of(1, 3, 20, 20))
    assert not is_doubtful(SPEC, stream_of(8, 8, 20, 20)), "purged or aged"
    assert not is_doubtful(SPEC, stream_of(1, 7, 20, 20))


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("1970-01-01T00:00:01Z", 1_000_000_000),
        ("2026-11-25T23:04:26.493022854Z", 1_795_647_866_493_022_854),
        ("2026-11-25T23:04:26.4Z", 1_795_647_866_400_000_000),
        ("2026-11-26T01:04:26.000000001+02:00", 1_795_647_866_000_000_001),
        ("0001-01-01T00:00:00Z", 0),
        ("0001-01-01T00:00:00+23:59", 0),
        ("2026-99-25T23:04:26Z", 0),
        ("2026-11-25T23:04:26", 0),
        ("", 0),
    ],
)
def test_times_are_read_to_the_nanosecond(written: str, read: int) -> None:
    assert nanoseconds(written) == read
