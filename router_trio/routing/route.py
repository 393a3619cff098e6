"""Routes: each takes the messages of one source to its destinations. Its end leaves no message uncounted."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import trio

from router_trio.connection.supervisor import Connection
from router_trio.errors import reasons
from router_trio.routing.hand_over import Batches
from router_trio.routing.pipeline import Routing
from router_trio.routing.source import Source
from router_trio.states import RouteState


class Route(ABC):
    """Routes the messages of a source. `run` lasts as long as the router runs, or until `abandon`.

    There are two kinds: a `KeptRoute` keeps each message until it is settled; a `BatchRoute` keeps none, and is fast.
    """

    __slots__ = (
        "_scope",
        "routing",
        "source",
        "state",
    )

    def __init__(self, routing: Routing, source: Source) -> None:
        self.routing: Routing = routing
        self.state: RouteState = routing.state
        self.source: Source = source
        self._scope = trio.CancelScope()

    @property
    def connections(self) -> tuple[Connection, ...]:
        """The connections from which it receives, and to which it sends."""
        return (self.source.connection, *self.routing.connections)

    @property
    def routings(self) -> Sequence[Routing]:
        """Return the pipelines of its messages: by its settings, and by earlier ones that some were begun with."""
        return (self.routing,)

    async def run(self) -> None:
        """Route arriving messages, until cancelled or abandoned."""
        with self._scope:
            self.routing.turn.begin()
            await self._route_arriving()

    @abstractmethod
    async def _route_arriving(self) -> None:
        """Route arriving messages; never return."""

    @abstractmethod
    def go_on_with(self, waiting: Batches) -> None:
        """Route messages first that the previous route of this subject has received and not begun."""

    # --- the end ---

    def close_intake(self) -> None:
        """Receive nothing more; received messages are still routed."""
        self.source.close()

    async def idle(self) -> None:
        """Wait until nothing more is received, and every message is routed, or returned to its source."""
        await self.source.over()
        await self._all_routed()
        self.source.give_up_lead()

    @abstractmethod
    async def _all_routed(self) -> None:
        """Wait until all received messages are routed; nothing more is received."""

    @abstractmethod
    def recall(self) -> None:
        """Take unsent messages back from the outboxes, before `abandon`, if the source redelivers them."""

    def abandon(self) -> int:
        """End without waiting. Count received messages that were never routed as failed, and return their number."""
        self._scope.cancel()
        left = self._let_go()
        if left:
            self.routing.lose_unrouted(reasons.SHUTDOWN, "received, and not routed before the shutdown", left)
        return left

    @abstractmethod
    def _let_go(self) -> int:
        """Drop all unrouted messages, or return them to their source. Return the number of lost messages."""

    def retire(self) -> None:
        """Stop reading from links and stop listening, since the route has ended and the router goes on."""
        self.source.retire()
        if self.routing.flow is not None:
            self.routing.flow.retire()
