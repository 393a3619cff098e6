"""Finds the messages that end the processes handling them: those in handlers when a worker was lost. Pure.

A process that ends by itself, for instance by a segmentation fault, had messages in handlers. If there were several,
each is suspected, and handled alone when it is redelivered, so that it is to blame for the next end. A message that has
ended as many processes as its route has attempts is not handled again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from router_trio.router.workers.counts.block import InHandler
from router_trio.settings import RouteSettings

MOST_SUSPECTS = 1000
"""Messages that are remembered; beyond that the oldest are forgotten."""

DEATHS = 3
"""Processes that a message may end if its route does not limit attempts."""


class Suspects:
    """The messages that were in handlers when workers were lost, and how many processes each has ended alone."""

    def __init__(self) -> None:
        self._deaths: dict[InHandler, int] = {}

    @property
    def table(self) -> Mapping[InHandler, int]:
        """All suspected messages."""
        return self._deaths.copy()

    def died(self, found: Sequence[InHandler]) -> list[tuple[InHandler, int]]:
        """Record that a process with these messages in handlers has ended by itself. Returns each with its deaths."""
        alone = int(len(found) == 1)
        deaths_by_message = []
        for one in found:
            deaths = self._deaths.pop(one, 0) + alone
            deaths_by_message.append((one, deaths))
            if one.sequence is not None:  # else it is lost, and never redelivered
                self._deaths[one] = deaths
        for oldest in [*self._deaths][:-MOST_SUSPECTS]:
            del self._deaths[oldest]
        return deaths_by_message

    def survived(self, one: InHandler) -> None:
        """Record that a handler has finished with a message without ending its process."""
        self._deaths.pop(one, None)


def deaths_allowed(route: RouteSettings) -> int:
    """Return how many processes a message of this route may end."""
    return (0 if route.retry is None else route.retry.attempts) or DEATHS


def is_given_up(route: RouteSettings) -> bool:
    """Return True if a message that ended too many is given up; else it stays in its stream without being handled."""
    return route.dead_letter is not None or (route.retry is not None and route.retry.attempts > 0)
