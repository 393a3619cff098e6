"""Messages of a stream that failed here: how often, where they were delivered all the same, when they are tried again.

A failure is counted by who saw it. What the server calls a delivery says nothing of that: naks at a shutdown, links
that died and processes that were killed use up deliveries of messages that nobody has worked on.

Messages that fail for what they are must not keep the others out. So the retries are spread: however many fail, no
more come again in a second, or in the first delay if that is shorter, than half of what a route may have in hand.
Pure; the time is given.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field

MOST_REMEMBERED = 65_536
"""Messages; of more that fail, the oldest count from 1 again."""

FACTOR = 2.0
LONGEST_DELAY = 60.0
"""Each delay is twice the one before it, up to so many seconds."""


_NONE: frozenset[int] = frozenset()


@dataclass(slots=True)
class Failed:
    """One message that failed: how often, and which of its copies are stored or sent. `tried`: some may be."""

    attempts: int = 0
    tried: bool = False
    delivered: set[int] = field(default_factory=set)
    choices: dict[int, Sequence[int]] = field(default_factory=dict)


class Failures:
    """What failed of one stream, as it is now, and may be tried again. Messages are known by their sequences."""

    __slots__ = ("_failed",)

    def __init__(self) -> None:
        self._failed: dict[int, Failed] = {}

    def __bool__(self) -> bool:
        """Return True if there are any."""
        return bool(self._failed)

    def attempts(self, sequence: int) -> int:
        """Return how often the message failed."""
        found = self._failed.get(sequence)
        return 0 if found is None else found.attempts

    def was_tried(self, sequence: int) -> bool:
        """Return True if copies of the message may be stored: it failed, or waits though it was sent."""
        found = self._failed.get(sequence)
        return found is not None and (found.tried or found.attempts > 0)

    def mark_tried(self, sequence: int) -> None:
        """Copies of the message may be stored, though it did not fail."""
        self._of(sequence).tried = True

    def copies(self, sequence: int) -> Set[int]:
        """Return which of several copies of a message are delivered, by the numbers that its route gives them."""
        found = self._failed.get(sequence)
        return _NONE if found is None else found.delivered

    def copied(self, sequence: int, copy: int) -> None:
        """One of several copies of a message is delivered; others may fail."""
        self._of(sequence).delivered.add(copy)

    def choice(self, sequence: int, number: int) -> Sequence[int] | None:
        """Return the places of the destinations that were chosen for a message before, None if they are not known."""
        found = self._failed.get(sequence)
        return None if found is None else found.choices.get(number)

    def keep_choices(self, sequence: int, choices: Mapping[int, Sequence[int]]) -> None:
        """These destinations were chosen for a message, which comes again."""
        self._of(sequence).choices.update(choices)

    def add(self, sequence: int) -> int:
        """The message failed once more. Return how often it has."""
        found = self._of(sequence)
        found.attempts += 1
        return found.attempts

    def _of(self, sequence: int) -> Failed:
        found = self._failed.pop(sequence, None) or Failed()
        while len(self._failed) >= MOST_REMEMBERED:
            del self._failed[next(iter(self._failed))]
        self._failed[sequence] = found
        return found

    def discard(self, sequences: Iterable[int]) -> None:
        """These messages are not tried again."""
        for sequence in sequences:
            self._failed.pop(sequence, None)


class RetryPolicy:
    """When a message that failed is tried again, and whether it is.

    `initial` is the first delay in seconds; `most` is the number of attempts, 0 for no end.
    """

    def __init__(self, initial: float, most: int, max_in_flight: int) -> None:
        self._initial = initial
        self._most = most
        self._spacing = min(initial, 1.0) / max(1.0, max_in_flight / 2)
        self._next = 0.0

    @property
    def limited(self) -> bool:
        """True if what fails is given up at last."""
        return self._most > 0

    def over(self, attempts: int) -> bool:
        """Return True if there is no further attempt after so many."""
        return 0 < self._most <= attempts

    def delay(self, attempts: int, now: float) -> float:
        """Return the seconds until the next attempt, after so many."""
        backoff = min(self._initial * FACTOR ** min(attempts - 1, 32), LONGEST_DELAY)
        self._next = min(max(now, self._next + self._spacing), now + LONGEST_DELAY)
        return backoff + self._next - now
