"""Copies that are expected and copies that are found, in any order."""

from __future__ import annotations

import sys
from random import Random

import pytest

from router_trio.audit import comparison
from router_trio.audit.comparison import (
    AWAITED,
    DIFFERENT,
    EXPIRED,
    MAX_REPEATED,
    MISSING,
    NONE,
    THERE,
    TWICE,
    Comparison,
    Repeated,
)

MANY = 200
"""More than is remembered in these tests."""


@pytest.fixture(autouse=True)
def small_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(comparison, "MAX_RECENT", 50)
    monkeypatch.setattr(comparison, "RECENT_SEQUENCES", 50)
    monkeypatch.setattr(comparison, "MAX_UNPACKED", 64)


def by_sequence(first: int = 1, last: int = 10) -> Comparison:
    return Comparison(first, last, by_sequence=True)


def by_identity(first: int = 1, last: int = 10) -> Comparison:
    return Comparison(first, last, by_sequence=False)


def test_a_copy_is_there_if_identity_and_payload_are_the_same() -> None:
    compared = by_sequence()
    for sequence in (1, 2, 3):
        compared.expect(sequence, 100 + sequence, 7)
    compared.found(1, 101, 7, 101)
    compared.found(2, 102, 8, 102)
    compared.found(3, 999, 7, 999)  # another route's, or from before a restore
    assert [compared.state(sequence) for sequence in (1, 2, 3, 4)] == [THERE, DIFFERENT, AWAITED, NONE]
    assert [compared.lacks(sequence) for sequence in (0, 1, 3, 4, 11)] == [False, False, True, False, False]


def test_copies_of_messages_outside_of_the_range_are_ignored() -> None:
    compared = by_sequence(5, 9)
    compared.expect(5, 1, 1)
    for sequence in (0, 4, 10, 2**63, 10**19):
        compared.found(sequence, 1, 1, 1)
    assert compared.count(AWAITED) == 1
    assert Comparison(10, 3, by_sequence=True).count(NONE) == 0


def test_the_same_copy_found_again_shortly_after_is_twice() -> None:
    compared = by_sequence()
    compared.expect(1, 101, 7)
    for _ in range(3):
        compared.found(1, 101, 7, 101)
    assert compared.state(1) == TWICE
    assert not compared.repeated


def test_the_copy_of_another_destination_in_the_same_stream_is_not_twice() -> None:
    compared = by_sequence()
    compared.expect(1, 101, 7)
    compared.found(1, 101, 7, 101)
    compared.found(1, 555, 7, 555)
    assert (compared.state(1), compared.repeated) == (THERE, set())


def test_a_copy_that_is_found_again_much_later_is_confirmed_by_its_identity() -> None:
    compared = by_sequence(1, MANY)
    for sequence in range(1, MANY + 1):
        compared.expect(sequence, sequence, 7)
        compared.found(sequence, sequence, 7, sequence)
    compared.found(1, 1, 7, 1)
    compared.found(2, 555, 7, 555)
    assert compared.repeated == {Repeated(1, 1), Repeated(2, 555)}
    for repeated in compared.repeated:
        compared.confirm(repeated, repeated.sequence)
    assert [compared.state(sequence) for sequence in (1, 2)] == [TWICE, THERE]


def test_a_thousand_doubles_of_one_copy_are_one_repeated_copy() -> None:
    compared = by_sequence(1, MANY)
    for sequence in range(1, MANY + 1):
        compared.expect(sequence, sequence, 7)
        compared.found(sequence, sequence, 7, sequence)
    for _ in range(1000):
        compared.found(1, 1, 7, 1)
    assert len(compared.repeated) == 1


def test_repeated_copies_are_bounded() -> None:
    compared = by_sequence(1, 1)
    compared.expect(1, 1, 1)
    compared.found(1, 1, 1, 1)
    compared.begin_again()  # forgets what was found last
    for identity in range(MAX_REPEATED):
        assert not compared.is_full
        compared.found(1, identity, 1, identity)
    assert compared.is_full


def test_copies_that_are_found_after_they_were_packed() -> None:
    drawn, count = Random(1), 2000
    compared = by_sequence(1000, 1000 + count)
    for sequence in range(1000, 1000 + count):
        compared.expect(sequence, sequence * 3, sequence % 5)
    late = drawn.sample(range(1000, 1000 + count), count)
    missing, other, twice = set(late[:10]), set(late[10:20]), set(late[-10:])  # the last ones are found last
    for sequence in late[10:]:
        compared.found(sequence, sequence * 3, 99 if sequence in other else sequence % 5, sequence * 3)
        if sequence in twice:
            compared.found(sequence, sequence * 3, sequence % 5, sequence * 3)
    assert set(compared.sequences(AWAITED)) == missing
    assert set(compared.sequences(DIFFERENT)) == other
    assert set(compared.sequences(TWICE)) == twice
    assert compared.count(THERE) == count - 30


def test_a_copy_that_is_not_found_takes_24_bytes() -> None:
    compared = by_sequence(1, 20_000)
    for sequence in range(1, 20_001):
        compared.expect(sequence, sequence * 2**40, sequence * 2**40)
    assert len(compared._awaited) <= comparison.MAX_UNPACKED
    assert sum(sys.getsizeof(column) for column in compared._packed) < 20_000 * 24 * 1.2


def test_at_least_the_last_copies_are_remembered() -> None:
    compared = by_sequence(1, MANY)
    for sequence in range(1, MANY + 1):
        compared.expect(sequence, sequence, 7)
        compared.found(sequence, sequence, 7, sequence)
        again = max(1, sequence - comparison.RECENT_SEQUENCES + 1)
        if sequence % 2:
            compared.found(again, again, 7, again)
    assert not compared.repeated
    assert compared.count(TWICE) == MANY // 2 - comparison.RECENT_SEQUENCES // 2 + 1


def test_two_destinations_with_one_subject_have_one_copy() -> None:
    compared = by_sequence()
    compared.expect(1, 101, 7)
    compared.expect(1, 102, 7)
    compared.found(1, 101, 7, 101)
    assert compared.state(1) == THERE


def test_explanations_and_the_order_of_sequences() -> None:
    compared = by_sequence()
    for sequence in (2, 5, 9):
        compared.expect(sequence, sequence, 7)
    assert list(compared.sequences(AWAITED)) == [2, 5, 9]
    for sequence in compared.sequences(AWAITED, newest_first=True):
        compared.explain(sequence, MISSING if sequence == 5 else EXPIRED)
    assert (list(compared.sequences(EXPIRED)), list(compared.sequences(MISSING))) == ([2, 9], [5])
    assert list(compared.sequences(AWAITED, newest_first=True)) == []


def test_one_copy_at_any_of_several_destinations_is_enough() -> None:
    first, second = by_sequence(), by_sequence()
    for sequence in (1, 2, 3):
        first.expect(sequence, sequence, 7)
        second.expect(sequence, sequence, 7)
    first.found(1, 1, 7, 1)
    second.found(2, 2, 8, 2)
    second.found(1, 1, 8, 1)
    first.merge(second)
    assert [first.state(sequence) for sequence in (1, 2, 3)] == [THERE, DIFFERENT, AWAITED]


# --- ids of the sender ---


def test_copies_with_ids_of_the_sender() -> None:
    compared = by_identity()
    compared.found(None, 50, 7, 50)  # before it is expected
    for sequence in (1, 2, 3):
        compared.expect(sequence, 100 + sequence, 7)
    compared.found(None, 101, 7, 101)
    compared.found(None, 102, 8, 102)
    compared.found(None, 101, 7, 101)
    compared.confirm_spare()
    assert [compared.state(sequence) for sequence in (1, 2, 3)] == [TWICE, DIFFERENT, AWAITED]


@pytest.mark.parametrize("found_between", [False, True])
def test_two_messages_with_the_same_id_have_a_copy_each(found_between: bool) -> None:
    compared = by_identity()
    compared.expect(1, 100, 7)
    if found_between:
        compared.found(None, 100, 7, 100)
        compared.found(None, 100, 8, 100)
    compared.expect(2, 100, 8)
    if not found_between:
        compared.found(None, 100, 8, 100)  # out of order
        compared.found(None, 100, 7, 100)
    compared.confirm_spare()
    assert [compared.state(sequence) for sequence in (1, 2)] == [THERE, THERE]


def test_two_messages_with_the_same_id_may_have_one_copy_together() -> None:
    compared = by_identity()
    compared.expect(1, 100, 7)
    compared.expect(2, 100, 7)
    compared.found(None, 100, 7, 100)
    assert [compared.state(sequence) for sequence in (1, 2)] == [THERE, AWAITED]
    compared.begin_again()
    compared.found(None, 100, 7, 100)
    compared.end_again()
    assert [compared.state(sequence) for sequence in (1, 2)] == [THERE, THERE]


def test_messages_with_the_same_id_but_other_payloads_than_their_common_copy_are_different() -> None:
    compared = by_identity()
    for sequence in (1, 2, 3):
        compared.expect(sequence, 100, sequence)
    compared.found(None, 100, 1, 100)
    compared.begin_again()
    compared.found(None, 100, 1, 100)
    compared.end_again()
    assert [compared.state(sequence) for sequence in (1, 2, 3)] == [THERE, DIFFERENT, DIFFERENT]


def test_two_copies_of_three_messages_with_the_same_id_are_not_repeated_ones() -> None:
    compared = by_identity()
    compared.expect(1, 100, 7)
    compared.found(None, 100, 7, 100)
    compared.expect(2, 100, 7)
    compared.expect(3, 100, 7)
    compared.found(None, 100, 7, 100)
    compared.begin_again()
    for _ in range(2):
        compared.found(None, 100, 7, 100)
    compared.end_again()
    assert compared.count(THERE) == 3


def test_a_double_that_only_the_second_reading_finds() -> None:
    compared = by_identity()
    compared.found(None, 100, 7, 100)
    compared.expect(1, 100, 7)
    compared.begin_again()
    compared.found(None, 100, 7, 100)
    compared.found(None, 100, 7, 100)
    compared.end_again()
    assert compared.state(1) == TWICE


def test_thousands_of_messages_with_one_id_are_compared_in_order() -> None:
    compared = by_identity(1, 2000)
    for sequence in range(1, 2001):
        compared.expect(sequence, 100, sequence)
    for sequence in range(1, 2001):
        compared.found(None, 100, sequence, 100)
    assert compared.count(THERE) == 2000


# --- copies of a handler ---


@pytest.mark.parametrize("sequence", [1, None], ids=["own ids", "ids of the sender"])
def test_several_copies_of_a_handler_are_distinguished_by_their_ids(sequence: int | None) -> None:
    compared = Comparison(1, 10, by_sequence=sequence is not None, several=True)
    compared.expect(1, 100, 0)
    compared.found(sequence, 100, None, 555)
    compared.found(sequence, 100, None, 556)
    compared.confirm_spare()
    assert compared.state(1) == THERE
    compared.found(sequence, 100, None, 556)
    compared.confirm_spare()
    assert compared.state(1) == TWICE


def test_a_copy_of_a_handler_from_before_a_restore_is_ignored() -> None:
    compared = Comparison(1, 10, by_sequence=True, several=True)
    compared.expect(1, 100, 0)
    compared.found(1, 100, None, 555)
    compared.found(1, 99, None, 444)
    compared.found(1, 99, None, 444)
    assert compared.state(1) == THERE


def test_every_state_has_its_own_number() -> None:
    found = ["NONE", "AWAITED", "THERE", "OVERRULED", "DIFFERENT", "TWICE"]
    names = [*found, "MISSING", "EXPIRED", "DEAD_LETTERED", "UNKNOWN", "GONE", "WAITING"]
    assert [getattr(comparison, name) for name in names] == list(range(12))
