"""The outbox against a model that is too simple to be wrong: the books balance whatever happens, in any order.

The model keeps every accepted publish in a dictionary, and its fate once its owner has it. Everything else that the
outbox reports is computed from that and compared after each step.
"""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import precondition, rule

from router_trio.message import Fate, stored
from tests.support.drawn import examples
from tests.unit.outbox.promises import Promises
from tests.unit.outbox.publisher_rules import PublisherRules


class OutboxMachine(PublisherRules, Promises):
    """Rules for what publishers, the link and the clock can do, and the promises as invariants."""

    @precondition(lambda self: self.outbox.connected and len(self.publishes) > 8)
    @rule()
    def settle_everything(self) -> None:
        """Answer everything, as a healthy server does: each publish gets its fate in bounded time."""
        unsettled = any(p.fate is None for p in self.publishes.values())
        for _ in range(4 * len(self.publishes) + 4):
            while self._next_batch():
                pass
            self.outbox.fenced(self.outbox.fences.sent)
            for order in sorted(o for o in self.flight if self.publishes[o].with_ack):
                self.outbox.acked([(order, stored("S", order))])
            if all(p.fate is not None for p in self.publishes.values()):
                break
            self.now = max(self.now, self.outbox.sender.next_batch_at() or 0.0)
        assert [p for p in self.publishes.values() if p.fate is None] == []
        assert (self.outbox.pending, self.outbox.in_flight, self.outbox.fences.unfenced) == (0, 0, 0)
        assert self.idle_calls == self.idle_waiters or not unsettled

    @precondition(lambda self: len(self.publishes) > 16)
    @rule()
    def shut_down(self) -> None:
        left = [p for p in self.publishes.values() if p.fate is None]
        self.flight.clear()
        assert self.outbox.shut_down() == len(left)
        assert all(p.fate == Fate("dropped", "shutdown") for p in left)
        self.closed = True


TestOutbox = OutboxMachine.TestCase
TestOutbox.settings = settings(
    max_examples=examples(120), stateful_step_count=25, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
TestOutbox = pytest.mark.timeout(120)(TestOutbox)
