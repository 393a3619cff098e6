"""Every message that a route has received and not settled, and where it is: what is the same for every source.

    received ──> WAITING ──┬──> IN HANDLER ──> ACTIVE ──> settled
                    ▲      │                     │
                    ├── LIMITED                  │ failed, or out of turn
                    └── HELD <───────────────────┘

`count` is all of it. WAITING is `schedule`, LIMITED is `limits`, IN HANDLER is `in_handler`; what is in none of them,
and not HELD, is ACTIVE: sent, or being dead-lettered. Who is HELD differs. Of a subject, which has nothing any more, it
is what failed and waits for its next attempt: `core/in_hand.py`. A stream redelivers what failed, and what is behind
that is held: `stream/in_hand.py`. Only these modules move messages. Synchronous and without I/O.
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
        """Messages in a handler that has not returned, in the order of its calls. Nothing of them was sent."""

    @property
    def waiting(self) -> int:
        """Return how many messages wait for their turn, apart from those that wait for the limit of their value."""
        return self.schedule.count

    @property
    def held(self) -> int:
        """Return how many messages wait for the next attempt of one that failed, which may be their own."""
        raise NotImplementedError

    @property
    def active(self) -> int:
        """Return how many messages were sent, or are being dead-lettered, and have no fate."""
        return self.count - self.schedule.count - self.limits.count - self.held - len(self.in_handler)

    @property
    def due_at(self) -> float:
        """Return when a message may go that waits for nothing but time; infinite if none does."""
        return self.limits.due_at

    def ready(self, now: float) -> bool:
        """Return True if `next` may return a message."""
        return self.schedule.ready or self.due_at <= now

    def next(self, now: float) -> D | None:
        """Take out the next message to route, which is active from then on; None if none may go now."""
        raise NotImplementedError

    # --- in a handler ---

    def handler_blocks(self, delivery: D) -> None:
        """Record that the handler of an active message waits for something."""
        self.in_handler[delivery] = None

    def handler_returned(self, delivery: D) -> None:
        """Record that it waits no longer, whatever came of that."""
        self.in_handler.pop(delivery, None)

    def put_back(self, delivery: D) -> None:
        """Let a message wait whose handler has ended its route: at the end it is dropped or returned with the others.

        Nothing of it was sent, and it is not routed again.
        """
        self.schedule.waiting.append(delivery)
