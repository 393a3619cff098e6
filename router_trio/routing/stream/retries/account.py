"""Notice that the stream of retries has lost its tail, which its own record of the schedules can't show.

The last sequence falls together with the number of messages. A router that knows of a higher sequence knows.
Pure and synchronous.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from router_trio.link import SchedulesCount

_NOTHING = SchedulesCount(0, 0, 0, 0)


@dataclass(slots=True)
class Confirmed:
    """The numbers of a route at a count: schedules confirmed, each once; due messages; the last sequence."""

    stored: int = 0
    received: int = 0
    newest: int = 0


class Account:
    """The last count of the schedules of a stream, and the numbers of the route at that time."""

    def __init__(self) -> None:
        self._last: SchedulesCount = _NOTHING
        self._confirmed: Confirmed = Confirmed()
        self._newest = 0
        """The highest last sequence that the stream is known to have had."""
        self.is_behind: bool = False
        """True if the stream fell at the last look. It may be a new leader, so another look decides."""

    def goes_on(self) -> None:
        """Continue with a route whose numbers begin at 0."""
        self._confirmed = Confirmed()

    def judged(self, count: SchedulesCount, confirmed: Confirmed) -> SchedulesCount | None:
        """Return the count, with the schedules that were lost together with the stream's record of them.

        `confirmed` are the numbers before the count, so that those stored or due meanwhile make the number of lost
        schedules seem smaller. Return None if another look has to decide, before which nothing is remembered.
        """
        if count.in_flux:
            return count
        last = self._last
        again = last.created not in ("", count.created)
        newest = max(self._newest, confirmed.newest)
        behind = not count.is_first and (again or count.last_sequence < newest)
        if behind and not self.is_behind:
            self.is_behind, self._newest = True, newest
            return None
        lost = 0
        if behind or self.is_behind or count.is_first:
            stored, received = confirmed.stored - self._confirmed.stored, confirmed.received - self._confirmed.received
            if count.is_first or again:  # its record is a new one
                gone = count.fired + count.cancelled
            else:
                gone = max(count.fired - last.fired, received) + count.cancelled - last.cancelled
            lost = max(0, last.there + stored - count.there - gone)
        self.is_behind = False
        self._last, self._confirmed, self._newest = count, confirmed, count.last_sequence
        return replace(count, scheduled=count.scheduled + lost)
