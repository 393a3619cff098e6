"""Compare the copies that two configurations of one route make of the same messages. Pure."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from router_trio.errors.quotes import LONGEST_TEXT, excerpt

OUTCOMES = {
    "routed": "routed",
    "filtered": "filtered",
    "failed": "failed",
    "not_of_its_filter": "not of its filter",
    "no_route": "without the route",
}
"""The outcomes of a message, and how they are printed."""


class ComparedCopy(NamedTuple):
    """A copy as far as it is compared. `subject` is the template if a part of the subject is drawn at random.

    Without a `Nats-Msg-Id`, which contains the names of route and destination.
    """

    connection: str
    subject: str
    payload: bytes
    headers: bytes
    destination: str


@dataclass(frozen=True, slots=True)
class Result:
    """The result of a message under a configuration. `reason` is why it would be filtered or fail."""

    outcome: str
    reason: str = ""
    copies: Sequence[ComparedCopy] = ()

    def __str__(self) -> str:
        """Return the outcome as text."""
        return OUTCOMES[self.outcome] + (f" ({self.reason})" if self.reason else "")


class Row(NamedTuple):
    """The difference for one message. `change` is empty if nothing differs."""

    sequence: int
    subject: str
    old: str
    new: str
    change: str
    old_destinations: tuple[str, ...]
    new_destinations: tuple[str, ...]


def compare(sequence: int, subject: str, old: Result, new: Result) -> Row:
    """Compare what the old and the new configuration make of a message."""
    change = f"{old} -> {new}"
    if (old.outcome, old.reason) == (new.outcome, new.reason):
        change = _of_copies(old.copies, new.copies)
    destinations = (tuple(one.destination for one in result.copies) for result in (old, new))
    return Row(sequence, subject, old.outcome, new.outcome, change, *destinations)


def _of_copies(old: Sequence[ComparedCopy], new: Sequence[ComparedCopy]) -> str:
    pairs = [sorted(copies) for copies in (old, new)]
    places, payloads, blocks = ([[one[part] for one in copies] for copies in pairs] for part in (slice(2), 2, 3))
    if places[0] != places[1]:
        return "routed to other subjects"
    parts = [name for name, (a, b) in (("payload", payloads), ("headers", blocks)) if a != b]
    return f"routed with other {' and '.join(parts)}" if parts else ""


class Changes:
    """The differences of the last `wanted` messages of a stream that a route reads.

    Rows are added in blocks, the newest block first; within a block the oldest row is first.
    """

    def __init__(self, route: str, stream: str, wanted: int) -> None:
        self.notes: list[str] = []
        self._title = f"route {route}, stream {stream}"
        self._wanted = wanted
        self._blocks: list[deque[Row]] = []

    @property
    def lacking(self) -> int:
        """The number of messages that are still to be added."""
        return self._wanted - sum(map(len, self._blocks))

    def block(self) -> deque[Row]:
        """Begin a block, which keeps only the newest of its rows that are still lacking."""
        rows = deque[Row](maxlen=self.lacking)
        self._blocks.append(rows)
        return rows

    @property
    def rows(self) -> Iterator[Row]:
        """All rows, the oldest message first."""
        for block in reversed(self._blocks):
            yield from block

    def outcomes(self) -> tuple[Counter[str], Counter[str]]:
        """Return the number of messages with each outcome in the old and in the new configuration."""
        return Counter(row.old for row in self.rows), Counter(row.new for row in self.rows)

    def changes(self) -> Counter[str]:
        """Return the number of messages with each kind of change."""
        return Counter(row.change for row in self.rows if row.change)

    def lines(self) -> Iterator[str]:
        """Yield what `diff --last` prints."""
        rows = list(self.rows)
        if not rows:
            yield f"{self._title}: no messages"
            yield from self.notes
            return
        yield f"{self._title}, messages {rows[0].sequence:,} to {rows[-1].sequence:,}"
        old, new = self.outcomes()
        before = ", ".join(f"{old[one]:,} {name}" for one, name in OUTCOMES.items() if old[one])
        after = ", ".join(f"{new[one]:,} {name}" for one, name in OUTCOMES.items() if old[one] or new[one])
        yield f"of the last {len(rows):,}: {before} -> {after}"
        newest = {row.change: row for row in rows}
        for change, count in self.changes().most_common():
            example = newest[change]
            subject = excerpt(example.subject, LONGEST_TEXT)
            yield f"{count:>12,}  {change}, such as message {example.sequence:,} {subject}"
        if len(newest) == 1 and "" in newest:
            yield "nothing would change"
        yield from self._destinations(rows)
        yield from self.notes

    @staticmethod
    def _destinations(rows: Sequence[Row]) -> Iterator[str]:
        old = Counter(one for row in rows for one in row.old_destinations)
        new = Counter(one for row in rows for one in row.new_destinations)
        for one in dict.fromkeys([*old, *new]):
            yield f"copies to {one}: {old[one]:,} -> {new[one]:,}"
