"""The steps of publishers in the model of the outbox, in turn with its link and out of turn."""

from __future__ import annotations

from hypothesis import strategies as st
from hypothesis.stateful import precondition, rule

from router_trio.errors import PublishError
from router_trio.events import QueueFull
from router_trio.message import Fate
from router_trio.outbox.capacity import REFUSES_FOR_LONG, Refusal
from router_trio.outbox.operation import CoreOperation, FrameOwners, OperationWithAck
from router_trio.outbox.retries import LOOK_EVERY, SLOW_AFTER, UNANSWERED_WINDOWS
from router_trio.protocol import framing
from tests.support.offers import INBOX, next_order, offer_with_ack
from tests.unit.outbox.link_steps import LinkSteps
from tests.unit.outbox.model import (
    ANSWERED,
    OFFERS,
    PICKS,
    REFUSALS,
    STEPS,
    SUBJECTS,
    Publish,
    Turn,
    Waiter,
    destination,
    kind_of,
)


class PublisherRules(LinkSteps):
    """Rules by which publishers offer, wait, give up and take back."""

    def _expect(self, frame: bytes, with_ack: bool, clean: bool) -> int:
        order = next_order(self.outbox)
        assert order not in self.publishes
        subject = frame.split(b" ")[1]
        size = len(frame) + (len(INBOX + b".%d " % order) if with_ack else 0)
        self.publishes[order] = Publish(order, subject, size, with_ack, clean, self.now)
        return order

    def _offer(self, frame: bytes, with_ack: bool, counted: bool = False) -> None:
        outbox, connected = self.outbox, self.outbox.connected
        was_full, was_refused = outbox.capacity.full, outbox.capacity.refusals()
        waited = sorted(p.order for p in self.pending())
        order = self._expect(frame, with_ack, connected and not counted)
        try:
            if with_ack:
                status = offer_with_ack(outbox, frame, owner=self, blocked=counted)
            else:
                status = outbox.offer(frame, owner=self, blocked=counted, together=order % 2 == 1)
        except PublishError as error:
            if connected and error.reason == "queue_full":
                (refusal,) = [one for one in was_refused if one.destination == destination(frame)]
                assert with_ack
                assert self.now - refusal.since >= REFUSES_FOR_LONG
                del self.publishes[order]
                self._was_refused_by_a_share(refusal, str(error))
                return
            refused_rightly = was_full and not connected and not outbox.fail_open and self.on_full != "drop_oldest"
            if error.reason != "queue_full" or not refused_rightly:
                raise
            del self.publishes[order]
            if not counted:
                self.not_accepted_without_link[kind_of(with_ack)] += 1
            return
        if connected:
            assert status == ("queued" if self.drain is not None and self.drain.left else "sent")
        elif outbox.fail_open:
            assert status == "failed_open"
            assert self.publishes[order].fate == Fate("failed_open", "not_connected")
        else:
            assert status == "queued"
            self.queued += 1
            dropped = [o for o in waited if self.publishes[o].fate is not None]
            assert dropped == waited[: len(dropped)], "not the oldest were dropped"
            assert all(self.publishes[o].fate == Fate("dropped", "queue_full") for o in dropped)
            assert bool(dropped) == was_full
            assert outbox.pending <= outbox.max_operations or not was_full

    def _was_refused_by_a_share(self, refusal: Refusal, detail: str) -> None:
        """Check that publishes wait for the destination whose share is used up, and that the refusal counts them.

        All of them may be in flight: a publish that is being retried uses up the share, as a held one does.
        """
        assert self.on_full == "reject"
        full = next(event for event in reversed(self.events) if isinstance(event, QueueFull))
        unsettled = [p for p in self.publishes.values() if p.fate is None and p.with_ack]
        to_it = sum(destination(b"PUB %b " % p.subject) == refusal.destination for p in unsettled)
        assert (full.reason, full.count) == ("rejected", 1)
        assert max(1, refusal.held) <= full.queue_size <= to_it
        assert full.max_size == max(1, self.outbox.max_operations // 2)
        assert f"{full.queue_size} publishes wait for it" in detail
        self.refused_by_share += 1

    @precondition(lambda self: not self.closed)
    @rule(
        offers=OFFERS,
        up=st.sampled_from([True, True, False]),
        turns=st.lists(st.tuples(REFUSALS, ANSWERED, st.booleans()), max_size=4),
        seconds=STEPS,
        at=PICKS,
    )
    def traffic(
        self, offers: list[tuple[bytes, bytes, str]], up: bool, turns: list[Turn], seconds: float, at: int
    ) -> None:
        """Publish, connect, send and answer: the usual course is one rule, so that unusual steps have a state to
        upset.
        """
        self.publish(offers)
        if up and not self.outbox.connected:
            self.link_up()
        if self.outbox.connected:
            for refuse, answers, fence in turns:
                self.send(refuse, at)
                self.answers(answers)
                if fence:
                    self.fence_answered(at)
        self.time_passes(seconds)

    @precondition(lambda self: not self.closed)
    @rule(offers=OFFERS)
    def publish(self, offers: list[tuple[bytes, bytes, str]]) -> None:
        for subject, body, kind in offers:
            if kind == "too large":
                self.outbox.settlement.not_accepted(True, "too_large", "more than max_payload")
                self.refused_before += 1
            elif kind == "frames":
                self.offer_frames([subject] * (len(body) // 10))
            elif self.outbox.blocks or (kind == "waited" and self.waiters):
                self.wait_for_room(subject, kind == "with ack")
            else:
                self._offer(framing.publish(subject, body), kind == "with ack")

    def offer_frames(self, subjects: list[bytes]) -> None:
        outbox, connected = self.outbox, self.outbox.connected
        self.most_frames = max(self.most_frames, len(subjects))
        frames = [framing.publish(subject, b"frames") for subject in subjects]
        first = next_order(outbox)
        for order, (subject, frame) in enumerate(zip(subjects, frames, strict=True), first):
            self.publishes[order] = Publish(order, subject, len(frame), False, connected, self.now)
        refused_before, accepted_before = self.refused_frames, outbox.ledger.accepted
        outbox.offer_frames(frames, FrameOwners([self], [len(frames)]))
        refused = self.refused_frames - refused_before
        accepted = outbox.ledger.accepted - accepted_before
        assert accepted + refused == len(frames)
        if refused:
            assert not connected
            assert self.on_full != "drop_oldest"
        self.not_accepted_without_link["publish"] += refused
        if not connected and not outbox.fail_open:
            self.queued += accepted

    def wait_for_room(self, subject: bytes, with_ack: bool) -> None:
        """Let another publisher wait, or let the first waiting one publish if there is room."""
        if self.outbox.blocks:
            waiter = Waiter(framing.publish(subject, b"waited"), with_ack)
            if not self.outbox.connected:
                self.outbox.capacity.blocked(with_ack)
                self.not_accepted_without_link[kind_of(with_ack)] += 1
                waiter.counted = True
            self.waiters.append(waiter)
            return
        waiter = self.waiters.pop(0)
        before = self.outbox.ledger.accepted
        self._offer(waiter.frame, waiter.with_ack, waiter.counted)
        if waiter.counted and self.outbox.ledger.accepted > before:
            # Now the count is that of an accepted operation.
            self.not_accepted_without_link[kind_of(waiter.with_ack)] -= 1

    @precondition(lambda self: self.outbox.connected and self.publishes)
    @rule(number=PICKS)
    def a_neighbour_publishes(self, number: int) -> None:
        """Publish to another destination: it is accepted and written at once, whatever else is refused or
        unanswered.
        """
        for _ in range(UNANSWERED_WINDOWS):
            self.now += SLOW_AFTER + LOOK_EVERY
            self.write_everything()
        outbox = self.outbox
        assert not outbox.blocks
        assert not outbox.capacity.waits_for(b"n")
        order = next_order(outbox)
        self._offer(framing.publish(b"n.%d" % number, b""), with_ack=True)
        self.write_everything()
        assert order in self.flight
        self.answer(order, "ack")
        assert self.publishes[order].fate is not None

    def write_everything(self) -> None:
        """Write everything that may be written, and answer the fences, which makes room for more."""
        while True:
            while self._next_batch() or self.awake:
                pass
            if all(self.publishes[order].with_ack for order in self.flight):
                return
            self._fence()
            self.fence_answered(0)

    @precondition(lambda self: self.publishes)
    @rule(
        what=st.sampled_from(["give up", "denied", "something denied", "fence", "ack", "later", "never"]),
        at=PICKS,
        subject=SUBJECTS,
    )
    def out_of_turn(self, what: str, at: int, subject: bytes) -> None:
        """Let something happen out of turn: late, twice, or for a publish that has moved on."""
        if what == "give up":
            self.give_up(at)
        elif self.outbox.connected and what == "denied":
            self.denied(subject)
        elif self.outbox.connected and what == "something denied":
            self.something_denied()
        elif self.outbox.connected and what == "fence":
            self.fence_answered(at)
        elif self.outbox.connected:
            orders = sorted(o for o in self.written_on_link if self.publishes[o].with_ack)
            if orders:
                self.answer(self.pick(orders, at), what)

    def give_up(self, at: int) -> None:
        order = self.pick(list(self.publishes), at)
        publish = self.publishes[order]
        had = publish.fate
        assert had is None or self.outbox._queue.find(order) is None
        operation = (
            self.find(order)
            if had is None
            else (OperationWithAck if publish.with_ack else CoreOperation)(
                order, b"PUB a ", owner=self, accepted_at=0.0, clean=True
            )
        )
        if operation is None:
            return
        assert self.outbox.refusals.give_up(operation, "timeout", "the publisher's timeout") is (had is None)
        name = "failed_open" if self.outbox.fail_open else "failed"
        assert publish.fate == (had or Fate(name, "timeout"))

    @precondition(lambda self: self.publishes)
    @rule(subject=SUBJECTS, at=PICKS)
    def recall(self, subject: bytes, at: int) -> None:
        """Take back what its owner would not send now; what is in flight stays there."""
        wanted = {o for o in self.publishes if self.publishes[o].subject == subject and o >= at % len(self.publishes)}
        before = {o for o in wanted if self.publishes[o].fate is None}
        self.outbox.recall(lambda operation: operation.count == 1 and operation.order in wanted)
        recalled = {o for o in before if self.publishes[o].fate is not None}
        assert all(self.publishes[o].fate.reason == "out_of_turn" for o in recalled)  # type: ignore[union-attr]
        assert not recalled & set(self.flight)
        assert all(o in recalled or o in self.flight or not self.publishes[o].with_ack for o in before)
