"""A running router and its receipts, for tasks of asyncio.

Trio runs in the same thread, so a publish that has to wait for nothing is accepted at once, as on Trio. Waiting costs a
`Call`. All of this may be used in tasks of Trio as well: a handler has what its program has.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import trio

from router_trio.aio.guest import Call, Guest
from router_trio.client.live import Live as TrioLive
from router_trio.client.live import registry_of
from router_trio.client.receipt import Receipt as TrioReceipt
from router_trio.connection.supervisor import Connection
from router_trio.errors import PublishError, RouterError, reasons
from router_trio.message import Fate
from router_trio.protocol.headers import HeadersLike
from router_trio.settings import Settings
from router_trio.settings.reload.state import ConfigState
from router_trio.states import RouteState

if TYPE_CHECKING:
    from router_trio.audit.audit import Range
    from router_trio.audit.outcomes import Found
    from router_trio.audit.report import Report

T = TypeVar("T")
_ENDED = "the router has ended"


class Receipt:
    """The result of a publish. `status` is the state when it was returned: sent, queued, acked or failed_open.

    `stream`, `sequence` and `duplicate` are set once a PubAck has arrived.
    """

    __slots__ = ("_guest", "_receipt", "_settled")

    def __init__(self, receipt: TrioReceipt, guest: Guest) -> None:
        self._receipt = receipt
        self._guest = guest
        self._settled: asyncio.Event | None = None

    async def settled(self) -> Fate:
        """Wait for the final fate. Cancelling the wait does not affect the message.

        Raises `RouterError` if Trio has failed, and there will be no fate.
        """
        receipt = self._receipt
        if trio.lowlevel.in_trio_task():
            return await receipt.settled()
        if receipt.fate is None:
            if self._settled is None:
                self._settled = asyncio.Event()
                if not self._guest.ended.is_set():
                    self._guest.waited_for.add(self._settled)
                    receipt.when_settled(self._has_settled)
                else:
                    self._settled.set()
            await self._settled.wait()
        if receipt.fate is None:
            raise _has_ended()
        return receipt.fate

    def _has_settled(self) -> None:
        if self._settled is not None:
            self._guest.waited_for.discard(self._settled)
            self._settled.set()

    @property
    def status(self) -> str:
        """The state when the receipt was returned."""
        return self._receipt.status

    @property
    def fate(self) -> Fate | None:
        """The final fate of the message, or None."""
        return self._receipt.fate

    @property
    def stream(self) -> str | None:
        """The stream that stored the message."""
        return self._receipt.stream

    @property
    def sequence(self) -> int | None:
        """The message's sequence in that stream."""
        return self._receipt.sequence

    @property
    def duplicate(self) -> bool:
        """True if the stream already had the message."""
        return self._receipt.duplicate

    def __repr__(self) -> str:
        return repr(self._receipt)


class Live:
    """Publish messages, and read the state of the router, which never blocks."""

    def __init__(self, live: TrioLive, guest: Guest) -> None:
        self._live = live
        self._guest = guest
        self._calls: set[Call[Any]] = set()
        self._over = False

    @property
    def name(self) -> str:
        """The name of the router."""
        return self._live.name

    @property
    def connections(self) -> Mapping[str, Connection]:
        """The connections, by name."""
        return self._live.connections

    @property
    def routes(self) -> tuple[RouteState, ...]:
        """The routes of the settings, followed by removed ones that still have messages in hand."""
        return self._live.routes

    @property
    def config(self) -> ConfigState:
        """The configuration in force, and the problems of the last reload if it was refused."""
        return self._live.config

    @property
    def fatal(self) -> str | None:
        """The problem that ends the router, if there is one."""
        return self._live.fatal

    @property
    def http_address(self) -> tuple[str, int] | None:
        """Host and port of the HTTP side; None without one."""
        return self._live.http_address

    @property
    def unsettled(self) -> int:
        """Messages that had no confirmed fate at the shutdown, or were received and never routed.

        Messages of streams are not included, because those returned by the shutdown are redelivered.
        """
        return self._live.unsettled

    async def publish(
        self, subject: str, payload: bytes, headers: HeadersLike = None, connection: str | None = None
    ) -> Receipt:
        """Publish to core NATS. The receipt's `status` is `sent`, `queued` or `failed_open`.

        `connection` may be omitted if there is only one. Blocks only while the queue is full: if connected, until the
        wire has accepted something; if not, only with `on_pending_full = "block"`. If cancelled, nothing was accepted.

        Raises `PublishError`: too large, an invalid subject or header, a full queue that rejects, a router that has
        ended.
        """
        if trio.lowlevel.in_trio_task():
            return Receipt(await self._live.publish(subject, payload, headers, connection), self._guest)
        self._check(self._cannot_publish)
        registry = registry_of(self._live)
        blocked: bool | None = None
        while True:
            publisher = registry.publisher(connection)
            # Accepted here and not in a task of Trio: its answer could arrive at a task that was cancelled.
            receipt = publisher.publish_now(subject, payload, headers, blocked=blocked)
            if receipt is not None:
                return Receipt(receipt, self._guest)
            blocked = await self._call(partial(publisher.wait_for_room, blocked=bool(blocked)), self._cannot_publish)

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
        if not trio.lowlevel.in_trio_task():
            self._check(self._cannot_publish)
            publisher = registry_of(self._live).publisher(connection)
            accepted = publisher.publish_with_ack_now(subject, payload, headers, timeout, stream)
            if accepted is not None:
                receipt, wait = accepted
                answered = asyncio.Event()
                receipt.when_settled(answered.set)
                self._guest.waited_for.add(answered)
                try:
                    await wait(answered)
                finally:
                    self._guest.waited_for.discard(answered)
                if receipt.fate is None and self._guest.ended.is_set():
                    raise self._cannot_publish()
                return Receipt(receipt, self._guest)
        publish = partial(
            self._live.publish_with_ack, subject, payload, headers, connection, timeout=timeout, stream=stream
        )
        return Receipt(await self._call(publish, self._cannot_publish), self._guest)

    async def reload(self, settings: Settings | Callable[[], Settings]) -> None:
        """Change to other settings while messages are routed: only what differs is stopped, drained and started again.

        Returns when that is done, and new parts have tried to connect and to subscribe. `settings` may be a function
        that reads them, which runs in a thread. Routes added by `Router.route` remain. A reload waits for the previous
        one; of several that wait, only the last is carried out, for all their callers. If cancelled, it is carried out
        nevertheless.

        Raises `ConfigurationError` for settings that can't be used, including a handler that can't be imported: then
        nothing has changed.
        """
        await self._call(partial(self._live.reload, settings))

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
        more messages than the route has ever got only with `more_than_routed`. Takes as long as it takes to read both;
        can be cancelled.

        Raises `ValueError` for a route that does not exist or reads no stream, and for a range that is too long;
        `SourceError` and `LinkError`.
        """
        return await self._call(
            partial(self._live.audit, route, wanted, rate=rate, repair=repair, more_than_routed=more_than_routed)
        )

    async def find(
        self, subject: str, sequence: int | None = None, *, former_names: Mapping[str, str] | None = None
    ) -> Found:
        """Find a message, and what became of it in each route, as `router-trio find` does.

        Returns the last message with this subject, or the one with this sequence, of each stream that a route reads and
        that has one. `former_names` are the names that renamed routes had when they made the copies, by today's name.
        What can't be read is listed in `unread`, and what it could have shown is unknown. Opens links of its own, and
        takes as long as it takes to read the streams; can be cancelled.

        Raises `SubjectError` if the subject is not valid, `ValueError` if no route reads a stream or one that is named
        does not exist, and `LinkError` if a link is lost.
        """
        return await self._call(partial(self._live.find, subject, sequence, former_names=former_names))

    def ledger(self) -> dict[str, dict[str, Any]]:
        """Return the ledger of each connection. `accepted = pending + in_flight + settled`, always."""
        return self._live.ledger()

    def status(self) -> dict[str, Any]:
        """Return what `/status` shows: the configuration, connections, routes and ledgers.

        Raises `RouterError` after the end of the router.
        """
        self._check(_has_ended)
        return self._live.status()

    def end(self) -> None:
        """Cancel what waits for the router, because it has ended."""
        self._over = True
        for call in self._calls:
            call.cancel()

    def _check(self, ended: Callable[[], RouterError]) -> None:
        if self._over:
            raise ended()
        if asyncio.get_running_loop() is not self._guest.loop:
            raise RuntimeError("the router was opened in another event loop")

    async def _call(
        self, function: Callable[[], Awaitable[T]], ended: Callable[[], RouterError] = lambda: _has_ended()
    ) -> T:
        if trio.lowlevel.in_trio_task():
            return await function()
        self._check(ended)
        call = self._guest.call(function)
        self._calls.add(call)
        try:
            return await call.result(ended)
        finally:
            self._calls.discard(call)

    def _cannot_publish(self) -> PublishError:
        return PublishError(_ENDED, reason=reasons.SHUTDOWN)


def _has_ended() -> RouterError:
    return RouterError(_ENDED)
