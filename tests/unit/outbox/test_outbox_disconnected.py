"""The outbox without a link: what is queued, drained and resent, and what fail-open keeps."""

from __future__ import annotations

import itertools
import tracemalloc
from collections import Counter

from router_trio.client.receipt import Receipt
from router_trio.events import (
    PublishFailedOpen,
    PublishQueued,
    PublishWithAckFailed,
    PublishWithAckQueued,
    RetryComplete,
    RetryPending,
)
from router_trio.message import Fate, stored
from router_trio.outbox.outbox import SAME_TIME, Outbox
from router_trio.protocol import framing
from tests.unit.outbox.desk import Desk, connected

# --- not connected ---


def test_without_a_link_a_publish_is_queued_and_counted_as_failed_once() -> None:
    desk = Desk()
    assert desk.offer() == "queued"
    assert desk.offer(with_ack=True) == "queued"
    assert desk.outbox.counters.failed == {("publish", "not_connected"): 1, ("publish_with_ack", "not_connected"): 1}
    assert desk.kinds() == [PublishQueued, PublishWithAckQueued]
    desk.outbox.link_up()
    assert desk.batch() == [1, 2]
    desk.batch()
    desk.outbox.fenced(desk.outbox.fences.sent)
    desk.outbox.acked([(2, stored("S", 1))])
    assert desk.books() == (2, 0, 0, {"fenced": 1, "acked": 1})
    assert desk.outbox.counters.succeeded == Counter(), "already counted as failed"
    assert sum(desk.outbox.counters.failed.values()) == 2


def test_while_a_drain_runs_new_publishes_queue_behind_it() -> None:
    desk = Desk()
    desk.offer()
    desk.offer(with_ack=True)
    desk.outbox.link_up()
    assert desk.outbox.settlement.drain_left
    assert desk.offer() == "queued"
    assert desk.batch() == [1, 2, 3]
    desk.batch()
    desk.outbox.fenced(desk.outbox.fences.sent)
    assert desk.outbox.settlement.drain_left
    desk.outbox.acked([(2, stored("S", 1))])
    assert not desk.outbox.settlement.drain_left
    assert desk.offer() == "sent"
    counters = desk.outbox.counters
    assert (counters.retried, counters.retry_succeeded, counters.retry_failed) == (2, 2, 0)
    assert [e for e in desk.events if isinstance(e, RetryPending | RetryComplete)] == [
        RetryPending(at=0.0, connection="main", pending_count=2),
        RetryComplete(at=0.0, connection="main", success_count=2, failed_count=0),
    ]


def test_a_drain_interrupted_by_an_outage_starts_again_with_the_rest() -> None:
    desk = Desk()
    desk.offer(with_ack=True)
    desk.offer(with_ack=True)
    desk.outbox.link_up()
    desk.batch()
    desk.outbox.acked([(1, stored("S", 1))])
    desk.outbox.link_down()
    assert not desk.outbox.settlement.drain_left
    desk.outbox.link_up()
    desk.batch()
    desk.outbox.refusals.ack_refused(2, "limit", "maximum messages exceeded", False)
    counters = desk.outbox.counters
    assert (counters.retried, counters.retry_succeeded, counters.retry_failed) == (3, 1, 1)
    assert [e.pending_count for e in desk.events if isinstance(e, RetryPending)] == [2, 1]
    assert [(e.success_count, e.failed_count) for e in desk.events if isinstance(e, RetryComplete)] == [(0, 1)]


def test_publishes_that_were_in_flight_are_resent_first_and_in_order() -> None:
    desk = connected()
    for order in range(1, 5):
        desk.offer(with_ack=order % 2 == 0)
    assert desk.batch() == [1, 2, 3, 4]
    desk.outbox.acked([(2, stored("S", 1))])
    desk.outbox.link_down()
    assert desk.books() == (4, 3, 0, {"acked": 1})
    desk.offer()
    desk.outbox.link_up()
    assert desk.batch() == [1, 3, 4, 5]
    desk.outbox.acked([(4, stored("S", 2))])
    desk.batch()
    desk.outbox.fenced(desk.outbox.fences.sent)
    assert desk.books() == (5, 0, 0, {"acked": 2, "fenced": 3})
    assert desk.outbox.counters.succeeded == {"publish": 2, "publish_with_ack": 2}
    assert desk.outbox.counters.failed == {("publish", "not_connected"): 1}


def test_a_fence_of_a_dead_link_confirms_nothing_on_the_next_one() -> None:
    desk = connected()
    desk.offer()
    desk.batch()
    desk.batch()
    mark = desk.outbox.fences.sent
    desk.outbox.link_down()
    desk.outbox.link_up()
    desk.batch()
    desk.batch()
    desk.outbox.fenced(mark)
    assert desk.books() == (1, 0, 1, {})


# --- fail-open ---


def test_fail_open_keeps_nothing_while_not_connected() -> None:
    desk = Desk(fail_open=True)
    assert desk.offer() == "failed_open"
    assert desk.fates == {1: [Fate("failed_open", "not_connected")]}
    assert desk.books() == (1, 0, 0, {"failed_open": 1})
    assert desk.outbox.counters.failed == {("publish", "not_connected"): 1}
    assert desk.kinds() == [PublishFailedOpen]
    assert not desk.outbox.blocks


def test_fail_open_gives_up_the_publishes_of_a_lost_link() -> None:
    desk = connected(fail_open=True)
    desk.offer()
    desk.offer(with_ack=True)
    desk.batch()
    desk.offer()
    desk.outbox.link_down()
    assert desk.books() == (3, 0, 0, {"failed_open": 3})
    assert desk.outbox.counters.failed == {("publish", "not_connected"): 2, ("publish_with_ack", "not_connected"): 1}
    assert desk.events == [PublishFailedOpen(at=0.0, connection="main", reason="not_connected", count=3)]


def test_fail_open_gives_up_a_publish_that_fails_while_connected() -> None:
    desk = connected(fail_open=True)
    desk.offer(with_ack=True)
    desk.batch()
    desk.outbox.refusals.ack_refused(1, "limit", "maximum messages exceeded", False)
    assert desk.fates == {1: [Fate("failed_open", "limit")]}
    assert desk.outbox.counters.failed == {("publish_with_ack", "limit"): 1}
    assert desk.kinds() == [PublishWithAckFailed, PublishFailedOpen]


# --- giving up ---


def test_waiting_publishes_share_the_time_of_the_first_of_their_millisecond() -> None:
    desk = Desk(max_age=10.0)
    for at in (1.0, 1.0 + SAME_TIME / 2, 1.0 + SAME_TIME * 2):
        desk.now = at
        desk.offer()
    assert desk.outbox._queue.oldest_accepted_at == 1.0
    desk.now = 11.0 + SAME_TIME / 4
    desk.outbox.refusals.sweep()
    assert sorted(desk.fates) == [1, 2]


def test_a_waiting_publish_of_128_bytes_takes_at_most_400() -> None:
    clock = itertools.count(0.5)  # each at its own time, which is the worst case
    count = 2000
    outbox = Outbox(
        "main",
        emit=lambda _: None,
        clock=lambda: next(clock),
        wake=lambda: None,
        fail_open=False,
        max_operations=count,
        max_bytes=1_000_000,
        on_full="reject",
        max_age=0.0,
    )
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        for _ in range(count):
            outbox.offer(framing.publish(b"out.0001", b"x" * 128), owner=Receipt())
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    # Excludes what the allocator rounds up: five objects to multiples of 16.
    assert (after - before) / count < 380
