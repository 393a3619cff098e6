"""The routers that are connected to a fake broker: what failed in them, and whether anything is left for them to do."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import trio

from router_trio.errors import reasons
from router_trio.events import (
    DeadLetterNotStored,
    Event,
    Level,
    MessageDeadLettered,
    MessageFailed,
    MessageGivenUp,
)
from router_trio.events.publishes import OperationEvent
from router_trio.events.routes import RouteEvent
from router_trio.link import ObservedRouter
from router_trio.states import RouteState
from router_trio.testing.server import Server

MOST_FAILURES = 1000
"""Different failures that are kept; beyond that the oldest are forgotten."""

SHOWN_FAILURES = 10
"""Failures in the text of an error, the latest ones."""

ALIKE = 3
"""Failures of one message for the same cause after which it is expected to fail each time."""

_BY_ITSELF = reasons.OF_THE_MESSAGE - {reasons.RETRY}
"""Reasons for which a message fails in each attempt, unless its handler behaves differently the next time."""

_Key = tuple[Any, ...]


class Failure:
    """A failure of a message, and how often it was repeated. `text` describes the latest one, with its traceback."""

    __slots__ = ("count", "event", "text")

    def __init__(self) -> None:
        self.count: int = 0
        self.event: Event
        self.text: str = ""


class Routers:
    """The routers that are connected to the fake server of a test, and what failed in them."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._running: dict[ObservedRouter, None] = {}
        self._latest: ObservedRouter | None = None
        self._failures: dict[_Key, Failure] = {}
        self._fails = False
        self._ended: list[str] = []
        self.are_reported: bool = False
        """True once `report` is part of an error."""

    @contextmanager
    def observing(self, router: ObservedRouter) -> Iterator[None]:
        """Observe a router while this is entered."""
        self._running[router] = None
        self._latest = router
        try:
            yield
        finally:
            self._ended = list(_done(router))
            del self._running[router]

    def observe(self, event: Event) -> None:
        """Record an event if it is a failure of a message, a publish or a route."""
        if not isinstance(event, OperationEvent | RouteEvent) or event.severity < Level.WARN:
            return
        key = _key(event)
        if not isinstance(event, MessageDeadLettered | MessageGivenUp):  # consequences of an earlier failure
            self._fails = True
        failure = self._failures.pop(key, None) or Failure()
        failure.count += getattr(event, "count", 1)
        failure.event, failure.text = event, self._described(event)
        self._failures[key] = failure
        if len(self._failures) > MOST_FAILURES:
            del self._failures[next(iter(self._failures))]

    def _described(self, event: Event) -> str:
        text = event.sentence()
        detail: str | None = getattr(event, "detail", None)
        traceback = getattr(event, "traceback", None)
        if detail and detail not in text and not traceback:
            text = f"{text}: {detail}"
        return "\n".join((text, *(f"    {line}" for line in traceback or ())))

    def expected(self) -> None:
        """Regard the failures up to now as intended: the test has got what it waited for."""
        self._fails = False

    # --- what is left to do ---

    @property
    def progress(self) -> object:
        """A value that changes when messages are settled or stored; not when one fails and is retried."""
        settled = [
            [count for fate, count in route.settled.items() if fate not in ("returned", "duplicate")]
            for route in self._routes
        ]
        return settled, [len(stream.stored) for stream in self._server.streams.values()], len(self._server.published)

    @property
    def in_handlers(self) -> int:
        """The number of calls of handlers that have not returned."""
        return sum(route.handling for route in self._routes)

    def hopeless(self) -> str | None:
        """Return why nothing more will be stored, unless somebody publishes; None if that is not certain.

        Call it while `progress` does not change.
        """
        if not self._running:
            return None if self._latest is None else "the router has ended"
        if not self._fails or any(router.unsettled() for router in self._running):
            return None
        endless = False
        for router in self._running:
            for route in router.routes():
                left = self._left(route)
                if left == 0:
                    continue
                again_and_again = router.retries_without_end(route.name) and self._failing_alike(route) >= left
                if not again_and_again or route.retrying[0] < left:
                    return None
                endless = True
        if endless:
            return "nothing is left to do but to retry messages that fail each time"
        return "every message that was received is settled"

    def _left(self, route: RouteState) -> int:
        """Return the number of messages that a route has not settled, those in its stream included."""
        consumer = self._server.consumers.get((str(route.source.get("stream")), str(route.source.get("durable"))))
        if consumer is None:
            return route.in_hand
        state = consumer.state_at(trio.current_time())
        return max(route.in_hand, state.unacked + state.undelivered)

    def _failing_alike(self, route: RouteState) -> int:
        """Return the number of messages of a route that have failed again and again, each for the same cause."""
        return sum(
            one.count >= ALIKE
            for one in self._failures.values()
            if isinstance(one.event, MessageFailed) and one.event.route == route.name and one.event.reason in _BY_ITSELF
        )

    @property
    def _routes(self) -> Iterator[RouteState]:
        for router in self._running:
            yield from router.routes()

    # --- for the text of an error ---

    def report(self) -> Iterator[str]:
        """Yield lines that describe what failed, what each route has done, and what is not ready."""
        failures = list(self._failures.values())
        if len(failures) > SHOWN_FAILURES:
            yield f"the last {SHOWN_FAILURES} of {len(failures)} failures:"
        for failure in failures[-SHOWN_FAILURES:]:
            first, *more = failure.text.split("\n")
            yield first if failure.count == 1 else f"{first} ({failure.count} times)"
            yield from more
        if not failures and self._latest is not None:
            yield "nothing has failed"
        for router in self._running:
            yield from _done(router)
            for reason in router.unready():
                yield f"not ready: {reason}"
        if not self._running:
            yield from self._ended


def _done(router: ObservedRouter) -> Iterator[str]:
    """Yield what each route of a router has done."""
    for route in router.routes():
        fates = {fate: count for fate, count in route.settled.items() if count}
        settled = ", ".join(f"{count} {fate}" for fate, count in fates.items()) or "none settled"
        yield f"route {route.name}: {route.received_in_all} received, {route.in_hand} in hand, {settled}"


def _key(event: Event) -> _Key:
    """Return what failures of one message for the same cause have in common."""
    names = ("connection", "route", "reason", "subject", "stream", "sequence", "error_type", "place")
    detail = None if isinstance(event, DeadLetterNotStored) else getattr(event, "detail", None)
    return (event.code, detail, *(getattr(event, name, None) for name in names))
