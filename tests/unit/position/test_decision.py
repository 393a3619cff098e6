"""Positions against a model: drawn acks of a consumer, and copies that are out of order, doubled, missing."""

from __future__ import annotations

from random import Random

import pytest

from router_trio.position.decision import Consumed, Search


class Consumer:
    """A consumer as nats-server keeps it: the floor is below the first unacked message."""

    def __init__(self, messages: list[int], drawn: Random) -> None:
        self.messages = messages
        count = drawn.randrange(len(messages) + 1)
        delivered = messages[:count]
        share = drawn.choice([0.0, 0.0, 0.3, 0.9, 1.0])
        self.unacked = {one for one in delivered if drawn.random() >= share}
        self.acked = set(delivered) - self.unacked
        last = delivered[-1] if delivered else 0
        floor = min(self.unacked) - 1 if self.unacked else last
        self.redeliveries = drawn.choice([0, 0, 5])
        deliveries = sum(one > floor for one in delivered) + self.redeliveries
        self.consumed = Consumed(floor, last, len(self.unacked), deliveries)


@pytest.mark.parametrize("seed", range(100))
def test_nothing_is_skipped_and_repeats_are_as_announced(seed: int) -> None:
    drawn = Random(seed)
    damaged, source_gone = drawn.random() < 0.5, drawn.random() < 0.2
    stream = range(1, drawn.randrange(2, 200))
    consumer = Consumer([one for one in stream if drawn.random() < 0.7 or not damaged] or [1], drawn)
    order = sorted(consumer.messages, key=lambda one: one + drawn.randrange(drawn.choice([1, 1, 20])))
    if damaged:
        order = [one for one in order for _ in range(drawn.choices([0, 1, 2], [2, 20, 1])[0])]
    deleted = {one for one in consumer.messages if damaged and drawn.random() < 0.1}
    search = Search(consumer.consumed, has_gaps=bool(deleted) or source_gone)
    for one in consumer.messages:
        if one not in deleted and not source_gone:
            search.expect(one, 1000 + one)
    for place, one in enumerate(order, 1):
        assert search.found(place, one, 1000 + one)
    position = search.position(len(order) + 1)

    delivered = order[position.sequence - 1 :]
    must = set(consumer.messages) - consumer.acked
    assert must & set(order) <= set(delivered)
    further = [one for place, one in enumerate(delivered) if one > consumer.consumed.floor and one in delivered[:place]]
    acked = sum(one in consumer.acked for one in delivered) - sum(one in consumer.acked for one in further)
    assert (position.further, position.copies) == (len(further), len(delivered))
    assert position.least_acked <= acked <= position.most_acked
    if not damaged:
        assert position.least_acked == position.most_acked
    if not consumer.acked and not consumer.redeliveries:
        assert position.most_acked == 0
    if not damaged and order == consumer.messages:
        assert not delivered or delivered[0] not in consumer.acked


def test_a_message_without_a_copy_makes_no_repeats_possible_if_nothing_was_acked() -> None:
    search = Search(Consumed(0, 3, 3, 3), has_gaps=True)
    for one in (1, 3):
        assert search.found(one, one, one)
    assert search.position(4) == (1, 0, 0, 0, 2)


def test_numbers_that_contradict_each_other_give_no_range_that_is_reversed() -> None:
    search = Search(Consumed(0, 3, 1, 0), has_gaps=True)
    for one in (1, 2, 3):
        assert search.found(one, one, one)
    assert search.position(4) == (1, 2, 2, 0, 3)


def test_a_copy_of_a_message_that_had_the_sequence_before_is_not_one() -> None:
    search = Search(Consumed(0, 1, 1, 1), has_gaps=False)
    search.expect(1, 50)
    assert not search.found(1, 1, 40)
    assert list(search.without_copy()) == [1]
    assert search.found(2, 1, 50)
    assert search.position(3).sequence == 2
    assert not list(search.without_copy())


def test_without_a_copy_above_the_floor_the_position_is_the_end() -> None:
    search = Search(Consumed(2, 2, 0, 0), has_gaps=False)
    assert search.found(1, 1, 1)
    assert search.found(2, 2, 2)
    assert search.position(3) == (3, 0, 0, 0, 0)


def test_an_unacked_message_may_be_one_without_a_copy() -> None:
    search = Search(Consumed(0, 4, 2, 4), has_gaps=False)
    for one in (1, 2, 3, 4):
        search.expect(one, one)
    for place, one in enumerate((1, 2, 4), 1):
        search.found(place, one, one)
    assert search.position(4) == (1, 1, 2, 0, 3)  # one repeat if 1 and 2 or 4 are unacked, two if 1 and 3 are
    assert list(search.without_copy()) == [3]
