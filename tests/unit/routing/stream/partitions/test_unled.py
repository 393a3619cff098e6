"""When a partition of another member counts as unled, and for how long another process stands in."""

from __future__ import annotations

from random import Random

import pytest

from router_trio.routing.stream.partitions.unled import (
    FEW,
    FIRM_FROM,
    FORGOTTEN_AFTER,
    LONGEST,
    LOOK_AGAIN_AFTER,
    LOOK_EVERY,
    MOMENT,
    NOT_OWN_AFTER,
    ROUND,
    SHORTEST,
    SUSPECTED_LOOK_EVERY,
    UNLED_FOR,
    Unled,
)


def never_led(unled: Unled, number: int, now: float) -> tuple[float, float, bool]:
    """Look at a partition without a leader until it is time to stand in. Return when, until when, and if firmly."""
    while (found := unled.not_led(number, now)) is None:
        now += 0.25
    unled.led(number, now)
    return now, *found


def test_a_partition_without_a_leader_is_unled_after_a_while_and_a_moment_later_another_process_stands_in() -> None:
    unled = Unled(Random(1))
    assert unled.not_led(3, 10.0) is None
    assert unled.not_led(3, 9.9 + UNLED_FOR) is None
    assert unled.partitions == []
    assert unled.not_led(3, 10.0 + UNLED_FOR) is None
    assert unled.partitions == [3]
    assert unled.not_led(3, 10.0 + UNLED_FOR + MOMENT[0] - 0.1) is None
    at = 10.0 + UNLED_FOR + MOMENT[1]
    found = unled.not_led(3, at)
    assert found is not None
    assert SHORTEST / 2 < found[0] - at <= SHORTEST


def test_a_leader_that_is_seen_once_begins_the_time_again() -> None:
    unled = Unled(Random(1))
    for now in (0.0, 3.0, 6.0):
        assert unled.not_led(3, now) is None
    unled.led(3, 6.0)
    assert unled.not_led(3, 9.0) is None
    assert unled.partitions == []
    unled.not_led(3, 9.0 + UNLED_FOR)
    assert unled.partitions == [3]
    unled.forget()
    assert unled.partitions == []


@pytest.mark.parametrize(
    "since", ["the start", "it was unled", "a lookup failed", "it was led here", "the link was lost"]
)
def test_a_leader_may_be_this_process_itself_until_a_lead_that_it_has_lost_has_ended(since: str) -> None:
    unled = Unled(Random(1))
    if since != "the start":
        unled.led(3, 0.0)
    if since == "it was unled":
        unled.not_led(3, 9.0)
    elif since == "a lookup failed":
        unled.not_known(3)
    elif since == "it was led here":
        unled.next_look(frozenset({4}), 9.0)
    elif since == "the link was lost":
        unled.forget()
    assert not unled.led(3, 10.0)
    unled.next_look(frozenset({3, 4}), 10.0)
    assert not unled.led(3, 10.0 + NOT_OWN_AFTER)
    assert unled.led(3, 10.1 + NOT_OWN_AFTER)


def test_each_time_in_a_row_lasts_longer_up_to_a_limit_so_that_a_member_that_stays_forged_costs_little() -> None:
    unled = Unled(Random(1))
    now, lost, lasted = 0.0, 0.0, list[float]()
    while now < 3600.0:
        began, until, firm = never_led(unled, 3, now)
        assert firm == (len(lasted) + 1 >= FIRM_FROM)
        lost += began - now
        lasted.append(until - began)
        now = until
    assert lasted[:4] == sorted(lasted[:4])
    assert LONGEST / 2 < lasted[-1] <= LONGEST
    assert lost / now < 0.08
    assert lasted[0] <= SHORTEST


def test_a_partition_that_was_led_for_long_counts_as_one_that_never_was_unled() -> None:
    unled = Unled(Random(1))
    now = 0.0
    for _ in range(5):
        _, now, _ = never_led(unled, 3, now)
    _, until, firm = never_led(unled, 3, now + FORGOTTEN_AFTER)
    assert not firm
    assert until - now - FORGOTTEN_AFTER < SHORTEST + UNLED_FOR + MOMENT[1] + 1.0


def test_several_processes_stand_in_at_different_times() -> None:
    times = {never_led(Unled(Random(seed)), 3, 0.0)[0] for seed in range(20)}
    assert len(times) > 5
    assert max(times) - min(times) > 1.0


def test_all_partitions_are_looked_up_in_turn_and_one_without_a_leader_more_often() -> None:
    unled = Unled(Random(1))
    others = frozenset(range(20))
    assert sorted(unled.next_look(others, 0.0) or 0 for _ in range(20)) == list(range(20))
    unled.not_led(7, 0.0)
    looked = [unled.next_look(others, now / 10) for now in range(round(10 * LOOK_AGAIN_AFTER))]
    assert 7 not in looked
    assert unled.next_look(others, LOOK_AGAIN_AFTER) == 7
    unled.not_led(7, LOOK_AGAIN_AFTER)
    assert unled.next_look(others, LOOK_AGAIN_AFTER) != 7


def test_a_partition_that_is_not_of_others_any_more_is_forgotten() -> None:
    unled = Unled(Random(1))
    unled.not_led(7, 0.0)
    unled.not_led(7, UNLED_FOR)
    assert unled.partitions == [7]
    assert unled.next_look(frozenset(), UNLED_FOR) is None
    assert unled.partitions == []
    assert unled.pause(0, 1) == LOOK_EVERY


def test_one_paused_partition_is_looked_up_often_and_the_others_in_turn() -> None:
    unled = Unled(Random(1))
    others = frozenset(range(20))
    for number in (7, 3, 5):
        unled.is_paused(number, "until noon", 0.0)
    assert unled.paused == (7, "until noon")
    looked = [unled.next_look(others, float(now)) for now in range(1, 31)]
    assert looked.count(7) >= 30 / LOOK_AGAIN_AFTER
    assert {*others} == {*looked}
    assert unled.paused == (7, "until noon")


@pytest.mark.parametrize("resumed", ["led", "unled"])
def test_a_partition_that_is_resumed_shows_that_others_may_be(resumed: str) -> None:
    unled = Unled(Random(1))
    for number in (7, 3):
        unled.is_paused(number, "until noon", 0.0)
    unled.led(2, 1.0)
    unled.not_known(7)
    assert unled.paused is not None, "neither another partition nor a failed lookup shows anything"
    if resumed == "led":
        unled.led(7, 3.0)
    else:
        unled.not_led(7, 3.0)
    assert unled.paused is None


def test_a_paused_partition_is_not_unled_and_shows_no_leader() -> None:
    unled = Unled(Random(1))
    unled.led(3, 0.0)
    unled.not_led(4, 0.0)
    unled.is_paused(3, "until noon", 5.0)
    unled.is_paused(4, "until noon", 5.0)
    unled.next_look(frozenset({3, 4}), 6.0)
    assert unled.not_led(4, UNLED_FOR) is None
    assert unled.partitions == []
    assert not unled.led(3, 6.0 + NOT_OWN_AFTER), "it counts from the end of the pause"
    unled.is_paused(3, "until noon", 20.0)
    unled.next_look(frozenset({4}), 21.0)
    assert unled.paused is None, "it is of this process now"
    unled.is_paused(4, "until noon", 22.0)
    unled.forget()
    assert unled.paused is None


@pytest.mark.parametrize("members", [2, 10, 100, 1000, 4096])
@pytest.mark.parametrize("partitions", [1, 16, 256, 1024])
def test_lookups_are_bounded_and_each_partition_is_looked_up_in_time(partitions: int, members: int) -> None:
    unled = Unled(Random(1))
    pause = unled.pause(partitions, members)
    assert SUSPECTED_LOOK_EVERY <= pause <= LOOK_EVERY
    assert pause == SUSPECTED_LOOK_EVERY or pause * partitions <= ROUND * min(members, FEW)
    unled.not_led(0, 0.0)
    assert unled.pause(partitions, members) == SUSPECTED_LOOK_EVERY
