"""Confirms that the server has accepted the acks, naks and pulls of one connection's routes.

Acks, naks and pulls are publishes that are not confirmed. The server only reports a denial, by its subject, and the
answer to a fence behind them proves that there was none. So they are recorded in batches when they are sent, without
looking at any of them, and are counted when a fence behind them is answered. Only a denial has to be looked up by its
subject, which takes time.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from math import inf
from typing import Literal, Protocol
from weakref import WeakValueDictionary

import trio

from router_trio.errors import reasons
from router_trio.events import AckFailed, Emit, NakFailed
from router_trio.outbox.ledger import Counters
from router_trio.protocol.permissions import ACK, PULL, Cause

Kind = Literal["ack", "owed", "nak", "term", "in_progress", "pull"]
"""An `owed` ack has already been counted, when it could not be sent or was lost with its link, and is sent again."""

COUNTS_AS: dict[Kind, Literal["ack", "nak"]] = {"ack": "ack", "nak": "nak", "term": "nak"}
SETTLE: frozenset[Kind] = frozenset({"ack", "owed", "term"})
"""Answers after which a message is not redelivered. They are owed until the server has accepted them."""

CONFIRMED_EVERY = 0.2
"""Seconds between two fences behind answers. A fence for each answer would slow down every message."""


class Answering(Protocol):
    """A route from a stream, which sends acks, naks and pulls."""

    @property
    def route(self) -> str:
        """The name of the route."""
        ...

    @property
    def incarnation(self) -> int:
        """The number of the incarnation of its stream: in another one, an ack would be for another message."""
        ...

    def refused(self, cause: str, subject: str, detail: str) -> bool:
        """Record that the server denies its acks (`permissions.ACK`) or its pulls.

        Returns True if that is new.
        """
        ...

    def passed(self, cause: str) -> None:
        """Record that the server has accepted all acks, or pulls, between two fences."""

    def not_taken(self, replies: Sequence[bytes], incarnation: int, *, refused: bool) -> None:
        """Record that answers that settle these messages were `refused`, or else may have been lost with the link.

        `incarnation` is that of the stream when they were sent.
        """


_Batch = tuple[Kind, Answering, Sequence[bytes], int]
"""Answers that were sent together, and the incarnation of the stream that they were for.

Denials are counted per batch, by its `id`, since there are few.
"""


def _cause(kind: Kind) -> str:
    return PULL if kind == "pull" else ACK


class Answers:
    """Confirm the acks, naks and pulls of one connection. All methods but `wait` are synchronous, and none raises."""

    def __init__(self, connection: str, counters: Counters, emit: Emit) -> None:
        self._connection = connection
        self._counters = counters
        self._emit = emit
        self._sent: list[_Batch] = []
        self._fenced: list[_Batch] = []
        self._refused: Counter[int] = Counter()
        """Number of denied answers of a batch, by the `id` of the batch."""
        self._doubtful: set[int] = set()
        """`id` of each batch that may contain a denied answer, without it being known which."""
        self._to_index: list[_Batch] = []
        self._by_subject: dict[bytes, list[_Batch]] = {}
        self._some_sent = trio.Event()
        self._next_at = -inf
        self._by_durable: WeakValueDictionary[tuple[str, str], Answering] = WeakValueDictionary()

    def belong_to(self, stream: str, durable: str, answering: Answering) -> None:
        """Notify `answering` of denials that name this durable, from now on."""
        self._by_durable[stream, durable] = answering

    def sent(self, kind: Kind, answering: Answering, subjects: Sequence[bytes]) -> None:
        """Record that these answers were written. The sequence is not copied, and must not be changed.

        Pulls, and answers that test whether acks are accepted, are recognized by the name of their durable alone.
        """
        if not self._sent:
            self._some_sent.set()
        batch = kind, answering, subjects, answering.incarnation
        self._sent.append(batch)
        self._to_index.append(batch)

    # --- confirmed ---

    def unconfirmed(self, kind: Kind) -> int:
        """Return the number of answers of this kind that were sent and may still be denied."""
        sent = [one for one in (*self._fenced, *self._sent) if COUNTS_AS.get(one[0], one[0]) == kind]
        return sum(len(one[2]) - self._refused[id(one)] for one in sent)

    async def wait(self) -> None:
        """Wait until there is something to confirm: at once after a quiet time, else when `CONFIRMED_EVERY` is over."""
        await self._some_sent.wait()
        await trio.sleep_until(self._next_at)
        self._next_at = trio.current_time() + CONFIRMED_EVERY

    def fence_follows(self) -> None:
        """Let the next call of `fence_answered` confirm everything that was sent until now."""
        self._fenced += self._sent
        self._sent = []
        self._some_sent = trio.Event()

    def fence_answered(self) -> None:
        """Count the answers that were not denied, and notify routes when all of a kind were accepted."""
        for (answering, cause), passed in self._count_fenced().items():
            if passed:
                answering.passed(cause)

    def _count_fenced(self) -> dict[tuple[Answering, str], bool]:
        fenced, self._fenced = self._fenced, []
        succeeded = self._counters.succeeded
        all_taken: dict[tuple[Answering, str], bool] = {}
        for batch in fenced:
            kind, answering, subjects, _ = batch
            refused = self._refused.pop(id(batch), 0)
            if kind in COUNTS_AS:
                # no method call, since each lone message has a fence
                succeeded[COUNTS_AS[kind]] += len(subjects) - refused
            key = answering, _cause(kind)
            all_taken[key] = all_taken.get(key, True) and not (refused or id(batch) in self._doubtful)
            self._doubtful.discard(id(batch))
        self._drop_from_index(fenced)
        return all_taken

    def _drop_from_index(self, fenced: Sequence[_Batch]) -> None:
        """Let denials be attributed only to answers that are not confirmed yet."""
        if not self._refused:
            self._by_subject.clear()
            self._to_index = [*self._sent]
            return
        # Some of those were denied already: their denials were read together with the answer to the fence before them.
        # To index them again would attribute the next denial of their subject to the same answer.
        confirmed = {id(batch) for batch in fenced}
        indexed, self._by_subject = self._by_subject, {}
        for subject, batches in indexed.items():
            if left := [batch for batch in batches if id(batch) not in confirmed]:
                self._by_subject[subject] = left
        self._to_index = [batch for batch in self._to_index if id(batch) not in confirmed]

    def link_down(self) -> None:
        """Count what was written on a lost link as sent, and notify routes of acks and terms that may be lost."""
        self.fence_follows()
        for kind, answering, subjects, incarnation in self._fenced:
            if kind in SETTLE:
                answering.not_taken(subjects, incarnation, refused=False)
        self._count_fenced()

    # --- denied ---

    def refused(self, subject: bytes, cause: Cause, detail: str) -> None:
        """Attribute a denial to the answer that caused it.

        `in_progress` answers are not counted. They need the same permission as acks.
        """
        batch = self._find_batch(subject)
        answering = self._by_durable.get((cause.stream, cause.durable)) if batch is None else batch[1]
        fresh = False
        if answering is not None:
            if batch is None:
                self._mark_doubtful(answering, cause.kind)
            fresh = answering.refused(cause.kind, cause.pattern, detail)
        kind = None if batch is None else batch[0]
        if batch is not None and kind in SETTLE:
            batch[1].not_taken((subject,), batch[3], refused=True)
        if kind is not None and kind in COUNTS_AS:
            self._counters.fail(COUNTS_AS[kind], reasons.PERMISSION_DENIED)
            self._emit_failure(AckFailed if kind == "ack" else NakFailed, answering, cause)
        elif cause.kind == ACK and (fresh or answering is None):
            self._emit_failure(AckFailed, answering, cause)

    def _emit_failure(
        self, event: type[AckFailed] | type[NakFailed], answering: Answering | None, cause: Cause
    ) -> None:
        route = None if answering is None else answering.route
        now, reason = trio.current_time(), reasons.PERMISSION_DENIED
        self._emit(event(at=now, connection=self._connection, route=route, reason=reason, subject=cause.pattern))

    def _mark_doubtful(self, answering: Answering, cause: str) -> None:
        """Don't report anything of that cause as accepted: a denial names a subject that was not found."""
        for batch in (*self._fenced, *self._sent):
            if batch[1] is answering and _cause(batch[0]) == cause:
                self._doubtful.add(id(batch))

    def _find_batch(self, subject: bytes) -> _Batch | None:
        """Return the batch with this subject, once for each time it was sent. Each batch is indexed once."""
        for batch in self._to_index:
            for one in batch[2]:
                self._by_subject.setdefault(one, []).append(batch)
        self._to_index.clear()
        found = self._by_subject.get(subject)
        if not found:
            return None
        refused = found.pop(0)
        self._refused[id(refused)] += 1
        return refused
