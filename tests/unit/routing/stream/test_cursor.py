"""Where a new consumer has to start: never behind what is unsettled, never needlessly far before it."""

from __future__ import annotations

import random

import pytest

from router_trio.routing.stream import cursor as module
from router_trio.routing.stream.cursor import StreamCursor
from tests.support.compiled import looks_inside

PATIENCE = 60.0


def received(position: StreamCursor, *sequences: int, first_delivery: int, now: float = 0.0) -> list[bool]:
    return [
        position.mark_received(sequence, first_delivery + place, stored_at(sequence), now, PATIENCE)
        for place, sequence in enumerate(sequences)
    ]


def settle(position: StreamCursor, *sequences: int) -> None:
    position.mark_settled(sequences, [*map(stored_at, sequences)])


def stored_at(sequence: int) -> bytes:
    """The time of a message, as the stream has it."""
    return b"%d" % (1_700_000_000_000_000_000 + sequence)


def test_it_starts_at_the_beginning_and_then_behind_what_is_settled() -> None:
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


def test_a_failed_message_is_unsettled_until_it_came_again_or_is_given_up() -> None:
    position = StreamCursor()
    received(position, 1, 2, first_delivery=1)
    settle(position, 2)
    assert position.start == 1
    assert received(position, 1, first_delivery=3) == [True]
    position.given_up(1)
    assert position.start == 3


def test_a_settled_message_that_comes_again_is_known() -> None:
    position = StreamCursor()
    received(position, 1, 2, first_delivery=1)
    settle(position, 1)
    assert received(position, 1, 2, first_delivery=3) == [False, True]
    position.given_up(2)
    assert received(position, 2, first_delivery=5) == [False], "it was counted as given up, and is not tried again"


def test_deliveries_that_went_elsewhere_hold_the_start_back_until_the_ack_floor_has_passed_them() -> None:
    position = StreamCursor()
    received(position, 1, 2, first_delivery=1)
    settle(position, 1)
    settle(position, 2)
    received(position, 5, first_delivery=5, now=10.0)
    settle(position, 5)
    assert position.start == 3
    # However late it is: another process may have returned a message, to be redelivered much later.
    received(position, 6, first_delivery=6, now=10.0 + 2 * PATIENCE)
    settle(position, 6)
    assert position.start == 3
    position.learn(3, delivered=6, deliveries=6)
    assert position.start == 4
    position.learn(5, delivered=7, deliveries=7)
    assert position.start == 6, "of the first look, others may hold 6"
    position.learn(6, delivered=8, deliveries=8)
    assert position.start == 7


def test_a_look_from_before_a_gap_does_not_say_what_went_elsewhere() -> None:
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


def test_what_others_hold_of_the_durable_before_is_not_passed_over() -> None:
    position = StreamCursor()
    received(position, 1, 2, first_delivery=1)
    received(position, 4, 5, first_delivery=4)
    for sequence in (1, 2, 4, 5):
        settle(position, sequence)
    position.learn(2, delivered=5, deliveries=5)
    assert position.start == 3
    opened(position, 0)  # it was deleted, and begins with 3
    position.learn(2, delivered=2, deliveries=0)
    assert position.start == 3
    position.learn(5, delivered=5, deliveries=3)
    assert position.start == 6


def test_the_ack_floor_moves_the_start_of_a_process_that_gets_nothing() -> None:
    position = StreamCursor()
    opened(position, 300, in_use=True)
    position.begin_behind(250)
    assert position.start == 251
    position.learn(300, delivered=310, deliveries=310)
    assert position.start == 301


def test_a_new_consumer_that_counts_from_one_is_no_gap() -> None:
    position = StreamCursor()
    received(position, 1, 2, 3, first_delivery=1)
    settle(position, 1)
    received(position, 2, 3, 4, first_delivery=1)
    for sequence in (2, 3, 4):
        settle(position, sequence)
    assert position.start == 5


def test_a_process_that_takes_over_a_consumer_knows_what_was_settled_before_by_its_ack_floor() -> None:
    position = StreamCursor()
    position.begin_behind(400)
    received(position, 500, first_delivery=700, now=0.0)
    settle(position, 500)
    assert position.start == 401
    received(position, 501, first_delivery=701, now=PATIENCE)
    assert position.start == 401
    position.learn(500, delivered=500, deliveries=700)
    assert position.start == 501


def test_too_many_unsettled_ones_are_remembered_as_the_oldest() -> None:
    position = StreamCursor()
    received(position, *range(1, module.REMEMBERED + 10), first_delivery=1)
    for sequence in range(5, module.REMEMBERED + 10):
        settle(position, sequence)
    assert position.start == 1


def test_at_least_the_last_settled_ones_are_known_and_no_more_than_twice_as_many() -> None:
    position = StreamCursor()
    count = 5 * module.REMEMBERED // 2
    for sequence in range(1, count + 1):
        position.mark_received(sequence, sequence, stored_at(sequence), 0.0, PATIENCE)
        settle(position, sequence)
    known = [
        not position.mark_received(sequence, 1, stored_at(sequence), 0.0, PATIENCE) for sequence in range(count, 0, -1)
    ]
    assert all(known[: module.REMEMBERED])
    assert sum(known) <= 2 * module.REMEMBERED


@looks_inside
def test_what_follows_is_taken_together_as_it_would_be_one_by_one() -> None:
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
            came = [*zip(sequences, deliveries, times, strict=True)]
            if batched.followed(sequences, deliveries, times):
                together += 1
                unsettled = [True] * len(sequences)
            else:
                unsettled = [batched.mark_received(*one, now, 5.0) for one in came]
            assert unsettled == [single.mark_received(*one, now, 5.0) for one in came]
            for position in (batched, single):
                settle(position, *sequences[::2])
            assert state(batched) == state(single)
    assert together > 300


def state(position: StreamCursor) -> dict[str, object]:
    fields = {name: getattr(position, name) for name in StreamCursor.__slots__}
    return {**fields, "failures": position.failures.failed}


def test_against_a_simple_model() -> None:
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
            assert position.mark_received(sequence, delivery, stored_at(sequence), 0.0, PATIENCE)
            unsettled.add(sequence)
            if choose.random() < 0.6:
                done = choose.choice(sorted(unsettled))
                unsettled.discard(done)
                settled.add(done)
                settle(position, done)
            assert position.start == min(unsettled, default=highest + 1)
        assert not any(received(position, *settled, first_delivery=delivery + 1))


def opened(position: StreamCursor, deliveries: int, *, in_use: bool = False, others_seen: bool = False) -> bool:
    return position.opened(deliveries, 0.0, PATIENCE, in_use=in_use, others_seen=others_seen)


def test_what_went_astray_with_a_link_is_ours() -> None:
    position = StreamCursor()
    assert opened(position, 0)
    received(position, 1, 2, first_delivery=1)
    assert opened(position, 5), "three were under way"
    received(position, 3, 4, 5, first_delivery=6)
    assert opened(position, 8, in_use=True), "our own requests, of a link that the server takes for alive"
    assert [sequence for sequence in range(1, 7) if not position.knows(sequence)] == [6]


def test_a_first_link_takes_what_a_process_before_it_left_unless_somebody_is_at_work() -> None:
    assert opened(StreamCursor(), 7)
    assert not opened(StreamCursor(), 7, in_use=True)


def test_what_is_delivered_between_two_of_ours_is_not_ours_if_somebody_else_is_there() -> None:
    position = StreamCursor()
    opened(position, 0)
    received(position, 1, first_delivery=1)
    assert not position.missing_before(2)
    assert position.missing_before(4) == 2
    received(position, 3, first_delivery=3)
    assert not position.missing_before(4)
    assert not opened(position, 3, in_use=True, others_seen=True)
    assert opened(position, 3, others_seen=True), "nobody answers: they are gone, or never were there"


def test_a_delivery_that_comes_twice_does_not_mean_that_others_take_some() -> None:
    position = StreamCursor()
    opened(position, 0)
    received(position, 1, 2, first_delivery=1)
    received(position, 1, 2, first_delivery=1)
    assert opened(position, 2)


def test_what_went_astray_is_behind_what_came_unless_something_was_missing_before() -> None:
    position = StreamCursor()
    assert position.unseen_from == 1
    received(position, 1, 2, first_delivery=1)
    assert position.unseen_from == 3
    settle(position, 1)
    received(position, 6, first_delivery=4)
    assert position.unseen_from == 2, "from the oldest that is unsettled: one between may be missing"


def test_what_was_found_delivered_holds_the_start_back_as_a_gap_does() -> None:
    position = StreamCursor()
    opened(position, 0)
    received(position, 1, first_delivery=1)
    settle(position, 1)
    opened(position, 3)
    received(position, 9, first_delivery=4)
    settle(position, 9)
    assert position.start == 2


def test_a_sequence_with_another_time_contradicts_while_it_is_known() -> None:
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


def test_what_is_settled_long_ago_contradicts_as_long_as_it_is_remembered() -> None:
    position = StreamCursor()
    for sequence in range(1, module.REMEMBERED + 2):
        received(position, sequence, first_delivery=sequence)
        settle(position, sequence)
    assert position.contradicted(1, b"5")


def test_the_last_message_that_is_known_is_the_highest() -> None:
    position = StreamCursor()
    assert position.last_known == (0, 0)
    position.followed([3, 4], [1, 2], [b"33", b"44"])
    assert position.last_known == (4, 44)
    position.mark_received(7, 3, b"77", 0.0, PATIENCE)
    position.mark_received(6, 4, b"66", 0.0, PATIENCE)
    assert position.last_known == (7, 77)


@pytest.mark.parametrize("time", [b"", b"x", b"-1"])
def test_a_time_that_is_none_is_the_last_of_nothing(time: bytes) -> None:
    position = StreamCursor()
    position.mark_received(7, 1, time, 0.0, PATIENCE)
    assert position.last_known == (0, 0)


def test_what_came_and_is_not_settled_is_counted() -> None:
    position = StreamCursor()
    received(position, 4, 5, 7, 9, first_delivery=1)
    position.mark_settled([5], [b""])
    assert position.unsettled == 3
