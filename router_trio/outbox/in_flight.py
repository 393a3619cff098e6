"""Keeps what was written and is not confirmed: core publishes by position, JetStream publishes by number.

A fence confirms a core publish, and all core publishes written before it. A PubAck, whose subject ends with the number
of the publish, confirms a JetStream publish. Pure and synchronous.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from math import inf
from operator import attrgetter

from router_trio.outbox.operation import Operation, OperationWithAck
from router_trio.protocol.framing import addresses

by_order: Callable[[Operation], int] = attrgetter("order")

SPARE = 1000
"""Stale entries allowed in the index of JetStream publishes, in addition to as many as there are publishes in
flight."""


class InFlight:
    """The operations of one connection that its link has taken. They are in flight only as long as the link lasts."""

    __slots__ = (
        "_apart",
        "_core",
        "_to",
        "_unacked_indexed",
        "_unacked_to",
        "unacked",
        "unfenced",
        "when_none",
        "written",
    )

    def __init__(self) -> None:
        self.unfenced: int = 0
        """Core publishes not yet confirmed by a fence."""
        self.written: int = 0
        """Core publishes written in total: the position behind the last one, for `take_fenced`."""
        self.unacked: dict[int, OperationWithAck] = {}
        """JetStream publishes without a PubAck, in the order in which they were written."""
        self.when_none: list[Callable[[], None]] = []
        """Callbacks of `notify_if_none`, each called once."""
        self._apart: OrderedDict[int, Operation] = OrderedDict()
        """Core publishes split from their batches after a denial. All are older than those in `_core`."""
        self._to: dict[bytes, dict[int, Operation]] = {}
        """The operations of `_apart` by their `denial_keys`, so that a flood of denials costs linear time."""
        self._core: deque[Operation] = deque()
        self._unacked_to: dict[bytes, deque[OperationWithAck]] | None = None
        """JetStream publishes by subject, indexed at the first denial; some are no longer in flight."""
        self._unacked_indexed = 0

    @property
    def count(self) -> int:
        """Number of publishes of both kinds."""
        return self.unfenced + len(self.unacked)

    # --- adding ---

    def add(self, operation: Operation) -> None:
        """Add a core publish, or a batch of them, that is about to be written."""
        self._core.append(operation)
        self.written += operation.count
        self.unfenced += operation.count

    def add_with_ack(self, operation: OperationWithAck, now: float) -> None:
        """Add a JetStream publish that is about to be written."""
        operation.written_at = now
        if operation.first_written_at is None:
            operation.first_written_at = now
        self.unacked[operation.order] = operation
        if self._unacked_to is not None:
            self._index(operation)

    # --- taking out what is confirmed ---

    def take_fenced(self, mark: int) -> list[Operation]:
        """Take out the core publishes that were written before `mark` was read from `written`."""
        assert mark <= self.written, "a mark is read from what was written"
        core = self._core
        count = mark - (self.written - self.unfenced)
        confirmed: list[Operation] = []
        left = max(0, self.unfenced - count)
        if self._apart:
            while self._apart and self.unfenced > left:
                confirmed.append(self._take_apart(next(iter(self._apart))))
        while self.unfenced > left and self.unfenced - core[0].count >= left:
            confirmed.append(core.popleft())
            self.unfenced -= confirmed[-1].count
        return confirmed

    def take_acked(self, order: int) -> OperationWithAck | None:
        """Take out the JetStream publish with this number; None if it is not here (a late or duplicate PubAck)."""
        return self.unacked.pop(order, None)

    # --- taking out for other reasons ---

    def clear(self) -> list[Operation]:
        """Take out everything after the loss of the link, core publishes first.

        Batches are split: from now on each publish has its own fate.
        """
        left: list[Operation] = [part for operation in self.core() for part in operation.split()]
        left += self.unacked.values()
        # `written` is not reset: a mark read on this link confirms nothing on the next one.
        self._apart.clear()
        self._to.clear()
        self._core.clear()
        self.unacked.clear()
        self._unacked_to, self._unacked_indexed = None, 0
        self.unfenced = 0
        return left

    def withdraw(self, operation: Operation) -> bool:
        """Take out one operation. Returns True if it was here."""
        if self.unacked.pop(operation.order, None) is not None:
            return True
        # Taking one from the middle of the core publishes makes an older mark confirm one too few, never one too many.
        # The next fence confirms it.
        if self._apart.get(operation.order) is operation:
            self._take_apart(operation.order)
            return True
        if operation in self._core:
            self._core.remove(operation)
            self.unfenced -= operation.count
            return True
        return False

    def take_core_to(self, subject: bytes) -> list[Operation]:
        """Take out the core publishes to `subject`, in the order of writing.

        Each batch is split only once, so the cost of all denials together is linear in what is in flight.
        """
        return self._take_core(subject)

    def take_core_with_reply(self, reply: bytes) -> list[Operation]:
        """Take out the core publishes with this reply subject."""
        return self._take_core(reply_key(reply))

    def _take_core(self, key: bytes) -> list[Operation]:
        for operation in self._core:
            for one in operation.split():
                self._apart[one.order] = one
                for name in denial_keys(one):
                    self._to.setdefault(name, {})[one.order] = one
        self._core.clear()
        return [self._take_apart(order) for order in [*self._to.get(key, ())]]

    def take_all_core(self) -> list[Operation]:
        """Take out all core publishes."""
        taken = [*self.core()]
        self._apart.clear()
        self._to.clear()
        self._core.clear()
        self.unfenced = 0
        return taken

    def take_unacked_to(self, subject: bytes) -> OperationWithAck | None:
        """Take out the JetStream publish to `subject` that was written first; None if there is none."""
        if self._unacked_to is None or self._unacked_indexed > 2 * len(self.unacked) + SPARE:
            self._unacked_to, self._unacked_indexed = {}, 0
            for operation in self.unacked.values():
                self._index(operation)
        waiting = self._unacked_to.get(subject, ())
        while waiting:
            operation = waiting.popleft()
            self._unacked_indexed -= 1
            if self.unacked.get(operation.order) is operation:
                del self.unacked[operation.order]
                return operation
        self._unacked_to.pop(subject, None)
        return None

    def _take_apart(self, order: int) -> Operation:
        """Take one operation out of `_apart`."""
        operation = self._apart.pop(order)
        for key in denial_keys(operation):
            others = self._to[key]
            del others[order]
            if not others:
                del self._to[key]
        self.unfenced -= 1
        return operation

    def _index(self, operation: OperationWithAck) -> None:
        assert self._unacked_to is not None
        self._unacked_to.setdefault(operation.subject, deque()).append(operation)
        self._unacked_indexed += 1

    # --- state ---

    def notify_if_none(self) -> None:
        """Call the callbacks that wait for it if nothing is in flight any more."""
        if self.when_none and not self.count:
            waiting, self.when_none = self.when_none, []
            for notify in waiting:
                notify()

    @property
    def first_on_its_way_at(self) -> float:
        """`Operation.on_its_way_at` of the publish written first, the older of both kinds; infinite if none."""
        first = next(self.core(), None)
        core = inf if first is None else first.on_its_way_at
        unacked = next(iter(self.unacked.values()), None)
        return core if unacked is None else min(core, unacked.on_its_way_at)

    def only(self) -> Operation | None:
        """Return the publish in flight if there is exactly one, else None."""
        if self.count != 1:
            return None
        return next(iter(self.unacked.values())) if self.unacked else next(self.core())

    def unacked_since(self, written_at: float) -> list[OperationWithAck]:
        """Return the JetStream publishes without a PubAck that were written at or before that time."""
        return [one for one in self.unacked.values() if one.written_at <= written_at]

    def parts(self, operation: Operation) -> list[Operation]:
        """Return the parts in flight of an operation, or of a part of one. Either may have been split since."""
        if operation.with_ack or self._apart.get(operation.order) is operation or operation in self._core:
            return [operation]
        first, last = operation.order - operation.count + 1, operation.order
        self._core = deque(
            part
            for one in self._core
            for part in (one.split() if one.order >= first and one.order - one.count < last else (one,))
        )
        return [one for one in self.core() if first <= one.order <= last]

    def single_parts(self, operation: Operation) -> list[Operation]:
        """Return the parts in flight of an operation, split into single publishes."""
        if operation.count == 1:
            return [operation]
        first, last = operation.order - operation.count + 1, operation.order
        self._core = deque(part for one in self._core for part in one.split())
        return [one for one in self.core() if first <= one.order <= last]

    def core(self) -> Iterator[Operation]:
        """Yield all core publishes in the order of writing; some of them as batches."""
        yield from self._apart.values()
        yield from self._core


def denial_keys(operation: Operation) -> list[bytes]:
    """Return the keys by which a server may deny a publish: its subject, and the key of its reply subject."""
    subject, reply = addresses(operation.frame)
    return [subject, reply_key(reply)] if reply else [subject]


def reply_key(reply: bytes) -> bytes:
    """Return the key of a reply subject, which is different from every subject."""
    return b" " + reply
