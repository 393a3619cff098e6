"""Acks and naks of one route: sent on the link that is there, and counted.

Where one ack is for many (`ack_all`), what is settled is acked when all before it is: see `SettledPrefix`.

The subject of an ack outlives the connection that its message came on. An ack that meets no link is owed, and paid on
the next one; a nak is not: the message comes again all the same. Only where others wait for it, it is said again.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import suppress

import trio

from router_trio.connection.supervisor import Connection
from router_trio.errors import LinkError
from router_trio.events import AckFailed, Emit, NakFailed
from router_trio.link import Link
from router_trio.routing.stream.cursor import StreamCursor
from router_trio.routing.stream.delivery import StreamDelivery
from router_trio.routing.stream.settled_prefix import SettledPrefix
from router_trio.routing.stream.subject_order import Awaited


class Acks:
    """What a route answers to its stream. Every method is synchronous; none raises."""

    def __init__(self, route: str, connection: Connection, emit: Emit, *, ack_all: bool) -> None:
        self._route = route
        self._connection = connection
        self._counters = connection.outbox.counters
        self._emit = emit
        self._unsent: list[bytes] = []
        self._prefix = SettledPrefix() if ack_all else None

    def on(self, connection: Connection) -> Acks:
        """Answer on this connection from now on, which may be the same: what is owed is sent there."""
        self._connection = connection
        self._counters = connection.outbox.counters
        return self

    def ack(self, deliveries: Sequence[StreamDelivery], ack_at: Sequence[bytes], cursor: StreamCursor) -> None:
        """These need not come again. `ack_at`: where to ack those that are of the stream as `cursor` has it."""
        if self._prefix is not None:
            ack_at = self._prefix.to_ack(deliveries, cursor, trio.current_time())
        link = self._connection.link
        failed = [(reply, _not_connected()) for reply in ack_at] if link is None else link.ack(ack_at)
        self._counters.succeeded["ack"] += len(ack_at) - len(failed)
        for reply, error in failed:
            self._unsent.append(reply)
            self._failed("ack", AckFailed, error)

    def ack_again(self, deliveries: Sequence[StreamDelivery], cursor: StreamCursor, ack_wait: float) -> None:
        """These came again though they are settled. What can't be acked yet is to come later."""
        self.ack(deliveries, [delivery.ack_subject for delivery in deliveries], cursor)
        if self._prefix is not None:
            for ack_subject, delay in self._prefix.come_later(deliveries, ack_wait):
                self.nak(ack_subject, delay)

    def ack_given_up(self, delivery: StreamDelivery, reason: str, cursor: StreamCursor) -> None:
        """This one must not come again. Where one ack is for many, so would a `term` be."""
        if self._prefix is None:
            self.term(delivery.ack_subject, reason)
        else:
            self.ack([delivery], (), cursor)

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
        if self._prefix is not None:
            self._prefix.forget_all()

    def _failed(self, operation: str, event: type[AckFailed] | type[NakFailed], error: LinkError) -> None:
        self._counters.failed[operation, error.reason] += 1
        self._emit(
            event(at=trio.current_time(), connection=self._connection.name, route=self._route, reason=error.reason)
        )


def _not_connected() -> LinkError:
    return LinkError("not connected", reason="not_connected")
