"""An outbox under test, with its owner, its clock, and every fate and event that it reported."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from router_trio.events import Event
from router_trio.message import Fate
from router_trio.outbox.operation import FrameOwners, Operation
from router_trio.outbox.outbox import Outbox
from router_trio.protocol import framing
from tests.support.offers import offer_with_ack
from tests.support.settled import Settled


class Desk:
    """An outbox with a clock that is moved by hand, and everything that it reports."""

    def __init__(self, **changes: Any) -> None:
        options: dict[str, Any] = {
            "fail_open": False,
            "max_operations": 100,
            "max_bytes": 1_000_000,
            "on_full": "drop_oldest",
            "max_age": 0.0,
        }
        self.now = 0.0
        self.events: list[Event] = []
        self.wakes = 0
        self.fates: dict[int, list[Fate]] = {}
        self.settled = Settled()
        self.outbox = Outbox("main", emit=self.hear, clock=lambda: self.now, wake=self._wake, **(options | changes))

    def hear(self, event: Event) -> None:
        self.events.append(event)

    def _wake(self) -> None:
        self.wakes += 1

    def settle(self, operation: Operation, count: int, fate: Fate, now: float) -> None:
        assert now == self.now
        for order in self.settled.orders(operation, count):
            self.fates.setdefault(order, []).append(fate)

    def offer(self, subject: bytes = b"a", *, with_ack: bool = False, size: int = 0, blocked: bool = False) -> str:
        frame = framing.publish(subject, b"x" * size)
        if with_ack:
            return offer_with_ack(self.outbox, frame, owner=self, blocked=blocked)
        return self.outbox.offer(frame, owner=self, blocked=blocked)

    def batch(self) -> list[int]:
        return [one.order for one in singles(self.outbox.sender.next_batch())]

    def kinds(self) -> list[type[Event]]:
        return [type(event) for event in self.events]

    def books(self) -> tuple[int, int, int, dict[str, int]]:
        """Return accepted, pending, in flight, and settled by fate; check that they add up."""
        ledger = self.outbox.ledger
        settled = {fate: count for fate, count in ledger.settled.items() if count}
        books = (ledger.accepted, self.outbox.pending, self.outbox.in_flight, settled)
        assert books[0] == books[1] + books[2] + sum(settled.values())
        assert all(len(fates) == 1 for fates in self.fates.values())
        return books


def offer_frames(desk: Desk, frames: list[bytes], owner: Desk | None = None) -> None:
    desk.outbox.offer_frames(frames, FrameOwners([owner or desk], [len(frames)]))


def connected(**changes: Any) -> Desk:
    desk = Desk(**changes)
    desk.outbox.link_up()
    return desk


def singles(operations: Sequence[Operation]) -> list[Operation]:
    return [one for operation in operations for one in operation.split()]


def find(desk: Desk, order: int) -> Operation:
    found = desk.outbox._queue.find(order)
    assert found is not None
    return found
