"""Every message that a route has received and not settled, and its state: the part common to all sources.

    received ──> WAITING ──┬──> IN HANDLER ──> ACTIVE ──> settled
                    ▲      │                     │
                    ├── LIMITED                  │ failed, or out of turn
                    └── HELD <───────────────────┘

`count` is the total. WAITING messages are in `schedule`, LIMITED ones in `limits`, those IN HANDLER in `in_handler`.
Messages in none of these and not HELD are ACTIVE: sent, or being dead-lettered. What HELD means depends on the source.
A subject redelivers nothing, so failed messages are held for their next attempt (`core/in_hand.py`). A stream
redelivers failed messages, so those behind them are held (`stream/in_hand.py`). Only these modules move messages.
Synchronous and without I/O.
"""

from __future__ import annotations

from typing import Generic, TypeVar

from router_trio.routing.delivery import Delivery
from router_trio.routing.schedule import Limits, Order

D = TypeVar("D", bound=Delivery)


class InHand(Generic[D]):
    """The messages of one route."""

    def __init__(self, schedule: Order[D], limits: Limits[D]) -> None:
        self.schedule: Order[D] = schedule
        self.limits: Limits[D] = limits
        self.count: int = 0
        self.in_handler: dict[D, None] = {}
        """Messages in handler calls that have not returned, in the order of the calls. Nothing of them was sent."""

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
        return self.count - self.schedule.count - self.limits.count - self.held - len(self.in_handler)

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

    # --- in a handler ---

    def handler_blocks(self, delivery: D) -> None:
        """Record that the handler of an active message waits for something."""
        self.in_handler[delivery] = None

    def handler_returned(self, delivery: D) -> None:
        """Record that the handler returned, raised or was cancelled."""
        self.in_handler.pop(delivery, None)

    def put_back(self, delivery: D) -> None:
        """Put back a message whose handler ended the route: it is dropped or returned with the others at the end.

        Nothing of it was sent, and it is not routed again.
        """
        self.schedule.waiting.append(delivery)
