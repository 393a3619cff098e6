"""Decide at which copy a consumer continues, and how many messages are delivered to it again. Pure.

`expect` the messages of the source first, then pass the copies to `found` in the order of their stream.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Iterator
from typing import NamedTuple


class Consumed(NamedTuple):
    """How far a consumer has come. Of the messages above `floor`, up to `delivered`, this many are `unacked`.

    `deliveries` were made of messages above the floor, redeliveries included.
    """

    floor: int
    delivered: int
    unacked: int
    deliveries: int


class Position(NamedTuple):
    """Where a consumer continues in a copy, and how many of the `copies` from there on are repeats.

    At least `least_acked` and at most `most_acked` of them are of an acked message. `further` ones are of a message
    above the floor that has another copy before them, so they repeat that one, whether the message is acked or not.
    """

    sequence: int
    least_acked: int
    most_acked: int
    further: int
    copies: int


class Search:
    """The search for a position. It needs 17 bytes for each message of the source above the floor."""

    def __init__(self, consumed: Consumed, *, has_gaps: bool) -> None:
        self.has_gaps: bool = has_gaps
        """True if delivered messages above the floor may be missing in the source, or the source is not known."""
        self._consumed = consumed
        self._sequences = array("Q")
        self._times = array("Q")
        self._copied = bytearray()
        self._delivered = 0
        self._delivered_copied = 0
        self._unknown: set[int] = set()
        self._unknown_delivered = 0
        self._first: int | None = None
        self._acked = 0
        self._further = 0

    def expect(self, sequence: int, time_ns: int) -> None:
        """Take in a message of the source that the consumer reads. Call it in the order of the sequences."""
        if sequence <= self._consumed.floor:
            return
        self._sequences.append(sequence)
        self._times.append(time_ns)
        self._copied.append(0)
        self._delivered += sequence <= self._consumed.delivered

    def found(self, copy_sequence: int, sequence: int, time_ns: int) -> bool:
        """Take in a copy of a message with this sequence and time. Return False if it is not one of this stream."""
        if sequence <= self._consumed.floor:
            self._acked += self._first is not None
            return True
        place = bisect_left(self._sequences, sequence)
        if place < len(self._sequences) and self._sequences[place] == sequence:
            if self._times[place] != time_ns:
                return False  # of a message that had the sequence before the stream was created again
            if self._copied[place]:
                self._further += 1
            else:
                self._copied[place] = 1
                self._delivered_copied += sequence <= self._consumed.delivered
        elif sequence in self._unknown:
            self._further += 1
        else:
            self._unknown.add(sequence)
            self._unknown_delivered += sequence <= self._consumed.delivered
        if self._first is None:
            self._first = copy_sequence
        return True

    @property
    def has_begun(self) -> bool:
        """True once the copy at the position was found."""
        return self._first is not None

    def position(self, end: int) -> Position:
        """Return the position, `end` if there is no copy of a message above the floor."""
        if self._first is None:
            return Position(end, 0, 0, 0, 0)
        least, most = self._acked_above()
        above = sum(self._copied) + len(self._unknown)
        copies = self._acked + above + self._further
        return Position(self._first, self._acked + least, self._acked + most, self._further, copies)

    def without_copy(self) -> Iterator[int]:
        """Yield the expected messages without a copy."""
        for sequence, copied in zip(self._sequences, self._copied, strict=True):
            if not copied:
                yield sequence

    def _acked_above(self) -> tuple[int, int]:
        """Return how many of the copied messages above the floor are acked: at least, and at most.

        The unacked messages are among those with a copy and the others that were delivered. Of all that were delivered
        above the floor, not more are acked than there were deliveries beyond one of each unacked message.
        """
        consumed = self._consumed
        copied = self._delivered_copied + self._unknown_delivered
        elsewhere = self._delivered - self._delivered_copied
        if self.has_gaps:  # every other sequence may have been a message of the consumer
            elsewhere = max(0, consumed.delivered - consumed.floor - copied)
        least, most = max(0, copied - consumed.unacked), copied - min(copied, max(0, consumed.unacked - elsewhere))
        return least, max(least, min(most, consumed.deliveries - consumed.unacked))
