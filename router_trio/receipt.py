"""A receipt: what a publisher holds of a message that was accepted."""

from __future__ import annotations

from collections.abc import Sequence

import trio

from router_trio.message import Fate
from router_trio.pending import Operation


class Receipt:
    """The answer to a publish. `status` is what was true when it was given: sent, queued, acked or failed_open.

    `stream`, `sequence` and `duplicate` are set once a PubAck came.
    """

    __slots__ = ("_settled", "fate", "status")

    def __init__(self) -> None:
        self.status = ""
        self.fate: Fate | None = None
        self._settled: trio.Event | None = None

    async def settled(self) -> Fate:
        """Wait for the final fate. Cancelling the wait changes nothing for the message."""
        if self.fate is not None:
            await trio.lowlevel.checkpoint()
        while self.fate is None:
            await self.event().wait()
        return self.fate

    def event(self) -> trio.Event:
        """Set when the fate is there. May be set before that: whoever waits for it then has to look again."""
        if self._settled is None or self._settled.is_set():
            self._settled = trio.Event()
        return self._settled

    @property
    def stream(self) -> str | None:
        """The stream that stored it."""
        return self.fate.stream if self.fate else None

    @property
    def sequence(self) -> int | None:
        """Its sequence in that stream."""
        return self.fate.sequence if self.fate else None

    @property
    def duplicate(self) -> bool:
        """Whether the stream had it already."""
        return self.fate.duplicate if self.fate else False

    def settle(self, operations: Sequence[Operation], fate: Fate) -> None:
        """See `pending.Owner`."""
        self.fate = fate
        if self._settled is not None:
            self._settled.set()

    def __repr__(self) -> str:
        return f"Receipt(status={self.status!r}, fate={self.fate!r})"
