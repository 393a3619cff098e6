"""Detect that a durable delivers nothing new because the maximum number of messages is unacked. Pure.

The server delivers new messages only while fewer than `max_ack_pending` are unacked. Failed messages that wait for
their next attempt are among these, and messages whose ack was refused by the server or lost with a link.

While the consumer can't be checked, only the deliveries show that something is wrong, and not what: a consumer that has
messages left delivers them at once if they are requested.
"""

from __future__ import annotations

from math import inf
from typing import NamedTuple

from router_trio.link import ConsumerState
from router_trio.routing.stream.cursor import StreamCursor


class Look(NamedTuple):
    """A state of the consumer, and the number of messages in hand at that time; `held` of them wait for others."""

    state: ConsumerState
    in_hand: int
    held: int = 0

    @property
    def delivers_nothing_new(self) -> bool:
        """Return True if the maximum is unacked, and less than half of that is in hand and routed."""
        state = self.state
        return 0 < state.max_ack_pending <= state.unacked and 2 * (self.in_hand - self.held) < state.unacked


def standstill(
    before: Look | None, now: Look, cursor: StreamCursor, *, alone: bool = True, last_failure: str = ""
) -> str | None:
    """Return why the consumer delivers nothing new; None if it does, or if other processes may be the cause.

    `alone`: no other process uses the consumer. `last_failure` is the end of a text about failed messages.
    """
    if before is None or before.state.delivered != now.state.delivered or not now.delivers_nothing_new:
        return None
    state = now.state
    described = (
        f"the consumer has {state.unacked} unacked messages and may have {state.max_ack_pending} (max_ack_pending), so "
        f"nothing new is delivered and {state.undelivered} messages wait in the stream; "
    )
    if cursor.unsettled > now.in_hand:
        first = cursor.start
        failures = cursor.failures.failures(first)
        tried = f"has failed {failures} times" if failures > 1 else "failed" if failures else "is to be redelivered"
        return f"{described}message {first}, the first unacked one, {tried}{last_failure}"
    # An ack that was on its way at one check has arrived at the next.
    if alone and before.delivers_nothing_new and not now.held:
        return (
            f"{described}{state.unacked - now.in_hand} of the unacked messages are settled here and their acks were "
            "refused or lost, or a process that has ended received them: they are redelivered after their ack wait"
        )
    return None


class Unmoved:
    """The time since when a consumer has delivered nothing new, although messages wait there and are requested."""

    __slots__ = ("highest", "since")

    def __init__(self) -> None:
        self.highest: int = 0
        """The highest sequence that had been received at that time."""
        self.since: float = inf

    def look(self, cursor: StreamCursor, undelivered: int, active: int, requested_since: float, now: float) -> None:
        """Update both with the present state of the route.

        `requested_since`: the time since when a request has been pending without interruption, `inf` if none is.
        `undelivered`: the messages that the consumer had left at some time since then, 0 if unknown. A number from
        before the request may include messages that were deleted in the meantime. `active`: the messages in hand that
        do not wait for others. If they are half of the unsettled messages, they may be what uses up the maximum of
        unacked messages.
        """
        in_progress = active > 0 and 2 * active >= cursor.unsettled
        if not undelivered or in_progress or now < requested_since:
            self.since = inf
        elif cursor.highest != self.highest or not requested_since <= self.since <= now:
            self.highest, self.since = cursor.highest, now


def unexplained(undelivered: int, error: str) -> str:
    """Return that the consumer delivers nothing new, for an unknown reason since a check of it failed."""
    return (
        f"nothing new is delivered, although messages are requested and the consumer had {undelivered} left; it may be "
        f"paused, or too many messages are unacked; the consumer can't be checked: {error}"
    )
