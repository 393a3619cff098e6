"""The taps of one process. While a route has no tap, its messages are not followed."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING
from weakref import WeakSet

import trio

from router_trio.routing.tracing import RouteTracing
from router_trio.telemetry.pieces import in_pieces
from router_trio.telemetry.tap.followed import MAX_PER_SECOND, RouteFollower
from router_trio.telemetry.tap.tap import (
    Reading,
    Tap,
    TapRefused,
    TapRequest,
    check_allowed,
    compile_where,
    find_route,
)
from router_trio.telemetry.traces.tracer import TokenBucket
from router_trio.telemetry.view import RouterView

if TYPE_CHECKING:
    from router_trio.expressions.expression import Expression
    from router_trio.settings import TelemetrySettings


class Taps:
    """The taps of one process, by name."""

    def __init__(self, settings: TelemetrySettings, clock: Callable[[], float] = trio.current_time) -> None:
        self.settings: TelemetrySettings = settings
        """The current settings: see `change`."""
        self._bucket = TokenBucket(MAX_PER_SECOND, MAX_PER_SECOND, clock)
        self._taps: dict[str, Tap] = {}
        self._followers: dict[str, RouteFollower] = {}
        """By route, while it has taps."""
        self._built: WeakSet[RouteTracing] = WeakSet()

    def built(self, tracing: RouteTracing) -> None:
        """Register the tracing of a new generation of a route: its messages are followed while the route has a tap."""
        self._built.add(tracing)
        if tracing.route in self._followers:
            tracing.follow_by(self._followers[tracing.route])

    def change(self, settings: TelemetrySettings) -> None:
        """Use these settings from now on, and close the taps that they do not allow."""
        self.settings = settings
        for name, tap in tuple(self._taps.items()):
            if not settings.tap or (tap.needs_payloads and not settings.tap_payloads):
                self.close(name)

    async def open(self, name: str, request: TapRequest, view: RouterView) -> None:
        """Open a tap on a route of `view`. Raises `TapRefused`."""
        check_allowed(request, self.settings)
        # In a thread, so that messages are routed meanwhile.
        from_stream, where = await trio.to_thread.run_sync(check_request, request, self.settings, view)
        check_allowed(request, self.settings)
        tap = Tap(request, where, _settled(request.route, view), from_stream=from_stream)
        self._taps[name] = tap
        self._follow(request.route)

    async def read(self, name: str, view: RouterView, rest: float) -> Reading:
        """Return the next reading of a tap. Raises `TapRefused` if it is closed, or its route was removed.

        `rest` is passed to `in_pieces`.
        """
        tap = self._taps.get(name)
        if tap is None:
            raise TapRefused(404, "the tap is closed")
        return await in_pieces(tap.read(_settled(tap.request.route, view)), rest)

    def is_open(self, name: str) -> bool:
        """Return True if there is an open tap with this name."""
        return name in self._taps

    def close(self, name: str) -> None:
        """Close a tap. Does nothing if none with this name is open."""
        tap = self._taps.pop(name, None)
        if tap is not None:
            self._follow(tap.request.route)

    def _follow(self, route: str) -> None:
        """Follow the messages of a route for its taps, in every generation; stop following if it has none."""
        taps = [tap for tap in self._taps.values() if tap.request.route == route]
        follower = self._followers.pop(route, None) or RouteFollower(self._bucket.take_up_to)
        follower.taps = taps
        if taps:
            self._followers[route] = follower
        for tracing in self._built:
            if tracing.route == route:
                tracing.follow_by(follower if taps else None)


def check_request(request: TapRequest, settings: TelemetrySettings, view: RouterView) -> tuple[bool, Expression | None]:
    """Return whether the route of a request reads from a stream, and the compiled expression of the request.

    Takes some milliseconds, so call it in a thread. Raises `TapRefused`.
    """
    route = find_route(request, {one.name: one for one in view.routes})
    return route.redelivers, compile_where(request, settings, from_stream=route.redelivers)


def _settled(route: str, view: RouterView) -> dict[str, int]:
    """Return the counts of a route's settled messages by fate. Raises `TapRefused` if the route was removed."""
    for one in view.routes:
        if one.name == route:
            return one.settled
    raise TapRefused(410, "its route was removed from the configuration")
