"""Find the deliveries of a route's consumer among the messages in its inbox, to which any client may publish.

A delivery is identified by its reply subject, to which it will be acked. An ack is a publish with the router's
permissions, so the subject has to name the route's own stream and consumer, and is never used unchecked.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import repeat
from operator import itemgetter

from router_trio.protocol import ack_reply, copies, framing
from router_trio.protocol.framing import LAST_SEQUENCE
from router_trio.routing.stream.cursor import StreamCursor
from router_trio.routing.stream.delivery import Columns, Keeper, StreamDelivery, delivery_of

FEW = 3
"""Up to this number messages are read one by one, which takes no longer."""

_reply = itemgetter(1)

Read = tuple[list[StreamDelivery], Columns, Sequence[framing.RawMessage]]
"""Deliveries, their columns, and other messages: statuses, and anything that was published to the inbox."""


class Deliveries:
    """Distinguishes deliveries of one durable from other messages. Its methods do not raise."""

    def __init__(self, keeper: Keeper, stream: str, durable: str) -> None:
        self._keeper = keeper
        self._stream = framing.wire(stream)
        consumer = framing.wire(durable)
        self._acked_at = ack_reply.prefix(self._stream, consumer)
        self._consumer = consumer
        self._pattern: re.Pattern[bytes] | None = None
        """The pattern of the reply subjects of deliveries, compiled at the first delivery: of thousands of routes, many
        may be idle."""

    def read(self, batch: Sequence[framing.RawMessage], cursor: StreamCursor, now: float) -> Read:
        """Return the deliveries in a batch, as of `cursor`, and the other messages.

        Fast path of `one_by_one`; held equal by
        tests/unit/routing/stream/test_deliveries.py::test_both_ways_to_read_a_batch_give_the_same_result, worth 90
        instructions a message (tests/performance/test_fast_paths.py::test_deliveries_that_are_read_together).
        """
        if len(batch) <= FEW:
            return self.one_by_one(batch, cursor, now)
        found = self._all(batch, cursor, now)
        if found is not None:
            return *found, ()
        others = [raw for raw in batch if not raw[1]]
        if 0 < len(others) < len(batch):
            found = self._all([raw for raw in batch if raw[1]], cursor, now)
            if found is not None:
                return *found, others
        return self.one_by_one(batch, cursor, now)

    def _all(
        self, batch: Sequence[framing.RawMessage], cursor: StreamCursor, now: float
    ) -> tuple[list[StreamDelivery], Columns] | None:
        """Return all as deliveries, if each has a reply subject of this durable with five valid numbers; else None."""
        count, keeper = len(batch), self._keeper
        replies = b".".join(map(_reply, batch))
        joined = replies.replace(self._acked_at, b"")
        if len(replies) - len(joined) != count * len(self._acked_at):
            return None
        if joined.translate(None, b"0123456789") != b"." * (ack_reply.NUMBERS * count - 1):
            return None
        tokens = joined.split(b".")
        try:
            sequences, numbers = [*map(int, tokens[1::5])], [*map(int, tokens[2::5])]
        except ValueError:
            return None
        if min(sequences) < 1 or min(numbers) < 1 or max(sequences) > LAST_SEQUENCE or max(numbers) > LAST_SEQUENCE:
            return None
        times = tokens[3::5]
        ids = map(b":".join, zip(repeat(self._stream), tokens[1::5], times))
        return [
            StreamDelivery(keeper, cursor, raw, now, sequence, number, time, message_id)
            for raw, sequence, number, time, message_id in zip(batch, sequences, numbers, times, ids, strict=True)
        ], (sequences, numbers, times)

    def one_by_one(self, batch: Sequence[framing.RawMessage], cursor: StreamCursor, now: float) -> Read:
        """Return what `read` would, for a batch with messages of several kinds."""
        deliveries: list[StreamDelivery] = []
        others: list[framing.RawMessage] = []
        sequences: list[int] = []
        numbers: list[int] = []
        times: list[bytes] = []
        if self._pattern is None and any(map(_reply, batch)):
            self._pattern = ack_reply.pattern(self._stream, self._consumer)
        for raw in batch:
            if self._pattern is not None and self._pattern.fullmatch(raw[1]):
                try:
                    delivery = delivery_of(self._keeper, cursor, raw, now)
                except ValueError:
                    pass  # not a valid number
                else:
                    deliveries.append(delivery)
                    sequences.append(delivery.sequence)
                    numbers.append(delivery.number)
                    times.append(delivery.time)
                    continue
            others.append(raw)
        return deliveries, (sequences, numbers, times), others


class CopiedDeliveries(Deliveries):
    """Deliveries from a copy of another stream, which are identified by their originals: see `protocol.copies`."""

    def __init__(self, keeper: Keeper, stream: str, durable: str, copied: copies.Copied) -> None:
        super().__init__(keeper, stream, durable)
        self._copied = copied

    def read(self, batch: Sequence[framing.RawMessage], cursor: StreamCursor, now: float) -> Read:
        found, copied = super().read(batch, cursor, now), self._copied
        for delivery in found[0]:
            original = copies.original_in(delivery.raw, copied)
            if original is not None:
                delivery.message_id = copies.first_id(delivery.raw, original, copied)
                if original.sequence > copied.highest and delivery.time.isdigit():
                    copied.highest, copied.highest_at = original.sequence, int(delivery.time)
        return found
