"""Acks and naks of one route: sent on the link that is there, and counted.

The subject of an ack outlives the connection that its message came on. An ack that meets no link is owed, and paid on
the next one; a nak is not: the message comes again all the same. Only where others wait for it, it is said again.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import suppress

import trio

from router_trio.connection import Connection
from router_trio.dispatch.turns import Awaited
from router_trio.errors import LinkError
from router_trio.events import AckFailed, Emit, NakFailed
from router_trio.link import Link


class Acks:
    """What a route answers to its stream. Every method is synchronous; none raises."""

    def __init__(self, route: str, connection: Connection, emit: Emit) -> None:
        self._route = route
        self._connection = connection
        self._counters = connection.outbox.counters
        self._emit = emit
        self._owed: list[bytes] = []

    def ack(self, replies: Sequence[bytes]) -> None:
        """The messages with these reply subjects are settled."""
        sent = 0
        for reply in replies:
            try:
                self._link().ack(reply)
                sent += 1
            except LinkError as error:
                self._owed.append(reply)
                self._failed("ack", AckFailed, error)
        self._counters.succeeded["ack"] += sent

    def nak(self, reply: bytes, delay: float) -> None:
        """The message with this reply subject is to come again after `delay` seconds."""
        try:
            self._link().nak(reply, delay)
        except LinkError as error:
            self._failed("nak", NakFailed, error)
        else:
            self._counters.succeeded["nak"] += 1

    def pay(self, link: Link) -> None:
        """Send the acks that are owed: they were counted, as failed, when they met no link.

        Those that this link does not take either are for the next one: it is not for a route to end a link.
        """
        with suppress(LinkError):
            while self._owed:
                link.ack(self._owed[-1])
                self._owed.pop()

    def remind(self, link: Link, awaited: Iterable[Awaited]) -> None:
        """Say again on a new link which messages are to come again, and when: they are waited for."""
        now = trio.current_time()
        with suppress(LinkError):
            for one in awaited:
                link.nak(one.ack_subject, max(0.0, one.due - now))

    def forget(self) -> None:
        """Owe nothing: the stream that the acks were for is gone, and they would ack messages of the next one."""
        self._owed.clear()

    def _link(self) -> Link:
        link = self._connection.link
        if link is None:
            raise LinkError("not connected", reason="not_connected")
        return link

    def _failed(self, operation: str, event: type[AckFailed] | type[NakFailed], error: LinkError) -> None:
        self._counters.failed[operation, error.reason] += 1
        self._emit(
            event(
                at=trio.current_time(), connection=self._connection.name, route=self._route, reason=error.reason
            )
        )
