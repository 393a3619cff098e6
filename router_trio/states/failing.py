"""The failed messages of a route: the last failure, and the messages being retried."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass

MOST_RETRIED = 65_536
"""Messages whose first failure is remembered, for each route; beyond that the oldest are forgotten."""


@dataclass(frozen=True, slots=True)
class LastFailure:
    """The last failure of a message in a route. `at` is in seconds since 1970.

    `subject` is None if messages failed together, `sequence` is None unless they are from a stream. `place` is where
    the handler raised. `detail` adds to the reason, such as the server's error or the text of a `Reject`; the text of
    another error of a handler only if it may be shown.
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
        """The reason, with place and detail if they are known."""
        text = self.reason if self.place is None else f"{self.reason} at {self.place}"
        return text if self.detail is None else f"{text}: {self.detail}"


class BeingRetried:
    """Failed messages that are to be retried, in the order of their first failures.

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
        """Forget messages of a stream up to this sequence, which another process may have settled."""
        for one in [one for one in self._since if isinstance(one, int) and one <= sequence]:
            del self._since[one]

    def oldest(self, now: float) -> float:
        """Return the seconds since the first failure of the message retried for longest; 0 if there is none."""
        return max(0.0, now - next(iter(self._since.values()), now))
