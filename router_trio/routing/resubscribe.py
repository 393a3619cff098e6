"""Trying again to get a source that a server refused, without hurrying and without ending anything else."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import trio

from router_trio.connection.supervisor import Connection
from router_trio.errors import SourceError, reasons
from router_trio.errors.quotes import bounded
from router_trio.events import Emit, RouteReady, SubscribeFailed
from router_trio.link import Link
from router_trio.states import FAILED, RouteState

FIRST_DELAY = 0.5
LONGEST_DELAY = 10.0

Receive = Callable[[Link, trio.Event], Awaitable[None]]
"""Receives until the intake is closed, sets the event once it has tried. Raises `SourceError` when it can't."""


class SourceRetry:
    """Counts and tells a route's failures to subscribe, and waits between them: doubling, with jitter."""

    def __init__(self, state: RouteState, connection: Connection, emit: Emit) -> None:
        self._state = state
        self._connection = connection
        self._emit = emit
        self._delay = FIRST_DELAY
        self._longer = 0.0
        self._silent = 0
        self.first_try_over: trio.Event = trio.Event()
        """Whether the route has ever tried, with or without success."""

    async def keep_receiving(self, receive: Receive, link: Link, tried: trio.Event, closing: trio.Event) -> None:
        """Receive on this link until the intake is closed: again, with growing delay, when the source can't be had."""
        while not closing.is_set():
            try:
                await receive(link, tried)
            except SourceError as error:
                self.tried(tried)
                await self.after(error)

    def ready(self, source: str) -> None:
        """The source is there: count it and say so."""
        self.first_try_over.set()
        self._connection.counters.succeed("subscribe")
        self._emit(
            RouteReady(at=trio.current_time(), route=self._state.name, connection=self._connection.name, source=source)
        )

    def tried(self, on_this_link: trio.Event) -> None:
        """A try is over: tells the link that waits for it, and whoever waits for the router to be up."""
        on_this_link.set()
        self.first_try_over.set()

    def tell(self, error: SourceError) -> None:
        """Count and tell one failure; the route is failed until the next success."""
        self._state.enter(FAILED, bounded(str(error)))
        if error.reason == reasons.CONSUMER_SILENT:
            self._silent += 1
            if self._silent > 1:
                described = f"{error}, {self._silent} times in a row: it was reopened each time and delivers nothing"
                self._state.obstacles[reasons.CONSUMER_SILENT] = bounded(described)
        self._connection.counters.fail("subscribe", error.reason)
        self._emit(
            SubscribeFailed(
                at=trio.current_time(),
                connection=self._connection.name,
                route=self._state.name,
                reason=error.reason,
                detail=str(error),
            )
        )

    async def after(self, error: SourceError) -> None:
        """Tell the failure, then wait until it is time to try again."""
        self.tell(error)
        delay, self._delay = self._delay, min(self._delay * 2, LONGEST_DELAY)
        longer, self._longer = self._longer, 0.0
        await trio.sleep(longer + self._connection.platform.random.uniform(delay / 2, delay))

    def wait_longer(self, seconds: float) -> None:
        """Wait so much longer before the next try."""
        self._longer = seconds

    def succeeded(self) -> None:
        """Something was heard of the source: the next failure waits the shortest time again."""
        self._delay = FIRST_DELAY
        if self._silent:
            self._silent = 0
            self._state.obstacles.pop(reasons.CONSUMER_SILENT, None)
