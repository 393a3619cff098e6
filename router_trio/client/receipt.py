"""A receipt: the result of a publish that was accepted."""

from __future__ import annotations

from collections.abc import Callable

import trio

from router_trio.message import Fate
from router_trio.outbox.operation import Operation


class _Notified:
    """A function to call with the fate, in place of an event, and the event or function that waited before it."""

    __slots__ = ("_before", "_notify")

    def __init__(self, notify: Callable[[], object], before: trio.Event | _Notified | None) -> None:
        self._notify = notify
        self._before = before

    def set(self) -> None:
        """Call the function, as an event is set."""
        self._notify()
        if self._before is not None:
            self._before.set()


class Receipt:
    """The result of a publish. `status` is the state when it was returned: sent, queued, acked or failed_open.

    `stream`, `sequence` and `duplicate` are set once a PubAck has arrived. It is an `operation.Owner`.
    """

    __slots__ = ("_outcome", "status")

    def __init__(self) -> None:
        self.status: str = ""
        # One slot for both, since each waiting publish has a receipt: the fate, and before it the event that is set
        # with it.
        self._outcome: Fate | trio.Event | _Notified | None = None

    @property
    def fate(self) -> Fate | None:
        """The final fate of the message, or None."""
        outcome = self._outcome
        return outcome if isinstance(outcome, Fate) else None

    async def settled(self) -> Fate:
        """Wait for the final fate. Cancelling the wait does not affect the message."""
        if self.fate is not None:
            await trio.lowlevel.checkpoint()
        while (fate := self.fate) is None:
            await self.event().wait()
        return fate

    def event(self) -> trio.Event:
        """Return an event that is set with the fate. It may be set earlier: check `fate` again then."""
        outcome = self._outcome
        if isinstance(outcome, trio.Event) and not outcome.is_set():
            return outcome
        event = trio.Event()
        if isinstance(outcome, _Notified):
            self.when_settled(event.set)
        elif isinstance(outcome, Fate):
            event.set()
        else:
            self._outcome = event
        return event

    def when_settled(self, notify: Callable[[], object]) -> None:
        """Call `notify` once, when the message has its final fate. It must not have one yet."""
        waiting = self._outcome
        assert not isinstance(waiting, Fate), "a message has one fate"
        self._outcome = _Notified(notify, waiting)

    @property
    def stream(self) -> str | None:
        """The stream that stored the message."""
        return fate.stream if (fate := self.fate) else None

    @property
    def sequence(self) -> int | None:
        """The message's sequence in that stream."""
        return fate.sequence if (fate := self.fate) else None

    @property
    def duplicate(self) -> bool:
        """True if the stream already had the message."""
        return fate.duplicate if (fate := self.fate) else False

    def settle(self, operation: Operation, count: int, fate: Fate, now: float) -> None:
        waiting, self._outcome = self._outcome, fate
        if waiting is not None:
            assert not isinstance(waiting, Fate), "a message has one fate"
            waiting.set()

    def __repr__(self) -> str:
        return f"Receipt(status={self.status!r}, fate={self.fate!r})"
