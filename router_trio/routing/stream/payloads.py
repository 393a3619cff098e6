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
from router_trio.routing.stream.delivery import place_of

MSG_SIZE = b"Nats-Msg-Size"
"""The header with the size of the payload that was left out."""

_header_size, _size = itemgetter(2), itemgetter(3)


class Payloads:
    """What came from one durable and is not taken yet. `doubtful` are no more messages than were asked for."""

    def __init__(self) -> None:
        self.doubtful: list[RawMessage] = []
        self._never_had: set[bytes] = set()

    def start_anew(self) -> None:
        """The consumer is opened again, and delivers again what is not acked."""
        self.doubtful.clear()
        self._never_had.clear()

    def sift(self, batch: Sequence[RawMessage]) -> Sequence[RawMessage]:
        """Keep the first message that may have lost its payload, and all behind it. Returns the rest: mostly all.

        Statuses are never kept.
        """
        if not self.doubtful:
            if True not in map(eq, map(_header_size, batch), map(_size, batch)):
                return batch
            if not any(map(self._is_doubtful, batch)):
                return batch
        taken = []
        for raw in batch:
            if raw[1] and (self.doubtful or self._is_doubtful(raw)):
                self.doubtful.append(raw)
            else:
                taken.append(raw)
        return taken

    def confirm(self, count: int) -> Sequence[RawMessage]:
        """The consumer delivers payloads, and so many were here before it was asked. Returns these: they come again."""
        confirmed = self.doubtful[:count]
        self._never_had.update(place_of(raw[1]) for raw in confirmed if _is_bare(raw))
        del self.doubtful[:count]
        return confirmed

    def _is_doubtful(self, raw: RawMessage) -> bool:
        return _is_bare(raw) and place_of(raw[1]) not in self._never_had


def _is_bare(raw: RawMessage) -> bool:
    return bool(raw[1]) and raw[2] == raw[3] > 0 and headers.find(header_block(raw), MSG_SIZE) is not None
