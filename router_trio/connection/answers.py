"""Confirm that the server has taken the acks, naks and pulls of the routes of one connection.

Acks, naks and pulls are publishes that nobody confirms. The server says only if it refuses one, by its subject, and a
fence behind it says that it has not. So they are written down when they are sent, in batches and without a look at any
of them, and count when a fence has passed. A refusal is looked up by its subject, which costs something only then.
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
"""`owed` is an ack that was counted when it could not be sent, or was lost with its link, and is sent again."""

COUNTS_AS: dict[Kind, Literal["ack", "nak"]] = {"ack": "ack", "nak": "nak", "term": "nak"}
SETTLE: frozenset[Kind] = frozenset({"ack", "owed", "term"})
"""Answers after which a message is not redelivered: they are owed until the server has taken them."""

CONFIRMED_EVERY = 0.2
"""Seconds between two fences of answers: one for each would be felt by every message."""


class Answering(Protocol):
    """A route from a stream, which sends acks and pulls."""

    @property
    def route(self) -> str:
        """Its name."""
        ...

    def refused(self, cause: str, subject: str, detail: str) -> bool:
        """Record that the server refuses its acks (`permissions.ACK`) or its pulls, for lack of a permission.

        Return True if that is new.
        """
        ...

    def passed(self, cause: str) -> None:
        """Record that the server has accepted all acks, or pulls, between two fences."""

    def not_taken(self, replies: Sequence[bytes], *, refused: bool) -> None:
        """Note that what settles these messages was `refused`, or was perhaps lost with the link."""


_Batch = tuple[Kind, Answering, Sequence[bytes]]
"""Answers that were sent together, known by identity; refusals are kept beside them, since few are refused."""


def _cause(kind: Kind) -> str:
    return PULL if kind == "pull" else ACK


class Answers:
    """Confirm the acks, naks and pulls of one connection. All is synchronous but `wait`; nothing raises."""

    def __init__(self, connection: str, counters: Counters, emit: Emit) -> None:
        self._connection = connection
        self._counters = counters
        self._emit = emit
        self._sent: list[_Batch] = []
        self._fenced: list[_Batch] = []
        self._refused: Counter[int] = Counter()
        """By the `id` of a batch, how many of it were refused."""
        self._doubtful: set[int] = set()
        """The `id` of each batch of which it is not known whether something was refused."""
        self._to_index: list[_Batch] = []
        self._by_subject: dict[bytes, list[_Batch]] = {}
        self._some_sent = trio.Event()
        self._next_at = -inf
        self._of: WeakValueDictionary[tuple[str, str], Answering] = WeakValueDictionary()

    def belong_to(self, stream: str, durable: str, answering: Answering) -> None:
        """Tell this one of refusals that name a durable, from now on."""
        self._of[stream, durable] = answering

    def sent(self, kind: Kind, answering: Answering, subjects: Sequence[bytes]) -> None:
        """Note that these were written. The sequence is not copied, and must not be changed.

        Pulls, and what is sent to find out whether acks are taken, are told by the name of their durable alone.
        """
        if not self._sent:
            self._some_sent.set()
        batch = kind, answering, subjects
        self._sent.append(batch)
        self._to_index.append(batch)

    # --- confirmed ---

    def unconfirmed(self, kind: Kind) -> int:
        """Return how many were sent that may yet be refused."""
        sent = [one for one in (*self._fenced, *self._sent) if COUNTS_AS.get(one[0], one[0]) == kind]
        return sum(len(one[2]) - self._refused[id(one)] for one in sent)

    async def wait(self) -> None:
        """Wait until something is to be confirmed: after a quiet time at once, else with what comes meanwhile."""
        await self._some_sent.wait()
        await trio.sleep_until(self._next_at)
        self._next_at = trio.current_time() + CONFIRMED_EVERY

    def fence_follows(self) -> None:
        """Let the next call of `fence_answered` confirm what was sent until now."""
        self._fenced += self._sent
        self._sent = []
        self._some_sent = trio.Event()

    def fence_answered(self) -> None:
        """Count what the server has not refused, and say of what it has taken all."""
        for (answering, cause), passed in self._count_fenced().items():
            if passed:
                answering.passed(cause)

    def _count_fenced(self) -> dict[tuple[Answering, str], bool]:
        fenced, self._fenced = self._fenced, []
        succeeded = self._counters.succeeded
        all_taken: dict[tuple[Answering, str], bool] = {}
        for batch in fenced:
            kind, answering, subjects = batch
            refused = self._refused.pop(id(batch), 0)
            if kind in COUNTS_AS:
                succeeded[COUNTS_AS[kind]] += len(subjects) - refused  # no call, for each fence of a lone message
            key = answering, _cause(kind)
            all_taken[key] = all_taken.get(key, True) and not (refused or id(batch) in self._doubtful)
            self._doubtful.discard(id(batch))
        self._by_subject.clear()
        self._to_index = [*self._sent]
        return all_taken

    def link_down(self) -> None:
        """Count what was written on a lost link as sent, and say what may be lost of what settles messages."""
        self.fence_follows()
        for kind, answering, subjects in self._fenced:
            if kind in SETTLE:
                answering.not_taken(subjects, refused=False)
        self._count_fenced()

    # --- refused ---

    def refused(self, subject: bytes, cause: Cause, detail: str) -> None:
        """Attribute a refusal to what was sent.

        Signs that somebody works on a message are not counted; they need the permission that acks need.
        """
        batch = self._take(subject)
        answering = self._of.get((cause.stream, cause.durable)) if batch is None else batch[1]
        fresh = False
        if answering is not None:
            if batch is None:
                self._doubt(answering, cause.kind)
            fresh = answering.refused(cause.kind, cause.pattern, detail)
        kind = None if batch is None else batch[0]
        if answering is not None and kind in SETTLE:
            answering.not_taken((subject,), refused=True)
        if kind is not None and kind in COUNTS_AS:
            self._counters.fail(COUNTS_AS[kind], reasons.PERMISSION_DENIED)
            self._tell(AckFailed if kind == "ack" else NakFailed, answering, cause)
        elif cause.kind == ACK and (fresh or answering is None):
            self._tell(AckFailed, answering, cause)

    def _tell(self, event: type[AckFailed] | type[NakFailed], answering: Answering | None, cause: Cause) -> None:
        route = None if answering is None else answering.route
        now, reason = trio.current_time(), reasons.PERMISSION_DENIED
        self._emit(event(at=now, connection=self._connection, route=route, reason=reason, subject=cause.pattern))

    def _doubt(self, answering: Answering, cause: str) -> None:
        """Let nothing of that cause count as accepted: one was refused that is not known by its subject."""
        for batch in (*self._fenced, *self._sent):
            if batch[1] is answering and _cause(batch[0]) == cause:
                self._doubtful.add(id(batch))

    def _take(self, subject: bytes) -> _Batch | None:
        """Find the batch that has this subject, as often as it was sent. Each batch is looked through once."""
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
