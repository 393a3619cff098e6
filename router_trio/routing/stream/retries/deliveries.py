"""Deliveries of messages that have waited for their next attempt, as the route received them at first."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from router_trio.errors import reasons
from router_trio.protocol import framing
from router_trio.routing.policy.retry import Failure, GivenUp
from router_trio.routing.stream.cursor import StreamCursor
from router_trio.routing.stream.deliveries import Deliveries, Read
from router_trio.routing.stream.delivery import Keeper, StreamDelivery
from router_trio.routing.stream.retries.account import Confirmed
from router_trio.routing.stream.retries.origin import Origin, subject_left, without_origin

_NO_ORIGIN = Failure(reasons.NO_ORIGIN, "its headers do not tell where it came from")


class RetriedDelivery(StreamDelivery):
    """A message that has waited. It is acked where it waited, and identified by where it came from."""

    __slots__ = ("_created", "came")

    has_waited = True

    def __init__(
        self, delivery: StreamDelivery, raw: framing.RawMessage, came: Origin, created: Callable[[], str]
    ) -> None:
        """`created` returns when the stream was created that it came from, as far as that is known."""
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
        self._created = created

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

    @property
    def stored_at(self) -> int:
        return self.came.time_ns

    @property
    def stream_created(self) -> str:
        return self._created()


class RetriedDeliveries(Deliveries):
    """Reads the deliveries of the durable for due retries, and counts them in `confirmed`."""

    def __init__(
        self, keeper: Keeper, stream: str, durable: str, confirmed: Confirmed, created: Callable[[], str]
    ) -> None:
        """`created` returns when the stream of the route was created, as far as that is known."""
        super().__init__(keeper, stream, durable)
        self._confirmed = confirmed
        self._created = created

    def read(self, batch: Sequence[framing.RawMessage], cursor: StreamCursor, now: float) -> Read:
        """Return the deliveries in a batch, restored, and the other messages.

        A message without a valid origin, which another client has published or changed, is given up: neither its copies
        nor its attempts are known.
        """
        deliveries, columns, others = self.one_by_one(batch, cursor, now)
        return [self._restored(delivery, cursor) for delivery in deliveries], columns, others

    def _restored(self, delivery: StreamDelivery, cursor: StreamCursor) -> StreamDelivery:
        raw = delivery.raw
        found = without_origin(framing.header_block(raw), self._keeper.numbering)
        if found is None:
            return self._without_origin(delivery, cursor)
        came, block = found
        if not cursor.knows(delivery.sequence):
            self._keeper.state.fired += 1
            self._confirmed.received += 1
            cursor.failures.restore(delivery.sequence, came.failed)
        frame = framing.publish(came.subject, framing.payload(raw), reply=raw[1], headers=block)
        return RetriedDelivery(delivery, framing.published(frame), came, self._created)

    def _without_origin(self, delivery: StreamDelivery, cursor: StreamCursor) -> StreamDelivery:
        raw, given_up = delivery.raw, cursor.failures.given_up
        if subject := subject_left(framing.header_block(raw)):  # the dead letter is mapped from it
            block, body = framing.header_block(raw), framing.payload(raw)
            delivery.raw = framing.published(framing.publish(subject, body, reply=raw[1], headers=block))
        if delivery.sequence not in given_up and not cursor.knows(delivery.sequence):
            cursor.failures.give_up(delivery.sequence, GivenUp(_NO_ORIGIN, 1))
        return delivery
