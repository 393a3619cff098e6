"""Bounds how often the sources of one connection are tried again together, however many fail. Pure.

An attempt takes two milliseconds of the processor and some of the server: the routes of a user without a permission
would take all of it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

RETRIES_A_SECOND = 50
"""Attempts per second on one connection of sources that failed several times in a row, on average."""

JITTER_FROM = 0.5
"""Jitter draws a delay between this part of it and all of it."""


class SourceRetries:
    """The sources of one connection that wait for their next attempt."""

    def __init__(self) -> None:
        self._waiting = 0

    @contextmanager
    def one_waits(self) -> Iterator[None]:
        """Count a source as waiting for its next attempt."""
        self._waiting += 1
        try:
            yield
        finally:
            self._waiting -= 1

    @property
    def least_delay(self) -> float:
        """The delay, before jitter, with which all sources that wait are tried `RETRIES_A_SECOND` times a second."""
        return self._waiting / RETRIES_A_SECOND / ((JITTER_FROM + 1) / 2)
