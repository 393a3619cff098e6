"""Chooses which operations of an outbox may be written now, and when to ask again.

Decides how much is written at once, and what has to wait: for room in flight, for a lane, or for the next link. Pure
and synchronous; the clock is passed in.
"""

from __future__ import annotations

from collections.abc import Callable

from router_trio.outbox.fences import Fences
from router_trio.outbox.operation import Operation
from router_trio.outbox.queue import SendQueue
from router_trio.outbox.refusals import Refusals
from router_trio.outbox.retries import Retries
from router_trio.outbox.suspects import Suspects

MAX_UNACKED = 4096
"""JetStream publishes in flight at once; a server refuses more than 10,000 waiting for one stream."""

MAX_UNFENCED = 65_536
"""Core publishes in flight at once: the most that a server that reads but never answers can make us keep."""

BATCH_OPERATIONS = 2048
BATCH_BYTES = 256 * 1024

BATCHES_HELD = 8
"""Batches held back completely that are taken one after the other before other tasks get their turn."""


class Sender:
    """Moves pending operations that may be written into flight."""

    def __init__(
        self,
        queue: SendQueue,
        fences: Fences,
        suspects: Suspects,
        retries: Retries,
        refusals: Refusals,
        *,
        clock: Callable[[], float],
        wake: Callable[[], None],
    ) -> None:
        self._queue = queue
        self._lanes = queue.lanes
        self._in_flight = queue.in_flight
        self._fences = fences
        self._suspects = suspects
        self._retries = retries
        self._refusals = refusals
        self._expires = refusals.max_age > 0
        self._clock = clock
        self._wake = wake
        self._held_back = False

    def begin_link(self) -> None:
        """Start writing to a new link."""
        self._held_back = False

    def hold_back(self) -> None:
        """Write nothing more on this link, which is being left. The next link gets the pending operations."""
        self._held_back = True

    def next_batch(self) -> list[Operation]:
        """Move the operations that may be written now from pending into flight, and return them.

        A call implies that the previous batch was sent, and that each publish that the link refused was passed to
        `Refusals.write_refused`.
        """
        self._fences.batch_sent()
        return [] if self._held_back else self._take_batch()

    def next_batch_at(self) -> float | None:
        """Return when to ask for a batch again even if nothing happens until then; None if there is no need to."""
        if self._held_back or not (self._queue.waiting or self._lanes.lanes):
            return None
        return self._retries.next_try_at(MAX_UNACKED)

    def _take_batch(self) -> list[Operation]:
        if self._expires:
            self._refusals.expire()
        if not self._queue.waiting and not self._lanes.lanes:
            return []
        now = self._clock()
        window = self._retries.window(MAX_UNACKED, now)
        due = self._retries.take_due(now)
        if due and self._suspects.careful:
            return [*due]
        if self._in_flight.unfenced >= MAX_UNFENCED:
            return [*due]
        most = BATCH_OPERATIONS
        if self._suspects.careful:
            most = min(most, self._suspects.send_limit(self._in_flight.count, now))
            self._queue.split_first(most)
        written: list[Operation] = []
        for _ in range(BATCHES_HELD if most else 0):
            batch = self._queue.take_batch(now, max_operations=most, max_bytes=BATCH_BYTES, max_unacked=window)
            # An entire batch may belong in lanes. Returning nothing would then keep the operations behind it waiting.
            written = self._retries.without_held(batch)
            if self._suspects.known:
                written = self._without_poison(written, now)
            if written or not batch:
                break
        else:
            if most:
                self._wake()  # there may be more to write, once other tasks have had their turn
        # Retries are sent with the others: however many are due, the operations behind them in the queue do not wait.
        return [*due, *written] if due else written

    def _without_poison(self, batch: list[Operation], now: float) -> list[Operation]:
        """Fail the operations of `batch` that have ended links before. Only called while one is remembered."""
        harmless = []
        for operation in batch:
            poison = [one for one in operation.split() if self._suspects.knows(one, now)]
            if not poison:
                harmless.append(operation)
                continue
            for one in self._in_flight.single_parts(operation):
                if any(one.order == bad.order for bad in poison):
                    self._refusals.fail_poison(one)
                else:
                    harmless.append(one)
        return harmless
