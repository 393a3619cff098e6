"""The copies that one destination should have, compared with those that its streams have. Pure.

Both are taken in as they are read, in any order. A copy that is not found yet needs 24 bytes, each sequence of the
range one byte, however long the range is.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Iterator
from itertools import islice
from typing import NamedTuple

NONE, AWAITED, THERE, DIFFERENT, TWICE, MISSING, EXPIRED, DEAD_LETTERED, UNKNOWN = range(9)
"""States of a copy: none is expected; not found yet; found once; found with another payload; found several times; and
for those that are not found at all the explanation, if there is one."""

MAX_UNPACKED = 65_536
"""Expected copies that are kept in a dictionary, which takes ten times as much memory as an array."""

MAX_RECENT = 65_536
"""Copies that were found last and are remembered by their identity, where it does not contain the sequence."""

MAX_REPEATED = 100_000
"""Repeated copies that are remembered until `confirm`. Further ones are only counted."""


class Repeated(NamedTuple):
    """A copy of a message that was found before, stored in the destination under the sequence `stored`."""

    sequence: int
    identity: int
    stored: int


class Comparison:
    """The copies at one destination of the messages from `first` to `last`.

    An identity is a hash of a `Nats-Msg-Id`, a digest a hash of a payload; both have 64 bits. `by_sequence`: the
    identity can be read together with the sequence of its message in the source.
    """

    def __init__(self, first: int, last: int, *, by_sequence: bool) -> None:
        self.first: int = first
        self.repeated: list[Repeated] = []
        """Copies of messages that were found before. They may belong to another destination: see `confirm`."""
        self.unconfirmed: int = 0
        """The number of repeated copies that were not remembered."""
        self._by_sequence = by_sequence
        self._states = bytearray(max(0, last - first + 1))
        self._awaited: dict[int, tuple[int, int, int]] = {}
        self._packed = tuple(array("Q") for _ in range(3))
        self._recent: dict[int, int] = {}

    def expect(self, sequence: int, identity: int, digest: int) -> None:
        """Expect the copy of a message. Call it in the order of the sequences."""
        place = sequence - self.first
        if self._states[place] != NONE:
            return  # two destinations with one subject have one copy
        self._states[place] = AWAITED
        self._awaited[sequence if self._by_sequence else identity] = (sequence, identity, digest)
        if len(self._awaited) > MAX_UNPACKED and self._by_sequence:
            self._pack()

    def found(self, sequence: int | None, identity: int, digest: int | None, stored: int) -> None:
        """Take in a copy that the destination has under the sequence `stored`. Copies of other routes are ignored.

        `sequence` is that of its message, if the identity contains it. Without a digest payloads are not compared.
        """
        if sequence is None:
            known = self._recent.get(identity)
            if known is not None:
                self._repeat(Repeated(known, identity, stored))
                return
            expected = self._awaited.pop(identity, None)
        else:
            if not 0 <= sequence - self.first < len(self._states):
                return
            state = self._states[sequence - self.first]
            if state not in (NONE, AWAITED):
                self._repeat(Repeated(sequence, identity, stored))
                return
            expected = self._awaited.get(sequence) or self._unpacked(sequence)
            if expected is None or expected[1] != identity:
                return  # another destination's, or of a message that had the sequence before
            self._awaited.pop(sequence, None)
        if expected is None:
            return
        self._states[expected[0] - self.first] = THERE if digest in (None, expected[2]) else DIFFERENT
        if sequence is None:
            self._recent[identity] = expected[0]
            if len(self._recent) > MAX_RECENT:
                del self._recent[next(iter(self._recent))]

    def awaits(self, identity: int) -> bool:
        """Return True if the copy with this identity, which does not contain the sequence, is not found yet."""
        return identity in self._awaited

    def confirm(self, repeated: Repeated, identity: int) -> None:
        """Record that a repeated copy is one of this destination if the expected copy has the same identity."""
        if repeated.identity == identity:
            self._states[repeated.sequence - self.first] = TWICE

    def explain(self, sequence: int, state: int) -> None:
        """Record why an awaited copy does not exist."""
        assert self.state(sequence) == AWAITED, "only what was not found needs an explanation"
        self._states[sequence - self.first] = state

    def merge(self, other: Comparison) -> None:
        """Take over the copies that another destination has, where this one lacks them: one of them is enough."""
        for place, state in enumerate(other._states):
            if THERE <= state <= TWICE and not THERE <= self._states[place] <= TWICE:
                self._states[place] = state

    def state(self, sequence: int) -> int:
        """Return the state of the copy of a message."""
        return self._states[sequence - self.first]

    def count(self, state: int) -> int:
        """Return the number of copies in a state."""
        return self._states.count(state)

    def sequences(self, state: int) -> Iterator[int]:
        """Yield the messages whose copies are in a state, in order."""
        place = self._states.find(state)
        while place >= 0:
            yield self.first + place
            place = self._states.find(state, place + 1)

    def _repeat(self, repeated: Repeated) -> None:
        if len(self.repeated) < MAX_REPEATED:
            self.repeated.append(repeated)
        else:
            self.unconfirmed += 1

    def _pack(self) -> None:
        """Move the older half of the awaited copies into arrays, in which the sequences are in order."""
        oldest = list(islice(self._awaited, MAX_UNPACKED // 2))
        for sequence in oldest:
            for column, value in zip(self._packed, self._awaited.pop(sequence), strict=True):
                column.append(value)

    def _unpacked(self, sequence: int) -> tuple[int, int, int] | None:
        sequences, identities, digests = self._packed
        index = bisect_left(sequences, sequence)
        if index == len(sequences) or sequences[index] != sequence:
            return None
        return sequence, identities[index], digests[index]
