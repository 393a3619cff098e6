"""One batch of fast ingest: its messages, what is known to be stored of them, and when it is to end.

A batch ends with its last message, which says so. So the latest one waits until another comes, or for a moment. Pure
and synchronous; the time is given.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable, Sequence
from math import inf

from router_trio.message import Fate, PubAck
from router_trio.outbox.operation import OperationWithAck
from router_trio.protocol import fast_ingest as wire
from router_trio.protocol.framing import readdressed

LINGER = 0.005
"""Seconds for which the latest message waits for another one, before it is the last, once no answer is to come: those
that an answer confirms make room for others."""

UNANSWERED_FOR = 0.02
"""Seconds for which messages are left unanswered that are too few for an answer: then the batch ends."""

ENDS_WITHIN = 0.25
"""Seconds in which the end of a batch is to be answered, if others wait for it, or anything before its end."""


class Batch:
    """A batch that the server has, or had, of publishes to one destination."""

    __slots__ = (
        "_own",
        "acked",
        "ended_at",
        "flow",
        "id",
        "key",
        "last",
        "latest",
        "latest_until",
        "numbering",
        "operations",
        "prefix",
        "stream",
        "waited_for",
    )

    def __init__(self, key: Hashable, stream: str, batch: bytes, inbox: bytes, flow: int) -> None:
        self._own = b" %b." % inbox
        self.key: Hashable = key
        self.stream: str = stream
        self.id: bytes = batch
        self.prefix: bytes = wire.reply_prefix(inbox, batch, flow)
        self.flow: int = flow
        self.numbering: wire.Numbering | None = None
        """The reply subjects of what is accepted from now on, as long as all of it goes with the batch, in order."""
        self.acked: int = 0
        self.last: int = 0
        """The numbers of the last message that is stored, as far as is known, and of the last that was sent."""
        self.operations: deque[OperationWithAck] = deque()
        """Those in between."""
        self.latest: OperationWithAck | None = None
        self.latest_until: float = inf
        """The message that waits for another one, and until when, if no answer is to come until then."""
        self.ended_at: float | None = None
        """When its last message was sent, or the latest answer came since; None if it goes on."""
        self.waited_for: bool = False

    def take_along(self, operations: Sequence[OperationWithAck]) -> None:
        """These go with the batch, in this order.

        What was addressed to it when it was accepted is the fast path of what was not; held equal by
        test_both_ways_of_streams.py::test_messages_for_a_batch_are_written_as_those_that_are_forwarded_one_by_one,
        worth 33 instructions a message
        (tests/performance/test_fast_paths.py::test_messages_that_were_addressed_to_their_batch).
        """
        prefix, number, own = self.prefix, self.last, self._own
        if operations and not number:
            self.numbering = wire.Numbering(prefix, operations[0].order)
        numbering = self.numbering
        behind = 0 if numbering is None else numbering.behind
        for operation in operations:
            number += 1
            if numbering is not None:
                if operation.order - behind != number:
                    # Something else was accepted in between, and more of it may come.
                    self.numbering = numbering = None
                elif operation.numbering is numbering:
                    continue
            # `wire.reply_to` and `readdressed`, in one go.
            frame = operation.frame
            at = frame.find(own)
            assert at > 0, "what is pending is addressed to the inbox of this link"
            end = frame.find(b" ", at + 1)
            operation.frame = b"%b %b%d.%d.$FI%b" % (frame[:at], prefix, number, number > 1, frame[end:])
        self.last = number
        self.operations.extend(operations)

    def take_as_last(self, operation: OperationWithAck, now: float) -> None:
        """This goes with the batch, as its last message."""
        self.last += 1
        operation.frame = readdressed(operation.frame, wire.reply_to(self.prefix, self.last, last=True))
        operation.numbering = None
        self.operations.append(operation)
        self.latest, self.latest_until, self.ended_at = None, inf, now

    def let_wait(self, operation: OperationWithAck, now: float) -> None:
        """This is the latest, and waits for another one."""
        if operation is not self.latest:
            self.latest, self.latest_until = operation, now + LINGER

    @property
    def is_to_be_answered(self) -> bool:
        """Return True if enough was sent for another answer, which has not come."""
        return self.last >= self.acked + self.flow

    def is_to_end(self, going: Sequence[OperationWithAck], now: float) -> bool:
        """Return True if the last of these is to be the last of all: nothing else came, or too little for an answer."""
        if len(going) == 1 and going[0] is self.latest and now >= self.latest_due_at():
            return True
        too_few = self.last + len(going) <= self.acked + self.flow
        return too_few and bool(self.operations) and now >= self.operations[0].written_at + UNANSWERED_FOR

    def latest_due_at(self) -> float:
        """When the latest message is to be the last if nothing else happens; infinity if none waits."""
        if self.is_to_be_answered:
            return max(self.latest_until, self.operations[0].written_at + ENDS_WITHIN) if self.operations else inf
        return self.latest_until

    def take_stored(self, sequence: int, flow: int = 0, now: float = inf) -> list[PubAck]:
        """All up to this number is stored, and the next answer is for `flow` messages. Return what that confirms."""
        if flow:
            self.flow = flow
        if self.latest is not None:
            self.latest_until = now + LINGER
        if self.ended_at is not None:
            self.ended_at = now
        fate = Fate("acked", stream=self.stream)
        take = self.operations.popleft
        stored = [(take().order, fate) for _ in range(min(sequence, self.last) - self.acked)]
        self.acked += len(stored)
        return stored

    def with_number(self, sequence: int) -> OperationWithAck | None:
        """The publish with this number, if it is not known to be stored."""
        index = sequence - self.acked - 1
        return self.operations[index] if 0 <= index < len(self.operations) else None
