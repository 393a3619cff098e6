"""Which partitions a process asks for, leads and gives up, as members come and go."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from math import inf
from random import Random

import pytest

from router_trio.routing.stream.partitions.membership import (
    ELSEWHERE,
    GIVEN_UP,
    LED,
    MAX_MEMBERS,
    RETURN_WITHIN,
    SETTLED_FOR,
    SILENT_AFTER,
    WANTED,
    Membership,
)
from router_trio.routing.stream.partitions.shares import owners
from router_trio.routing.stream.partitions.unled import LONGEST, MOMENT, SHORTEST, UNLED_FOR, Unled


def alone(count: int = 4) -> Membership:
    membership = Membership("me", count)
    assert membership.saw(["me"], 0.0) == list(range(count))
    return membership


def leading(count: int = 4) -> Membership:
    membership = alone(count)
    for partition in range(count):
        assert membership.taken(partition, 0.0) is LED
    return membership


def share_of(member: str, *members: str, count: int = 4) -> list[int]:
    return [number for number, one in enumerate(owners(count, members)) if one == member]


def test_a_process_asks_for_nothing_before_it_sees_itself_among_the_members() -> None:
    membership = Membership("me", 4)
    assert membership.saw([], 0.0) == []
    assert membership.saw(["other"], 0.0) == []
    assert membership.those(ELSEWHERE) == [0, 1, 2, 3]
    assert membership.saw(["me", "other"], 1.0) == membership.those(WANTED) == share_of("me", "me", "other")


def test_a_process_that_is_missing_among_the_members_later_keeps_its_share() -> None:
    membership = leading()
    assert membership.saw([], 1.0) == []
    assert membership.those(LED) == [0, 1, 2, 3]


def test_a_lead_is_given_up_when_it_was_the_share_of_another_for_a_while() -> None:
    membership = leading()
    theirs = share_of("other", "me", "other")
    assert membership.saw(["me", "other"], 10.0) == []
    assert membership.due_at == 10.0 + SETTLED_FOR
    assert membership.settle(membership.due_at - 0.1) == []
    assert membership.settle(membership.due_at) == membership.those(GIVEN_UP) == theirs
    assert membership.due_at == inf
    assert membership.released(theirs[0]) is ELSEWHERE


def test_a_member_that_was_seen_for_a_moment_moves_nothing() -> None:
    membership = leading()
    membership.saw(["me", "other"], 1.0)
    membership.saw(["me"], 1.5)
    assert membership.settle(3.0) == []
    # A later change starts the time again.
    membership.saw(["me", "other"], 3.5)
    assert membership.due_at == 3.5 + SETTLED_FOR


def test_a_partition_that_is_mine_again_is_wanted_once_it_is_released() -> None:
    membership = leading()
    membership.saw(["me", "other"], 0.0)
    given_up = membership.settle(SETTLED_FOR)
    assert membership.saw(["me"], 2.0) == []
    assert [membership.released(one) for one in given_up] == [WANTED] * len(given_up)


def test_a_partition_that_is_wanted_and_not_mine_any_more_is_left_at_once() -> None:
    membership = alone()
    theirs = share_of("other", "me", "other")
    assert membership.saw(["me", "other"], 0.0) == theirs
    assert membership.those(ELSEWHERE) == theirs


def test_a_lead_that_comes_too_late_is_given_up() -> None:
    membership = alone()
    first = membership.saw(["me", "other"], 0.0)[0]
    assert membership.taken(first, 0.1) is GIVEN_UP
    assert membership.released(first) is ELSEWHERE


def test_a_lost_lead_is_asked_for_again() -> None:
    membership = leading()
    assert membership.lost(0) is WANTED
    membership.saw(["me", "other"], 0.0)
    theirs = next(one for one in share_of("other", "me", "other") if one)
    assert membership.lost(theirs) is ELSEWHERE
    assert membership.lost(theirs) is ELSEWHERE


def test_a_lead_that_is_lost_while_it_is_given_up_is_released_when_all_is_settled() -> None:
    membership = leading()
    membership.leave()
    assert membership.lost(0) is GIVEN_UP
    assert membership.released(0) is ELSEWHERE


def test_a_process_that_leaves_gives_everything_up_at_once_and_takes_nothing_more() -> None:
    membership = leading()
    membership.lost(3)
    assert membership.leave() == [0, 1, 2, 3]
    assert membership.those(GIVEN_UP) == [0, 1, 2]
    assert membership.saw(["me"], 1.0) == []
    assert not membership.is_over
    for partition in range(3):
        membership.released(partition)
    assert membership.is_over
    assert membership.taken(3, 2.0) is GIVEN_UP


# --- members that do not lead ---


def test_a_process_stands_in_for_a_member_and_gives_it_another_chance_at_the_end_of_that_time() -> None:
    membership = alone()
    membership.saw(["me", "other"], 1.0)
    theirs, *others = share_of("other", "me", "other")
    assert membership.of_others == {theirs, *others}
    assert membership.stand_in(theirs, 2.0, 30.0, firm=False) == [theirs]
    assert membership.phase(theirs) is WANTED
    assert not membership.is_share(theirs)
    assert theirs in membership.of_others, "until this process has the lead"
    assert membership.taken(theirs, 3.0) is LED
    assert membership.of_others == {*others}
    assert membership.settle(29.0) == []
    assert membership.due_at == 30.0
    membership.settle(30.0)
    assert membership.due_at == 30.0 + SETTLED_FOR
    assert membership.settle(30.0 + SETTLED_FOR) == [theirs]
    assert membership.released(theirs) is ELSEWHERE


def test_a_process_that_stands_in_steps_back_when_another_one_has_the_lead() -> None:
    membership = alone()
    membership.saw(["me", "other"], 1.0)
    theirs = share_of("other", "me", "other")[0]
    membership.stand_in(theirs, 2.0, 30.0, firm=False)
    assert membership.led_elsewhere(theirs, 3.0) == [theirs]
    assert membership.phase(theirs) is ELSEWHERE
    mine = share_of("me", "me", "other")[0]
    assert membership.led_elsewhere(mine, 3.0) == []
    assert membership.phase(mine) is WANTED


def test_another_owner_gets_the_partition_at_once_unless_several_have_failed_to_lead_it() -> None:
    for firm in (False, True):
        membership = alone()
        membership.saw(["me", "forged"], 1.0)
        left = share_of("forged", "me", "forged")
        for partition in left:
            membership.stand_in(partition, 2.0, 60.0, firm=firm)
            membership.taken(partition, 2.0)
        membership.saw(["me", "third"], 3.0)
        membership.settle(3.0 + SETTLED_FOR)
        theirs = [one for one in left if one in share_of("third", "me", "third")]
        assert theirs
        assert {membership.phase(one) for one in theirs} == {LED if firm else GIVEN_UP}


def test_a_process_stands_in_even_before_it_knows_the_members() -> None:
    membership = Membership("me", 4)
    assert membership.of_others == {0, 1, 2, 3}
    assert membership.stand_in(1, 0.0, 30.0, firm=False) == [1]
    assert membership.saw(["me"], 1.0) == [0, 2, 3]
    assert membership.those(WANTED) == [0, 1, 2, 3]
    assert membership.stand_ins == {}


def test_a_process_that_leaves_stands_in_for_none() -> None:
    membership = leading()
    membership.saw(["me", "other"], 1.0)
    membership.leave()
    assert membership.of_others == frozenset()
    assert membership.stand_in(0, 2.0, 30.0, firm=True) == []
    assert membership.due_at == inf


def test_of_more_members_than_there_may_be_those_count_that_were_there_before() -> None:
    known = [f"f{number:015x}" for number in range(5)]
    me = known[0]
    membership = Membership(me, 4)
    membership.saw(known, 0.0)
    forged = [f"{number:016x}" for number in range(2 * MAX_MEMBERS)]
    membership.saw([*forged, *known], 1.0)
    assert len(membership.members) == MAX_MEMBERS
    assert membership.members >= {*known, forged[0]}
    membership = Membership(me, 4)
    membership.saw([*forged, *known], 1.0)
    assert me in membership.members


# --- several processes ---

STEP = 0.25
ANNOUNCE_EVERY, LOOK_EVERY, GONE_AFTER, PIN_FOR = 1.5, 1.0, 5.0, 5.0


@dataclass
class Process:
    """A process in front of a server that is only a bucket and pins. `drained_at`: when a given-up lead is empty."""

    membership: Membership
    unled: Unled
    suspended_until: float = 0.0
    announces_at: float = 0.0
    looks_at: float = 0.0
    looks_for_leader_at: float = 0.0
    drained_at: dict[int, float] = field(default_factory=dict)


class Group:
    """Processes, the members in the bucket, and the pins of the durables, in steps of virtual time."""

    def __init__(self, seed: int, count: int) -> None:
        self.random = Random(seed)
        self.count = count
        self.now = 0.0
        self.processes: dict[str, Process] = {}
        self.bucket: dict[str, float] = {}
        self.pins: dict[int, tuple[str, float]] = {}
        self.unled_since = dict.fromkeys(range(count), 0.0)
        self.changed_at = 0.0
        self.cut_off_until = 0.0

    def join(self) -> None:
        name = f"{self.random.getrandbits(64):016x}"
        self.processes[name] = Process(Membership(name, self.count), Unled(self.random))

    def kill(self, name: str) -> None:
        del self.processes[name]

    def forge(self, count: int = 1, seconds: float = inf) -> None:
        """Put members into the bucket that do not exist."""
        self.bucket |= {f"{self.random.getrandbits(64):016x}": self.now + seconds for _ in range(count)}

    def leave(self, name: str) -> None:
        one = self.processes[name]
        self.bucket.pop(name, None)
        self._react(one, one.membership.leave())

    def step(self) -> None:
        self.now += STEP
        self.bucket = {name: until for name, until in self.bucket.items() if until > self.now}
        for name, one in [*self.processes.items()]:
            if self.now >= one.suspended_until:
                self._turn(name, one)
                if one.membership.is_over:
                    del self.processes[name]
        self._check()

    def _turn(self, name: str, one: Process) -> None:
        membership, now = one.membership, self.now
        if now >= self.cut_off_until and not membership._leaving:
            if now >= one.announces_at:
                one.announces_at = now + ANNOUNCE_EVERY
                self.bucket[name] = now + GONE_AFTER
            if now >= one.looks_at:
                one.looks_at = now + LOOK_EVERY
                self._react(one, membership.saw([*self.bucket], now))
        self._react(one, membership.settle(now))
        one.looks_for_leader_at = max(one.looks_for_leader_at, now - STEP)
        while one.looks_for_leader_at <= now:
            self._look_for_leader(one)
            one.looks_for_leader_at += one.unled.pause(len(membership.of_others), len(membership.members))
        for partition in range(self.count):
            holder, until = self.pins.get(partition, ("", 0.0))
            phase = membership.phase(partition)
            if phase is WANTED and (until <= now):
                self.pins[partition] = (name, now + PIN_FOR)
                membership.taken(partition, now)
            elif phase is LED and (holder != name or until <= now):
                membership.lost(partition)
            elif phase is LED:
                self.pins[partition] = (name, now + PIN_FOR)
            elif phase is GIVEN_UP and now >= one.drained_at.get(partition, 0.0):
                if holder == name:
                    del self.pins[partition]
                membership.released(partition)
            elif phase is GIVEN_UP and holder == name:
                self.pins[partition] = (name, now + PIN_FOR)

    def _look_for_leader(self, one: Process) -> None:
        """Look up whether a partition has a leader. All of them always have messages."""
        membership, now = one.membership, self.now
        number = one.unled.next_look(membership.of_others, now)
        if number is None:
            return
        if self.pins.get(number, ("", 0.0))[1] > now:
            if one.unled.led(number, now):
                self._react(one, membership.led_elsewhere(number, now))
            return
        found = one.unled.not_led(number, now)
        if found is not None and number not in membership.stand_ins:
            self._react(one, membership.stand_in(number, now, found[0], firm=found[1]))

    @property
    def unled_for(self) -> float:
        """The longest time for which a partition has had no leader now."""
        return self.now - min(self.unled_since.values())

    def _react(self, one: Process, changed: list[int]) -> None:
        for partition in changed:
            if one.membership.phase(partition) is GIVEN_UP:
                one.drained_at[partition] = self.now + self.random.choice([0.0, 0.5])

    def _check(self) -> None:
        pinned = {partition for partition, (_, until) in self.pins.items() if until > self.now}
        for partition in range(self.count):
            awake = [one for one in self.processes.values() if one.suspended_until <= self.now]
            leaders = [one for one in awake if one.membership.phase(partition) in (LED, GIVEN_UP)]
            # One that just woke learns with its first request that it lost the lead.
            assert len(leaders) <= 1 or any(self.now - one.suspended_until < 2 * STEP for one in leaders)
            if partition in pinned and leaders:
                self.unled_since[partition] = self.now

    def run(self, seconds: float) -> None:
        until = self.now + seconds
        while self.now < until:
            self.step()

    @property
    def led(self) -> dict[str, int]:
        return {name: len(one.membership.those(LED)) for name, one in self.processes.items()}

    def assert_fair(self) -> None:
        found = self.led
        assert sum(found.values()) == self.count, found
        assert max(found.values()) - min(found.values()) <= 1, found

    def changes(self) -> Iterator[float]:
        """Change something, and yield the seconds within which every partition is led again and shares are fair."""
        while True:
            names = [*self.processes]
            what = self.random.choice(["join", "leave", "kill", "suspend", "bucket"])
            if what == "join" or len(names) < 2:
                self.join()
                yield 5.0
            elif what == "leave":
                self.leave(self.random.choice(names))
                yield 5.0
            elif what == "kill":
                self.kill(self.random.choice(names))
                yield 10.0
            elif what == "suspend":
                length = self.random.choice([1.0, 4.0, 12.0, 20.0])
                self.processes[self.random.choice(names)].suspended_until = self.now + length
                yield length + 10.0
            else:
                self.cut_off_until = self.now + self.random.choice([3.0, 8.0, 15.0])
                yield self.cut_off_until - self.now + 10.0


@pytest.mark.parametrize("seed", range(30))
def test_shares_are_fair_soon_after_each_change(seed: int) -> None:
    group = Group(seed, count=16)
    for _ in range(group.random.randrange(1, 5)):
        group.join()
    group.run(5.0)
    group.assert_fair()
    changes = group.changes()
    for _ in range(15):
        group.run(next(changes))
        group.assert_fair()


@pytest.mark.parametrize("seed", range(30))
def test_under_many_changes_each_partition_has_one_leader_at_most_and_recovers(seed: int) -> None:
    group = Group(seed, count=7)
    for _ in range(3):
        group.join()
    changes = group.changes()
    for _ in range(40):
        next(changes)
        group.run(group.random.choice([0.25, 1.0, 3.0]))
    group.run(35.0)
    group.assert_fair()


IN_TIME = UNLED_FOR + MOMENT[1] + 8.0
"""Seconds within which each of 16 partitions is led, whatever members are forged."""


@pytest.mark.parametrize("forged", [1, 3, 200])
@pytest.mark.parametrize("real", [1, 3])
def test_partitions_of_forged_members_are_led_in_time_and_rarely_without_a_leader(real: int, forged: int) -> None:
    group = Group(forged, count=16)
    for _ in range(real):
        group.join()
    group.run(8.0)
    group.forge(forged)
    unled, steps = 0, 0
    while group.now < 3600.0:
        group.step()
        assert group.unled_for <= IN_TIME
        if group.now > 1200.0:
            steps += group.count
            unled += sum(group.now - since > STEP for since in group.unled_since.values())
    assert unled / steps < 0.1
    # A process that joins meanwhile and one that leaves have their share as always, besides those of forged members.
    group.bucket = {name: until for name, until in group.bucket.items() if name in group.processes}
    group.run(LONGEST + 10.0)
    group.assert_fair()


def test_a_new_forged_member_each_second_leaves_most_partitions_led() -> None:
    group = Group(5, count=16)
    for _ in range(2):
        group.join()
    group.run(8.0)
    unled, steps = 0, 0
    while group.now < 1200.0:
        group.forge(seconds=410.0)
        group.run(1.0)
        assert group.unled_for <= IN_TIME
        if group.now > 600.0:
            steps += group.count
            unled += sum(group.now - since > STEP for since in group.unled_since.values())
    assert unled / steps < 0.1


def test_a_member_that_was_slow_has_its_share_again() -> None:
    group = Group(7, count=16)
    for _ in range(2):
        group.join()
    group.run(8.0)
    name, slow = next(iter(group.processes.items()))
    slow.suspended_until = group.now + IN_TIME
    while group.now < slow.suspended_until:
        group.bucket[name] = group.now + GONE_AFTER  # it announces itself, and leads nothing
        group.step()
    other = next(one for one in group.processes if one != name)
    assert group.led[other] == group.count
    group.run(2 * SHORTEST + 5.0)
    group.assert_fair()


def test_a_bucket_that_loses_all_members_for_a_while_moves_no_lead() -> None:
    group = Group(1, count=16)
    for _ in range(4):
        group.join()
    group.run(8.0)
    before = {partition: name for partition, (name, _) in group.pins.items()}
    group.cut_off_until = group.now + 20.0
    group.bucket.clear()
    for _ in range(120):
        group.step()
        assert {partition: name for partition, (name, _) in group.pins.items()} == before
    group.assert_fair()


def test_a_server_that_takes_all_members_and_pins_with_it_moves_no_lead() -> None:
    # The first look after the election finds none of the others: their keys expired before they could renew them.
    group = Group(1, count=16)
    for _ in range(4):
        group.join()
    group.run(8.0)
    before = {partition: name for partition, (name, _) in group.pins.items()}
    group.cut_off_until = group.now + 6.0
    group.run(6.0)
    group.bucket.clear()
    group.pins.clear()
    for _ in range(40):
        group.step()
        assert {partition: name for partition, (name, _) in group.pins.items()}.items() <= before.items()
    group.assert_fair()


def test_a_member_that_is_missing_after_a_silence_of_the_bucket_counts_until_it_could_return() -> None:
    membership = Membership("me", 4)
    membership.saw(["me", "other"], 0.0)
    mine = share_of("me", "me", "other")
    assert membership.saw([], SILENT_AFTER + 0.1) == []
    assert membership.members == {"me", "other"}
    assert membership.saw(["me"], SILENT_AFTER + 1.1) == []
    assert membership.saw(["me"], SILENT_AFTER + RETURN_WITHIN) == []
    theirs = [one for one in range(4) if one not in mine]
    assert membership.saw(["me"], SILENT_AFTER + RETURN_WITHIN + 0.2) == theirs


def test_a_process_that_joins_has_its_share_within_five_seconds_and_one_that_was_killed_is_followed_within_ten() -> (
    None
):
    group = Group(3, count=16)
    group.join()
    group.run(5.0)
    group.join()
    began = group.now
    while [*group.led.values()] != [8, 8]:
        group.step()
    assert group.now - began <= 5.0
    group.kill(next(iter(group.processes)))
    began = group.now
    while [*group.led.values()] != [16]:
        group.step()
    assert group.now - began <= 10.0
