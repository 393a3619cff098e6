"""Log when a router becomes ready, and when it no longer is: the log's side of `/readyz`.

A task looks every second, whether or not anybody asks for a page. A line is due when the set of connections, routes and
workers that hold the router up has changed; that one of them says it in other words, as with a number of seconds that
grows, is no change. So there is at most one line a second, however many routes come and go.
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
"""Seconds between two looks."""

AT_ONCE = 50
"""Routes that are looked at before other tasks get their turn."""

Reasons = Iterable[Sequence[Mapping[str, Any]]]
"""The reasons of `/readyz`, part by part: none for a connection or a route that is ready."""


class Readiness:
    """The readiness of a router at the last look, and since when."""

    def __init__(self) -> None:
        self._held_up_by: frozenset[tuple[tuple[str, Any], ...]] | None = None
        self._not_ready_since: float | None = None

    def look(self, reasons: Sequence[Mapping[str, Any]], now: float) -> Event | None:
        """Return the event that is due, if one is: at the first look, and when what holds the router up has changed."""
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
    """Return which connection, route or worker is not ready, and why, as one text."""
    place = " ".join(f"{name} {value}" for name, value in reason.items() if name != "reason")
    return shown_text(f"{place}: {reason['reason']}")


async def watch_readiness(reasons: Callable[[], Reasons], emit: Emit) -> None:
    """Emit what changes, until cancelled. `reasons` gives what `/readyz` would say now."""
    readiness = Readiness()
    while True:
        found: list[Mapping[str, Any]] = []
        held = 0.0
        began_at = time.perf_counter()
        for number, part in enumerate(reasons(), 1):
            found += part
            if number % AT_ONCE == 0:
                held += time.perf_counter() - began_at
                await trio.lowlevel.checkpoint()
                began_at = time.perf_counter()
        event = readiness.look(found, trio.current_time())
        if event is not None:
            emit(event)
        held += time.perf_counter() - began_at
        await trio.sleep(max(LOOK_EVERY, REST * held))
