"""The failed messages of a stream: how often each failed, which copies were delivered, which are given up. Pure.

The process that saw a failure counts it. The server's count of deliveries can't be used: naks at a shutdown, lost links
and killed processes use up deliveries of messages that no handler and no destination has seen.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field

from router_trio.errors.reasons import counts_as_attempt
from router_trio.routing.policy.retry import GivenUp
from router_trio.states import BeingRetried

MOST_REMEMBERED = 65_536
"""Failed messages that are remembered; the count of older ones starts again at 1.

The same bound holds for messages whose dead letters are not stored yet.
"""

_NONE: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True)
class Numbering:
    """The places of a route's destinations, by which copies and choices are numbered. A reload may change them.

    `names` identify the destinations, in order; None for a mirror, whose copies are not recorded.
    """

    strategy: str
    names: tuple[bytes | None, ...]


@dataclass(slots=True)
class Failed:
    """The number of failures of one message, and its delivered copies. `tried`: copies may have been sent.

    `attempts` are the failures that the message may have caused; `refusals` are those that no message can cause.
    Copies and choices have the numbers of `numbering`, None if nothing was recorded yet.
    """

    attempts: int = 0
    tried: bool = False
    delivered: set[int] = field(default_factory=set)
    choices: dict[int, Sequence[int]] = field(default_factory=dict)
    numbering: Numbering | None = None
    refusals: int = 0

    @property
    def failures(self) -> int:
        """The number of failures of any kind."""
        return self.attempts + self.refusals

    def count(self, reason: str) -> bool:
        """Count a failure. Return True if it uses up an attempt."""
        counts = counts_as_attempt(reason)
        if counts:
            self.attempts += 1
        else:
            self.refusals += 1
        return counts

    def renumber(self, now: Numbering) -> None:
        """Number the copies and choices as the next generation of the route does.

        Copies at destinations that are gone are forgotten. So is a choice with such a destination, or one of another
        strategy: the route as it is now chooses again.
        """
        if self.numbering is now:
            return
        before, self.numbering = self.numbering, now
        if before is None or before == now:
            return
        place_of = {name: place for place, name in enumerate(now.names) if name is not None}
        new_places = [None if name is None else place_of.get(name) for name in before.names]
        delivered, self.delivered = self.delivered, set()
        for copy in delivered:
            if copy < 0:  # an answer to the requester
                self.delivered.add(copy)
                continue
            answer, place = divmod(copy, len(before.names))
            if (new_place := new_places[place]) is not None:
                self.delivered.add(answer * len(now.names) + new_place)
        choices, self.choices = self.choices, {}
        if before.strategy != now.strategy:
            return
        for number, chosen in choices.items():
            # Mirrors got their copy at the first attempt.
            real = [place for place in chosen if before.names[place] is not None]
            found = [new_place for place in real if (new_place := new_places[place]) is not None]
            if len(found) == len(real):
                self.choices[number] = found


class FailedMessages:
    """The failed messages of one incarnation of a stream, by sequence."""

    __slots__ = ("failed", "given_up", "retried")

    def __init__(self) -> None:
        self.failed: dict[int, Failed] = {}
        """Messages that may be retried: they failed, or copies of them may be stored. Changed only here."""
        self.retried: BeingRetried = BeingRetried()
        self.given_up: dict[int, GivenUp] = {}
        """Messages that were given up and are redelivered until their dead letters are stored."""

    def attempts(self, sequence: int) -> int:
        """Return the number of attempts that the message has used up."""
        found = self.failed.get(sequence)
        return 0 if found is None else found.attempts

    def failures(self, sequence: int) -> int:
        """Return the number of failures of the message, of any kind."""
        found = self.failed.get(sequence)
        return 0 if found is None else found.failures

    def was_tried(self, sequence: int) -> bool:
        """Return True if copies of the message may be stored: it failed, or it was sent and waits again."""
        found = self.failed.get(sequence)
        return found is not None and (found.tried or found.failures > 0)

    def mark_tried(self, sequence: int) -> None:
        """Record that copies of the message may be stored though it did not fail."""
        self._of(sequence).tried = True

    def copies(self, sequence: int, numbering: Numbering) -> Set[int]:
        """Return the numbers of the copies of a message that were delivered."""
        found = self._numbered(sequence, numbering)
        return _NONE if found is None else found.delivered

    def copied(self, sequence: int, copy: int, numbering: Numbering) -> None:
        """Record that one of several copies of a message was delivered; others may fail."""
        found = self._of(sequence)
        found.renumber(numbering)
        found.delivered.add(copy)

    def choice(self, sequence: int, number: int, numbering: Numbering) -> Sequence[int] | None:
        """Return the places of the destinations that were chosen for a message before; None if unknown."""
        found = self._numbered(sequence, numbering)
        return None if found is None else found.choices.get(number)

    def keep_choices(self, sequence: int, choices: Mapping[int, Sequence[int]], numbering: Numbering) -> None:
        """Remember the destinations that were chosen for a message, which will be redelivered."""
        found = self._of(sequence)
        found.renumber(numbering)
        found.choices.update(choices)

    def restore(self, sequence: int, failed: Failed) -> None:
        """Continue with what another process knew of a message, unless something is known of it here."""
        if sequence not in self.failed:
            self._of(sequence)
            self.failed[sequence] = failed

    def _numbered(self, sequence: int, numbering: Numbering) -> Failed | None:
        found = self.failed.get(sequence)
        if found is not None:
            found.renumber(numbering)
        return found

    def known(self, sequence: int) -> Failed:
        """Return what is known of a message that has failed."""
        return self._of(sequence)

    def _of(self, sequence: int) -> Failed:
        found = self.failed.pop(sequence, None) or Failed()
        while len(self.failed) >= MOST_REMEMBERED:
            del self.failed[next(iter(self.failed))]
        self.failed[sequence] = found
        return found

    def discard(self, sequences: Iterable[int]) -> None:
        """Forget messages that are settled."""
        for sequence in sequences:
            self.failed.pop(sequence, None)
            self.given_up.pop(sequence, None)
            self.retried.discard(sequence)

    @property
    def taken_over(self) -> list[int]:
        """The messages that the server gave up, and whose dead letters are not stored yet."""
        return [sequence for sequence, dead in self.given_up.items() if dead.taken_over]

    def keep_given_up(self, sequence: int, dead: GivenUp) -> None:
        """Remember that the dead letter of a message could not be stored; only that is retried on redelivery."""
        dead.tries += 1
        self.give_up(sequence, dead)

    def give_up(self, sequence: int, dead: GivenUp) -> None:
        """Record that a message is not retried, so that only its dead letter is stored when it is next in hand."""
        while len(self.given_up) >= MOST_REMEMBERED and sequence not in self.given_up:
            del self.given_up[next(iter(self.given_up))]
        self.given_up[sequence] = dead
