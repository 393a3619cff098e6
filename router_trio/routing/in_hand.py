"""Every message that a route has received and not settled, and its state: the part common to all sources.

`moves.py` has the states, and the moves between them. `count` is the total. WAITING messages are in `schedule`, LIMITED
ones in `limits`. A message that is LIMITED, HELD or IN_HANDLER is *apart*: its state is in `states`. All others are
ACTIVE. Only the modules of hands move messages. Synchronous and without I/O.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Generic, TypeVar

from router_trio.protocol.framing import text
from router_trio.routing import moves
from router_trio.routing.delivery import Delivery
from router_trio.routing.schedule import Limits, Order

D = TypeVar("D", bound=Delivery)


class InHand(Generic[D]):
    """The messages of one route."""

    def __init__(self, table: moves.Moves, schedule: Order[D], limits: Limits[D]) -> None:
        self.table: moves.Moves = table
        self.schedule: Order[D] = schedule
        self.limits: Limits[D] = limits
        self.count: int = 0
        self.states: dict[D, moves.State] = {}
        """The states of messages that are apart."""

    @property
    def waiting(self) -> int:
        """Return the number of messages that wait for their turn, not for the limit of their value."""
        return self.schedule.count

    @property
    def behind(self) -> int:
        """Return the number of waiting messages that wait for another message of their key."""
        return self.schedule.behind

    @property
    def held(self) -> int:
        """Return the number of messages that wait for an attempt: their own, or that of an earlier failed message."""
        raise NotImplementedError

    @property
    def active(self) -> int:
        """Return the number of messages that were sent, or are being dead-lettered, and are not settled."""
        return self.count - self.schedule.count - len(self.states)

    @property
    def in_handler(self) -> list[D]:
        """Return the messages in handler calls that have not returned, in the order of the calls."""
        return [message for message, state in self.states.items() if state == moves.IN_HANDLER]

    @property
    def due_at(self) -> float:
        """Return when the next message may be sent that waits only for time; infinite if there is none."""
        return self.limits.due_at

    def ready(self, now: float) -> bool:
        """Return True if `next` may return a message."""
        return self.schedule.ready or self.due_at <= now

    def next(self, now: float) -> D | None:
        """Take out the next message to route, and make it active; return None if none may be routed now.

        Also returns None after some messages that have to wait, or that fail at once, although it is still `ready`:
        then other tasks should run before the next call.
        """
        raise NotImplementedError

    # --- moved ---

    def _move(self, message: D, event: moves.Event, state: moves.State = moves.ACTIVE) -> None:
        """Move a message as the table says. Unless it is apart, it was in `state`."""
        if self.states:
            state = self.states.pop(message, state)
        after = self.table[state].get(event)
        if after is None:
            sequence = message.place_in_stream
            named = repr(text(message.raw[0])) + (f", sequence {sequence}" if sequence else "")
            raise AssertionError(f"a message that is {state} can't move by {event!r}: {named}")
        if after in moves.APART:
            self.states[message] = after

    def _move_all(self, messages: Sequence[D], event: moves.Event, state: moves.State = moves.ACTIVE) -> None:
        """Move several messages to a state that is not apart. The table is read once if none in hand is apart.

        Where each lone message passes, the caller asks the same before it calls.
        """
        if self.states or event not in self.table[state]:
            for message in messages:
                self._move(message, event, state)

    # --- in a handler ---

    def handler_blocks(self, delivery: D) -> None:
        """Record that the handler of an active message waits for something."""
        self._move(delivery, moves.BLOCKED)

    def handler_returned(self, delivery: D) -> None:
        """Record that the handler returned, raised or was cancelled. Its message may be settled by then."""
        if self.states.get(delivery) == moves.IN_HANDLER:
            self._move(delivery, moves.HANDLED)

    def put_back(self, delivery: D) -> None:
        """Put back a message whose handler ended the route: it is dropped or returned with the others at the end.

        Nothing of it was sent, and it is not routed again.
        """
        self._move(delivery, moves.PUT_BACK)
        self.schedule.waiting.append(delivery)
