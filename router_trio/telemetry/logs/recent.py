"""The most recent events, for the status page.

Guarantees: there are never more than `KEPT` entries, each of bounded size. Events that can happen for every message
become one entry per second for each code and connection, with their count. Fields that may not be logged are not kept
(see `shown`). Recording an event never blocks.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import trio

from router_trio.errors.quotes import LONGEST_TEXT
from router_trio.events import Event
from router_trio.telemetry.logs.merge import Merged, Merger
from router_trio.telemetry.logs.redact import redact_all
from router_trio.telemetry.logs.sentences import sentence, shown

__all__ = ["KEPT", "LONGEST_TEXT", "Recent"]

KEPT = 200

Seen = tuple[Event, str]
"""An event and when it happened, in UTC."""


class Recent:
    """The most recent events of one router, numbered from 1. `closing` is set to end waits for further events.

    `clock` returns monotonic seconds, `wall` the current time in seconds since 1970.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic, wall: Callable[[], float] = time.time) -> None:
        self.closing: trio.Event = trio.Event()
        self._wall = wall
        self._merger: Merger[Seen] = Merger(clock)
        self._entries: deque[dict[str, Any]] = deque(maxlen=KEPT)
        self._number = 0

    def observe(self, event: Event) -> None:
        """Record an event, at once or merged."""
        seen = event, self._now()
        if not event.per_message:
            self._keep(seen)
            return
        subject = getattr(event, "connection", None) or getattr(event, "route", None)
        merged = self._merger.offer((event.code, subject), seen, getattr(event, "count", 1))
        if merged is not None:
            self._keep_merged(merged)

    def include(self, entry: dict[str, Any], worker: int) -> None:
        """Record an entry of a worker process, with the number of that worker in its details."""
        self._number += 1
        details = {"worker": worker, **entry["details"]}
        self._entries.append({**entry, "number": self._number, "details": details})

    def since(self, number: int) -> list[dict[str, Any]]:
        """Return the entries with a number greater than `number`, oldest first, as plain values. 0 returns all entries.

        A number higher than any entry's also returns all: the client has it from before a restart of the router.
        """
        for merged in self._merger.due():
            self._keep_merged(merged)
        if number > self._number:
            number = 0
        return [entry for entry in self._entries if entry["number"] > number]

    def _keep_merged(self, merged: Merged[Seen]) -> None:
        self._keep(merged.latest, count=merged.count)

    def _keep(self, seen: Seen, **changes: int) -> None:
        event, at = seen
        self._number += 1
        fields = {**shown(event), **changes}
        details = {name: value for name, value in fields.items() if isinstance(value, str | int | float)}
        entry: dict[str, Any] = redact_all({"message": sentence(event), "details": details})
        self._entries.append(
            {
                "number": self._number,
                "at": at,
                "level": event.severity.name,
                "code": event.code,
                **entry,
            }
        )

    def _now(self) -> str:
        return datetime.fromtimestamp(self._wall(), UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
