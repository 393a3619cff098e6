"""A router that is running: what a program inside `Router.open()` holds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import trio

from router_trio.client.publisher import Publisher
from router_trio.client.receipt import Receipt
from router_trio.connection.supervisor import Connection
from router_trio.errors import ConfigurationError, Problem
from router_trio.protocol.headers import HeadersLike
from router_trio.states import RouteState
from router_trio.telemetry.http.status import status


class Live:
    """Publish, and look. Looking never blocks."""

    def __init__(self, name: str, connections: dict[str, Connection], routes: Sequence[RouteState]) -> None:
        self.name = name
        self.connections = connections
        self.routes: tuple[RouteState, ...] = tuple(routes)
        self.fatal: str | None = None
        self.http_address: tuple[str, int] | None = None
        self._opened_at = trio.current_time()
        self.unsettled: int = 0
        """How many accepted messages had no confirmed fate at shutdown, and how many were received and never routed."""
        self.publishers: dict[str, Publisher] = {
            name: Publisher(connection) for name, connection in connections.items()
        }
        """For `publish`, by connection. Whoever opens the router runs them."""
        self._only = next(iter(self.publishers.values())) if len(connections) == 1 else None

    async def publish(
        self, subject: str, payload: bytes, headers: HeadersLike = None, connection: str | None = None
    ) -> Receipt:
        """Publish to core NATS. The receipt's `status` is `sent`, `queued` or `failed_open`.

        `connection` may be left out when there is only one. Blocks only while the queue is full: connected, until the
        wire has taken something; not connected, if `on_pending_full` is `block`. Cancelled, it accepted nothing.

        Raises `PublishError`: too large, an invalid subject or header, a full queue that rejects.
        """
        return await self._publisher(connection).publish(subject, payload, headers)

    async def publish_with_ack(
        self,
        subject: str,
        payload: bytes,
        headers: HeadersLike = None,
        connection: str | None = None,
        timeout: float = 5.0,  # noqa: ASYNC109 - when it passes the operation fails, which a cancel scope can't say
    ) -> Receipt:
        """Publish to JetStream and wait for the PubAck, for at most `timeout` seconds. Status `acked`.

        Not connected, or when the link is lost meanwhile: status `queued`, and `settled()` tells the ack when it comes
        after the reconnect; `failed_open` in fail-open mode. A `Nats-Msg-Id` is added if there is none, so that a
        resend is stored once. Cancelled while waiting, the message stays accepted.

        Raises `PublishError` as `publish` does, and when the stream refuses or nobody answers in time; `ValueError` for
        a negative timeout, before anything is accepted.
        """
        return await self._publisher(connection).publish_with_ack(subject, payload, headers, timeout)

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
        """Return what `/status` shows: connections, routes and ledgers."""
        return status(self, trio.current_time() - self._opened_at)

    def _publisher(self, connection: str | None) -> Publisher:
        if connection is None and self._only is not None:
            return self._only
        publisher = self.publishers.get(connection or "")
        if publisher is None:
            known = ", ".join(sorted(self.publishers))
            wrong = "name the connection" if connection is None else f"there is no connection {connection!r}"
            raise ConfigurationError([Problem("connection", f"{wrong}; there are {known}")], "publish")
        return publisher
