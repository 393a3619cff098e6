"""The queue between a link's reader and a route: batches of messages that wait to be routed.

The reader never waits, so no route can hold up another route or the fences. Messages that do not fit are refused and
counted by the route, as NATS clients treat a slow consumer.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from operator import itemgetter

import trio

from router_trio.connection.latch import Latch
from router_trio.protocol.framing import RawMessage
from router_trio.routing.hand_over import Batch, Batches

MAX_MESSAGES = 65_536
MAX_BYTES = 64 * 1024 * 1024
MESSAGES_IN_A_TURN = 1024

_tail = itemgetter(4)


class IntakeQueue:
    """A bounded queue of batches with one consumer. `deliver` is a `link.Deliver`."""

    __slots__ = (
        "_arrived",
        "_batches",
        "_bytes",
        "_finished",
        "_messages",
        "_overflow",
        "_taken",
        "_turn_begins",
        "busy",
    )

    def __init__(self, overflow: Callable[[int], None], turn_begins: Callable[[], object] = lambda: None) -> None:
        """`turn_begins` is called each time that other tasks have run while `take` waited."""
        self._overflow = overflow
        self._turn_begins = turn_begins
        self._batches: deque[tuple[Batch, int]] | None = None
        """None until the first batch waits: an empty deque takes more memory than the rest of an idle route's queue."""
        self._messages = 0
        self._bytes = 0
        self._arrived = Latch()
        self._taken = 0
        self.busy: bool = False
        """True while messages wait, or the batch that was taken last is being routed."""
        self._finished: trio.lowlevel.ParkingLot | None = None
        """Where `empty` waits, if it does."""

    def __len__(self) -> int:
        return self._messages

    def deliver(self, batch: list[RawMessage]) -> None:
        """Add a batch, or as much of it as fits; pass the number of the others to `overflow`."""
        room = max(MAX_MESSAGES - self._messages, 0) if self._bytes < MAX_BYTES else 0
        if len(batch) > room:
            self._overflow(len(batch) - room)
        batch = batch[:room]
        if not batch:
            return
        size = sum(map(len, map(_tail, batch)))
        self._messages += len(batch)
        self._bytes += size
        if self._batches is None:
            self._batches = deque()
        self._batches.append((Batch(trio.current_time(), batch), size))
        self.busy = True
        self._arrived.set()

    async def take(self) -> Batch:
        """Wait for the oldest batch, and return it with the time when it arrived. If cancelled, nothing is taken.

        Other tasks run while it waits, and after each `MESSAGES_IN_A_TURN` messages: many small batches make one turn.
        """
        while not self._batches:
            self._arrived = Latch()
            self._taken = 0
            self.finish()
            await self._arrived.wait()
            self._turn_begins()
        if self._taken >= MESSAGES_IN_A_TURN:
            await trio.lowlevel.checkpoint()
            self._turn_begins()
            self._taken = 0
        batch, size = self._batches.popleft()
        self._taken += len(batch.messages)
        self._messages -= len(batch.messages)
        self._bytes -= size
        return batch

    def let_nothing_pass(self) -> None:
        """Let no message pass this queue until `take` finds it empty."""
        self.busy = True

    def take_waiting(self) -> Batches:
        """Take out all waiting batches, the oldest first."""
        left = [batch for batch, _ in self._batches or ()]
        self.clear()
        return left

    def put_first(self, batches: Sequence[Batch]) -> None:
        """Put batches that the previous route has received before all others."""
        if self._batches is None:
            self._batches = deque()
        for handed in reversed(batches):
            size = sum(map(len, map(_tail, handed.messages)))
            self._messages += len(handed.messages)
            self._bytes += size
            self._batches.appendleft((handed, size))
        if batches:
            self.busy = True
            self._arrived.set()

    def finish(self) -> None:
        """Record that nothing waits, and that the batch taken last was taken back."""
        self.busy = False
        if self._finished is not None:
            self._finished.unpark_all()

    def clear(self) -> int:
        """Drop all waiting messages. Return their number."""
        left, self._messages, self._bytes = self._messages, 0, 0
        if self._batches is not None:
            self._batches.clear()
        return left

    async def empty(self) -> None:
        """Wait until every batch was routed and the next one is asked for."""
        if self._finished is None:
            self._finished = trio.lowlevel.ParkingLot()
        while self.busy:
            await self._finished.park()
