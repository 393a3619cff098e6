"""A running router: the object that a program gets from `Router.open()`."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any

import trio

from router_trio.client.receipt import Receipt
from router_trio.client.registry import Registry
from router_trio.connection.supervisor import Connection
from router_trio.errors.quotes import excerpt
from router_trio.protocol.headers import HeadersLike
from router_trio.settings import Settings
from router_trio.settings.problems import no_route, suggestion
from router_trio.settings.reload.state import ConfigState
from router_trio.states import RouteState
from router_trio.telemetry.http.status import status

if TYPE_CHECKING:
    from router_trio.audit.audit import Range
    from router_trio.audit.outcomes import Found
    from router_trio.audit.report import Report


class Live:
    """Publish messages, and read the state of the router, which never blocks."""

    def __init__(
        self,
        name: str,
        registry: Registry,
        reload: Callable[[Settings | Callable[[], Settings]], Awaitable[None]],
        config: ConfigState,
    ) -> None:
        """`reload` carries out `Live.reload`."""
        self.name = name
        self.connections: dict[str, Connection] = registry.connections
        self.config: ConfigState = config
        """The configuration in force, and the problems of the last reload if it was refused."""
        self.fatal: str | None = None
        self.http_address: tuple[str, int] | None = None
        self.unsettled: int = 0
        """Messages that had no confirmed fate at the shutdown, or were received and never routed.

        Messages of streams are not included, because those returned by the shutdown are redelivered.
        """
        self._opened_at = trio.current_time()
        self._registry = registry
        self._reload = reload

    @property
    def routes(self) -> tuple[RouteState, ...]:
        """The routes of the settings, followed by removed ones that still have messages in hand."""
        return self._registry.routes

    async def publish(
        self, subject: str, payload: bytes, headers: HeadersLike = None, connection: str | None = None
    ) -> Receipt:
        """Publish to core NATS. The receipt's `status` is `sent`, `queued` or `failed_open`.

        `connection` may be omitted if there is only one. Blocks only while the queue is full: if connected, until the
        wire has accepted something; if not, only with `on_pending_full = "block"`. If cancelled, nothing was accepted.

        Raises `PublishError`: too large, an invalid subject or header, a full queue that rejects.
        """
        return await self._registry.publisher(connection).publish(subject, payload, headers)

    async def publish_with_ack(
        self,
        subject: str,
        payload: bytes,
        headers: HeadersLike = None,
        connection: str | None = None,
        timeout: float = 5.0,  # noqa: ASYNC109 - when it passes the operation fails, which a cancel scope can't say
        stream: str | None = None,
    ) -> Receipt:
        """Publish to JetStream and wait for the PubAck, for at most `timeout` seconds. Status `acked`.

        A PubAck counts if it is from a stream that takes the subject. If the server maps the subject to another one,
        pass the name of the `stream` that stores it.

        If not connected, or if the link is lost while waiting, the status is `queued`, and `settled()` returns the ack
        when it arrives after the reconnect; in fail-open mode it is `failed_open`. A `Nats-Msg-Id` is added if there is
        none, so that a resent message is stored once. If cancelled while waiting, the message stays accepted.

        Raises `PublishError` as `publish` does, and if the stream refuses the message or no answer arrives in time;
        `ValueError` for a negative timeout, before anything is accepted.
        """
        return await self._registry.publisher(connection).publish_with_ack(subject, payload, headers, timeout, stream)

    async def reload(self, settings: Settings | Callable[[], Settings]) -> None:
        """Change to other settings while messages are routed: only what differs is stopped, drained and started again.

        Returns when that is done, and new parts have tried to connect and to subscribe. `settings` may be a function
        that reads them, which runs in a thread. Routes added by `Router.route` remain. A reload waits for the previous
        one; of several that wait, only the last is carried out, for all their callers. If cancelled, it is carried out
        nevertheless.

        Raises `ConfigurationError` for settings that can't be used, including a handler that can't be imported: then
        nothing has changed.
        """
        await self._reload(settings)

    async def audit(
        self,
        route: str,
        wanted: Range | None = None,
        *,
        rate: float = 0,
        repair: bool = False,
        more_than_routed: bool = False,
    ) -> Report:
        """Compare the source of a route with its destinations, message by message, as `router-trio audit` does.

        Opens links of its own. `wanted` selects messages, all by default. `rate` limits the messages that are read in a
        second. With `repair`, missing copies are published, and the report is that of the audit after it; copies of
        more messages than the route has ever got only with `more_than_routed`. Blocks for as long as it takes to read
        both; can be cancelled.

        Raises `ValueError` for a route that does not exist or reads no stream, for a range that is too long and for a
        repair that is not allowed; `SourceError` and `LinkError`.
        """
        from router_trio.audit.audit import EVERYTHING, Audit, connections_of
        from router_trio.audit.repair import accept, refuse, repaired
        from router_trio.nats.command_link import open_links

        settings, wanted = self.config.settings, wanted or EVERYTHING
        found = next((one for one in settings.routes if one.name == route and one.source.kind.is_stored), None)
        if found is None:
            known = [one.name for one in settings.routes if one.source.kind.is_stored]
            raise ValueError(f"no route {excerpt(route)!r} reads a stream; {suggestion(route, known)}")
        async with open_links(settings, "audit", connections_of(found)) as links:
            if repair:
                confirm = accept if more_than_routed else refuse
                return (await repaired(settings, found, links, wanted, rate=rate, confirm=confirm))[0]
            return await Audit(settings, found, links, rate=rate).run(wanted)

    async def find(
        self, subject: str, sequence: int | None = None, *, former_names: Mapping[str, str] | None = None
    ) -> Found:
        """Find a message, and what became of it in each route, as `router-trio find` does.

        Returns the last message with this subject, or the one with this sequence, of each stream that a route reads and
        that has one. `former_names` are the names that renamed routes had when they made the copies, by today's name.
        What can't be read is listed in `unread`, and what it could have shown is unknown. Opens links of its own, and
        blocks for as long as it takes to read the streams; can be cancelled.

        Raises `SubjectError` if the subject is not valid, `ValueError` if no route reads a stream or one that is named
        does not exist, and `LinkError` if a link is lost.
        """
        from router_trio.audit.find import Finder, connections_for
        from router_trio.nats.command_link import open_links
        from router_trio.subjects.patterns import validate_subject

        validate_subject(subject)
        settings, unreachable = self.config.settings, dict[str, str]()
        names = connections_for(settings, subject)
        if not names:
            raise ValueError("no route reads a stream, so no message is stored")
        known = {route.name: None for route in settings.routes}
        for name in {*(former_names or ())} - known.keys():
            raise ValueError(no_route(name, known))
        async with open_links(settings, "find", names, unreachable) as links:
            return await Finder(settings, links, unreachable, former_names).find(subject, sequence)

    def ledger(self) -> dict[str, dict[str, Any]]:
        """Return the ledger of each connection. `accepted = pending + in_flight + settled`, always."""
        return {
            name: {
                "accepted": connection.outbox.ledger.accepted,
                "pending": connection.outbox.pending,
                "in_flight": connection.outbox.in_flight,
                "settled": dict(connection.outbox.ledger.settled),
            }
            for name, connection in self.connections.items()
        }

    def status(self) -> dict[str, Any]:
        """Return what `/status` shows: the configuration, connections, routes and ledgers."""
        return status(self, trio.current_time() - self._opened_at)


def registry_of(live: Live) -> Registry:
    """Return the registry of an open router, for those who offer the same in another way."""
    return live._registry
