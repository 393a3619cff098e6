"""The steps of a link and of the clock in the model of the outbox."""

from __future__ import annotations

from hypothesis import strategies as st
from hypothesis.stateful import precondition, rule

from router_trio.message import Fate, stored
from router_trio.outbox.operation import Operation, OperationWithAck
from router_trio.outbox.retries import ACK_BUDGET, RESEND_UNACKED_AFTER
from tests.unit.outbox.desk import singles
from tests.unit.outbox.model import PICKS, Drain, Fence, OutboxModel, Publish


class LinkSteps(OutboxModel):
    """Steps of a link that connects, disconnects, writes, refuses and answers, and of time that passes."""

    def link_up(self) -> None:
        kept = frozenset(p.order for p in self.pending())
        self.link += 1
        self.link_up_at = self.now
        self.written_on_link.clear()
        self.in_hand.clear()
        self.core_on_wire.clear()
        if kept:
            self.drain = Drain(kept)
            self.drains.append(self.drain)
        self.outbox.link_up()
        assert self.awake
        self.outbox.when_nothing_in_flight(self._idle)
        self.idle_waiters += 1

    @precondition(lambda self: self.outbox.connected)
    @rule(left=st.booleans(), at=PICKS)
    def link_down(self, left: bool, at: int) -> None:
        """Lose the link, or leave it: then nothing more is written, and fences are still answered."""
        if left:
            self.outbox.sender.hold_back()
            assert self.outbox.sender.next_batch() == []
            self.in_hand.clear()
            self.fence_answered(at)
        self.flight.clear()
        self.drain = None
        self.outbox.link_down()

    def _idle(self) -> None:
        assert self.outbox.in_flight == 0
        self.idle_calls += 1

    def send(self, refuse: bool | None, at: int) -> None:
        """Take one turn of the sender.

        The link may refuse one operation of the batch, or a part of one that holds several publishes, and a fence may
        overtake it.
        """
        batch = self._next_batch()
        self._fence()
        if batch and refuse is not None:
            refused = batch[at % len(batch)]
            if at % 2:
                parts = refused.split()
                refused = parts[at % len(parts)]
            if at % 3 == 0:
                # The denial arrives while the link has the batch in hand.
                self.denied(self.publishes[refused.order].subject)
            self._refuse(refused, refuse)

    def _refuse(self, refused: Operation, retriable: bool) -> None:
        alive = [p for p in (self.publishes[one.order] for one in refused.split()) if p.fate is None]
        may_hold = self._may_hold(refused)
        self.outbox.refusals.write_refused(refused, "fault", "injected", retriable)
        for publish in alive:
            if not publish.with_ack:
                self.core_on_wire.remove(publish.order)
            if publish.fate is None:
                assert retriable
                assert publish.with_ack
                del self.flight[publish.order]
            else:
                assert publish.fate.reason == "fault"
                self._was_entitled_to_fail(publish, retriable and may_hold)

    def _may_hold(self, operation: Operation | None) -> bool:
        """Return whether the share of its destination has room for the operation if it is refused."""
        return isinstance(operation, OperationWithAck) and self.outbox.capacity.may_hold(operation)

    def _next_batch(self) -> list[Operation]:
        due = self.sleeps_until is not None and self.sleeps_until <= self.now
        may_sleep, self.awake = not self.awake and not due, False
        batch = self.outbox.sender.next_batch()
        messages = singles(batch)
        self.in_hand = {one.order for one in messages}
        assert not (batch and may_sleep), "there was something to write and the sender was not woken"
        last: dict[bytes, int] = {}
        for one in messages:
            order = one.order
            publish = self.publishes[order]
            assert publish.fate is None
            assert order not in self.flight, "written again while in flight"
            self.flight[order] = self.now
            self.written_on_link.add(order)
            if publish.with_ack:
                assert order > last.get(publish.subject, 0)
                last[publish.subject] = order
            else:
                assert order > (self.core_on_wire[-1] if self.core_on_wire else 0), "core publishes out of order"
                self.core_on_wire.append(order)
        for publish in self.pending():
            if publish.with_ack:
                newest = last.get(publish.subject, 0)
                assert publish.order > newest, f"{newest} was written before {publish.order}, which waits"
        if batch:
            self.awake = True
        else:
            self.sleeps_until = self.outbox.sender.next_batch_at()
        return batch

    def _fence(self) -> None:
        behind = frozenset(o for o in self.flight if not self.publishes[o].with_ack and o not in self.in_hand)
        self.fences.append(Fence(self.link, self.outbox.fences.sent, behind))

    def fence_answered(self, at: int) -> None:
        """Answer a fence, possibly one of an earlier link, or one that a later fence has overtaken."""
        if not self.fences:
            return
        fence = self.fences[-1 - at % len(self.fences)]
        in_flight = [o for o in self.flight if not self.publishes[o].with_ack]
        expected = sorted(fence.behind & set(in_flight)) if fence.link == self.link else []
        self.outbox.fenced(fence.mark)
        confirmed = [o for o in in_flight if o not in self.flight]
        assert all(self.publishes[o].fate == Fate("fenced") for o in confirmed)
        assert confirmed == expected[: len(confirmed)], "confirmed what was not written before the fence"
        # A publish that was taken out may have belonged to a batch, whose publishes are confirmed together.
        missing = len(expected) - len(confirmed)
        assert missing == 0 or (fence.taken_out_later and missing < fence.taken_out_later + self.largest_batch)

    def answers(self, answers: list[str]) -> None:
        """Have the streams answer what is in flight, oldest first."""
        orders = sorted(o for o in self.flight if self.publishes[o].with_ack)
        for order, answer in zip(orders, answers, strict=False):
            if self.r is not None and self.publishes[order].subject.startswith(b"r."):
                answer = self.r
            if answer == "denied":
                self.denied(self.publishes[order].subject)
            elif answer != "silence":
                self.answer(order, answer)

    def answer(self, order: int, answer: str) -> None:
        publish, flew = self.publishes[order], order in self.flight
        had = publish.fate
        if answer == "ack":
            expected = Fate("acked", None, "S", order, False)
            self.outbox.acked([(order, stored("S", order))])
            assert publish.fate in ((had,) if had is not None else (expected,) if flew else (expected, None))
            return
        may_hold = self._may_hold(self.outbox._queue.find(order))
        self.outbox.refusals.ack_refused(order, "no_responders", "no responders", answer == "later")
        if not flew:
            assert publish.fate == had
        elif publish.fate is None:
            assert answer == "later"
            del self.flight[order]
        else:
            assert publish.fate == Fate("failed_open" if self.outbox.fail_open else "failed", "no_responders")
            self._was_entitled_to_fail(publish, may_hold and answer == "later")

    def denied(self, subject: bytes) -> None:
        to_it = [o for o in self.flight if self.publishes[o].subject == subject]
        expected_denials = subject in self.outbox.refusals.expected_denials
        attributed = self.outbox.refusals.publish_denied(subject, "Permissions Violation")
        failed = [o for o in to_it if self.publishes[o].fate is not None]
        core = [o for o in to_it if not self.publishes[o].with_ack]
        if core or not to_it or expected_denials:
            assert failed == core
        else:
            assert len(failed) == 1
        assert attributed or not (to_it or expected_denials)
        assert all(self.publishes[o].fate.reason == "permission_denied" for o in failed)  # type: ignore[union-attr]

    def something_denied(self) -> None:
        """Fail every core publish in flight: none of them may count as sent."""
        core = [o for o in self.flight if not self.publishes[o].with_ack]
        self.outbox.refusals.something_denied("Permissions Violation")
        assert all(self.publishes[o].fate is not None for o in core)

    def _was_entitled_to_fail(self, publish: Publish, retriable: bool) -> None:
        if retriable and publish.with_ack:
            assert self.now - max(self.link_up_at, publish.at) >= ACK_BUDGET, "failed before its time on this link"

    def time_passes(self, seconds: float) -> None:
        self.now += seconds
        if self.outbox.connected:
            self._sweep()
        self._expire()

    def _sweep(self) -> None:
        stale = [
            o for o, at in self.flight.items() if self.publishes[o].with_ack and at <= self.now - RESEND_UNACKED_AFTER
        ]
        self.outbox.refusals.sweep()
        for order in stale:
            publish = self.publishes[order]
            if publish.fate is None:
                del self.flight[order]
            else:
                assert publish.fate.reason == "timeout"
                self._was_entitled_to_fail(publish, True)

    def _expire(self) -> None:
        fresh = [p for p in self.pending() if not self.max_age or self.now - p.at <= self.max_age]
        stale = [p for p in self.pending() if p not in fresh]
        self.outbox.refusals.sweep()
        assert all(p.fate is None for p in fresh)
        assert all(p.fate in (None, Fate("dropped", "expired")) for p in stale)
        if not self.outbox.connected:
            assert all(p.fate is not None for p in stale)
