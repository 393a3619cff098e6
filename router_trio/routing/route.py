"""What both kinds of route share: a life on one link after the other, and an end that leaves nothing uncounted."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager

import trio

from router_trio.connection.shared_subscription import Member
from router_trio.connection.supervisor import Connection
from router_trio.events import Emit
from router_trio.link import Link
from router_trio.protocol.framing import RawMessage
from router_trio.routing.pipeline import Routing
from router_trio.routing.resubscribe import SourceRetry
from router_trio.settings import SourceSettings
from router_trio.states import STARTING, RouteState

Batches = list[tuple[float, list[RawMessage]]]
"""Messages that were received together, each batch with its time, the oldest first."""


class Route(ABC):
    """One route. `serve` receives, on each link; `run` routes, for as long as the router lives."""

    def __init__(self, routing: Routing, connection: Connection, emit: Emit) -> None:
        self.routing = routing
        self.state: RouteState = routing.state
        self._connection = connection
        self._emit = emit
        self._retry = SourceRetry(routing.state, connection, emit)
        self.first_try_over: trio.Event = self._retry.first_try_over
        """Set once the route has tried to receive, with or without success."""
        self._closing = trio.Event()
        self._intake_over = trio.Event()
        self._intake_over.set()
        self._scope = trio.CancelScope()

    async def serve(self, link: Link, tried: trio.Event) -> None:
        """See `session.Source`: receive from this link, and again with growing delay when the source is lost."""
        await self._retry.keep_receiving(self._receive, link, tried, self._closing)

    async def run(self) -> None:
        """Route what arrives, until cancelled or abandoned."""
        with self._scope:
            self.routing.turn.begin()
            await self._route_arriving()

    def close_intake(self) -> None:
        """Receive nothing more; what came is still routed."""
        self._closing.set()

    async def idle(self) -> None:
        """Wait until nothing more comes, and all that came is routed, or given back to its stream if it can't be."""
        await self._intake_over.wait()
        await self._all_routed()

    # --- from one route to its successor ---

    def hand_over(self, successor: Route) -> None:
        """Hand what is received from now on, and what waits, to a route from the same subscription: see `CoreRoute`.

        A route from a stream hands nothing over: it ends, and its successor goes on from there if it `has_consumer`.
        """
        raise NotImplementedError

    def take_over(self, member: Member | None, waiting: Batches) -> None:
        """Receive as this member from now on, unless the link is gone, and route first what waits. See `hand_over`."""
        raise NotImplementedError

    def has_consumer(self, connection: Connection, source: SourceSettings) -> bool:
        """Return True if it receives from the consumer of this source: a `StreamRoute` can go on from there."""
        return False

    # --- the end ---

    @abstractmethod
    def abandon(self) -> int:
        """End without waiting. Returns how many messages were received and never routed, and counts them as failed."""

    @abstractmethod
    def recall(self) -> None:
        """Take back what the outboxes have not sent, before `abandon`: a stream delivers it again."""

    def retire(self) -> None:
        """The route is over, and the router goes on: read from no link, and listen to nothing any more."""
        self._connection.detach(self)
        if self.routing.flow is not None:
            self.routing.flow.follow_no_more()
            for breaker in self.routing.flow.breakers:
                breaker.stop_listening()

    @contextmanager
    def _receiving(self, afterwards: str) -> Iterator[None]:
        """While it is entered, more may come. `afterwards`: the reason why nothing comes then."""
        self._intake_over = trio.Event()
        try:
            yield
        finally:
            self._intake_over.set()
            self.state.enter(STARTING, afterwards)

    @abstractmethod
    async def _receive(self, link: Link, tried: trio.Event) -> None:
        """Receive until the intake is closed, and then what was under way.

        Raises `SourceError` if there is no source, or it is lost. `tried` is set (by `SourceRetry.tried`) when the link
        need not wait for this route any more.
        """

    @abstractmethod
    async def _route_arriving(self) -> None:
        """Route what arrives, for ever."""

    @abstractmethod
    async def _all_routed(self) -> None:
        """Wait until all that came is routed: nothing more comes."""
