"""The ledger adds up at every moment at which a caller is notified."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from router_trio.events import Event
from router_trio.message import Fate
from router_trio.outbox.operation import Operation, OperationWithAck
from router_trio.outbox.retries import ACK_BUDGET
from tests.unit.outbox.desk import Desk


class Onlooker(Desk):
    """A desk that checks the books at each event and each fate."""

    def hear(self, event: Event) -> None:
        super().hear(event)
        self.books()

    def settle(self, operation: Operation, count: int, fate: Fate, now: float) -> None:
        super().settle(operation, count, fate, now)
        self.books()


def _deny(desk: Desk) -> None:
    desk.outbox.refusals.publish_denied(b"a", "no")


def _recall(desk: Desk) -> None:
    desk.outbox.refusals.write_refused(OperationWithAck(0, b"", None, 0.0, True), "gone", "")
    desk.outbox.link_down()
    desk.outbox.link_up()
    desk.outbox.recall(lambda operation: operation.with_ack)


def _expire_budget(desk: Desk) -> None:
    desk.now = ACK_BUDGET
    desk.outbox.refusals.sweep()


def _go_away(desk: Desk) -> None:
    desk.outbox.link_down()
    desk.outbox.link_up()


def _grow_old(desk: Desk) -> None:
    desk.outbox.link_down()
    desk.now = 1000.0
    desk.outbox.refusals.sweep()


def _refuse(desk: Desk) -> None:
    desk.outbox.refusals.ack_refused(1, "limit", "full", False)


def _stop(desk: Desk) -> None:
    desk.outbox.shut_down()


@pytest.mark.parametrize("fail_open", [False, True])
@pytest.mark.parametrize("happens", [_deny, _recall, _expire_budget, _go_away, _grow_old, _refuse, _stop])
def test_the_books_balance_at_every_event_and_every_fate(happens: Callable[[Desk], None], fail_open: bool) -> None:
    desk = Onlooker(fail_open=fail_open, max_age=60.0)
    desk.outbox.link_up()
    for _ in range(3):
        desk.offer(with_ack=True)
        desk.offer()
    desk.batch()
    happens(desk)
    desk.books()
    assert desk.events, "no event was emitted: the test proves nothing"
