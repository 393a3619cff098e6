"""Shares of partitions: equal for every process, fair, and stable when members join and leave."""

from __future__ import annotations

from collections import Counter
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router_trio.routing.stream.partitions.shares import owners

MEMBERS = st.sets(st.text("0123456789abcdef", min_size=4, max_size=4), min_size=1, max_size=20)
COUNTS = st.integers(1, 64)


@given(COUNTS, MEMBERS)
def test_no_member_gets_two_partitions_more_than_another(count: int, members: set[str]) -> None:
    found = Counter(dict.fromkeys(members, 0))
    found.update(owners(count, members))
    assert found.total() == count
    assert found.keys() == members
    assert max(found.values()) - min(found.values()) <= 1


@given(COUNTS, MEMBERS, st.randoms(use_true_random=False))
def test_the_order_in_which_members_are_seen_is_of_no_importance(count: int, members: set[str], random: Random) -> None:
    shuffled = sorted(members)
    random.shuffle(shuffled)
    assert owners(count, shuffled) == owners(count, members)


def test_shares_are_the_same_in_every_version() -> None:
    assert owners(8, ["a", "b", "c"]) == ("b", "b", "a", "b", "a", "a", "c", "c")


@given(COUNTS, MEMBERS, st.data())
def test_a_partition_that_was_moved_by_hand_stays_with_its_member_while_that_exists(
    count: int, members: set[str], data: st.DataObject
) -> None:
    moved = data.draw(st.dictionaries(st.integers(-1, count + 1), st.sampled_from([*sorted(members), "gone"])))
    found = owners(count, members, moved)
    kept = {number: to for number, to in moved.items() if 0 <= number < count and to in members}
    assert {number: found[number] for number in kept} == kept
    # The others are divided so that the sums are as equal as they can be.
    sums, fixed = Counter(found), Counter(kept.values())
    free = [sums[member] for member in members if sums[member] > fixed[member]]
    assert not free or max(free) - min(sums[member] for member in members) <= 1


@pytest.mark.parametrize(("count", "members"), [(16, 2), (16, 4), (64, 4), (256, 16)])
def test_few_partitions_move_between_members_that_stay(count: int, members: int) -> None:
    random = Random(1)
    between = total = 0
    rounds = 20
    for _ in range(rounds):
        before = [f"{random.getrandbits(64):016x}" for _ in range(members)]
        joined = f"{random.getrandbits(64):016x}"
        pairs = zip(owners(count, before), owners(count, [*before, joined]), strict=True)
        changed = [(one, other) for one, other in pairs if one != other]
        total += len(changed)
        between += sum(other != joined for _, other in changed)
    assert total - between >= rounds * (count // (members + 1))
    assert between <= rounds * count / 12


@given(MEMBERS)
def test_with_more_members_than_partitions_some_have_none(members: set[str]) -> None:
    found = owners(3, members)
    assert len(set(found)) == min(3, len(members))
