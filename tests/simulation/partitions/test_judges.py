"""Each judge of partitions finds a history that breaks its promise, and accepts one that just keeps it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from math import inf

import pytest

from router_trio.routing.stream.consumer.lease import RESERVE
from tests.simulation.partitions.history import Call, Change, Copy, History, Look, Published, Spell
from tests.simulation.partitions.judges import JUDGES, LED_AGAIN

KEYS = {1: "k1", 2: "k2", 3: "k1", 4: "k2"}


def history(*numbers: int, window: float = 120.0) -> History:
    """Return a history of four messages. These were stored, one each second."""
    published = [Published(number, key, 0, 0.0) for number, key in KEYS.items()]
    stored = [Copy(number, float(at)) for at, number in enumerate(numbers)]
    return History(4, window, published, stored)


def broken(one: History, promise: str) -> list[str]:
    return [*JUDGES[promise](one)]


@pytest.mark.parametrize("numbers", [(1, 2, 3, 4), (2, 4, 1, 3), (1, 3, 1, 3, 2, 4), (1, 3, 1)])
def test_keys_may_pass_each_other_and_copies_may_follow(numbers: tuple[int, ...]) -> None:
    assert not broken(history(*numbers), "order")


@pytest.mark.parametrize("numbers", [(3, 1), (1, 4, 2, 3), (3, 1, 3)])
def test_a_first_copy_behind_a_later_message_of_its_key_breaks_the_order(numbers: tuple[int, ...]) -> None:
    assert len(broken(history(*numbers), "order")) == 1


def test_a_message_is_stored_twice_only_outside_of_the_window() -> None:
    assert broken(history(1, 2, 3, 1), "once")
    assert broken(history(1, 2, 3, 1, window=3.1), "once")
    assert not broken(history(1, 2, 3, 1, window=3.0), "once")


def test_a_message_that_is_not_stored_is_lost() -> None:
    assert not broken(history(1, 2, 3, 4), "lost")
    assert broken(history(1, 2, 4), "lost") == ["1 of 4 were not stored: [3]"]


# --- calls ---


def calls(*running: Call, spells: Iterable[Spell] = ()) -> list[str]:
    one = history()
    one.calls, one.spells = [*running], [*spells]
    return broken(one, "one of a key")


def test_calls_of_one_key_may_follow_each_other_and_those_of_others_may_overlap() -> None:
    assert not calls(Call(1, "a", 1, 0.0, 1.0), Call(2, "a", 2, 1.0, 2.0), Call(2, "b", 3, 0.5, 1.5))


@pytest.mark.parametrize("process", [1, 2])
@pytest.mark.parametrize("ended", [1.0, inf])
def test_calls_of_one_key_must_not_overlap(process: int, ended: float) -> None:
    assert calls(Call(1, "a", 1, 0.0, ended), Call(process, "a", 2, 0.9, 1.9))


def test_a_call_that_was_running_when_its_process_was_suspended_may_overlap_one_of_another_process() -> None:
    spell = Spell(0.5, 20.0, 1, suspended=True)
    first, second = Call(1, "a", 1, 0.0, 21.0), Call(2, "a", 1, 7.0, 8.0)
    assert not calls(first, second, spells=[spell])
    assert calls(first, second, spells=[Spell(0.5, 20.0, 2, suspended=True)]), "another process was suspended"
    assert calls(first, Call(1, "a", 2, 7.0, 8.0), spells=[spell]), "the same process"


def test_a_process_that_wakes_begins_no_call_of_a_key_that_another_one_has_in_its_handler() -> None:
    spell = Spell(0.5, 20.0, 1, suspended=True)
    assert calls(Call(2, "a", 1, 19.0, 21.0), Call(1, "a", 1, 20.0, 20.1), spells=[spell])
    assert calls(Call(1, "a", 1, 20.0, 20.4), Call(2, "a", 1, 20.3, 20.5), spells=[spell]), "begun after it woke"


def test_a_call_that_the_router_was_making_when_its_process_was_suspended_may_begin_when_it_wakes() -> None:
    spell = Spell(0.5, 20.0, 1, suspended=True)
    other, woken = Call(2, "a", 3, 19.0, 21.0), Call(1, "a", 1, 20.0, 20.1, called=0.5)
    assert not calls(other, woken, spells=[spell])
    assert not calls(woken, Call(2, "a", 3, 20.05, 21.0), spells=[spell])
    assert calls(other, Call(1, "a", 1, 20.0, 20.1, called=0.6), spells=[spell]), "called later"
    assert calls(other, woken, spells=[Spell(0.5, 20.0, 2, suspended=True)]), "another process was suspended"


def test_a_call_longer_than_the_reserve_may_overlap_if_its_process_was_cut_off() -> None:
    spell = Spell(0.0, 10.0, 1)
    assert not calls(Call(1, "a", 1, 4.0, 9.0), Call(2, "a", 1, 4.0 + RESERVE, 5.0), spells=[spell])
    assert calls(Call(1, "a", 1, 4.0, 9.0), Call(2, "a", 1, 3.9 + RESERVE, 5.0), spells=[spell])
    assert calls(Call(1, "a", 1, 11.0, 19.0), Call(2, "a", 1, 15.0, 16.0), spells=[spell]), "not cut off any more"


def test_calls_may_overlap_while_the_server_does_not_know_who_had_the_lead() -> None:
    first, second = Call(1, "a", 1, 0.0, 2.0), Call(2, "a", 1, 1.0, 2.0)
    assert not calls(first, second, spells=[Spell(0.5, 6.5)])
    assert calls(first, second, spells=[Spell(1.5, 7.5)])


# --- shares ---


def looks(*led: Mapping[int, Iterable[int]], busy: Iterable[int] = (), changes: Iterable[Change] = ()) -> History:
    """Return a history with a look each second, from 1 s on."""
    one = history()
    for at, shares in enumerate(led, 1):
        found = {process: frozenset(partitions) for process, partitions in shares.items()}
        one.looks.append(Look(float(at), found, frozenset(busy)))
    one.changes = [*changes] or [Change(0.0, "it began", 2.0, 2.0)]
    return one


FAIR = {1: [0, 1], 2: [2, 3]}
UNFAIR = {1: [0, 1, 2], 2: [3]}


def test_each_partition_with_something_to_do_is_led_in_time() -> None:
    assert not broken(looks({}, {1: [1]}, FAIR, busy=[0, 3]), "led")
    assert not broken(looks({}, {}, {1: [1], 2: [2]}, busy=[1, 2]), "led"), "an idle one needs no leader"
    assert not broken(looks({}, {}, {}, {}, busy=[0, 3]), "led"), "no process lives"
    assert len(broken(looks({}, {}, {1: [0]}, {1: [0]}, busy=[0, 3]), "led")) == 2
    late = [Change(0.0, "it began", 2.0, 2.0), Change(2.5, "another", 3.0, 3.0)]
    assert not broken(looks({}, {}, {1: []}, busy=[0], changes=late), "led")


def test_shares_are_fair_in_time() -> None:
    assert not broken(looks({}, UNFAIR, FAIR), "fair")
    assert not broken(looks({}, {}, {1: [0, 1], 2: [2], 3: [3]}), "fair")
    assert broken(looks({}, UNFAIR, UNFAIR), "fair")
    assert broken(looks({}, {}, {1: [0, 1], 2: [1, 2, 3]}), "fair"), "one is led twice"
    assert broken(looks({}, {}, {1: [0], 2: [1]}), "fair"), "two are led by none"
    assert not broken(looks({}, {}, {}), "fair"), "no process lives"


def test_partitions_that_were_moved_by_hand_stay_where_they_are() -> None:
    one = looks({}, {}, UNFAIR)
    last = one.looks[-1]
    one.looks[-1] = Look(last.at, last.led, last.busy, moved=True)
    assert not broken(one, "fair")


def test_a_process_that_is_cut_off_for_long_is_no_member() -> None:
    one = looks({}, {}, {1: [0, 1], 2: [2, 3], 3: []})
    last = one.looks[-1]
    one.looks[-1] = Look(last.at, last.led, last.busy, apart=frozenset({3}))
    assert not broken(one, "fair")
    one.looks[-1] = Look(last.at, last.led, last.busy, apart=frozenset({1}))
    assert broken(one, "fair"), "the two others have unequal shares"
    one.looks[-1] = Look(last.at, {1: frozenset(), 2: frozenset()}, frozenset({3}), apart=frozenset({1, 2}))
    assert not broken(one, "fair"), "all are cut off"
    assert not broken(one, "led"), "all are cut off"


def test_a_longer_wait_of_an_earlier_change_counts() -> None:
    changes = [Change(0.0, "a process was killed", 10.0, 10.0), Change(0.5, "another joined", 1.0, 1.0)]
    assert not broken(looks({}, {}, UNFAIR, changes=changes), "fair")


# --- forged members ---


def forged(*changes: Change, unled_from: float) -> list[str]:
    one = history()
    one.changes = [Change(0.0, "members were forged", 500.0, 500.0, forged=True), *changes]
    for at in range(0, 80, 2):
        one.looks.append(
            Look(float(at), {1: frozenset({0, 1, 2} | ({3} if at < unled_from else set()))}, frozenset({3}))
        )
    return broken(one, "led again")


def test_a_partition_of_a_forged_member_is_led_again_in_time() -> None:
    assert not forged(unled_from=78.0 - LED_AGAIN)
    assert forged(unled_from=76.0 - LED_AGAIN) == [f"at 78.000 s none has led partition 3 for {LED_AGAIN:g} s"]


def test_other_changes_begin_the_time_again() -> None:
    assert not forged(Change(60.0, "joined", led_within=10.0), unled_from=10.0 + LED_AGAIN)
    assert forged(Change(60.0, "joined", led_within=10.0), unled_from=10.0)
