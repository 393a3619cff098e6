"""Where a new consumer has to start: never behind an unsettled message, never needlessly far before it."""

from __future__ import annotations

import random

import pytest

from router_trio.routing.stream import cursor as module
from router_trio.routing.stream.cursor import StreamCursor
from tests.support.compiled import looks_inside

TIMEOUT = 60.0


def received(position: StreamCursor, *sequences: int, first_delivery: int, now: float = 0.0) -> list[bool]:
    return [
        position.mark_received(sequence, first_delivery + place, stored_at(sequence), now, TIMEOUT)
        for place, sequence in enumerate(sequences)
    ]


def settle(position: StreamCursor, *sequences: int) -> None:
    position.mark_settled(sequences, [*map(stored_at, sequences)])


def stored_at(sequence: int) -> bytes:
    """Return the time at which the stream stored a message."""
    return b"%d" % (1_700_000_000_000_000_000 + sequence)


def test_the_start_is_the_first_message_and_then_behind_the_settled_ones() -> None:
    position = StreamCursor()
    assert position.start == 1
    assert received(position, 4, 6, 9, first_delivery=1) == [True, True, True]
    assert position.start == 4
    settle(position, 6)
    assert position.start == 4
    settle(position, 4)
    assert position.start == 9
    settle(position, 9)
    assert position.start == 10


def test_a_failed_message_is_unsettled_until_it_is_redelivered_or_given_up() -> None:
    position = StreamCursor()
    received(position, 1, 2, first_delivery=1)
    settle(position, 2)
    assert position.start == 1
    assert received(position, 1, first_delivery=3) == [True]
    position.given_up(1)
    assert position.start == 3


def test_the_last_message_before_the_start_is_known_apart_from_the_last_one() -> None:
    """Deliveries between the two went elsewhere, so that the stream may have been rolled back between them."""

    def known(sequence: int) -> tuple[int, int]:
        return sequence, int(stored_at(sequence))

    position = StreamCursor()
    assert position.last_passed == position.last_known == (0, 0)
    received(position, 4, 5, 7, first_delivery=1)
    assert (position.start, position.last_passed) == (4, (0, 0))
    settle(position, 4, 5, 7)
    assert (position.start, position.last_passed) == (8, known(7))
    assert received(position, 14, first_delivery=9) == [True]
    settle(position, 14)
    assert (position.start, position.last_passed, position.last_known) == (8, known(7), known(14))
    position.learn(10, 14, 9)
    assert (position.start, position.last_passed) == (11, known(7)), "others have settled 8 to 10"
    position.learn(13, 14, 9)
    assert received(position, 20, first_delivery=10) == [True]
    assert (position.start, position.last_passed) == (14, known(7))
    position.learn(14, 20, 10)
    assert (position.start, position.last_passed, position.last_known) == (20, known(14), known(20))


def test_messages_up_to_the_ack_floor_are_forgotten_unless_they_are_in_hand() -> None:
    position = StreamCursor()
    received(position, 1, 2, 3, 4, first_delivery=1)
    position.forget_up_to(3, [1, 2, 3, 4])
    assert position.unsettled == 4, "all are in hand"
    position.forget_up_to(3, [2])
    assert position.unsettled == 2
    assert position.oldest_time == int(stored_at(2))
    settle(position, 2)
    assert position.oldest_time == int(stored_at(4))
    settle(position, 4)
    assert (position.unsettled, position.oldest_time) == (0, 0)


def test_a_redelivered_message_that_was_settled_is_recognized() -> None:
    position = StreamCursor()
    received(position, 1, 2, first_delivery=1)
    settle(position, 1)
    assert received(position, 1, 2, first_delivery=3) == [False, True]
    position.given_up(2)
    assert received(position, 2, first_delivery=5) == [False], "a message that was given up is not retried"


def test_deliveries_to_other_processes_hold_back_the_start_until_the_ack_floor_has_passed_them() -> None:
    position = StreamCursor()
    received(position, 1, 2, first_delivery=1)
    settle(position, 1)
    settle(position, 2)
    received(position, 5, first_delivery=5, now=10.0)
    settle(position, 5)
    assert position.start == 3
    # However late it is: another process may have returned a message that is redelivered much later.
    received(position, 6, first_delivery=6, now=10.0 + 2 * TIMEOUT)
    settle(position, 6)
    assert position.start == 3
    position.learn(3, delivered=6, deliveries=6)
    assert position.start == 4
    position.learn(5, delivered=7, deliveries=7)
    assert position.start == 6, "as of the first lookup, others may hold 6"
    position.learn(6, delivered=8, deliveries=8)
    assert position.start == 7


def test_a_lookup_from_before_a_gap_does_not_resolve_the_gap() -> None:
    position = StreamCursor()
    received(position, 5, first_delivery=5)
    settle(position, 5)
    position.learn(0, delivered=3, deliveries=3)
    position.learn(3, delivered=4, deliveries=4)
    assert position.start == 4
    position.learn(4, delivered=5, deliveries=5)
    assert position.start == 5
    position.learn(5, delivered=5, deliveries=5)
    assert position.start == 6


def test_messages_that_others_held_before_the_durable_was_deleted_are_not_skipped() -> None:
    position = StreamCursor()
    received(position, 1, 2, first_delivery=1)
    received(position, 4, 5, first_delivery=4)
    for sequence in (1, 2, 4, 5):
        settle(position, sequence)
    position.learn(2, delivered=5, deliveries=5)
    assert position.start == 3
    opened(position, 0)  # the durable was deleted, and starts at 3
    position.learn(2, delivered=2, deliveries=0)
    assert position.start == 3
    position.learn(5, delivered=5, deliveries=3)
    assert position.start == 6


def test_the_ack_floor_advances_the_start_of_a_process_that_gets_no_messages() -> None:
    position = StreamCursor()
    opened(position, 300, in_use=True)
    position.begin_behind(250)
    assert position.start == 251
    position.learn(300, delivered=310, deliveries=310)
    assert position.start == 301


def test_a_new_consumer_whose_deliveries_count_from_one_is_no_gap() -> None:
    position = StreamCursor()
    received(position, 1, 2, 3, first_delivery=1)
    settle(position, 1)
    received(position, 2, 3, 4, first_delivery=1)
    for sequence in (2, 3, 4):
        settle(position, sequence)
    assert position.start == 5


def test_a_process_that_takes_over_a_consumer_starts_behind_its_ack_floor() -> None:
    position = StreamCursor()
    position.begin_behind(400)
    received(position, 500, first_delivery=700, now=0.0)
    settle(position, 500)
    assert position.start == 401
    received(position, 501, first_delivery=701, now=TIMEOUT)
    assert position.start == 401
    position.learn(500, delivered=500, deliveries=700)
    assert position.start == 501


def test_of_too_many_unsettled_messages_the_oldest_is_remembered() -> None:
    position = StreamCursor()
    received(position, *range(1, module.REMEMBERED + 10), first_delivery=1)
    for sequence in range(5, module.REMEMBERED + 10):
        settle(position, sequence)
    assert position.start == 1


def test_the_last_settled_messages_are_remembered_within_a_bound() -> None:
    position = StreamCursor()
    count = 5 * module.REMEMBERED // 2
    for sequence in range(1, count + 1):
        position.mark_received(sequence, sequence, stored_at(sequence), 0.0, TIMEOUT)
        settle(position, sequence)
    known = [
        not position.mark_received(sequence, 1, stored_at(sequence), 0.0, TIMEOUT) for sequence in range(count, 0, -1)
    ]
    assert all(known[: module.REMEMBERED])
    assert sum(known) <= 2 * module.REMEMBERED


@looks_inside
def test_consecutive_messages_are_recorded_together_as_they_would_be_one_by_one() -> None:
    choose = random.Random(11)
    together = 0
    for _ in range(300):
        batched, single = StreamCursor(), StreamCursor()
        highest = delivery = 0
        for now in range(12):
            sequences, deliveries = [], []
            for _ in range(choose.randint(1, 5)):
                odd = choose.random() < 0.03
                delivery += choose.randint(2, 4) if odd else 1
                sequences.append(choose.randint(1, highest + 1) if odd else highest + choose.randint(1, 3))
                deliveries.append(delivery)
                highest = max(highest, sequences[-1])
            times = [*map(stored_at, sequences)]
            arrivals = [*zip(sequences, deliveries, times, strict=True)]
            if batched.followed(sequences, deliveries, times):
                together += 1
                unsettled = [True] * len(sequences)
            else:
                unsettled = [batched.mark_received(*one, now, 5.0) for one in arrivals]
            assert unsettled == [single.mark_received(*one, now, 5.0) for one in arrivals]
            for position in (batched, single):
                settle(position, *sequences[::2])
            assert state(batched) == state(single)
    assert together > 300


def state(position: StreamCursor) -> dict[str, object]:
    fields = {name: getattr(position, name) for name in StreamCursor.__slots__}
    return {**fields, "failures": position.failures.failed}


def test_the_start_matches_a_simple_model() -> None:
    choose = random.Random(7)
    for _ in range(200):
        position, unsettled, highest, delivery = StreamCursor(), set[int](), 0, 0
        settled: set[int] = set()
        for _ in range(60):
            delivery += 1
            if unsettled and choose.random() < 0.3:
                sequence = choose.choice(sorted(unsettled))
            else:
                highest += choose.randint(1, 3)
                sequence = highest
            assert position.mark_received(sequence, delivery, stored_at(sequence), 0.0, TIMEOUT)
            unsettled.add(sequence)
            if choose.random() < 0.6:
                done = choose.choice(sorted(unsettled))
                unsettled.discard(done)
                settled.add(done)
                settle(position, done)
            assert position.start == min(unsettled, default=highest + 1)
        assert not any(received(position, *settled, first_delivery=delivery + 1))


def opened(position: StreamCursor, deliveries: int, *, in_use: bool = False, others_seen: bool = False) -> bool:
    return position.opened(deliveries, 0.0, TIMEOUT, in_use=in_use, others_seen=others_seen)


def test_deliveries_lost_with_a_link_are_this_process_own() -> None:
    position = StreamCursor()
    assert opened(position, 0)
    received(position, 1, 2, first_delivery=1)
    assert opened(position, 5), "three were in transit"
    received(position, 3, 4, 5, first_delivery=6)
    assert opened(position, 8, in_use=True), "our own requests, on a link that the server believes alive"
    assert [sequence for sequence in range(1, 7) if not position.knows(sequence)] == [6]


def test_the_first_link_claims_unseen_deliveries_unless_another_process_is_active() -> None:
    assert opened(StreamCursor(), 7)
    assert not opened(StreamCursor(), 7, in_use=True)


def test_unseen_deliveries_between_ours_are_not_claimed_if_another_process_is_there() -> None:
    position = StreamCursor()
    opened(position, 0)
    received(position, 1, first_delivery=1)
    assert not position.missing_before(2)
    assert position.missing_before(4) == 2
    received(position, 3, first_delivery=3)
    assert not position.missing_before(4)
    assert not opened(position, 3, in_use=True, others_seen=True)
    assert opened(position, 3, others_seen=True), "no process answers: they are gone, or never existed"


def test_a_repeated_delivery_does_not_mean_that_others_use_the_durable() -> None:
    position = StreamCursor()
    opened(position, 0)
    received(position, 1, 2, first_delivery=1)
    received(position, 1, 2, first_delivery=1)
    assert opened(position, 2)


def test_lost_deliveries_are_after_the_latest_one_unless_some_were_missing_before() -> None:
    position = StreamCursor()
    assert position.unseen_from == 1
    received(position, 1, 2, first_delivery=1)
    assert position.unseen_from == 3
    settle(position, 1)
    received(position, 6, first_delivery=4)
    assert position.unseen_from == 2, "from the oldest unsettled message: one between may be missing"


def test_deliveries_found_missing_hold_back_the_start_as_a_gap_does() -> None:
    position = StreamCursor()
    opened(position, 0)
    received(position, 1, first_delivery=1)
    settle(position, 1)
    opened(position, 3)
    received(position, 9, first_delivery=4)
    settle(position, 9)
    assert position.start == 2


def test_a_known_sequence_with_another_time_is_a_contradiction() -> None:
    position = StreamCursor()
    received(position, 1, 2, first_delivery=1)
    settle(position, 1)
    assert not any(position.contradicted(sequence, stored_at(sequence)) for sequence in (1, 2, 3))
    assert position.contradicted(1, b"5"), "settled"
    assert position.contradicted(2, b"5"), "in hand"
    assert not position.contradicted(3, b"5"), "never seen"
    position.given_up(2)
    assert position.contradicted(2, b"5"), "given up"
    assert not position.contradicted(2, stored_at(2))


def test_a_message_settled_long_ago_is_a_contradiction_as_long_as_it_is_remembered() -> None:
    position = StreamCursor()
    for sequence in range(1, module.REMEMBERED + 2):
        received(position, sequence, first_delivery=sequence)
        settle(position, sequence)
    assert position.contradicted(1, b"5")


def test_the_last_known_message_is_the_highest() -> None:
    position = StreamCursor()
    assert position.last_known == (0, 0)
    position.followed([3, 4], [1, 2], [b"33", b"44"])
    assert position.last_known == (4, 44)
    position.mark_received(7, 3, b"77", 0.0, TIMEOUT)
    position.mark_received(6, 4, b"66", 0.0, TIMEOUT)
    assert position.last_known == (7, 77)


@pytest.mark.parametrize("time", [b"", b"x", b"-1"])
def test_an_invalid_time_is_not_the_last_known_one(time: bytes) -> None:
    position = StreamCursor()
    position.mark_received(7, 1, time, 0.0, TIMEOUT)
    assert position.last_known == (0, 0)


def test_unsettled_messages_are_counted() -> None:
    position = StreamCursor()
    received(position, 4, 5, 7, 9, first_delivery=1)
    position.mark_settled([5], [b""])
    assert position.unsettled == 3
