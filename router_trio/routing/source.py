"""Where the messages of a route come from: the seam between a route and a subject, a stream, or what comes later.

A source receives, on one link after the other, until it is closed. A route that keeps its messages until they have
their fate has a source with a `Keeper`, which says what becomes of a message there: what an ack, a nak and the end of
the route mean.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from math import inf
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import trio

from router_trio.connection.shared_subscription import Member
from router_trio.connection.supervisor import Connection
from router_trio.events import Emit
from router_trio.link import Link
from router_trio.routing.pipeline import Routing
from router_trio.routing.resubscribe import SourceRetry
from router_trio.states import STARTING, RouteState

if TYPE_CHECKING:
    from router_trio.routing.dead_letters import DeadLetters
    from router_trio.routing.keeper import Keeper

K = TypeVar("K", bound="Keeper[Any, Any]", covariant=True)


class Source(ABC):
    """The source of one route. `serve` receives, on each link; it ends with `retire`."""

    def __init__(self, routing: Routing, connection: Connection, emit: Emit) -> None:
        self.state: RouteState = routing.state
        self._routing = routing
        self._connection = connection
        self._emit = emit
        self._retry = SourceRetry(routing.state, connection, emit)
        self.first_try_over: trio.Event = self._retry.first_try_over
        """Set once it has tried to receive, with or without success."""
        self.look: Callable[[], object] = _nothing
        """Ask for more if there is room: something has left the hand. An attribute, so that no call comes between."""
        self._closing = trio.Event()
        self._over = trio.Event()
        self._over.set()

    async def serve(self, link: Link, tried: trio.Event) -> None:
        """See `session.Source`: receive from this link, and again with growing delay when the source is lost."""
        await self._retry.keep_receiving(self._receive, link, tried, self._closing)

    @abstractmethod
    async def _receive(self, link: Link, tried: trio.Event) -> None:
        """Receive until the source is closed, and then what is on its way.

        Raises `SourceError` if there is no source, or it is lost. `tried` is set (by `SourceRetry.tried`) when the link
        need not wait for this any more.
        """

    @contextmanager
    def _receiving(self, afterwards: str) -> Iterator[None]:
        """While it is entered, more may be received. `afterwards`: the reason why nothing is received then."""
        self._over = trio.Event()
        try:
            yield
        finally:
            self._over.set()
            self.state.enter(STARTING, afterwards)

    # --- the end ---

    def close(self) -> None:
        """Receive nothing more, but what is on its way."""
        self._closing.set()

    @property
    def closed(self) -> bool:
        """Return True if nothing more is received, or what is on its way at most."""
        return self._closing.is_set()

    async def over(self) -> None:
        """Wait until nothing more is received."""
        await self._over.wait()

    def keep_lead(self) -> float:
        """Keep other processes from taking over while messages are in hand. Return for how many seconds that lasts."""
        return inf

    def give_up_lead(self) -> None:  # noqa: B027 - most sources have no lead
        """Let another process take over at once: nothing is in hand any more."""

    def retire(self) -> None:
        """The route is over, and the router goes on: read from no link, and listen to nothing any more."""
        self._connection.detach(self)

    # --- from one route to its successor ---

    def hand_over(self, successor: Source) -> None:
        """Have another source receive from now on what this one does, without a gap. Only a subject can do that."""
        raise NotImplementedError

    def take_over(self, member: Member) -> None:
        """Receive as this member of a subscription from now on: see `hand_over`."""
        raise NotImplementedError

    def go_on(
        self, routing: Routing, connection: Connection, dead_letters: DeadLetters | None
    ) -> KeptSource[Any] | None:
        """Return the source of a route with other settings that goes on where this one, which is over, has ended.

        None if it would read from somewhere else, or if nothing outlives the end: then it begins afresh.
        """
        return None


class KeptSource(Source, Generic[K]):
    """A source of messages that are kept until they have their fate."""

    keeper: K


def _nothing() -> None:
    """For a source that asks for nothing."""
