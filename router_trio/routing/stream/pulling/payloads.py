"""Handle messages whose payloads the server may have omitted because the durable was edited (`headers_only`).

Only a header distinguishes them from empty messages, and a sender may set that header too. So such messages, and all
deliveries behind them, are left to the stream until the consumer was seen to deliver payloads. Then they are
redelivered, and accepted as they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from operator import eq, itemgetter

from router_trio.protocol import headers
from router_trio.protocol.framing import RawMessage, header_block
from router_trio.routing.stream.delivery import StreamDelivery

MSG_SIZE = b"Nats-Msg-Size"
"""The header with the size of an omitted payload."""

_header_size, _size = itemgetter(2), itemgetter(3)


class Payloads:
    """The deliveries of one durable that are not accepted yet: `doubtful`, at most as many as were requested."""

    def __init__(self) -> None:
        self.doubtful: list[StreamDelivery] = []
        self._awaited: set[int] = set()
        """Messages whose redelivery is being requested: those sent meanwhile are not accepted before them."""
        self._never_had: set[tuple[int, bytes]] = set()

    @property
    def unverified(self) -> bool:
        """Return True while deliveries are kept, or their redelivery is being requested."""
        return bool(self.doubtful or self._awaited)

    def reset(self) -> None:
        """Forget all, since the consumer is reopened and redelivers unacked messages."""
        self.doubtful.clear()
        self._awaited.clear()
        self._never_had.clear()

    def sift(
        self, deliveries: Sequence[StreamDelivery], batch: Sequence[RawMessage]
    ) -> tuple[Sequence[StreamDelivery], Sequence[StreamDelivery]]:
        """Return the deliveries of a batch to accept, nearly always all, and those that are kept.

        The first delivery that may lack its payload is kept, and all behind it but the awaited ones.
        """
        if not (self.doubtful or self._awaited):
            if True not in map(eq, map(_header_size, batch), map(_size, batch)):
                return deliveries, ()
            doubtful = (index for index, delivery in enumerate(deliveries) if self._is_doubtful(delivery))
            first = next(doubtful, len(deliveries))
            accepted, kept = [*deliveries[:first]], [*deliveries[first:]]
        else:
            accepted, kept = [], []
            for delivery in deliveries:
                if delivery.sequence not in self._awaited:
                    kept.append(delivery)
                elif self._is_doubtful(delivery):
                    self._awaited.clear()  # the durable was edited again
                    kept.append(delivery)
                else:
                    self._awaited.remove(delivery.sequence)
                    accepted.append(delivery)
        self.doubtful += kept
        return accepted, kept

    def confirm(self, count: int) -> list[int]:
        """Accept the first `count`, since the consumer delivers payloads now. Return the sequences to redeliver.

        Call `requested_again` when the server has processed that request.
        """
        confirmed = self.doubtful[:count]
        self._never_had.update(_place(delivery) for delivery in confirmed if _is_bare(delivery))
        del self.doubtful[:count]
        again = sorted({delivery.sequence for delivery in confirmed})
        self._awaited.update(again)
        return again

    def requested_again(self) -> None:
        """Stop waiting for awaited messages unless others were kept meanwhile: they are redelivered before new ones."""
        if not self.doubtful:
            self._awaited.clear()

    def _is_doubtful(self, delivery: StreamDelivery) -> bool:
        return _is_bare(delivery) and _place(delivery) not in self._never_had


def _is_bare(delivery: StreamDelivery) -> bool:
    raw = delivery.raw
    return raw[2] == raw[3] > 0 and headers.find(header_block(raw), MSG_SIZE) is not None


def _place(delivery: StreamDelivery) -> tuple[int, bytes]:
    return delivery.sequence, delivery.time
