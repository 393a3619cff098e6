"""The most recent events, for the status page.

Guarantees: there are never more than `KEPT` entries, each of bounded size. Equal events are one entry with their count,
if each follows the one before within `EQUAL_WITHIN`: a hundred attempts to connect do not push out why the connection
was lost. Events that can happen for every message are counted once a second. Fields that may not be logged are not kept
(see `Event.shown_details`). Recording an event never blocks.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import trio

from router_trio.errors.quotes import LONGEST_TEXT
from router_trio.events import Event
from router_trio.telemetry.logs.merge import Merged, Merger
from router_trio.telemetry.logs.redact import redact_all

__all__ = ["KEPT", "LONGEST_TEXT", "Recent"]

KEPT = 200

EQUAL_WITHIN = 60.0
"""Seconds after an event for which an equal one is counted with it. More than the longest delay between two attempts to
connect that is usual."""

MOST_PARTS = 10
"""Routes or connections with an entry of their own for the same code within `EQUAL_WITHIN`. The others share one: a
thousand routes that become ready do not push out what made them unready."""

_NUMBERS = re.compile(r"\d+(?:[.,:]\d+)*")

Seen = tuple[Event, str]
"""An event and when it happened, in UTC."""


@dataclass(frozen=True, slots=True)
class _Last:
    """The last kept entry of a kind: its id, when its first event was, how many events it has, and its age."""

    id: int
    first_at: str
    count: int
    seen_at: float


class Recent:
    """The most recent events of one router, numbered from 1. `closing` is set to end waits for further events.

    `clock` returns monotonic seconds, `wall` the current time in seconds since 1970. `merges` is False for a worker:
    its supervisor merges equal events.
    """

    def __init__(
        self,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
        *,
        merges: bool = True,
    ) -> None:
        self.closing: trio.Event = trio.Event()
        self._clock = clock
        self._wall = wall
        self._merges = merges
        self._merger: Merger[Seen] = Merger(clock)
        self._entries: dict[int, dict[str, Any]] = {}
        """By the number of their first event, the latest last."""
        self._last: dict[Hashable, _Last] = {}
        """The last kept entry of each kind."""
        self._begun: dict[Hashable, list[float]] = {}
        """When entries of the same code and reason began, the last `MOST_PARTS` of them."""
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
        self._add({**entry, "details": {"worker": worker, **entry["details"]}})

    def since(self, number: int) -> list[dict[str, Any]]:
        """Return the entries with a number greater than `number`, oldest first, as plain values. 0 returns all entries.

        A number higher than any entry's also returns all: the client has it from before a restart of the router. If
        equal events were merged with an entry, it has a new number and the same `id`, and replaces the earlier one.
        """
        for merged in self._merger.due():
            self._keep_merged(merged)
        if number > self._number:
            number = 0
        return [entry for entry in self._entries.values() if entry["number"] > number]

    def _keep_merged(self, merged: Merged[Seen]) -> None:
        self._keep(merged.latest, count=merged.count)

    def _keep(self, seen: Seen, **changes: int) -> None:
        event, at = seen
        fields = {**event.shown_details(), **changes}
        details = {name: value for name, value in fields.items() if isinstance(value, str | int | float)}
        entry: dict[str, Any] = redact_all({"message": event.sentence(), "details": details})
        self._add({"at": at, "level": event.severity.name, "code": event.code, **entry})

    def _add(self, entry: Mapping[str, Any]) -> None:
        """Keep an entry, or count it with the last one of its kind."""
        self._number += 1
        number, now = self._number, self._clock()
        kind = self._kind_of(entry, now)
        first_id, first_at, count = number, entry["at"], entry["details"].get("count", 1)
        before = self._last.get(kind)
        if before is not None and now <= before.seen_at + EQUAL_WITHIN:
            first_id, first_at, count = before.id, before.first_at, before.count + count
            del self._entries[before.id]
        if self._merges:
            self._last[kind] = _Last(first_id, first_at, count, now)
        self._entries[first_id] = {**entry, "number": number, "id": first_id, "first_at": first_at, "count": count}
        if len(self._entries) > KEPT:
            oldest = self._entries.pop(next(iter(self._entries)))["id"]
            self._last = {kind: last for kind, last in self._last.items() if last.id != oldest}

    def _kind_of(self, entry: Mapping[str, Any], now: float) -> Hashable:
        """Return what the entry has in common with those that it is counted with."""
        details = entry["details"]
        same = entry["code"], entry["level"], details.get("reason")
        part = tuple(details.get(name) for name in ("worker", "connection", "route"))
        kind = *same, part, details.get("reason") or _NUMBERS.sub("#", entry["message"])
        last = self._last.get(kind)
        if last is not None and now <= last.seen_at + EQUAL_WITHIN:
            return kind
        begun = self._begun[same] = [at for at in self._begun.get(same, ()) if now <= at + EQUAL_WITHIN]
        if len(begun) >= MOST_PARTS:
            return same
        begun.append(now)
        return kind

    def _now(self) -> str:
        return datetime.fromtimestamp(self._wall(), UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
