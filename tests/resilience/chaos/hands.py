"""Which router has a message in hand, as its links show: a message in no hand is lost with a stream in memory."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from router_trio.protocol.framing import RawMessage
from tests.resilience.chaos.load import numbers


class Hands:
    """Messages of streams that routers have in hand, by the number in their payload.

    A router has a message from its delivery by a link until it is returned to its stream: by a nak, because the
    destination refused it, or because the router ends. Messages that have arrived are no longer looked up here.
    """

    def __init__(self) -> None:
        self._holders: dict[int, object] = {}
        self._answered_at: dict[bytes, list[int]] = {}

    def __contains__(self, message: int) -> bool:
        return message in self._holders

    def brought(self, holder: object, batch: Sequence[RawMessage]) -> None:
        """Record deliveries by a link of this router."""
        for raw in batch:
            found = numbers(raw[4])
            self._answered_at[raw[1]] = found
            self._holders.update(dict.fromkeys(found, holder))

    def sent_back(self, messages: Iterable[int]) -> None:
        """Record messages that a destination refused for good: they are to be redelivered from their stream."""
        for message in messages:
            self._holders.pop(message, None)

    def answered(self, reply: bytes) -> None:
        """Record that the delivery with this reply subject was nak'ed or terminated."""
        self.sent_back(self._answered_at.get(reply, ()))

    def left(self, holder: object) -> None:
        """Record that a router has ended: its undelivered messages are returned to their stream."""
        self._holders = {message: other for message, other in self._holders.items() if other is not holder}
