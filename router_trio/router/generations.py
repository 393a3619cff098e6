"""Generations of connections and routes: a reload ends one and starts the next, while all others continue."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

import trio

from router_trio.client.publisher import Publisher
from router_trio.connection.latch import Latch
from router_trio.connection.supervisor import Connection
from router_trio.errors import LinkError
from router_trio.routing.route import Route

CLEAN_UP_WITHIN = 1.0
"""Seconds for the last fence, within which acks that were just written reach their server."""


class ConnectionGeneration:
    """A connection from its start, or a reload, until a reload or the shutdown ends it, and its publisher."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.publisher: Publisher = Publisher(connection)
        self._scope = trio.CancelScope()
        self._ended = trio.Event()

    async def run(self) -> None:
        """Keep the connection up until it is ended or cancelled. Raises as `Connection.run` does."""
        try:
            with self._scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self.connection.run)
                    nursery.start_soon(self.publisher.run)
        finally:
            self._ended.set()

    async def end_connection(self, deadline: float, unsettled: Callable[[int], None]) -> None:
        """Let accepted publishes be settled until the deadline, then close. Routes that use it have ended before.

        `unsettled` gets the number of dropped messages.
        """
        with trio.CancelScope(deadline=deadline):
            await self.connection.idle()
        await clean_up(self.connection)
        unsettled(self.connection.shut_down())
        self._scope.cancel()
        await self._ended.wait()


async def clean_up(connection: Connection, within: float = CLEAN_UP_WITHIN) -> None:
    """Wait until the server has received what was written, especially acks, for a bounded time."""
    link = connection.link
    if link is not None:
        # The link may be lost now. What has not reached its server is not acked.
        with trio.move_on_after(within), suppress(LinkError):
            await link.fence()


class RouteGeneration:
    """A route from its start, or a reload, until a reload or the shutdown ends it.

    `run` may be started before `begin_routing`: messages that arrive wait until then.
    """

    __slots__ = (
        "_begun",
        "_ended",
        "route",
    )

    def __init__(self, route: Route) -> None:
        self.route: Route = route
        self._begun = Latch()
        self._ended = Latch()

    @property
    def begun(self) -> bool:
        """Return True if arriving messages are routed."""
        return self._begun.is_set()

    def begin_routing(self) -> None:
        """Route arriving messages from now on."""
        self._begun.set()

    async def run(self) -> None:
        """Route until the route is ended or cancelled."""
        try:
            await self._begun.wait()
            await self.route.run()
        finally:
            self.route.state.is_over = True
            self._ended.set()

    async def end_route(self, deadline: float, unsettled: Callable[[int], None]) -> None:
        """Stop receiving, let messages in hand be routed until the deadline, and leave.

        `unsettled` gets the number of messages that were received and never routed.
        """
        route = self.route
        route.close_intake()
        with trio.CancelScope(deadline=deadline) as waiting:
            await route.idle()
        if waiting.cancelled_caught:
            route.recall()
        unsettled(route.abandon())
        route.retire()
        self._begun.set()
        await self.ended()

    async def ended(self) -> None:
        """Wait until an abandoned route has ended, for a bounded time.

        It ends at once, unless its handler does not: what it waits for can't be cancelled, or it runs on asyncio.
        """
        with trio.move_on_after(CLEAN_UP_WITHIN):
            await self._ended.wait()

    @property
    def left_behind(self) -> int:
        """Number of handler calls that have not returned although the route was ended."""
        return self.calls_left_behind + (0 if self._ended.is_set() else self.route.state.handling)

    @property
    def calls_left_behind(self) -> int:
        """Number of cancelled calls that have not returned from their threads, or from the asyncio loop."""
        return sum(map(len, self.route.state.left_behind))
