"""The destination to which a key belongs, and which keys move when the destinations change."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router_trio.errors import EvaluationError
from router_trio.expressions.values import Duration, Timestamp, Uint
from router_trio.routing.policy.sticky import LONGEST_REMEMBERED, MAX_REMEMBERED, Rendezvous, key_of

Members = dict[str, int]
KEYS = [b"s%d" % number for number in range(2_000)]


def owners(members: Members, keys: list[bytes] = KEYS) -> list[str]:
    owner_of = Rendezvous([(name, name.encode(), weight) for name, weight in members.items()]).owner_of
    return [owner_of(key) for key in keys]


VECTORS = [
    # A key and its destination: with the weights 1, 1, 1 of a, b and c, and with 1, 2, 7.
    (b"s", "b", "b"),
    (b"s1", "c", "c"),
    (b"s2", "c", "c"),
    (b"s3", "a", "c"),
    (b"s4", "b", "b"),
    (b"s5", "c", "c"),
    (b"scustomer-7", "a", "c"),
    (b"i7", "a", "c"),
    (b"i-7", "a", "a"),
    (b"d7.5", "b", "c"),
    (b"t", "a", "a"),
    (b"f", "c", "c"),
    (b"n", "b", "c"),
    (b"b\xff", "c", "c"),
    (b"T5", "b", "b"),
]


@pytest.mark.parametrize(("key", "alike", "weighed"), VECTORS)
def test_keys_stay_with_their_destination_in_every_version(key: bytes, alike: str, weighed: str) -> None:
    assert owners({"a": 1, "b": 1, "c": 1}, [key]) == [alike]
    assert owners({"a": 1, "b": 2, "c": 7}, [key]) == [weighed]


@pytest.mark.slow
def test_removing_one_of_ten_destinations_moves_only_its_own_keys() -> None:
    keys = [b"s%d" % number for number in range(100_000)]
    ten = {f"d{number}": 1 for number in range(10)}
    before = owners(ten, keys)
    after = owners({name: weight for name, weight in ten.items() if name != "d4"}, keys)
    assert {one for one, other in zip(before, after, strict=True) if one != other} == {"d4"}
    assert "d4" not in after
    # Each destination has a tenth: for 100,000 draws four standard deviations are 380.
    assert all(9_620 < count < 10_380 for count in Counter(before).values())


members = st.dictionaries(st.text("abcdefgh", min_size=1, max_size=3), st.integers(1, 100), min_size=2, max_size=6)


@given(members, st.data())
def test_removing_or_adding_a_destination_moves_only_its_own_keys(all_members: Members, data: st.DataObject) -> None:
    gone = data.draw(st.sampled_from(sorted(all_members)))
    rest = {name: weight for name, weight in all_members.items() if name != gone}
    for with_it, without in zip(owners(all_members, KEYS[:200]), owners(rest, KEYS[:200]), strict=True):
        assert with_it in (gone, without)


@given(members, st.integers(1, 100), st.data())
def test_more_weight_only_attracts_keys(all_members: Members, more: int, data: st.DataObject) -> None:
    heavier = data.draw(st.sampled_from(sorted(all_members)))
    grown = all_members | {heavier: all_members[heavier] + more}
    for before, after in zip(owners(all_members, KEYS[:200]), owners(grown, KEYS[:200]), strict=True):
        assert after in (heavier, before)


@given(members, st.randoms(use_true_random=False))
def test_the_order_in_the_configuration_does_not_matter(all_members: Members, random: Any) -> None:
    names = list(all_members)
    random.shuffle(names)
    assert owners({name: all_members[name] for name in names}, KEYS[:200]) == owners(all_members, KEYS[:200])


def test_keys_are_distributed_by_weight() -> None:
    keys = [b"i%d" % number for number in range(20_000)]
    counts = Counter(owners({"a": 1, "b": 2, "c": 7}, keys))
    # Four standard deviations: at most 260 of 20,000.
    assert all(abs(counts[name] - 2_000 * weight) < 260 for name, weight in {"a": 1, "b": 2, "c": 7}.items())


def test_a_name_and_a_key_can_not_be_confused_with_others() -> None:
    moved = [owners({"a": 1, "a1": 1}, [key])[0] for key in (b"1x", b"x", b"11x", b"1", b"")]
    again = [owners({"a": 1, "a1": 1}, [key])[0] for key in (b"1x", b"x", b"11x", b"1", b"")]
    assert moved == again
    assert {owners({"a": 1, "a1": 1}, [b"s%d" % number])[0] for number in range(50)} == {"a", "a1"}


def test_the_owner_of_a_key_does_not_depend_on_being_remembered() -> None:
    keys = [b"s%d" % number for number in range(MAX_REMEMBERED + 100)]
    long = b"s" * (LONGEST_REMEMBERED + 1)
    rendezvous = Rendezvous([(name, name.encode(), 1) for name in "abc"])
    first = [rendezvous.owner_of(key) for key in [*keys, long]]
    assert [rendezvous.owner_of(key) for key in [*keys, long]] == first
    assert len(rendezvous._known) <= MAX_REMEMBERED
    assert long not in rendezvous._known


@pytest.mark.parametrize(
    ("value", "key"),
    [
        ("7", b"s7"),
        ("é", b"s\xc3\xa9"),
        ("\udcff", b"s\xed\xb3\xbf"),
        (7, b"i7"),
        (Uint(7), b"i7"),
        (7.0, b"i7"),
        (-0.0, b"i0"),
        (7.5, b"d7.5"),
        (float("inf"), b"dinf"),
        (True, b"t"),
        (False, b"f"),
        (None, b"n"),
        (b"\xff", b"b\xff"),
        (Timestamp(5), b"T5"),
        (Duration(5), b"D5"),
    ],
)
def test_a_key_is_encoded_with_its_type(value: Any, key: bytes) -> None:
    assert key_of(value) == key


@pytest.mark.parametrize("value", [[1], {"a": 1}])
def test_a_value_that_can_not_be_a_key_fails_the_message(value: Any) -> None:
    with pytest.raises(EvaluationError, match="can't be a key; take a string, a number or a bool"):
        key_of(value)
