"""Counts the schedules that wait in their streams: those of delayed copies, and of retries.

Their subjects begin with a prefix, and each has its own. They are all counted, whichever process stored them.
"""

from __future__ import annotations

from collections.abc import Iterable
from math import inf

import trio

from router_trio.errors import SourceError, reasons
from router_trio.link import Link
from router_trio.states import DestinationState

COUNT_EVERY = 60.0
"""Seconds between two counts of the schedules of a destination."""


class WaitingSchedules:
    """Count schedules for the destinations of one connection, in the streams where they are stored."""

    def __init__(self) -> None:
        self._streams: dict[DestinationState, tuple[str, ...]] = {}
        self._due: dict[DestinationState, float] = {}

    def stored_in(self, destination: DestinationState, streams: Iterable[str]) -> None:
        """Record which streams store the schedules of a destination."""
        self._streams[destination] = tuple(streams)

    def forget(self, destination: DestinationState) -> None:
        """Stop counting the schedules of a destination, whose stream is not known any more, or whose route ended."""
        self._streams.pop(destination, None)
        self._due.pop(destination, None)
        destination.waiting = None

    def link_is_new(self) -> None:
        """Count all of them at the next look."""
        self._due.clear()

    async def look(self, link: Link) -> None:
        """Count the schedules of each destination that is due. What can't be counted is not known until it can."""
        counted: dict[tuple[str, str], int | None] = {}
        pause = COUNT_EVERY
        for one, streams in [*self._streams.items()]:
            if trio.current_time() < self._due.get(one, -inf):
                continue
            for name in streams:
                if (name, one.pattern) in counted:
                    continue
                try:
                    counted[name, one.pattern] = await link.count_subjects(name, one.pattern)
                except SourceError as error:
                    counted[name, one.pattern] = None
                    # A server logs each request that is denied.
                    pause = COUNT_EVERY if error.reason == reasons.PERMISSION_DENIED else 0.0
            if one in self._streams:  # it may have been forgotten meanwhile
                counts = [counted[name, one.pattern] for name in streams]
                one.waiting = None if None in counts else sum(count for count in counts if count is not None)
                self._due[one] = trio.current_time() + (pause if one.waiting is None else COUNT_EVERY)
