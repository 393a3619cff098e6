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

NONE, AWAITED, THERE, OVERRULED, DIFFERENT, TWICE, MISSING, EXPIRED, DEAD_LETTERED, UNKNOWN, GONE, WAITING = range(12)
"""States of a copy: none is expected; not found yet; found once; found with the later value of another writer; found
with another payload; found several times; and for those that are not found at all the explanation, if there is one.
`GONE`: the source has deleted the message. `WAITING`: the message waits for its next attempt."""

OVERRULES = -1
"""The digest of a copy that has the later value of another writer. No hash of a payload is negative."""

MAX_UNPACKED = 65_536
"""Expected copies that are kept in a dictionary, which takes ten times as much memory as an array."""

MAX_RECENT = 65_536
"""Copies that were found last and are remembered, to recognize the same copy when it is found again."""

RECENT_SEQUENCES = 4096
"""Copies that are remembered where the identity contains the sequence, so that others can be confirmed."""

MAX_LATER = 64
"""Messages with the id of an earlier one among which the one with the payload of a copy is looked for."""

MAX_REPEATED = 4096
"""Repeated copies that wait for `confirm` before `is_full`."""


class Repeated(NamedTuple):
    """A further copy of a message."""

    sequence: int
    identity: int


class Expected(NamedTuple):
    """A copy that is not found yet."""

    sequence: int
    identity: int
    digest: int


class Comparison:
    """The copies at one destination of the messages from `first` to `last`.

    An identity is a hash of a `Nats-Msg-Id`, a digest a hash of a payload; both have 64 bits. `by_sequence`: the
    identity can be read together with the sequence of its message in the source. `several`: a message may have several
    copies with one identity, which only their whole ids distinguish.
    """

    def __init__(self, first: int, last: int, *, by_sequence: bool, several: bool = False) -> None:
        self.first: int = first
        self.repeated: set[Repeated] = set()
        """Copies of messages that were found before. They may belong to another destination: see `confirm`."""
        self._by_sequence = by_sequence
        self._several = several
        self._states = bytearray(max(0, last - first + 1))
        self._awaited: dict[int, Expected] = {}
        self._later: dict[int, list[Expected]] = {}
        self._packed = tuple(array("Q") for _ in range(3))
        self._shared: set[int] = set()
        self._again: dict[int, dict[int, list[int]]] | None = None
        self._recent = _Recent(RECENT_SEQUENCES if by_sequence else MAX_RECENT)
        self._recent_ids = _Recent(MAX_RECENT)
        self._spare: dict[int, list[tuple[int, int | None]]] = {}

    def expect(self, sequence: int, identity: int, digest: int) -> None:
        """Expect the copy of a message. Call it in the order of the sequences."""
        place = sequence - self.first
        if self._states[place] != NONE:
            return  # two destinations with one subject have one copy
        self._states[place] = AWAITED
        if self._by_sequence:
            self._awaited[sequence] = Expected(sequence, identity, digest)
            if len(self._awaited) > MAX_UNPACKED:
                self._pack()
        elif identity in self._spare:  # its copy was found before, and taken for a repeated one of an earlier message
            spare = self._spare[identity]
            _, found = spare.pop(0)
            self._settle(Expected(sequence, identity, digest), found)
            if not spare:
                del self._spare[identity]
            self._shared.add(identity)
        elif identity in self._awaited:
            self._shared.add(identity)
            self._later.setdefault(identity, []).append(Expected(sequence, identity, digest))
        else:
            if identity in self._recent:
                self._shared.add(identity)
            self._awaited[identity] = Expected(sequence, identity, digest)

    def found(self, sequence: int | None, identity: int, digest: int | None, whole_id: int) -> None:
        """Take in a copy that the destination has. Copies of other routes are ignored.

        `sequence` is that of its message, if the identity contains it. Without a digest payloads are not compared.
        `whole_id` is a hash of its id.
        """
        if sequence is None:
            if self._again is None:
                self._found_by_identity(identity, digest, whole_id)
            else:
                self._found_in_second_reading(identity, digest, whole_id)
            return
        if not 0 <= sequence - self.first < len(self._states):
            return
        state = self._states[sequence - self.first]
        if state not in (NONE, AWAITED):
            self._found_again(sequence, identity, whole_id)
            return
        expected = self._awaited.get(sequence) or self._unpacked(sequence)
        if expected is None or expected.identity != identity:
            return  # another destination's, or of a message that had the sequence before
        self._awaited.pop(sequence, None)
        self._settle(expected, digest)
        self._recent.remember(sequence, identity)
        if self._several:
            self._recent_ids.remember(whole_id, sequence)

    def begin_again(self) -> None:
        """Prepare for a second reading of copies whose identities do not contain the sequence.

        It finds the copies that were read before their messages were expected, and those that several messages with the
        same id have together, because the stream took the others for duplicates.
        """
        self._recent.clear()
        self._recent_ids.clear()
        self._again = {}
        for identity, first in self._awaited.items():
            by_digest = self._again[identity] = {}
            for one in (first, *self._later.get(identity, ())):
                by_digest.setdefault(one.digest, []).append(one.sequence)

    def end_again(self) -> None:
        """Record that the second reading is done: other copies with the ids of messages have other payloads."""
        for identity, by_digest in (self._again or {}).items():
            if identity in self._recent:
                for sequence in (one for several in by_digest.values() for one in several):
                    self._states[sequence - self.first] = DIFFERENT
        self._again = None

    @property
    def is_full(self) -> bool:
        """True if no more repeated copies should be taken in before those in `repeated` are confirmed."""
        return len(self.repeated) >= MAX_REPEATED or len(self._spare) >= MAX_REPEATED

    def confirm(self, repeated: Repeated, identity: int) -> None:
        """Record that a repeated copy is one of this destination if the expected copy has the same identity."""
        if repeated.identity == identity:
            self._states[repeated.sequence - self.first] = TWICE

    def confirm_spare(self) -> None:
        """Record that no later message will have the repeated copies that were found by their identities alone."""
        for copies in self._spare.values():
            for sequence, _ in copies:
                self._states[sequence - self.first] = TWICE
        self._spare.clear()

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

    def count(self, state: int, last: int | None = None) -> int:
        """Return the number of copies in a state, of the messages up to `last`."""
        return self._states.count(state, 0, None if last is None else max(0, last + 1 - self.first))

    def lacks(self, sequence: int) -> bool:
        """Return True if the copy of a message is expected and not found yet."""
        place = sequence - self.first
        return 0 <= place < len(self._states) and self._states[place] == AWAITED

    def sequences(self, state: int, *, newest_first: bool = False) -> Iterator[int]:
        """Yield the messages whose copies are in a state, in order. States may change meanwhile."""
        if newest_first:
            place = self._states.rfind(state)
            while place >= 0:
                yield self.first + place
                place = self._states.rfind(state, 0, place)
            return
        place = self._states.find(state)
        while place >= 0:
            yield self.first + place
            place = self._states.find(state, place + 1)

    def _settle(self, expected: Expected, digest: int | None) -> None:
        found = OVERRULED if digest == OVERRULES else DIFFERENT
        self._states[expected.sequence - self.first] = THERE if digest in (None, expected.digest) else found

    def _found_again(self, sequence: int, identity: int, whole_id: int) -> None:
        if self._states[sequence - self.first] == TWICE:
            return
        known = self._recent.get(sequence)
        if self._several:
            if known == identity and whole_id in self._recent_ids:
                self._states[sequence - self.first] = TWICE
            elif known == identity:
                self._recent_ids.remember(whole_id, sequence)
        elif known is None:
            self.repeated.add(Repeated(sequence, identity))
        elif known == identity:
            self._states[sequence - self.first] = TWICE

    def _found_by_identity(self, identity: int, digest: int | None, whole_id: int) -> None:
        expected = self._awaited.get(identity)
        is_known = self._several and whole_id in self._recent_ids
        if expected is None or is_known:
            known = self._recent.get(identity)
            if known is not None and (is_known or not self._several):
                self._spare.setdefault(identity, []).append((known, digest))
            elif known is not None:
                self._recent_ids.remember(whole_id, known)
            return
        # Of several messages with one id, it is the copy of the first one with its payload.
        later = self._later.get(identity, [])
        place = next((n for n, one in enumerate(later[:MAX_LATER]) if one.digest == digest), None)
        if digest not in (None, expected.digest) and place is not None:
            expected = later.pop(place)
        elif later:
            self._awaited[identity] = later.pop(0)
        else:
            del self._awaited[identity]
        if not later:
            self._later.pop(identity, None)
        self._settle(expected, digest)
        self._recent.remember(identity, expected.sequence)
        if self._several:
            self._recent_ids.remember(whole_id, expected.sequence)

    def _found_in_second_reading(self, identity: int, digest: int | None, whole_id: int) -> None:
        """Take in a copy: every message with its id and payload has it. A further one is a repeated copy.

        Except where several messages have the id, as it is not known which of their copies were found before.
        """
        assert self._again is not None, "begin_again was called"
        by_digest = self._again.get(identity)
        if by_digest is None:
            return
        known = self._recent.get(identity)
        if known is not None and identity not in self._shared and (not self._several or whole_id in self._recent_ids):
            self._states[known - self.first] = TWICE
            return
        digests = list(by_digest) if digest is None else [digest]
        for sequence in (one for each in digests for one in by_digest.pop(each, ())):
            self._states[sequence - self.first] = THERE
            known = sequence
        if known is None:  # all of them have other payloads
            known = next(iter(by_digest.values()))[0]
        self._recent.remember(identity, known)
        self._recent_ids.remember(whole_id, known)

    def _pack(self) -> None:
        """Move the older half of the awaited copies into arrays, in which the sequences are in order."""
        oldest = list(islice(self._awaited, MAX_UNPACKED // 2))
        for sequence in oldest:
            for column, value in zip(self._packed, self._awaited.pop(sequence), strict=True):
                column.append(value)

    def _unpacked(self, sequence: int) -> Expected | None:
        sequences, identities, digests = self._packed
        index = bisect_left(sequences, sequence)
        if index == len(sequences) or sequences[index] != sequence:
            return None
        return Expected(sequence, identities[index], digests[index])


class _Recent:
    """The pairs that were remembered last: at least `least` pairs, and at most twice as many.

    Two dictionaries are cheaper than one from which the oldest pair is removed each time.
    """

    def __init__(self, least: int) -> None:
        self._least = least
        self._new: dict[int, int] = {}
        self._old: dict[int, int] = {}

    def remember(self, key: int, value: int) -> None:
        """Add a pair, or change its value."""
        self._new[key] = value
        if len(self._new) >= self._least:
            self._old, self._new = self._new, {}

    def get(self, key: int) -> int | None:
        """Return the value of a key; None if it was forgotten, or never remembered."""
        value = self._new.get(key)
        return self._old.get(key) if value is None else value

    def __contains__(self, key: int) -> bool:
        return self.get(key) is not None

    def clear(self) -> None:
        """Forget everything."""
        self._new, self._old = {}, {}
