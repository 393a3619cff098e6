"""Find out whether a route receives mostly what it has sent: its messages go round in a circle. Pure."""

from __future__ import annotations

COMPARED = 10.0
"""Seconds over which messages are compared: those that were received, and those of them that came back."""

SHOWN_FOR = 60.0
"""Seconds for which a circle is shown after a message has come back, and between two reports of it."""

PART = 3
"""The part of the messages that has to have come back: a third."""

ONCE = 1
"""Messages that may come back without being a circle: a person may have sent one again."""


class Returning:
    """Compares the messages of a route that have passed it before with all that it receives."""

    __slots__ = ("_began", "_received", "_reported", "_shown_until", "passed_as", "returned")

    def __init__(self, passed_as: str) -> None:
        self.passed_as: str = passed_as
        """The name of the route in the header of messages."""
        self._began = self._reported = self._shown_until = float("-inf")
        self._received = 0
        self.returned: int = 0
        """Messages that came back in the last seconds."""

    def note(self, received: int, now: float) -> int:
        """Record a message that came back; the route has received `received` in all.

        Return how many were received in the last seconds if the circle is to be reported now, else 0.
        """
        if now > self._began + COMPARED:
            self._began, self._received, self.returned = now, received - 1, 0
        self.returned += 1
        among = max(received - self._received, self.returned)
        if self.returned <= ONCE or self.returned * PART < among:
            return 0
        self._shown_until = now + SHOWN_FOR
        if now < self._reported + SHOWN_FOR:
            return 0
        self._reported = now
        return among

    def why(self, now: float) -> str | None:
        """Return that the route is in a circle, and what to do; None if no message has come back for a while."""
        if now > self._shown_until:
            return None
        return (
            "it receives mostly messages that it has sent itself: they go round in a circle; their header "
            f"Router-Passed names the routes on the way, this one as {self.passed_as}, and each of them reports its "
            "own name; `router-trio check --online` shows a way over streams and durables"
        )
