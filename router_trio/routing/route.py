"""Routes: each takes the messages of one source to its destinations. Its end leaves no message uncounted."""

from __future__ import annotations

from abc import ABC, abstractmethod

import trio

from router_trio.connection.supervisor import Connection
from router_trio.errors import reasons
from router_trio.routing.hand_over import Batches
from router_trio.routing.pipeline import Routing
from router_trio.routing.source import Source
from router_trio.states import RouteState


class Generations:
    """The routes of one subject and name: a reload replaces one with the next. `latest` receives messages.

    What an earlier one has not started, or would retry, is routed by the latest one, however many there were between.
    """

    __slots__ = ("latest",)

    latest: Route

    def latest_of(self, route: Route) -> Route | None:
        """Return the latest one if it is another than this one, and receives messages."""
        return None if self.latest is route or self.latest.source.closed else self.latest


class Route(ABC):
    """Routes the messages of a source. `run` lasts as long as the router runs, or until `abandon`.

    There are two kinds: a `KeptRoute` keeps each message until it is settled; a `BatchRoute` keeps none, and is fast.
    """

    __slots__ = (
        "_generation",
        "_generations",
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
        self._generations: Generations | None = None
        self._generation = 0

    @property
    def connections(self) -> tuple[Connection, ...]:
        """The connections from which it receives, and to which it sends."""
        return (self.source.connection, *self.routing.connections)

    async def run(self) -> None:
        """Route arriving messages, until cancelled or abandoned."""
        with self._scope:
            self.routing.turn.begin()
            await self._route_arriving()

    @abstractmethod
    async def _route_arriving(self) -> None:
        """Route arriving messages; never return."""

    # --- from one route to its successor ---

    def hand_over(self, successor: Route) -> None:
        """Hand the source, and all messages that were not started, to a route of the same subject.

        Started messages are still routed here; those that fail and are retried are handed over with what is known of
        them. Messages that arrive from now on wait for `run` of the successor, so order is kept. If the successor reads
        from another connection, messages are received here until the subscription has ended, and only then handed over.
        A route from a stream hands nothing over: it ends, and the source of its successor continues from there
        (`Source.go_on`).
        """
        generations = self._generations or Generations()
        generations.latest = successor
        self._generations = successor._generations = generations
        successor._generation = self._generation + 1
        if self.source.hand_over(successor.source):
            self._pass_on_rest()
        self.close_intake()

    @property
    def has_successor(self) -> bool:
        """Return True if a successor receives messages."""
        return self._generations is not None and self._generations.latest_of(self) is not None

    def _pass_on_rest(self) -> None:
        """Have all messages that were not started routed by the successor, if there is one."""
        if self.has_successor:
            self.pass_on(self._take_back())

    def pass_on(self, waiting: Batches) -> bool:
        """Have messages routed by the latest successor. Return False if there is none that receives messages."""
        successor = None if self._generations is None else self._generations.latest_of(self)
        if successor is None:
            return False
        waiting = [batch.for_later(successor._generation - self._generation) for batch in waiting]
        count = sum(len(batch.messages) for batch in waiting)
        self.state.received -= count
        successor.state.received += count
        successor._go_on_with(waiting)
        return True

    @abstractmethod
    def _take_back(self) -> Batches:
        """Take out all messages that were not started."""

    @abstractmethod
    def _go_on_with(self, waiting: Batches) -> None:
        """Route these messages, which were received before all others, first. No message passes them."""

    # --- the end ---

    def close_intake(self) -> None:
        """Receive nothing more; received messages are still routed."""
        self.source.close()

    async def idle(self) -> None:
        """Wait until nothing more is received, and every message is routed, handed over, or returned to its source."""
        await self.source.over()
        self._pass_on_rest()
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
        self._pass_on_rest()
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
