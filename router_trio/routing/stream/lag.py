"""How far a route is behind its stream: the messages that match and are not settled, and the age of the oldest. Pure.

Each delivery names the number of messages that the consumer has not delivered yet. Only the last delivery is kept, and
read when a page is made, so a message costs nothing. While nothing is delivered, the number is that of the periodic
check of the consumer, which also shows messages that are unacked and not here: those of other processes, and those that
the server redelivers later.

Ages are by the server's clock, as the check reports it.
"""

from __future__ import annotations

import time
from math import inf
from typing import NamedTuple

from router_trio.link import STATE_FOR, ConsumerState, StoredAt
from router_trio.protocol import ack_reply
from router_trio.protocol.framing import LAST_SEQUENCE
from router_trio.routing.policy.server_clock import ServerClock
from router_trio.routing.stream.cursor import StreamCursor
from router_trio.states import Behind

UNKNOWN_AFTER = 8.0
"""Seconds without a delivery and without a successful check after which it is unknown how far a route is behind.

A check takes place every five seconds; when one fails, the number that is shown may be older than these five.
"""


class Asked(NamedTuple):
    """The moment when a check of the consumer began: what was received and unsettled then."""

    at: float
    received: int
    unsettled: int


class Lag:
    """How far one route is behind. Times are on Trio's clock, and stream times in nanoseconds since 1970."""

    __slots__ = (
        "_asked",
        "_behind_since",
        "_caught_up_at",
        "_checked_at",
        "_elsewhere",
        "_oldest",
        "_standby",
        "_undelivered",
        "clock",
        "last_at",
        "last_reply",
        "received",
    )

    def __init__(self) -> None:
        self.received: int = 0
        """The number of deliveries, and below the time and the reply subject of the last one."""
        self.last_at: float = -inf
        self.last_reply: bytes = b""
        self.clock: ServerClock = ServerClock()
        self.forget()

    def forget(self) -> None:
        """Forget how far the route is behind, since there is no consumer, or another one."""
        self.last_at = -inf
        self._asked = Asked(-inf, self.received, 0)
        self._checked_at = -inf
        self._undelivered = self._elsewhere = 0
        self._oldest: StoredAt | None = None
        self._caught_up_at = -inf
        self._behind_since: float | None = None
        self._standby = False

    # --- what is learned ---

    def asks(self, cursor: StreamCursor, now: float) -> Asked:
        """Return the moment before a check, to be passed to `checked`."""
        return Asked(now, self.received, cursor.unsettled)

    def wants_oldest(self, cursor: StreamCursor) -> bool:
        """Return True if the oldest message may be one that is not here, so that it has to be looked up."""
        return not cursor.unsettled or self._elsewhere > 0

    def checked(self, asked: Asked, state: ConsumerState, cursor: StreamCursor, now: float) -> None:
        """Take in the state of the consumer that has this cursor.

        At the server's moment as many messages were unsettled here as before the check or afterwards, give or take
        those received meanwhile.
        """
        received = self.received - asked.received
        most, least = asked.unsettled + received, cursor.unsettled - received
        self._take_in(asked, state, now)
        self._elsewhere = state.unacked - min(max(state.unacked, least), most)
        self._standby = False

    def checked_by_standby(self, state: ConsumerState, now: float) -> None:
        """Take in the state of the consumer that another process reads: all its messages are at the server."""
        self._take_in(Asked(now, self.received, 0), state, now)
        self._elsewhere = state.unacked
        self._standby = True

    def _take_in(self, asked: Asked, state: ConsumerState, now: float) -> None:
        if not self._pending:
            self._caught_up_at = max(self._caught_up_at, self._known_at)
        self._asked, self._checked_at = asked, now
        self._undelivered, self._oldest = state.undelivered, state.oldest
        if not self._pending:
            self._caught_up_at, self._behind_since = asked.at, None
        elif self._behind_since is None:
            self._behind_since = now
        self.clock.set_by(state.time, now)

    def stays_known(self, requested: bool, now: float) -> bool:
        """Return True if no check is needed, since deliveries show how far the route is behind.

        That is while messages are delivered, and while the consumer has none left and `requested` ones are awaited.
        """
        if requested and not self._pending and not self._elsewhere and now <= self._known_at + UNKNOWN_AFTER:
            self._checked_at = now
            return True
        return now < self.last_at + STATE_FOR

    def undelivered_since(self, moment: float) -> int:
        """Return how many messages the consumer has not delivered; 0 if their number was not seen since `moment`."""
        known_at = self._asked.at if self.received <= self._asked.received else self.last_at
        return self._pending if known_at >= moment else 0

    # --- what is shown ---

    @property
    def _known_at(self) -> float:
        return max(self.last_at, self._checked_at)

    @property
    def _pending(self) -> int:
        """Return how many messages the consumer has not delivered, as the last delivery or a later check shows."""
        if self.received <= self._asked.received:
            return self._undelivered
        tokens = ack_reply.tokens(self.last_reply)
        pending = tokens[ack_reply.PENDING] if len(tokens) > ack_reply.PENDING else b""
        return min(int(pending[:20]), LAST_SEQUENCE) if pending.isdigit() else 0

    def behind(self, cursor: StreamCursor, now: float) -> Behind | None:
        """Return how far the route is behind; None if that is not known."""
        known_for = now - self._known_at
        if known_for > UNKNOWN_AFTER:
            return None
        here = 0 if self._standby else cursor.unsettled
        behind = Behind(self._pending, here, self._elsewhere, 0.0, max(0.0, known_for))
        if not behind.messages:
            return behind
        server_now = self.clock.time_ns(now, time.time_ns())
        times = [] if self._oldest is None or (here and cursor.knows(self._oldest.sequence)) else [self._oldest.time]
        if here and (oldest_here := cursor.oldest_time):
            times.append(oldest_here)
        seconds = (server_now - min(times)) / 1e9 if times else self._estimate(cursor, server_now, now)
        return Behind(behind.pending, here, behind.elsewhere, max(0.0, seconds), behind.known_for)

    def _estimate(self, cursor: StreamCursor, server_now: float, now: float) -> float:
        """Return the age of an oldest message that was not looked up.

        It is younger than the last delivered message, and was stored after the consumer had nothing left. If neither is
        known, it is at least as old as the time for which the route is known to be behind.
        """
        last_time = cursor.last_known[1]
        most = min((server_now - last_time) / 1e9 if last_time else inf, now - self._caught_up_at)
        if most < inf:
            return most
        return 0.0 if self._behind_since is None else now - self._behind_since
