"""Log when a router becomes ready or stops being ready, as `/readyz` would report it.

A task checks every second, or less often with hundreds of routes, whether or not `/readyz` is requested. It emits an
event when the set of connections, routes and workers that are not ready has changed. A reason that only changes its
text, such as a growing number of seconds, is no change. So there is at most one log line per second, however many
routes change their state.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import trio

from router_trio.events import Emit, Event, RouterNotReady, RouterReady
from router_trio.events.router import MOST_REASONS
from router_trio.telemetry.http.rendering import REST
from router_trio.telemetry.logs.redact import shown_text

LOOK_EVERY = 1.0
"""Seconds between two checks."""

PARTS_A_SECOND = 500
"""Connections and routes checked per second: with more of them, each is checked less often."""

AT_ONCE = 50
"""Number of routes checked before other tasks run."""

Reasons = Iterable[Sequence[Mapping[str, Any]]]
"""The reasons of `/readyz`, one sequence per connection or route; empty for one that is ready."""


class Readiness:
    """The readiness of a router at the last check, and the time since when it has not been ready."""

    def __init__(self) -> None:
        self._held_up_by: frozenset[tuple[tuple[str, Any], ...]] | None = None
        self._not_ready_since: float | None = None

    def look(self, reasons: Sequence[Mapping[str, Any]], now: float) -> Event | None:
        """Return the event to emit: at the first check, and when the set of unready parts has changed. Else None."""
        held_up_by = frozenset(
            tuple((name, value) for name, value in one.items() if name != "reason") for one in reasons
        )
        if held_up_by == self._held_up_by:
            return None
        self._held_up_by = held_up_by
        if held_up_by:
            if self._not_ready_since is None:
                self._not_ready_since = now
            return RouterNotReady(at=now, count=len(reasons), reasons=tuple(map(_text, reasons[:MOST_REASONS])))
        since, self._not_ready_since = self._not_ready_since, None
        return RouterReady(at=now, reasons=(), not_ready_seconds=0.0 if since is None else round(now - since, 3))


def _text(reason: Mapping[str, Any]) -> str:
    """Return one text with the connection, route or worker that is not ready, and the reason."""
    place = " ".join(f"{name} {value}" for name, value in reason.items() if name != "reason")
    return shown_text(f"{place}: {reason['reason']}")


async def watch_readiness(reasons: Callable[[], Reasons], emit: Emit) -> None:
    """Emit an event at each change of readiness until cancelled. `reasons` returns the current reasons of `/readyz`."""
    readiness = Readiness()
    while True:
        found: list[Mapping[str, Any]] = []
        blocked = 0.0
        number = 0
        began_at = time.perf_counter()
        for number, part in enumerate(reasons(), 1):
            found += part
            if number % AT_ONCE == 0:
                blocked += time.perf_counter() - began_at
                await trio.lowlevel.checkpoint()
                began_at = time.perf_counter()
        event = readiness.look(found, trio.current_time())
        if event is not None:
            emit(event)
        blocked += time.perf_counter() - began_at
        await trio.sleep(max(LOOK_EVERY, number / PARTS_A_SECOND, REST * blocked))
