"""Which partitions this process should lead, and what follows for each. Pure: no clock, no I/O.

                       │ mine                             │ the lead was taken
                       ▼                                  ▼
    ELSEWHERE ──────► WANTED ─────────────────────────► LED
        ▲  ▲           │  ▲            lost              │
        │  └───────────┘  └──────────────────────────────┤
        │   not mine                                     │ not mine, for a while
        │                                                ▼
        └──────────────────────────────────────────── GIVEN UP
                    all settled, and released

A partition is *mine* if it is the share of this process among the members that were seen last, or if this process
stands in for the member whose share it is, since that one does not lead it (see `unled`). In WANTED, the process asks
the server for the lead, which it gets when no other process has it. In GIVEN UP, nothing more is requested, and the
lead is kept until all that was received is settled: the next process starts only then. What the server decides is
certain, and what members were seen may be out of date, or forged by who may write to their bucket. So two processes may
want a partition, and only one leads it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from math import inf

from router_trio.routing.stream.partitions.shares import NONE_MOVED, owners

SETTLED_FOR = 1.0
"""Seconds for which a partition has to be the share of another process before its lead is given up.

Members that start together change the shares several times, and a member that was slow to announce itself returns.
"""


MAX_MEMBERS = 4_096
"""Members that are taken into account. Those that have been before come first, in front of forged ones."""

MEMBERS_A_SECOND = 50
"""Announcements, and looks, per second of all processes: with more processes, each makes fewer."""

SILENT_AFTER = 2.5
"""Seconds without a look at the members after which those that are missing then are not believed to be gone.

Their announcements may have expired while no server took new ones, as during an election of the bucket's leader.
"""

RETURN_WITHIN = 3.0
"""Seconds for which members count that are missing after such a silence: twice the time between two announcements."""


class Phase(Enum):
    """The phases of a partition in this process."""

    ELSEWHERE = "elsewhere"
    WANTED = "wanted"
    LED = "led"
    GIVEN_UP = "given up"


ELSEWHERE, WANTED, LED, GIVEN_UP = Phase


@dataclass(frozen=True, slots=True)
class StandIn:
    """Leads a partition `until` a time in place of the member `owner`, whose share it is.

    A `firm` one stays when the partition becomes the share of another member: several have failed to lead it.
    """

    owner: str
    until: float
    firm: bool


class Membership:
    """The partitions of one route, as seen by one process."""

    def __init__(self, me: str, count: int) -> None:
        """`me` is the id of this process among the members, `count` the number of partitions."""
        self.me = me
        self.count = count
        self.members: frozenset[str] = frozenset()
        """The members that were seen last, this process among them; none before it has joined."""
        self.owners: tuple[str, ...] = ()
        """The member whose share each partition is, in order; none before this process has joined."""
        self.stand_ins: dict[int, StandIn] = {}
        """Partitions that this process should lead although they are the share of another member."""
        self._share: frozenset[int] = frozenset()
        self._moved: Mapping[int, str] = NONE_MOVED
        self._phases = [ELSEWHERE] * count
        self._not_mine_since: dict[int, float] = {}
        """Led partitions that are the share of another process, with the time since when."""
        self._seen_at = inf
        self._believed_from = -inf
        """The time from which members that are missing count as gone."""
        self._leaving = False

    # --- what is known ---

    def phase(self, partition: int) -> Phase:
        """Return what this process does about a partition."""
        return self._phases[partition]

    def those(self, phase: Phase) -> list[int]:
        """Return the partitions in a phase, in order."""
        return [partition for partition, one in enumerate(self._phases) if one is phase]

    @property
    def share(self) -> int:
        """The number of partitions that this process should lead, besides those for which it stands in."""
        return len(self._share)

    def is_share(self, partition: int) -> bool:
        """Return True if a partition is the share of this process."""
        return partition in self._share

    @property
    def of_others(self) -> frozenset[int]:
        """The partitions that are the share of others, as far as is known, and whose lead this process lacks."""
        if self._leaving:
            return frozenset()
        not_led = (partition for partition, phase in enumerate(self._phases) if phase in (ELSEWHERE, WANTED))
        return frozenset(not_led) - self._share

    @property
    def pace(self) -> float:
        """By how many times the intervals are longer than usual, since there are many members."""
        return max(1.0, len(self.members) / MEMBERS_A_SECOND)

    @property
    def due_at(self) -> float:
        """The time when `settle` has something to do; infinite if there is none."""
        given_up_at = min(self._not_mine_since.values(), default=inf) + SETTLED_FOR
        return min(given_up_at, min((one.until for one in self.stand_ins.values()), default=inf))

    @property
    def is_over(self) -> bool:
        """True if this process has left and holds nothing."""
        return self._leaving and all(phase is ELSEWHERE for phase in self._phases)

    # --- members ---

    def saw(self, members: Collection[str], now: float, moved: Mapping[int, str] = NONE_MOVED) -> list[int]:
        """Take in the members that exist, and the partitions `moved` by hand. Return partitions with another phase.

        Before the members have included this process, it has no share: the others do not count on it. Later it counts
        itself even if it is missing, since it announces itself again.
        """
        if self._leaving or not (self.members or self.me in members):
            return []
        if now > self._seen_at + SILENT_AFTER * self.pace:
            self._believed_from = now + RETURN_WITHIN * self.pace
        self._seen_at = now
        earlier = self.members if now < self._believed_from else ()
        found = self._within_limit(frozenset((*members, *earlier, self.me)))
        if found != self.members or moved != self._moved:
            self.members, self._moved = found, moved
            self.owners = owners(self.count, found, moved)
            self._share = frozenset(number for number, member in enumerate(self.owners) if member == self.me)
            self.stand_ins = {number: one for number, one in self.stand_ins.items() if self._still_stands_in(number)}
        return [*self._go_by(now)]

    def _within_limit(self, members: frozenset[str]) -> frozenset[str]:
        if len(members) <= MAX_MEMBERS:
            return members
        first = sorted(members, key=lambda one: (one != self.me, one not in self.members, one))
        return frozenset(first[:MAX_MEMBERS])

    def _still_stands_in(self, partition: int) -> bool:
        one = self.stand_ins[partition]
        return partition not in self._share and (one.firm or self.owners[partition] == one.owner)

    def leave(self) -> list[int]:
        """Have no share from now on. Return partitions with another phase: what is led is given up at once."""
        self._leaving, self._share = True, frozenset()
        return [*self._go_by(inf)]

    def settle(self, now: float) -> list[int]:
        """Give up leads that have been the share of others for long enough. Return partitions with another phase."""
        self.stand_ins = {number: one for number, one in self.stand_ins.items() if now < one.until}
        return [*self._go_by(now)]

    def stand_in(self, partition: int, now: float, until: float, *, firm: bool) -> list[int]:
        """Want a partition that its owner does not lead. Return partitions with another phase.

        At the end of that time it is given up: the owner has a chance again, if it exists.
        """
        if self._leaving:
            return []
        owner = self.owners[partition] if self.owners else ""
        self.stand_ins[partition] = StandIn(owner, until, firm)
        return [*self._go_by(now)]

    def led_elsewhere(self, partition: int, now: float) -> list[int]:
        """Record that another process leads a partition of others. Return partitions with another phase."""
        if self._phases[partition] is WANTED:
            self.stand_ins.pop(partition, None)
        return [*self._go_by(now)]

    def _is_mine(self, partition: int) -> bool:
        return not self._leaving and (partition in self._share or partition in self.stand_ins)

    def _go_by(self, now: float) -> Iterator[int]:
        for partition, phase in enumerate(self._phases):
            following = self._following(partition, phase, now)
            if following is not phase:
                self._phases[partition] = following
                yield partition

    def _following(self, partition: int, phase: Phase, now: float) -> Phase:
        if self._is_mine(partition):
            self._not_mine_since.pop(partition, None)
            return WANTED if phase is ELSEWHERE else phase
        if phase is WANTED:
            return ELSEWHERE
        if phase is LED and now >= self._not_mine_since.setdefault(partition, now) + SETTLED_FOR:
            del self._not_mine_since[partition]
            return GIVEN_UP
        return phase

    # --- the lead ---

    def taken(self, partition: int, now: float) -> Phase:
        """Record that the server gave this process the lead. Return the phase.

        It may come when the partition is not wanted any more. Then it is given up at once: nothing was received.
        """
        assert self._phases[partition] in (WANTED, ELSEWHERE), "the lead is taken once"
        self._phases[partition] = LED if self._is_mine(partition) else GIVEN_UP
        return self._phases[partition]

    def lost(self, partition: int) -> Phase:
        """Record that the server took the lead back, or may have: the link is lost. Return the phase."""
        if self._phases[partition] is LED:
            self._not_mine_since.pop(partition, None)
            self._phases[partition] = WANTED if self._is_mine(partition) else ELSEWHERE
        return self._phases[partition]

    def released(self, partition: int) -> Phase:
        """Record that all is settled, and that the lead was released. Return the phase: it may be mine again."""
        assert self._phases[partition] is GIVEN_UP, "only a lead that was given up is released"
        self._phases[partition] = WANTED if self._is_mine(partition) else ELSEWHERE
        return self._phases[partition]
