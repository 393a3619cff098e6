"""Find the messages that end the processes handling them: those in handlers when a worker was lost. Pure.

A process that ends by itself, as by a segmentation fault, takes along all that it had in handlers. Of several messages
each is suspected, and tried alone when it is redelivered, so that the next end is the fault of one. What has ended so
many processes as its route has attempts is not handled again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from router_trio.router.workers.counts.block import InHandler
from router_trio.settings import RouteSettings

MOST_SUSPECTS = 1000
"""Messages that are remembered; the oldest are forgotten."""

DEATHS = 3
"""Processes that a message may end whose route has no number of attempts."""


class Suspects:
    """The messages that were in handlers when workers were lost, each with the processes that it has ended alone."""

    def __init__(self) -> None:
        self._deaths: dict[InHandler, int] = {}

    @property
    def table(self) -> Mapping[InHandler, int]:
        """All of them."""
        return self._deaths.copy()

    def died(self, found: Sequence[InHandler]) -> list[tuple[InHandler, int]]:
        """Take note that a process has ended by itself that had these in handlers. Return each with its deaths."""
        alone = int(len(found) == 1)
        told = []
        for one in found:
            deaths = self._deaths.pop(one, 0) + alone
            told.append((one, deaths))
            if one.sequence is not None:  # else it is lost, and never redelivered
                self._deaths[one] = deaths
        for oldest in [*self._deaths][:-MOST_SUSPECTS]:
            del self._deaths[oldest]
        return told

    def survived(self, one: InHandler) -> None:
        """Take note that a handler was done with a message, and that its process is still there."""
        self._deaths.pop(one, None)


def deaths_allowed(route: RouteSettings) -> int:
    """Return how many processes a message of this route may end."""
    return (0 if route.retry is None else route.retry.attempts) or DEATHS


def is_given_up(route: RouteSettings) -> bool:
    """Return True if a message that has ended so many is given up; else it stays in its stream, and is not handled."""
    return route.dead_letter is not None or (route.retry is not None and route.retry.attempts > 0)
