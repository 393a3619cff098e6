"""Decides when to stand in for a member that does not lead its share. Pure: times and chance are passed in.

Who may write to the bucket of the members can add some that do not exist, and one that exists may be unable to lead. No
announcement proves anything about that. The server does: it shows for the durable of each partition whether a client
has its lead. A partition that has messages and no leader each time it is looked up, for `UNLED_FOR`, is *unled*. That
is reported, and a moment later this process stands in.

That ends after a time, since the member may have been slow. If the partition is unled again, this process stands in for
twice as long, and so on: a forged member that stays costs less and less, and one that returns has its share after
`LONGEST` at most. Several processes may come to different conclusions, at different times: only one gets the lead.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Set
from dataclasses import dataclass
from math import inf
from random import Random

from router_trio.link import LEAD_ENDS_AFTER

UNLED_FOR = 8.0
"""Seconds for which a partition is seen without a leader until that is reported.

After the end of a process its leads are free five seconds later, and another one has them within ten.
"""

MOMENT = (2.0, 5.0)
"""Seconds between the report and the time when this process stands in: by chance, so that several share the load."""

SHORTEST = 30.0
"""Seconds for which this process stands in at the first time. Each time in a row doubles it, up to `LONGEST`."""

LONGEST = 240.0

FORGOTTEN_AFTER = 4 * LONGEST
"""Seconds after which a partition that has not been unled again counts as one that never was."""

FIRM_FROM = 3
"""The time in a row from which another owner of the partition is not given a chance at once."""

LOOK_EVERY = 1.0
"""Seconds between two lookups of partitions of others, each of the next one, while none seems to have no leader."""

NOT_OWN_AFTER = LEAD_ENDS_AFTER + 1.0
"""Seconds with a leader after which that is another process: a lead that this one has lost has ended by then."""

ROUND = 30.0
"""Seconds in which the members that are counted on look together at each partition, even if that takes more lookups."""

FEW = 32
"""Members that are counted on at most: there may be fewer than there seem to be."""

SUSPECTED_LOOK_EVERY = 1 / 16
"""Seconds between two such lookups while some seem to have no leader."""

LOOK_AGAIN_AFTER = 3.0
"""Seconds between two lookups of a partition that seems to have no leader."""


@dataclass(slots=True)
class _Suspicion:
    """A partition that was seen without a leader, `since` the first time."""

    since: float
    looked_at: float
    stand_in_at: float = inf
    """When this process stands in, if it is still unled; infinite until that was reported."""

    @property
    def look_at(self) -> float:
        """When it is looked up next: soon, or when that decides something."""
        decided_at = self.since + UNLED_FOR if self.stand_in_at == inf else self.stand_in_at
        return min(self.looked_at + LOOK_AGAIN_AFTER, max(decided_at, self.looked_at + LOOK_EVERY))


class Unled:
    """The partitions of others that no process leads, as far as lookups have shown."""

    def __init__(self, random: Random) -> None:
        self._random = random
        self._suspected: dict[int, _Suspicion] = {}
        self._led_since: dict[int, float] = {}
        """Partitions that have a leader or need none, with the time since when, as far as lookups have shown."""
        self._in_a_row: dict[int, tuple[int, float]] = {}
        """How often a partition was unled in a row, with the last time."""
        self._paused: dict[int, str] = {}
        """Partitions whose durables are paused, as far as lookups have shown, each with a text that says until when."""
        self._paused_at = -inf
        """When the first of these was looked up last."""
        self._turns: deque[int] = deque()
        """The partitions of others, in the order in which they are looked up."""

    @property
    def partitions(self) -> list[int]:
        """The partitions that are unled, in order."""
        return sorted(number for number, one in self._suspected.items() if one.stand_in_at < inf)

    @property
    def paused(self) -> tuple[int, str] | None:
        """A partition whose durable is paused, with a text that says until when; None if there is none.

        No process leads it, whichever member owns it, and none stands in: messages wait there until it is resumed.
        """
        return next(iter(self._paused.items()), None)

    def next_look(self, of_others: Set[int], now: float) -> int | None:
        """Return the partition to look up now, of those of others; None if there are none. Forget all else."""
        for number in self._suspected.keys() - of_others:
            del self._suspected[number]
        for number in self._led_since.keys() - of_others:
            del self._led_since[number]
        for number in self._paused.keys() - of_others:
            del self._paused[number]
        for number, one in self._suspected.items():
            if now >= one.look_at:
                return number
        if self._paused and now >= self._paused_at + LOOK_AGAIN_AFTER:
            self._paused_at = now
            return next(iter(self._paused))
        # Those that this process has just given up come first.
        new = sorted(of_others - set(self._turns))
        self._random.shuffle(new)
        self._turns.extendleft(new)
        for _ in range(len(self._turns)):
            number = self._turns.popleft()
            if number in of_others:
                self._turns.append(number)
                if number not in self._suspected:
                    return number
        return None

    def pause(self, partitions: int, members: int) -> float:
        """Return the seconds until the next lookup, with that many partitions of others."""
        if self._suspected or not partitions:
            return SUSPECTED_LOOK_EVERY if self._suspected else LOOK_EVERY
        return max(SUSPECTED_LOOK_EVERY, min(LOOK_EVERY, ROUND * min(members, FEW) / partitions))

    def led(self, number: int, now: float) -> bool:
        """Record that a partition has a leader, or needs none. Return True if that is certainly another process."""
        self._suspected.pop(number, None)
        self._not_paused(number)
        return now > self._led_since.setdefault(number, now) + NOT_OWN_AFTER

    def is_paused(self, number: int, until: str, now: float) -> None:
        """Record that the durable of a partition is paused, with a text that says until when."""
        if not self._paused:
            self._paused_at = now
        self._suspected.pop(number, None)
        self._led_since.pop(number, None)
        self._paused[number] = until

    def _not_paused(self, number: int) -> None:
        """Record that a partition is not paused. If it was, the others probably are no longer, and are looked up."""
        if number in self._paused:
            self._paused.clear()

    def not_known(self, number: int) -> None:
        """Record that a lookup has failed, which proves nothing."""
        self._suspected.pop(number, None)
        self._led_since.pop(number, None)

    def not_led(self, number: int, now: float) -> tuple[float, bool] | None:
        """Record that a partition has messages and no leader. Return until when to stand in, and whether firmly.

        Returns None if it is not time for that.
        """
        self._led_since.pop(number, None)
        self._not_paused(number)
        one = self._suspected.get(number)
        if one is None:
            one = self._suspected[number] = _Suspicion(now, now)
        one.looked_at = now
        if now < one.since + UNLED_FOR:
            return None
        if one.stand_in_at == inf:
            count, last = self._in_a_row.get(number, (0, -inf))
            self._in_a_row[number] = 1 if now > last + FORGOTTEN_AFTER else count + 1, now
            one.stand_in_at = now + self._random.uniform(*MOMENT)
        if now < one.stand_in_at:
            return None
        count, _ = self._in_a_row[number]
        seconds = min(LONGEST, SHORTEST * 2 ** min(count - 1, 10))
        return now + seconds * self._random.uniform(0.75, 1.0), count >= FIRM_FROM

    def forget(self) -> None:
        """Forget what lookups have shown: their link is lost."""
        self._suspected.clear()
        self._led_since.clear()
        self._paused.clear()
