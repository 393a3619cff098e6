"""The failed messages of a route: the last failure, and the messages that are being retried."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Protocol

MOST_RETRIED = 65_536
"""Messages whose first failure is remembered, for each route; of more, the oldest are forgotten."""


@dataclass(frozen=True, slots=True)
class LastFailure:
    """The last failure of a message in a route: nothing of its payload. `at` is in seconds since 1970.

    `subject` is None where messages failed together, `sequence` unless they are from a stream. `place` is where its
    handler raised. `detail` tells more of the reason, as what the server said; of what a handler raised, only if its
    text may be shown.
    """

    at: float
    reason: str
    subject: str | None = None
    sequence: int | None = None
    attempt: int = 1
    place: str | None = None
    detail: str | None = None

    @property
    def described(self) -> str:
        """The reason, with what more is known of it."""
        told = self.reason if self.place is None else f"{self.reason} at {self.place}"
        return told if self.detail is None else f"{told}: {self.detail}"


class ToBeRetried(Protocol):
    """The messages that failed and are to be tried again, with their first failures."""

    def __len__(self) -> int:
        """Return how many there are."""
        ...

    def oldest(self, now: float) -> float:
        """Return the seconds since the first failure of the message that has been retried for longest, 0 for none."""
        ...


class BeingRetried:
    """Messages that failed and are to be tried again, in the order in which they first failed.

    Times are on the router's monotonic clock.
    """

    __slots__ = ("_since",)

    def __init__(self) -> None:
        self._since: dict[Hashable, float] = {}

    def __len__(self) -> int:
        return len(self._since)

    def add(self, message: Hashable, now: float) -> None:
        """Record that a message failed; only its first failure counts."""
        if message not in self._since:
            while len(self._since) >= MOST_RETRIED:
                del self._since[next(iter(self._since))]
            self._since[message] = now

    def discard(self, message: Hashable) -> None:
        """Forget a message that is settled."""
        self._since.pop(message, None)

    def clear(self) -> None:
        """Forget all of them."""
        self._since.clear()

    def forget_up_to(self, sequence: int) -> None:
        """Forget messages of a stream up to a sequence: another process may have settled them."""
        for one in [one for one in self._since if isinstance(one, int) and one <= sequence]:
            del self._since[one]

    def oldest(self, now: float) -> float:
        """Return the seconds since the first failure of the message that has been retried for longest, 0 for none."""
        return max(0.0, now - next(iter(self._since.values()), now))
