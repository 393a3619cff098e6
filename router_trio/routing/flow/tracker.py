"""Copies to a destination with a breaker: what becomes of each is told to that."""

from __future__ import annotations

from typing import Protocol

from router_trio.message import Fate
from router_trio.outbox.operation import Operation
from router_trio.routing.delivery import Delivery, DestinationTracker


class BreakerWatch(Protocol):
    """Hears what becomes of operations to one destination: its breaker."""

    def copy_passed(self) -> None:
        """Note that the destination accepted a message."""

    def copy_refused(self, reason: str) -> str:
        """Note that the destination did not accept a message. Return the reason that counts."""
        ...


class BreakerTracker(DestinationTracker):
    """The owner of an operation to a destination with a breaker."""

    __slots__ = ("breaker",)

    def __init__(self, delivery: Delivery, template: str, copy: int, breaker: BreakerWatch) -> None:
        super().__init__(delivery, template, copy)
        self.breaker: BreakerWatch = breaker

    def settle(self, operation: Operation, count: int, fate: Fate, now: float) -> None:
        """See `operation.Owner`."""
        if fate.delivered:
            super().settle(operation, count, fate, now)
            self.breaker.copy_passed()
        else:
            super().settle(operation, count, self.delivery.counted_fate(fate, self.breaker.copy_refused), now)
