"""One ack for all before it: which message is acked, and when none is."""

from __future__ import annotations

import random
from types import SimpleNamespace
from typing import cast

from hypothesis import given
from hypothesis import strategies as st

from router_trio.routing.stream.ack_pending import AckPending
from router_trio.routing.stream.cursor import StreamCursor
from router_trio.routing.stream.delivery import Source, StreamDelivery, columns_of, delivery_of
from router_trio.routing.stream.settled_prefix import LONGEST_WAIT, SettledPrefix
from router_trio.states import RouteState


class Delivery:
    """What the prefix looks at."""

    def __init__(self, cursor: StreamCursor, sequence: int, deliveries: int = 1) -> None:
        self.cursor = cursor
        self.deliveries = deliveries
        self.sequence = sequence
        self.ack_subject = b"%d" % sequence


def received(cursor: StreamCursor, *sequences: int, number: int = 1) -> list[Delivery]:
    for place, sequence in enumerate(sequences):
        cursor.mark_received(sequence, number + place, b"t", 0.0, 30.0)
    return [Delivery(cursor, sequence) for sequence in sequences]


def settled(prefix: SettledPrefix, cursor: StreamCursor, *deliveries: Delivery, now: float = 0.0) -> list[bytes]:
    cursor.mark_settled([one.sequence for one in deliveries], [b"t"] * len(deliveries))
    return list(prefix.to_ack(deliveries, cursor, now))  # type: ignore[arg-type]


def test_the_last_of_the_longest_settled_prefix_is_acked() -> None:
    prefix, cursor = SettledPrefix(), StreamCursor("s")
    one, two, five, six = received(cursor, 1, 2, 5, 6)
    assert settled(prefix, cursor, two) == []
    assert settled(prefix, cursor, one) == [b"2"]
    assert settled(prefix, cursor, six) == []
    assert settled(prefix, cursor, five) == [b"6"], "3 and 4 are not of this consumer"
    assert settled(prefix, cursor) == []


def test_what_may_have_been_delivered_and_has_not_come_ends_the_prefix() -> None:
    prefix, cursor = SettledPrefix(), StreamCursor("s")
    (one,) = received(cursor, 1)
    assert settled(prefix, cursor, one) == [b"1"]
    cursor.opened(4, 0.0, 30.0, in_use=False)  # three more went to a link that died
    (five,) = received(cursor, 5, number=5)
    assert settled(prefix, cursor, five) == []
    assert settled(prefix, cursor, now=30.0) == [b"5"], "it would have come by now"


def test_where_it_is_known_what_is_missing_nothing_else_is_waited_for() -> None:
    prefix, cursor = SettledPrefix(), StreamCursor("s")
    (one,) = received(cursor, 1)
    cursor.opened(4, 0.0, 30.0, in_use=False)
    cursor.only_missing([3], 30.0)
    settled(prefix, cursor, one)
    (five,) = received(cursor, 5, number=5)
    assert settled(prefix, cursor, five) == []
    (three,) = received(cursor, 3, number=6)
    assert settled(prefix, cursor) == []
    assert settled(prefix, cursor, three) == [b"5"]


def test_while_others_take_from_the_durable_nothing_is_acked() -> None:
    prefix, cursor = SettledPrefix(), StreamCursor("s")
    one, three = received(cursor, 1), received(cursor, 3, number=3)
    assert cursor.shared
    assert settled(prefix, cursor, *one, *three) == []


def test_what_was_settled_while_others_took_is_acked_once_they_do_not() -> None:
    prefix, cursor = SettledPrefix(), StreamCursor("s")
    one, three = received(cursor, 1), received(cursor, 3, number=3)
    assert settled(prefix, cursor, *one, *three) == []
    cursor.opened(3, 0.0, 30.0, in_use=False)
    assert not cursor.shared
    assert settled(prefix, cursor) == [], "the second may still come here"
    assert settled(prefix, cursor, now=30.0) == [b"3"]


def test_what_is_settled_and_has_no_ack_comes_again_later_each_time() -> None:
    prefix, cursor = SettledPrefix(), StreamCursor("s")
    one, two, three = received(cursor, 1, 2, 3)
    assert settled(prefix, cursor, two, three) == []

    def later(deliveries: int, ack_wait: float) -> list[tuple[bytes, float]]:
        return list(prefix.come_later([Delivery(cursor, 3, deliveries)], ack_wait))  # type: ignore[list-item]

    assert [later(times, 2.0) for times in (2, 3, 4)] == [[(b"3", 4.0)], [(b"3", 8.0)], [(b"3", 16.0)]]
    assert later(1_000_000, 2.0) == [(b"3", LONGEST_WAIT)]
    assert later(2, 2 * LONGEST_WAIT) == [(b"3", 2 * LONGEST_WAIT)], "nothing comes sooner than without a nak"
    settled(prefix, cursor, one)
    assert later(5, 2.0) == [], "it has its ack"


def test_of_a_stream_that_is_another_one_nothing_is_acked() -> None:
    prefix, old, new = SettledPrefix(), StreamCursor("s"), StreamCursor("t")
    before = received(old, 1)
    assert list(prefix.to_ack(before, new, 0.0)) == []  # type: ignore[arg-type]
    settled(prefix, old, *received(old, 2, number=2))
    prefix.forget_all()
    (one,) = received(new, 1)
    assert settled(prefix, new, one) == [b"1"]


@given(seed=st.integers(0, 2**32))
def test_no_ack_is_for_what_is_not_settled_and_at_the_end_all_is_acked(seed: int) -> None:
    dice = random.Random(seed)
    prefix, cursor = SettledPrefix(), StreamCursor("s")
    sequences = sorted(dice.sample(range(1, 200), 40))
    unsettled = {one.sequence: one for one in received(cursor, *sequences)}
    acked = 0
    while unsettled:
        some = dice.sample(sorted(unsettled), dice.randint(1, len(unsettled)))
        for subject in settled(prefix, cursor, *(unsettled.pop(sequence) for sequence in some)):
            assert int(subject) > acked
            acked = int(subject)
            assert all(sequence > acked for sequence in unsettled)
    assert acked == sequences[-1]


def test_what_was_taken_for_a_message_of_the_stream_before_is_not_acked_with_those_behind_it() -> None:
    """A stream that was made anew is told by the first message that contradicts, and others came before that."""
    source = cast(Source, SimpleNamespace(state=RouteState("r", "main", ("out",))))
    pending, prefix, told = AckPending(), SettledPrefix(), list[int]()

    def comes(sequence: int, number: int, time: int) -> StreamDelivery:
        reply = b"$JS.ACK.IN.r.1.%d.%d.%d.0" % (sequence, number, time)
        delivery = delivery_of(source, pending.cursor, (b"in.a", reply, 0, 0, b"0\r\n\r\n"), 1.0)
        pending.add([delivery], columns_of([delivery]), 60.0, lambda one: told.append(one.sequence))
        return delivery

    pending.delivered([comes(2, 1, 100)])
    unknown = comes(1, 1, 200)  # the old stream's first was not for this route
    contradicts = comes(2, 2, 201)
    assert (told, unknown.cursor is pending.cursor) == ([2], False)
    pending.delivered([contradicts])
    assert prefix.to_ack([contradicts], pending.cursor, 2.0) == []
    again = comes(1, 3, 200)
    assert again.cursor is pending.cursor
    pending.delivered([again])
    assert prefix.to_ack([again], pending.cursor, 61.0) == [contradicts.ack_subject]
