"""Tell the time of the server that stored a route's messages: clocks differ, and ages are measured by one of them."""

from __future__ import annotations


class ServerClock:
    """The clock of a server, as its last answer showed it."""

    __slots__ = ("zero",)

    def __init__(self) -> None:
        self.zero: float | None = None
        """The server's time in nanoseconds since 1970 at which Trio's clock was 0; None before its first answer."""

    def set_by(self, time_ns: int, now: float) -> None:
        """Set the clock by the time of an answer, which is 0 from a server that does not report one."""
        if time_ns:
            self.zero = time_ns - now * 1e9

    def time_ns(self, now: float, otherwise: int) -> int:
        """Return the server's time in nanoseconds, or `otherwise` if it is not known."""
        return otherwise if self.zero is None else int(self.zero + now * 1e9)
