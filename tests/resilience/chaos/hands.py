"""Who has a message in hand, as links show it: what no router has dies with a stream that is kept in memory."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from router_trio.protocol.framing import RawMessage
from tests.resilience.chaos.load import numbers


class Hands:
    """Messages of streams that are in the hands of routers, by the number in their payload.

    A router has a message from the moment when a link brings it until it goes back to its stream: by a nak, because the
    destination refused it, or because the router ends. What has arrived is no longer looked for here.
    """

    def __init__(self) -> None:
        self._holders: dict[int, object] = {}
        self._answered_at: dict[bytes, list[int]] = {}

    def __contains__(self, message: int) -> bool:
        return message in self._holders

    def brought(self, holder: object, batch: Sequence[RawMessage]) -> None:
        """A link of this router brought these deliveries."""
        for raw in batch:
            found = numbers(raw[4])
            self._answered_at[raw[1]] = found
            self._holders.update(dict.fromkeys(found, holder))

    def sent_back(self, messages: Iterable[int]) -> None:
        """A destination refused these for good: they are to come again from their stream."""
        for message in messages:
            self._holders.pop(message, None)

    def answered(self, reply: bytes) -> None:
        """The delivery with this reply subject was negatively acknowledged, or terminated."""
        self.sent_back(self._answered_at.get(reply, ()))

    def left(self, holder: object) -> None:
        """A router has ended: what it had not delivered is its stream's again."""
        self._holders = {message: other for message, other in self._holders.items() if other is not holder}
