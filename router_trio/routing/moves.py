"""Where a received message can be, and the events that move it: a table for each kind of source. Pure.

`in_hand.py` moves messages, and raises `AssertionError` for a move that the table lacks.
"""

from __future__ import annotations

from typing import Final, NewType

State = NewType("State", str)
Event = NewType("Event", str)

OUTSIDE: Final = State("outside")
"""Not received yet, or settled, lost, or passed on to the next route."""
WAITING: Final = State("waiting")
"""In the schedule."""
LIMITED: Final = State("limited")
"""Its value has a limit, which does not let it be sent yet."""
HELD: Final = State("held")
"""From a subject: it waits for its next attempt. From a stream: an earlier message of its subject or key does."""
IN_HANDLER: Final = State("in a handler")
"""A handler was called and has not returned. Nothing was sent."""
ACTIVE: Final = State("active")
"""Taken out to be routed or returned: sent and not settled, or being dead-lettered."""
RETURNED: Final = State("returned")
"""Left to its stream, if that still exists. A redelivery of it is another message here."""

RECEIVED: Final = Event("received")
TURN: Final = Event("turn")
DUE: Final = Event("due")
OVER_LIMIT: Final = Event("over limit")
BEHIND: Final = Event("behind")
"""An earlier message has to be routed first."""
RELEASED: Final = Event("released")
REORDERED: Final = Event("reordered")
"""The settings of its route have changed, and it is scheduled by the new ones."""
BLOCKED: Final = Event("blocked")
"""Its handler waits for something."""
HANDLED: Final = Event("handled")
PUT_BACK: Final = Event("put back")
"""Nothing of it was sent: its handler was cancelled, or an earlier message has to be sent first."""
FAILED: Final = Event("failed")
"""It has to be tried again."""
SETTLED: Final = Event("settled")
WITHDRAWN: Final = Event("withdrawn")
"""It is not routed here: the route ends, or there is no room."""
GIVEN_BACK: Final = Event("given back")

Moves = dict[State, dict[Event, State]]

SUBJECT: Final[Moves] = {
    OUTSIDE: {RECEIVED: WAITING},
    WAITING: {TURN: ACTIVE, WITHDRAWN: OUTSIDE},
    LIMITED: {DUE: ACTIVE, WITHDRAWN: OUTSIDE},
    HELD: {DUE: ACTIVE, WITHDRAWN: OUTSIDE},
    ACTIVE: {BLOCKED: IN_HANDLER, OVER_LIMIT: LIMITED, FAILED: HELD, PUT_BACK: WAITING, SETTLED: OUTSIDE},
    IN_HANDLER: {HANDLED: ACTIVE, FAILED: HELD, PUT_BACK: WAITING, SETTLED: OUTSIDE, WITHDRAWN: OUTSIDE},
}

STREAM: Final[Moves] = {
    OUTSIDE: {RECEIVED: WAITING},
    WAITING: {TURN: ACTIVE, BEHIND: HELD, WITHDRAWN: ACTIVE},
    LIMITED: {DUE: ACTIVE, REORDERED: WAITING, WITHDRAWN: ACTIVE},
    HELD: {RELEASED: WAITING, REORDERED: WAITING, WITHDRAWN: ACTIVE},
    ACTIVE: {
        BLOCKED: IN_HANDLER,
        OVER_LIMIT: LIMITED,
        BEHIND: HELD,
        FAILED: RETURNED,
        PUT_BACK: WAITING,
        SETTLED: OUTSIDE,
        GIVEN_BACK: RETURNED,
    },
    IN_HANDLER: {HANDLED: ACTIVE, FAILED: RETURNED, PUT_BACK: WAITING, SETTLED: OUTSIDE, GIVEN_BACK: RETURNED},
    RETURNED: {},
}

APART: Final = (LIMITED, HELD, IN_HANDLER)
"""The states that a hand records for each message. All others follow from where it is, so batches may move at once."""
