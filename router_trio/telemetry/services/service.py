"""Answers requests to a NATS service (ADR-32) on the connections of a router.

Anyone in the account may send these requests, and chooses the reply subject. So their rate is limited, and answers are
sent only to inboxes of clients: elsewhere the requester would publish with the permissions of the router.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import ExitStack, suppress
from platform import node

import trio

from router_trio.connection.latch import Latch
from router_trio.connection.platform import Platform
from router_trio.connection.responses import Responses
from router_trio.errors import SourceError, reasons
from router_trio.events import Emit, ServiceNotOffered
from router_trio.link import Link
from router_trio.protocol.framing import RawMessage, text
from router_trio.protocol.metadata import package_version
from router_trio.routing.policy.limit import Limit
from router_trio.subjects.inboxes import SHARED
from router_trio.subjects.patterns import is_valid_subject
from router_trio.telemetry.pieces import in_pieces
from router_trio.telemetry.services.answers import Instance, answer_pieces, kind_of
from router_trio.telemetry.view import RouterView

MOST_A_SECOND = 20
"""Maximum number of requests a second that are answered on one connection. Others are ignored."""

REST = 4.0
"""Time for routing between pieces of an answer, as a multiple of the time that a piece took."""

REMEMBERED = 5.0
"""Seconds for which a request is remembered that was answered, so that it is not answered on another link as well."""

MOST_REMEMBERED = 256
"""Requests that are remembered."""

Request = tuple[bytes, bytes]
"""The subject and the reply subject of a request. Its payload, which its sender may make large, is not kept."""


class Service:
    """A process as an instance of the service, on all of its connections."""

    def __init__(self, platform: Platform, worker: int | None = None) -> None:
        """`worker` is the number of this process, if it is one of several workers."""
        metadata = {"host": node(), "pid": str(os.getpid())}
        if worker is not None:
            metadata["worker"] = str(worker)
        self.instance: Instance = Instance(platform.token_hex(8), package_version(), platform.wall_clock(), metadata)
        self.turn: trio.Lock = trio.Lock()
        """Held while an answer is computed, so that those of several connections do not add up."""
        self._answered: dict[Request, tuple[object, float]] = {}

    def is_answered_elsewhere(self, request: Request, here: object) -> bool:
        """Return True if the same request arrived on another link before; else remember that this one answers it.

        Connections to the same account receive the same requests, and so do two links while one is being left. `here`
        identifies the link; it is not the link itself, which would be kept in memory after its loss.
        """
        now = trio.current_time()
        other, at = self._answered.pop(request, (here, now))
        if other is not here and now < at + REMEMBERED:
            self._answered[request] = other, at
            return True
        self._answered[request] = here, now
        if len(self._answered) > MOST_REMEMBERED:
            del self._answered[next(iter(self._answered))]
        return False


class ServedConnection:
    """Answers on the links of one connection. A `session.Source`."""

    def __init__(
        self,
        connection: str,
        service: Service,
        view: Callable[[], RouterView],
        never_replied_to: Callable[[], tuple[bytes, ...]],
        responses: Responses,
        emit: Emit,
    ) -> None:
        """`never_replied_to` are the prefixes of inboxes of this router: see `subjects.inboxes`."""
        self._connection = connection
        self._service = service
        self._view = view
        self._never_replied_to = never_replied_to
        self._responses = responses
        self._emit = emit
        self._limit = Limit(MOST_A_SECOND, 1, MOST_A_SECOND)
        self._reported = False

    async def serve(self, link: Link, tried: Latch) -> None:
        """Answer requests on this link until cancelled, or until the server refuses a subscription or an answer."""
        tried.set()  # nothing waits for it
        # Not shared with another link of this connection, which may be served at the same time.
        send, requests = trio.open_memory_channel[Request](MOST_A_SECOND)

        def deliver(batch: list[RawMessage]) -> None:
            now = trio.current_time()
            for raw in batch:
                if self._limit.available(now) < 1:
                    return
                self._limit.charge(1, now)
                with suppress(trio.WouldBlock):
                    send.send_nowait((raw[0], raw[1]))

        here = object()
        # The subscriptions end first: nothing is delivered to a closed channel.
        with send, requests, ExitStack() as subscriptions:
            try:
                for subject in self._service.instance.subjects:
                    subscriptions.callback((await link.subscribe(subject, deliver)).close)
            except SourceError as error:
                self._report(error.reason, str(error))
                return
            async for request in requests:
                denied = await self._answer(link, here, request)
                if denied is not None:
                    self._report(reasons.PERMISSION_DENIED, denied)
                    return

    async def _answer(self, link: Link, here: object, request: Request) -> str | None:
        """Answer one request. Return the words with which the server denied it, or None."""
        subject, reply = request
        kind = kind_of(subject)
        if kind is None or not self._may_answer_at(reply) or self._service.is_answered_elsewhere(request, here):
            return None
        async with self._service.turn:
            pieces = answer_pieces(kind, self._service.instance, self._view(), link.max_payload)
            payload = await in_pieces(pieces, REST)
        if len(payload) > link.max_payload:
            return None
        return await self._responses.respond(link, reply, payload)

    def _may_answer_at(self, reply: bytes) -> bool:
        return (
            reply.startswith(SHARED)
            and not reply.startswith(self._never_replied_to())
            and is_valid_subject(text(reply))
        )

    def _report(self, reason: str, detail: str) -> None:
        """Report once that the service is not offered on this connection."""
        if not self._reported:
            self._reported = True
            self._emit(
                ServiceNotOffered(at=trio.current_time(), connection=self._connection, reason=reason, detail=detail)
            )
