"""Deliveries of messages that have waited for their next attempt, as the route received them at first."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from router_trio.protocol import framing
from router_trio.routing.stream.cursor import StreamCursor
from router_trio.routing.stream.deliveries import Deliveries, Read
from router_trio.routing.stream.delivery import StreamDelivery
from router_trio.routing.stream.retries.origin import Origin, without_origin


class RetriedDelivery(StreamDelivery):
    """A message that has waited. It is acked where it waited, and identified by where it came from."""

    __slots__ = ("came",)

    def __init__(self, delivery: StreamDelivery, raw: framing.RawMessage, came: Origin) -> None:
        super().__init__(
            delivery.keeper,
            delivery.cursor,
            raw,
            delivery.received_at,
            delivery.sequence,
            delivery.number,
            delivery.time,
            came.message_id,
        )
        self.came: Origin = came

    def origin(self) -> dict[str, Any]:
        return self.came.fields() | {"deliveries": self._all_deliveries}

    def in_stream(self) -> dict[str, Any]:
        came = self.came
        return {
            "stream": came.stream,
            "sequence": came.sequence,
            "deliveries": self._all_deliveries,
            "time_ns": came.time_ns,
        }

    @property
    def _all_deliveries(self) -> int:
        return self.came.deliveries + self.deliveries

    @property
    def place_in_stream(self) -> int:
        return self.came.sequence


class RetriedDeliveries(Deliveries):
    """Reads the deliveries of the durable for due retries."""

    def read(self, batch: Sequence[framing.RawMessage], cursor: StreamCursor, now: float) -> Read:
        """Return the deliveries in a batch, restored, and the other messages.

        A message without an origin, which another client has published, is a delivery of its own.
        """
        deliveries, columns, others = self.one_by_one(batch, cursor, now)
        return [self._restored(delivery, cursor) for delivery in deliveries], columns, others

    def _restored(self, delivery: StreamDelivery, cursor: StreamCursor) -> StreamDelivery:
        raw = delivery.raw
        found = without_origin(framing.header_block(raw), self._keeper.numbering)
        if found is None:
            return delivery
        came, block = found
        if not cursor.knows(delivery.sequence):
            self._keeper.state.fired += 1
            cursor.failures.restore(delivery.sequence, came.failed)
        frame = framing.publish(came.subject, framing.payload(raw), reply=raw[1], headers=block)
        return RetriedDelivery(delivery, framing.published(frame), came)
