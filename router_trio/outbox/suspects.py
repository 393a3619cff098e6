"""Finds a publish that ends every link it is sent on, so that it does not block everything else for ever.

Publishes that are unconfirmed when a link ends are sent first on the next one. If the server ends the connection
because of one of them, this repeats and nothing gets through. So if a link ended before anything on it was confirmed,
the next one starts carefully: with one publish at a time, then two, four, and so on, as long as each is confirmed. A
publish that was the only one in flight when the server ended two links in a row with an error is set aside (`poison`).
If the connections were closed without an error, which a network fault also causes, it takes five.

A link that went silent, or a server that could not be reached in between, is not counted against a publish.

Pure and synchronous; the time is passed in.
"""

from __future__ import annotations

from router_trio.errors import reasons
from router_trio.outbox.operation import Operation
from router_trio.protocol import framing, headers

ENDED_BY_SERVER = {reasons.SERVER_ERROR: 2, reasons.TOO_LARGE: 2, reasons.CLOSED: 5}
"""Reasons for the loss of a link that a publish may have caused, and how many links in a row prove it."""

ANSWERED_WITHIN = 1.0
"""Seconds from sending a publish to the end of the connection, if the server ends it because of that publish."""


MOST_KNOWN = 1024
"""Publishes that are remembered. Beyond that all are forgotten."""

KNOWN_FOR = 600.0
"""Seconds for which they are remembered. Others may be identical, and the server may have been at fault."""

OF_AN_ATTEMPT = headers.lines_of(("Router-Hops", "Router-Passed", "traceparent", "tracestate"))
"""Headers that a copy has at some attempts: hops are counted by chance, and traces sampled."""


class Suspects:
    """Decide how much may be sent at once on a link, and which publish is to blame for its end."""

    def __init__(self) -> None:
        self.careful: bool = False
        """True while `send_limit` limits what is sent."""
        self.known: dict[int, float] = {}
        """Publishes that ended links: their hashes, and when that was found."""
        self._window = 0
        self._suspected = 0
        self._settled = 0
        self._sent_at = 0.0
        self._accused: int | None = None
        self._times = 0

    def link_up(self, settled: int) -> None:
        """Start on a new link; `settled` operations of this connection have their fate by now."""
        self._settled = settled
        self._window = 0

    def send_limit(self, in_flight: int, now: float) -> int:
        """Return how many operations may be sent in addition to the unconfirmed ones. Call only while `careful`."""
        assert self.careful
        if not in_flight:
            self._window = max(1, 2 * self._window)
            self._sent_at = now
            self.careful = self._window <= self._suspected
        return max(0, self._window - in_flight)

    def link_down(self, reason: str, settled: int, in_flight: int, only: int | None, now: float) -> bool:
        """Evaluate the loss of a link with `in_flight` unconfirmed operations; `only` is the number of a single one.

        Return True if that one is to blame.
        """
        if not in_flight or reason not in ENDED_BY_SERVER:
            self.unreachable()
            return False
        alone = only if self.careful and now - self._sent_at < ANSWERED_WITHIN else None
        self._times = self._times + 1 if alone is not None and alone == self._accused else 1
        blamed = alone is not None and self._times >= ENDED_BY_SERVER[reason]
        self._accused = alone
        if settled == self._settled or self.careful:
            self.careful = True
            self._suspected = max(self._suspected, in_flight)
        if blamed:
            self._accused = None
        return blamed

    def remember(self, operation: Operation, now: float) -> None:
        """Remember a publish that ends links, so that it is not sent again when its stream redelivers the message."""
        if len(self.known) >= MOST_KNOWN:
            self.known.clear()
        self.known[_hash(operation)] = now

    def knows(self, operation: Operation, now: float) -> bool:
        """Return True if the publish, or an identical one, was remembered within `KNOWN_FOR` seconds."""
        key = _hash(operation)
        since = self.known.get(key)
        if since is None:
            return False
        if now - since < KNOWN_FOR:
            return True
        del self.known[key]
        return False

    def unreachable(self) -> None:
        """Clear all suspicion: no server could be reached, or the link ended for another reason."""
        self.careful = False
        self._suspected = 0
        self._accused = None


def _hash(operation: Operation) -> int:
    """Return a hash of a publish that stays the same when its stream redelivers the message, and it is sent again."""
    raw = framing.published(operation.frame)
    block = framing.header_block(raw)
    return hash((operation.subject, block and headers.removed(block, OF_AN_ATTEMPT), framing.payload(raw)))
