"""Acks and naks of one route: sent on the link that is there, and counted.

The subject of an ack outlives the connection that its message came on. An ack that meets no link is owed, and paid on
the next one; a nak is not: the message comes again all the same. Only where others wait for it, it is said again.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import suppress

import trio

from router_trio.connection.supervisor import Connection
from router_trio.errors import LinkError, reasons
from router_trio.events import AckFailed, Emit, NakFailed
from router_trio.link import Link
from router_trio.routing.stream.subject_order import Awaited


class Acks:
    """What a route answers to its stream. Every method is synchronous; none raises."""

    def __init__(self, route: str, connection: Connection, emit: Emit) -> None:
        self._route = route
        self._connection = connection
        self._counters = connection.outbox.counters
        self._emit = emit
        self._unsent: list[bytes] = []

    def on(self, connection: Connection) -> Acks:
        """Answer on this connection from now on, which may be the same: what is owed is sent there."""
        self._connection = connection
        self._counters = connection.outbox.counters
        return self

    def ack(self, replies: Sequence[bytes]) -> None:
        """Ack the messages with these reply subjects: they need not be redelivered."""
        link = self._connection.link
        failed = [(reply, _not_connected()) for reply in replies] if link is None else link.ack(replies)
        self._counters.succeeded["ack"] += len(replies) - len(failed)
        for reply, error in failed:
            self._unsent.append(reply)
            self._failed("ack", AckFailed, error)

    def nak(self, reply: bytes, delay: float) -> None:
        """The message with this reply subject is to come again after `delay` seconds."""
        link = self._connection.link
        try:
            if link is None:
                raise _not_connected()
            link.nak(reply, delay)
        except LinkError as error:
            self._failed("nak", NakFailed, error)
        else:
            self._counters.succeeded["nak"] += 1

    def term(self, reply: bytes, reason: str) -> None:
        """The message with this reply subject is given up, and must not come again. Owed as an ack is."""
        link = self._connection.link
        try:
            if link is None:
                raise _not_connected()
            link.term(reply, reason)
        except LinkError as error:
            self._unsent.append(reply)  # an ack ends its deliveries as well
            self._failed("nak", NakFailed, error)
        else:
            self._counters.succeeded["nak"] += 1

    def flush_unsent(self, link: Link) -> None:
        """Send the acks that are owed: they were counted, as failed, when they met no link.

        Those that this link does not take either are for the next one: it is not for a route to end a link.
        """
        self._unsent = [reply for reply, _ in link.ack(self._unsent)]

    def renak(self, link: Link, awaited: Iterable[Awaited]) -> None:
        """Say again on a new link which messages are to come again, and when: they are waited for."""
        now = trio.current_time()
        with suppress(LinkError):
            for one in awaited:
                link.nak(one.ack_subject, max(0.0, one.due - now))

    def clear(self) -> None:
        """Owe nothing: the stream that the acks were for is gone, and they would ack messages of the next one."""
        self._unsent.clear()

    def _failed(self, operation: str, event: type[AckFailed] | type[NakFailed], error: LinkError) -> None:
        self._counters.failed[operation, error.reason] += 1
        self._emit(
            event(at=trio.current_time(), connection=self._connection.name, route=self._route, reason=error.reason)
        )


def _not_connected() -> LinkError:
    return LinkError("not connected", reason=reasons.NOT_CONNECTED)
