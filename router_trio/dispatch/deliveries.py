"""Which messages in the inbox of a route are deliveries of its consumer: whoever knows an inbox may publish to it.

A delivery is told by its reply subject, where it will be acked. An ack is a publish with the router's rights, so the
subject has to name the route's own stream and consumer, and is never taken as it comes.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from operator import itemgetter

from router_trio import protocol
from router_trio.dispatch.position import Position
from router_trio.dispatch.stream_delivery import Source, StreamDelivery

_NUMBERS = 5
"""How many numbers end the subject of an ack: see `stream_delivery`."""

_reply = itemgetter(1)

Read = tuple[list[StreamDelivery], Sequence[protocol.RawMessage]]
"""Deliveries, and the others: statuses, and whatever anybody published."""


class Deliveries:
    """Tells deliveries of one durable from everything else. Its methods do not raise."""

    def __init__(self, source: Source, stream: str, durable: str) -> None:
        self._source = source
        self._acked_at = protocol.wire(f"$JS.ACK.{stream}.{durable}.")
        domain = rb"(\.[^.]{1,255}\.[^.]{1,255})?"
        named = re.escape(protocol.wire(f".{stream}.{durable}"))
        self._delivered = re.compile(rb"\$JS\.ACK" + domain + named + rb"(\.[0-9]*){5}(\.[^.]{1,255})?")

    def read(self, batch: Sequence[protocol.RawMessage], position: Position, now: float) -> Read:
        """Return what of a batch was delivered, as of `position`, and what was not.

        Fast path of `one_by_one`; held equal by tests/unit/test_deliveries.py.
        """
        deliveries = self._all(batch, position, now)
        if deliveries is not None:
            return deliveries, ()
        others = [raw for raw in batch if not raw[1]]
        if others:
            deliveries = self._all([raw for raw in batch if raw[1]], position, now)
            if deliveries is not None:
                return deliveries, others
        return self.one_by_one(batch, position, now)

    def _all(self, batch: Sequence[protocol.RawMessage], position: Position, now: float) -> list[StreamDelivery] | None:
        """All as deliveries, if each has a reply subject with our beginning and five numbers."""
        count, source = len(batch), self._source
        replies = b".".join(map(_reply, batch))
        numbers = replies.replace(self._acked_at, b"")
        if len(replies) - len(numbers) != count * len(self._acked_at):
            return None
        if numbers.translate(None, b"0123456789") != b"." * (_NUMBERS * count - 1):
            return None
        try:
            return [StreamDelivery(source, position, raw, now) for raw in batch]
        except (ValueError, IndexError):
            return None

    def one_by_one(self, batch: Sequence[protocol.RawMessage], position: Position, now: float) -> Read:
        """See `read`."""
        deliveries: list[StreamDelivery] = []
        others: list[protocol.RawMessage] = []
        for raw in batch:
            if self._delivered.fullmatch(raw[1]):
                try:
                    deliveries.append(StreamDelivery(self._source, position, raw, now))
                    continue
                except ValueError:
                    pass  # a number that no stream has
            others.append(raw)
        return deliveries, others
