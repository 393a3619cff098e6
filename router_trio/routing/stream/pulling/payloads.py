"""Messages whose payloads a server may have left out, since somebody has edited the durable (`headers_only`).

Only a header tells them from empty messages, and a sender may write that header too. So they are left to the stream,
with all that comes behind them, until the consumer was seen to deliver payloads: then they come again, and are taken as
they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from operator import eq, itemgetter

from router_trio.protocol import headers
from router_trio.protocol.framing import RawMessage, header_block
from router_trio.routing.stream.delivery import StreamDelivery

MSG_SIZE = b"Nats-Msg-Size"
"""The header with the size of the payload that was left out."""

_header_size, _size = itemgetter(2), itemgetter(3)


class Payloads:
    """The deliveries of one durable that are not taken yet: `doubtful`, no more than were asked for."""

    def __init__(self) -> None:
        self.doubtful: list[StreamDelivery] = []
        self._never_had: set[tuple[int, bytes]] = set()

    def reset(self) -> None:
        """The consumer is opened again, and delivers again what is not acked."""
        self.doubtful.clear()
        self._never_had.clear()

    def sift(self, deliveries: Sequence[StreamDelivery], batch: Sequence[RawMessage]) -> int:
        """Keep the first of these, of a batch, that may have lost its payload, and all behind it.

        Returns how many come before it: nearly always all.
        """
        if not self.doubtful:
            if True not in map(eq, map(_header_size, batch), map(_size, batch)):
                return len(deliveries)
            doubtful = (index for index, delivery in enumerate(deliveries) if self._is_doubtful(delivery))
            first = next(doubtful, len(deliveries))
        else:
            first = 0
        self.doubtful += deliveries[first:]
        return first

    def confirm(self, count: int) -> list[int]:
        """The consumer delivers payloads, and so many were here before it was asked. Returns which must come again."""
        confirmed = self.doubtful[:count]
        self._never_had.update(_place(delivery) for delivery in confirmed if _is_bare(delivery))
        del self.doubtful[:count]
        return [delivery.sequence for delivery in confirmed]

    def _is_doubtful(self, delivery: StreamDelivery) -> bool:
        return _is_bare(delivery) and _place(delivery) not in self._never_had


def _is_bare(delivery: StreamDelivery) -> bool:
    raw = delivery.raw
    return raw[2] == raw[3] > 0 and headers.find(header_block(raw), MSG_SIZE) is not None


def _place(delivery: StreamDelivery) -> tuple[int, bytes]:
    return delivery.sequence, delivery.time
