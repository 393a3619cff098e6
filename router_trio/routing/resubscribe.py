"""Retry to get a source that a server refused, with growing delays and without affecting anything else."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import trio

from router_trio.connection.latch import Latch
from router_trio.connection.source_retries import JITTER_FROM
from router_trio.connection.supervisor import Connection
from router_trio.errors import SourceError, reasons
from router_trio.errors.quotes import bounded
from router_trio.events import Emit, RouteReady, SubscribeFailed
from router_trio.link import Link
from router_trio.routing.source_status import SourceStatus
from router_trio.states import FAILED

FIRST_DELAY = 0.5
LONGEST_DELAY = 10.0

Receive = Callable[[Link, Latch], Awaitable[None]]
"""Receives until the intake is closed; sets the event after the first attempt. Raises `SourceError` if it fails."""


class SourceRetry:
    """Counts and reports a route's failures to subscribe, and waits between attempts: doubling delays, with jitter."""

    __slots__ = (
        "_connection",
        "_delay",
        "_described",
        "_emit",
        "_longer",
        "_silent",
        "_status",
        "first_try_over",
    )

    def __init__(
        self, status: SourceStatus, connection: Connection, emit: Emit, described: Callable[[SourceError], str] = str
    ) -> None:
        """`described` returns the text of a failure."""
        self._described = described
        self._status = status
        self._connection = connection
        self._emit = emit
        self._delay = FIRST_DELAY
        self._longer = 0.0
        self._silent = 0
        self.first_try_over: Latch = Latch()
        """Set after the first attempt, whether it succeeded or not."""

    async def keep_receiving(self, receive: Receive, link: Link, tried: Latch, closing: Latch) -> None:
        """Receive on this link until the intake is closed; retry with growing delays when the source fails."""
        while not closing.is_set():
            try:
                await receive(link, tried)
            except SourceError as error:
                self.tried(tried)
                await self.after(error)

    def ready(self, source: str) -> None:
        """Count and report that the source is available."""
        self.first_try_over.set()
        self._connection.counters.succeed("subscribe")
        self._emit(
            RouteReady(at=trio.current_time(), route=self._status.name, connection=self._connection.name, source=source)
        )

    def tried(self, on_this_link: Latch) -> None:
        """Record the end of an attempt, for which the link and the start of the router wait."""
        on_this_link.set()
        self.first_try_over.set()

    def tell(self, error: SourceError) -> None:
        """Count and report a failure; the route is failed until the next success."""
        detail = self._described(error)
        self._status.enter(FAILED, bounded(detail))
        if error.reason == reasons.CONSUMER_SILENT:
            self._silent += 1
            if self._silent > 1:
                described = f"{error}, {self._silent} times in a row: it was reopened each time and delivers nothing"
                self._status.add_obstacle(reasons.CONSUMER_SILENT, bounded(described))
        self._connection.counters.fail("subscribe", error.reason)
        self._emit(
            SubscribeFailed(
                at=trio.current_time(),
                connection=self._connection.name,
                route=self._status.name,
                reason=error.reason,
                detail=detail,
            )
        )

    async def after(self, error: SourceError) -> None:
        """Report the failure, then wait until it is time to retry.

        The first retry is soon, since most failures are over by then. Later ones share `RETRIES_A_SECOND`.
        """
        self.tell(error)
        is_first = self._delay == FIRST_DELAY
        delay, self._delay = self._delay, min(self._delay * 2, LONGEST_DELAY)
        longer, self._longer = self._longer, 0.0
        retries = self._connection.source_retries
        with retries.one_waits():
            if not is_first:
                delay = max(delay, retries.least_delay)
            await trio.sleep(longer + self._connection.platform.random.uniform(JITTER_FROM * delay, delay))

    def wait_longer(self, seconds: float) -> None:
        """Wait `seconds` longer before the next attempt."""
        self._longer = seconds

    def succeeded(self) -> None:
        """Record that the source answered: after the next failure, the shortest delay is used again."""
        self._delay = FIRST_DELAY
        if self._silent:
            self._silent = 0
            self._status.remove_obstacle(reasons.CONSUMER_SILENT)
