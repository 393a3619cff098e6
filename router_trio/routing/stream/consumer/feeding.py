"""Detect that the stream of a route stores what the route sends: each message would be delivered again, forever.

Circles that the configuration shows are refused when it is checked. The subjects that the server reports for the stream
are compared here, before anything is requested from it, and after each lookup, since a stream can be edited.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from router_trio.connection.source_streams import Seen
from router_trio.connection.supervisor import Connection
from router_trio.errors import SourceError, reasons
from router_trio.errors.quotes import excerpt
from router_trio.link import StreamState
from router_trio.protocol.stream_config import StreamSubjects
from router_trio.routing.pipeline import Routing
from router_trio.settings.checks.loops import feeds_itself_through

if TYPE_CHECKING:
    from router_trio.routing.dead_letters import DeadLetters


@dataclass(frozen=True, slots=True)
class _Sent:
    """A subject that a route sends to. Dead letters have no hop count, so no `hop_limit` ends their circles."""

    connection: str
    template: str
    dead: bool


@dataclass(frozen=True, slots=True)
class _Found:
    """The stream that a connection has under the name of the route's source. `why`: how the route would feed itself."""

    created: str
    stores: StreamSubjects
    why: str | None


class Feeding:
    """Compares the subjects that one route sends to with the subjects of its stream.

    A stream that is found over another connection is the same one if it was created at the same moment.
    """

    def __init__(
        self,
        routing: Routing,
        own: Connection,
        dead_letters: DeadLetters | None,
        lose: Callable[[SourceError], None],
    ) -> None:
        """`lose` is called if the edited stream has subjects that the route sends to."""
        plan = routing.plan
        others = (*routing.connections, *(() if dead_letters is None else (dead_letters.connection,)))
        self._route = plan.name
        source = plan.settings.source
        self._stream = source.kind.stream(source) or ""
        self._filters = source.subjects
        self._own = own.name
        self._lose = lose
        sent: list[_Sent] = []
        for one in () if plan.limits_hops else plan.destinations:
            sent += [_Sent(one.connection, template, False) for template in (one.template, *one.other_templates)]
        if (letter := plan.dead_letter) is not None:
            sent.append(_Sent(letter.connection, letter.template, True))
        self._sent = sent
        self._created = ""
        self._found: dict[str, _Found] = {}
        self._watched: list[tuple[Connection, Seen]] = []
        names = {one.connection for one in sent}
        for one in {one.name: one for one in others if one.name in names}.values():
            seen = partial(self._seen, one.name)
            one.destinations.sources.watch(self._stream, seen, ask=one is own)
            self._watched.append((one, seen))

    def check(self, created: str, stores: StreamSubjects) -> None:
        """Raise `SourceError` (`feeds_itself`) if the stream, as found on the connection, has what the route sends."""
        self._created = created
        self._note(self._own, created, stores)
        if self._why is not None:
            raise SourceError(self._why, reason=reasons.FEEDS_ITSELF)

    def end(self) -> None:
        """Stop listening, since the route has ended."""
        for connection, seen in self._watched:
            connection.destinations.sources.unwatch(self._stream, seen)
        self._watched.clear()

    def _seen(self, connection: str, state: StreamState | None) -> None:
        if state is None:
            self._found.pop(connection, None)
            return
        self._note(connection, state.created, state.stores)
        if self._why is not None:
            self._lose(SourceError(self._why, reason=reasons.FEEDS_ITSELF))

    def _note(self, connection: str, created: str, stores: StreamSubjects) -> None:
        before = self._found.get(connection)
        known = before is not None and before.stores == stores
        why = before.why if before is not None and known else self._compare(connection, stores)
        self._found[connection] = _Found(created, stores, why)

    @property
    def _why(self) -> str | None:
        return next((one.why for one in self._found.values() if one.why and one.created == self._created), None)

    def _compare(self, connection: str, stores: StreamSubjects) -> str | None:
        """Return how a stream stores messages sent to one connection; None if it stores none of them."""
        for one in self._sent:
            if one.connection != connection:
                continue
            subject = feeds_itself_through(stores, self._filters, one.template)
            if subject is None:
                continue
            cure = "send to other subjects or set `filter` to the subjects that the route should read"
            if not one.dead:
                cure = f"{cure.replace(' or', ',')}, or set hop_limit if it is intended"
            return (
                f"route {self._route!r} would feed itself: it sends {'dead letters ' * one.dead}to {one.template!r} on "
                f"connection {connection!r}, and the stream {self._stream!r} that it reads takes {excerpt(subject)!r}; "
                f"{cure}"
            )
        return None
