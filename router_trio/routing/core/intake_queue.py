"""Between a link's reader and a route: batches of messages that wait to be routed.

The reader never waits, so that no route can hold up another one, or the fences. What doesn't fit is refused and
counted by the route, as NATS clients do with a slow consumer.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from operator import itemgetter

import trio

from router_trio.protocol.framing import RawMessage

MAX_MESSAGES = 65_536
MAX_BYTES = 64 * 1024 * 1024
MESSAGES_IN_A_TURN = 1024

_tail = itemgetter(4)


class IntakeQueue:
    """A bounded queue of batches with one taker. `deliver` is a `link.Deliver`."""

    def __init__(self, overflow: Callable[[int], None], turn_begins: Callable[[], object] = lambda: None) -> None:
        """`turn_begins` is called each time that others have had their turn while the taker waited."""
        self._overflow = overflow
        self._turn_begins = turn_begins
        self._batches: deque[tuple[float, list[RawMessage], int]] = deque()
        self._messages = 0
        self._bytes = 0
        self._arrived = trio.Event()
        self._taken = 0
        self.busy: bool = False
        """Whether something waits, or the taker is at work on what it took."""
        self._finished = trio.lowlevel.ParkingLot()

    def __len__(self) -> int:
        return self._messages

    def deliver(self, batch: list[RawMessage]) -> None:
        """Take a batch, or as much of it as fits; the rest is told to `overflow`."""
        room = max(MAX_MESSAGES - self._messages, 0) if self._bytes < MAX_BYTES else 0
        if len(batch) > room:
            self._overflow(len(batch) - room)
        batch = batch[:room]
        if not batch:
            return
        size = sum(map(len, map(_tail, batch)))
        self._messages += len(batch)
        self._bytes += size
        self._batches.append((trio.current_time(), batch, size))
        self.busy = True
        self._arrived.set()

    async def take(self) -> tuple[float, list[RawMessage]]:
        """The oldest batch and when it arrived; waits for one. Cancelling takes nothing.

        Lets others run when it waits and after each `MESSAGES_IN_A_TURN`: many small batches are one turn.
        """
        while not self._batches:
            self._arrived = trio.Event()
            self._taken = 0
            self.busy = False
            self._finished.unpark_all()
            await self._arrived.wait()
            self._turn_begins()
        if self._taken >= MESSAGES_IN_A_TURN:
            await trio.lowlevel.checkpoint()
            self._turn_begins()
            self._taken = 0
        arrived, batch, size = self._batches.popleft()
        self._taken += len(batch)
        self._messages -= len(batch)
        self._bytes -= size
        return arrived, batch

    def let_nothing_pass(self) -> None:
        """Let nothing pass by: what comes waits here, until `take` finds nothing left."""
        self.busy = True

    def take_waiting(self) -> list[tuple[float, list[RawMessage]]]:
        """Take out everything that waits, the oldest first."""
        left = [(arrived, batch) for arrived, batch, _ in self._batches]
        self.clear()
        return left

    def put_first(self, batches: Sequence[tuple[float, list[RawMessage]]]) -> None:
        """Put batches that came before, and were accepted then, before all that waits."""
        for arrived, batch in reversed(batches):
            size = sum(map(len, map(_tail, batch)))
            self._messages += len(batch)
            self._bytes += size
            self._batches.appendleft((arrived, batch, size))
        if batches:
            self.busy = True
            self._arrived.set()

    def finish(self) -> None:
        """Nothing waits, and what the taker was at work on is not its own any more."""
        self.busy = False
        self._finished.unpark_all()

    def clear(self) -> int:
        """Forget everything that waits. Returns how many messages that were."""
        left, self._messages, self._bytes = self._messages, 0, 0
        self._batches.clear()
        return left

    async def empty(self) -> None:
        """Wait until the taker has finished every batch and asks for the next one."""
        while self.busy:
            await self._finished.park()
