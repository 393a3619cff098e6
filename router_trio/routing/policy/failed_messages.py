"""Messages of a stream that failed here: how often, where they were delivered all the same, which are given up. Pure.

A failure is counted by who saw it. What the server calls a delivery says nothing of that: naks at a shutdown, links
that died and processes that were killed use up deliveries of messages that nobody has worked on.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field

from router_trio.routing.policy.retry import GivenUp
from router_trio.states import BeingRetried

MOST_REMEMBERED = 65_536
"""Messages; of more that fail, the oldest count from 1 again. The same of those whose dead letters are not stored."""

_NONE: frozenset[int] = frozenset()


@dataclass(slots=True)
class Failed:
    """How often one message failed, and which of its copies are stored or sent. `tried`: some may be."""

    attempts: int = 0
    tried: bool = False
    delivered: set[int] = field(default_factory=set)
    choices: dict[int, Sequence[int]] = field(default_factory=dict)


class FailedMessages:
    """The failed messages of one incarnation of a stream, by sequence."""

    __slots__ = ("failed", "given_up", "retried")

    def __init__(self) -> None:
        self.failed: dict[int, Failed] = {}
        """Messages that failed, or may be stored, and may be tried again. Changed only here."""
        self.retried: BeingRetried = BeingRetried()
        self.given_up: dict[int, GivenUp] = {}
        """Messages that were given up and are redelivered until their dead letters are stored."""

    def attempts(self, sequence: int) -> int:
        """Return how often the message failed."""
        found = self.failed.get(sequence)
        return 0 if found is None else found.attempts

    def was_tried(self, sequence: int) -> bool:
        """Return True if copies of the message may be stored: it failed, or waits though it was sent."""
        found = self.failed.get(sequence)
        return found is not None and (found.tried or found.attempts > 0)

    def mark_tried(self, sequence: int) -> None:
        """Copies of the message may be stored, though it did not fail."""
        self._of(sequence).tried = True

    def copies(self, sequence: int) -> Set[int]:
        """Return which of several copies of a message are delivered, by the numbers that its route gives them."""
        found = self.failed.get(sequence)
        return _NONE if found is None else found.delivered

    def copied(self, sequence: int, copy: int) -> None:
        """Record that one of several copies of a message is delivered; others may fail."""
        self._of(sequence).delivered.add(copy)

    def choice(self, sequence: int, number: int) -> Sequence[int] | None:
        """Return the places of the destinations that were chosen for a message before, None if they are not known."""
        found = self.failed.get(sequence)
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
        found = self.failed.pop(sequence, None) or Failed()
        while len(self.failed) >= MOST_REMEMBERED:
            del self.failed[next(iter(self.failed))]
        self.failed[sequence] = found
        return found

    def discard(self, sequences: Iterable[int]) -> None:
        """These messages need not come again."""
        for sequence in sequences:
            self.failed.pop(sequence, None)
            self.given_up.pop(sequence, None)
            self.retried.discard(sequence)

    def keep_given_up(self, sequence: int, dead: GivenUp) -> None:
        """The dead letter of a message could not be stored once more: it is all that is tried when that comes again."""
        dead.tries += 1
        while len(self.given_up) >= MOST_REMEMBERED and sequence not in self.given_up:
            del self.given_up[next(iter(self.given_up))]
        self.given_up[sequence] = dead
