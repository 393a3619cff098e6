"""Sources: the interface between a route and a subject, a stream, or another origin of messages.

A source receives messages, on one link after another, until it is closed. A route that keeps its messages until they
are settled has a source with a `Keeper`, which defines what an ack, a nak and the end of the route mean there.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Coroutine, Sequence
from math import inf
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from router_trio.connection.latch import Latch
from router_trio.connection.supervisor import Connection
from router_trio.errors import SourceError
from router_trio.events import Emit
from router_trio.link import Link
from router_trio.routing.pipeline import Routing
from router_trio.routing.resubscribe import SourceRetry
from router_trio.routing.source_status import SourceStatus
from router_trio.states import STARTING, RouteState

if TYPE_CHECKING:
    from router_trio.routing.dead_letters import DeadLetters
    from router_trio.routing.keeper import Keeper
    from router_trio.routing.route_plans import RoutePlan

K = TypeVar("K", bound="Keeper[Any, Any]", covariant=True)


class Source(ABC):
    """The source of one route. `serve` receives on each link, until `retire`."""

    __slots__ = (
        "_closing",
        "_connection",
        "_emit",
        "_over",
        "_retry",
        "_routing",
        "_status",
        "first_try_over",
        "look",
        "state",
    )

    def __init__(
        self, routing: Routing, connection: Connection, emit: Emit, status: SourceStatus | None = None
    ) -> None:
        """`status` takes what the source reports of itself; by default the state of the route does."""
        self.state: RouteState = routing.state
        self._routing = routing
        self._connection = connection
        self._emit = emit
        self._status: SourceStatus = routing.state if status is None else status
        self._retry = SourceRetry(self._status, connection, emit, self._described)
        self.first_try_over: Latch = self._retry.first_try_over
        """Set after the first attempt to receive, whether it succeeded or not."""
        self.look: Callable[[], object] = _nothing
        """Request more messages if there is room: one has left the hand. An attribute, to save a call."""
        self._closing = Latch()
        self._over = Latch()
        self._over.set()

    def serve(self, link: Link, tried: Latch) -> Coroutine[Any, Any, None]:
        """Receive from this link; retry with growing delays when the source is lost."""
        return self._retry.keep_receiving(self._receive, link, tried, self._closing)

    @abstractmethod
    async def _receive(self, link: Link, tried: Latch) -> None:
        """Receive until the source is closed, and then the messages that are on their way.

        Raises `SourceError` if the source does not exist or is lost. `tried` is set (by `SourceRetry.tried`) when the
        link need not wait for this any more.
        """

    def _described(self, error: SourceError) -> str:
        """Return the text of a failure to subscribe, with the cause if it is known."""
        return str(error)

    def _receiving_begins(self) -> None:
        """Mark the begin of the time in which messages may be received, until `_receiving_ends`.

        These are two methods, since a context manager would take memory as long as the route is idle.
        """
        self._over = Latch()

    def _receiving_ends(self, afterwards: str) -> None:
        """Mark the end of that time. `afterwards` is the reason why no message is received after it."""
        self._over.set()
        self._status.enter(STARTING, afterwards)

    # --- the end ---

    def close(self) -> None:
        """Receive nothing more, except for messages on their way."""
        self._closing.set()

    @property
    def connection(self) -> Connection:
        """The connection from which messages are received."""
        return self._connection

    @property
    def closed(self) -> bool:
        """Return True if nothing more is received, except for messages on their way."""
        return self._closing.is_set()

    async def over(self) -> None:
        """Wait until nothing more is received."""
        await self._over.wait()

    def keep_lead(self) -> float:
        """Keep other processes from taking over while messages are in hand. Return the seconds that this lasts."""
        return inf

    def give_up_lead(self) -> None:  # noqa: B027 - most sources have no lead
        """Let another process take over at once, since nothing is in hand any more."""

    def retire(self) -> None:
        """Stop reading from links and stop listening, since the route has ended and the router goes on."""
        self._connection.detach(self)

    @property
    def scheduled_in(self) -> Sequence[tuple[str, str]]:
        """The streams and prefixes in which retries are scheduled that this source receives."""
        return ()

    async def count_scheduled(self, place: tuple[str, str]) -> int | None:
        """Return how many retries are scheduled in one of them; None if that can't be counted."""
        raise NotImplementedError

    # --- settings that change ---

    def stays(self, plan: RoutePlan, *, reconnects: bool) -> bool:
        """Return True if a source for other settings continues everything that is in hand here.

        Then the route need not end. `plan` has the same connection for its source, and `reconnects` is True if this or
        that of a destination ends and is made again.
        """
        return False

    def settles_first(self, plan: RoutePlan) -> bool:
        """Return True if what is sent has to be settled before the route has these settings."""
        return False

    async def make_way(self) -> None:
        """Receive nothing more, so that a source for other settings can continue."""
        self.close()
        await self.over()

    def go_on(
        self, routing: Routing, connection: Connection, dead_letters: DeadLetters | None
    ) -> KeptSource[Any] | None:
        """Return a source for a route with other settings that continues where this one, which has ended, stopped.

        Return None if it would read from elsewhere, or if nothing outlives the end; the caller then creates a new one.
        """
        return None


class KeptSource(Source, Generic[K]):
    """A source of messages that are kept until they are settled."""

    keeper: K


def _nothing() -> None:
    """Do nothing: the `look` of a source that requests no messages."""
