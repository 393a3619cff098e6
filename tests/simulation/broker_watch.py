"""The events at one broker of a simulation, passed on to the oracles that count them."""

from __future__ import annotations

from collections.abc import Callable

from router_trio.testing.streams import Stored, Stream
from router_trio.testing.watch import Watch
from tests.simulation.arrivals import Arrivals


class BrokerWatch(Watch):
    """Passes on the events at one broker. `acked` and `termed` get a durable and a sequence."""

    def __init__(
        self,
        arrivals: Arrivals,
        acked: Callable[[str, int], None],
        termed: Callable[[str, int], None],
        answered: Callable[[str, str], None],
        broker: str,
    ) -> None:
        self._acked = acked
        self._termed = termed
        self._answered = answered
        self._broker = broker
        self.received = arrivals.received  # type: ignore[method-assign]
        self.refused = arrivals.refused  # type: ignore[method-assign]
        self._arrivals = arrivals

    def stored(self, stream: Stream, stored: Stored, now: float) -> None:
        """Pass on a stored message, see `Watch.stored`."""
        self._arrivals.stored(self._broker, stream, stored, now)

    def answered(self, kind: str) -> None:
        """Pass on an answer, see `Watch.answered`."""
        self._answered(self._broker, kind)

    def ack_taken(self, stream: str, durable: str, sequence: int, now: float) -> None:
        """Pass on an ack, see `Watch.ack_taken`."""
        self._acked(durable, sequence)

    def term_taken(self, stream: str, durable: str, sequence: int, now: float) -> None:
        """Pass on a termination, see `Watch.term_taken`."""
        self._termed(durable, sequence)
