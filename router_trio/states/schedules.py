"""The message schedules of a route."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Schedules:
    """The schedules of one kind of a route: delayed copies, or retries.

    `stored` were confirmed by their streams, as this process has counted. `waiting` are there, whichever process stored
    them, as of the last look at the streams, at most a minute ago; None while that is not known. `fired` were received
    here when they were due, and `lost` were found missing here; None for delayed copies, which no route receives.
    """

    stored: int
    waiting: int | None
    fired: int | None = None
    lost: int | None = None
