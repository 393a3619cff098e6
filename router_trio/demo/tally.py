"""Compare what was published with what a stream holds. Pure, so that the demo's verdict can itself be tested."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Tally:
    """The result of comparing numbered messages. `strange` arrived but were never sent, or on another subject."""

    sent: int
    stored: int
    missing: int
    repeated: int
    disordered: int
    strange: int

    @property
    def exact(self) -> bool:
        """Return True if each message arrived once and in the order of its subject."""
        return not (self.missing or self.repeated or self.disordered or self.strange)

    @property
    def complete(self) -> bool:
        """Return True if each message arrived, be it more than once, and in order."""
        return not (self.missing or self.disordered or self.strange)

    def __str__(self) -> str:
        if self.exact:
            return f"{self.stored} of {self.sent} arrived, each once and in order"
        wrong = {
            "missing": self.missing,
            "twice or more": self.repeated,
            "out of order": self.disordered,
            "never sent": self.strange,
        }
        return f"{self.stored} arrived of {self.sent}: " + ", ".join(f"{n} {what}" for what, n in wrong.items() if n)


def tally(sent: Mapping[str, Sequence[int]], stored: Iterable[tuple[str, int]]) -> Tally:
    """Compare numbers by subject. `sent` has the numbers of each subject in order, `stored` what came, in order.

    A number that came again is counted as repeated, and its first time alone says whether it came in order.
    """
    expected = {(subject, number) for subject, numbers in sent.items() for number in numbers}
    came: Counter[tuple[str, int]] = Counter()
    latest: dict[str, int] = {}
    disordered = 0
    for subject, number in stored:
        came[subject, number] += 1
        if came[subject, number] > 1:
            continue
        if number < latest.get(subject, number):
            disordered += 1
        latest[subject] = max(number, latest.get(subject, number))
    return Tally(
        sent=len(expected),
        stored=came.total(),
        missing=len(expected - came.keys()),
        repeated=came.total() - len(came),
        disordered=disordered,
        strange=len(came.keys() - expected),
    )
