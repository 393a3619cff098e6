"""What was written and is not confirmed: core publishes, by position, and JetStream publishes, by number.

A core publish is confirmed by a fence, and with it everything that was written before. A JetStream publish is confirmed
by its PubAck, whose subject ends with its number. Pure and synchronous.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from itertools import islice
from operator import attrgetter

from router_trio.outbox.operation import Operation, OperationWithAck

by_order: Callable[[Operation], int] = attrgetter("order")


class InFlight:
    """Operations that a link has taken, of one connection. Nothing of it outlives the link."""

    __slots__ = ("_core", "unacked", "unfenced", "when_none", "written")

    def __init__(self) -> None:
        self.unfenced: int = 0
        """Core publishes that no fence has confirmed."""
        self.written: int = 0
        """Core publishes that were ever written: the position behind the last one, for `take_fenced`."""
        self.unacked: dict[int, OperationWithAck] = {}
        """JetStream publishes without a PubAck, from the one that was written first."""
        self.when_none: list[Callable[[], None]] = []
        """Who is called, once, by `tell_if_none`."""
        self._core: deque[Operation] = deque()

    @property
    def count(self) -> int:
        """How many there are of both."""
        return self.unfenced + len(self.unacked)

    # --- in ---

    def add(self, operation: Operation) -> None:
        """A core publish, or a batch of them, is about to be written."""
        self._core.append(operation)
        self.written += operation.count
        self.unfenced += operation.count

    def add_with_ack(self, operation: OperationWithAck, now: float) -> None:
        """A JetStream publish is about to be written."""
        operation.written_at = now
        if operation.first_written_at is None:
            operation.first_written_at = now
        self.unacked[operation.order] = operation

    # --- out, confirmed ---

    def take_fenced(self, mark: int) -> list[Operation]:
        """Take out the core publishes that were written before `mark` was read from `written`."""
        core = self._core
        count = mark - (self.written - self.unfenced)
        confirmed = []
        left = max(0, self.unfenced - count)
        while self.unfenced > left and self.unfenced - core[0].count >= left:
            confirmed.append(core.popleft())
            self.unfenced -= confirmed[-1].count
        return confirmed

    def take_acked(self, order: int) -> OperationWithAck | None:
        """Take out the JetStream publish with this number; None if it is not here (a late or doubled PubAck)."""
        return self.unacked.pop(order, None)

    # --- out, otherwise ---

    def clear(self) -> list[Operation]:
        """The link died: take out everything, core publishes first.

        Batches are taken apart: what happens to their publishes from now on happens to each by itself.
        """
        left: list[Operation] = [part for operation in self._core for part in operation.split()]
        left += self.unacked.values()
        # `written` goes on: a mark that was read on this link confirms nothing on the next one.
        self._core.clear()
        self.unacked.clear()
        self.unfenced = 0
        return left

    def withdraw(self, operation: Operation) -> bool:
        """Take out one operation. Returns True if it was here."""
        if self.unacked.pop(operation.order, None) is not None:
            return True
        # Leaving the middle of the core publishes makes an older mark confirm one too few, never one too many: the next
        # fence confirms it.
        if operation in self._core:
            self._core.remove(operation)
            self.unfenced -= operation.count
            return True
        return False

    def take_core_to(self, subject: bytes) -> list[Operation]:
        """Take out the core publishes to that subject, of which `oldest_to` has just given the first."""
        taken = [one for one in self._core if one.subject == subject]
        self._core = deque(one for one in self._core if one.subject != subject)
        self.unfenced -= len(taken)
        return taken

    # --- what there is ---

    def tell_if_none(self) -> None:
        """Call who waits for that, if nothing is in flight any more."""
        if self.when_none and not self.count:
            waiting, self.when_none = self.when_none, []
            for tell in waiting:
                tell()

    def only(self) -> Operation | None:
        """The one publish that is in flight; None if there are none or several."""
        if self.count != 1:
            return None
        return next(iter(self.unacked.values())) if self.unacked else self._core[0]

    def oldest_to(self, subject: bytes) -> Operation | None:
        """The oldest operation in flight to that subject."""
        if len(self._core) != self.unfenced:
            self._core = deque(one for operation in self._core for one in operation.split())
        found: list[Operation] = [one for one in self.unacked.values() if one.subject == subject]
        # These are in the order of acceptance: the first is the oldest, and a flood of refusals finds it early.
        found.extend(islice((one for one in self._core if one.subject == subject), 1))
        return min(found, key=by_order, default=None)

    def unacked_since(self, written_at: float) -> list[OperationWithAck]:
        """JetStream publishes written at or before that time and still without a PubAck."""
        return [one for one in self.unacked.values() if one.written_at <= written_at]

    def parts(self, operation: Operation) -> list[Operation]:
        """What is here of an operation that was written, or of one of its parts: either may be in parts by now."""
        if operation.with_ack or operation in self._core:
            return [operation]
        first, last = operation.order - operation.count + 1, operation.order
        self._core = deque(
            part
            for one in self._core
            for part in (one.split() if one.order >= first and one.order - one.count < last else (one,))
        )
        return [one for one in self._core if first <= one.order <= last]

    def single_parts(self, operation: Operation) -> list[Operation]:
        """The same, and each is one publish."""
        if operation.count == 1:
            return [operation]
        first, last = operation.order - operation.count + 1, operation.order
        self._core = deque(part for one in self._core for part in one.split())
        return [one for one in self._core if first <= one.order <= last]
