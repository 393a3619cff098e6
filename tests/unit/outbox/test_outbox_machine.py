"""The outbox against a model that is too simple to be wrong: whatever happens in whatever order, the books balance.

The model keeps every accepted publish in a dictionary, with its fate once its owner was told. Everything else that the
outbox says of itself is computed from that and compared after each step.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from router_trio.errors import PublishError
from router_trio.events import (
    Event,
    PendingDropped,
    PublishFailed,
    PublishFailedOpen,
    PublishQueued,
    PublishWithAckFailed,
    PublishWithAckQueued,
    QueueFull,
    RetryComplete,
    RetryPending,
)
from router_trio.message import Fate, stored
from router_trio.outbox import outbox as outbox_module
from router_trio.outbox import queue as pending_module
from router_trio.outbox.capacity import REFUSES_FOR_LONG
from router_trio.outbox.ledger import DROP_REASONS
from router_trio.outbox.operation import CoreOperation, FrameOwners, Operation, OperationWithAck
from router_trio.outbox.outbox import Outbox
from router_trio.outbox.retries import ACK_BUDGET, LOOK_EVERY, RESEND_UNACKED_AFTER, SLOW_AFTER, UNANSWERED_WINDOWS
from router_trio.protocol import framing
from tests.support.settled import Settled

SUBJECTS = st.sampled_from([b"a", b"b", b"r.1", b"r.2"])
"""Those of the destination `r` are refused, or not answered, or answered as the others: it is drawn which."""

BODIES = st.sampled_from([b"", b"x" * 10, b"x" * 60])
KINDS = st.sampled_from(["core", "core", "core", "with ack", "with ack", "with ack", "frames", "waited", "too large"])
ANSWERS = st.sampled_from(["ack", "ack", "later", "later", "never", "silence", "denied"])
OFFERS = st.lists(st.tuples(SUBJECTS, BODIES, KINDS), max_size=8)
REFUSALS = st.sampled_from([None, None, None, False, True])
ANSWERED = st.lists(ANSWERS, min_size=1, max_size=8)
Turn = tuple[bool | None, list[str], bool]
PICKS = st.integers(0, 1 << 16)
STEPS = st.sampled_from([0.1, 0.25, 1.0, RESEND_UNACKED_AFTER, ACK_BUDGET])


@dataclass
class Publish:
    """What the model knows of one accepted publish. `clean`: accepted without having met a missing connection."""

    order: int
    subject: bytes
    size: int
    with_ack: bool
    clean: bool
    at: float
    fate: Fate | None = None


@dataclass
class Fence:
    """A fence under way: what was written before it, and how many written after it were taken out since."""

    link: int
    mark: int
    behind: frozenset[int]
    taken_out_later: int = 0


@dataclass
class Drain:
    """A drain: the numbers of what was kept, and how those that have a fate ended."""

    kept: frozenset[int]
    success: int = 0
    failed: int = 0

    @property
    def left(self) -> int:
        return len(self.kept) - self.success - self.failed


@dataclass
class Waiter:
    """A publisher that waits for room; `counted` once it met a missing connection."""

    frame: bytes
    with_ack: bool
    counted: bool = field(default=False)


class OutboxMachine(RuleBasedStateMachine):
    """Rules are what publishers, the link and the clock can do; invariants are the promises."""

    @initialize(
        on_full=st.sampled_from(["drop_oldest", "reject", "block"]),
        fail_open=st.sampled_from([False, False, False, True]),
        max_operations=st.sampled_from([1, 4, 20, 100]),
        max_bytes=st.sampled_from([200, 1_000_000]),
        max_age=st.sampled_from([0.0, 0.0, 0.0, 4.0]),
        limits=st.fixed_dictionaries(
            {
                "MAX_UNACKED": st.integers(1, 6),
                "MAX_UNFENCED": st.integers(1, 6),
                "BATCH_OPERATIONS": st.integers(1, 5),
                "BATCH_BYTES": st.sampled_from([1, 100, 10_000]),
            }
        ),
        most_together=st.integers(1, 4),
        r=st.sampled_from([None, "later", "silence"]),
    )
    def build(
        self,
        on_full: str,
        fail_open: bool,
        max_operations: int,
        max_bytes: int,
        max_age: float,
        limits: dict[str, Any],
        most_together: int,
        r: str | None,
    ) -> None:
        # Small limits make the corners near; they are read at each call.
        self.patches = ExitStack()
        self.patches.enter_context(mock.patch.multiple(outbox_module, **limits))
        self.patches.enter_context(mock.patch.object(pending_module, "MOST_TOGETHER", most_together))
        self.most_together = most_together
        self.limits = limits
        self.r = r
        self.now = 1000.0
        self.settled = Settled()
        self.max_age = max_age
        self.on_full = on_full
        self.events: list[Event] = []
        self.publishes: dict[int, Publish] = {}
        self.flight: dict[int, float] = {}
        self.in_hand: set[int] = set()
        self.idle_calls = 0
        self.idle_waiters = 0
        self.written_on_link: set[int] = set()
        self.core_on_wire: list[int] = []
        self.link = 0
        self.link_up_at = 0.0
        self.fences: list[Fence] = []
        self.drain: Drain | None = None
        self.drains: list[Drain] = []
        self.waiters: list[Waiter] = []
        self.not_accepted_without_link: Counter[str] = Counter()
        self.refused_before = 0
        self.queued = 0
        self.refused_frames = 0
        self.refused_by_share = 0
        self.most_frames = 1
        self.awake = True
        self.sleeps_until: float | None = None
        self.closed = False
        self.outbox = Outbox(
            "main",
            emit=self.events.append,
            clock=lambda: self.now,
            wake=self.wake,
            fail_open=fail_open,
            max_operations=max_operations,
            max_bytes=max_bytes,
            on_full=on_full,
            max_age=max_age,
        )

    def teardown(self) -> None:
        if hasattr(self, "patches"):
            self.patches.close()

    # --- what the outbox calls ---

    def wake(self) -> None:
        self.awake = True

    def settle(self, operation: Operation, count: int, fate: Fate, now: float) -> None:
        """The owner of everything."""
        assert now == self.now
        for order in self.settled.orders(operation, count):
            self._told(order, fate)

    def _told(self, order: int, fate: Fate) -> None:
        if order == 0:
            assert fate == Fate("failed", "queue_full")
            self.refused_frames += 1
            return
        publish = self.publishes[order]
        assert publish.fate is None, f"told {fate} after {publish.fate}"
        publish.fate = fate
        if self.flight.pop(publish.order, None) is not None and not publish.with_ack and fate.name != "fenced":
            for fence in self.fences:
                fence.taken_out_later += fence.link == self.link and publish.order not in fence.behind
        if self.drain is not None and publish.order in self.drain.kept:
            if fate.delivered:
                self.drain.success += 1
            else:
                self.drain.failed += 1

    # --- the model's own view ---

    @property
    def largest_batch(self) -> int:
        """The most messages that can be one operation: frames of one route, behind others that left room for more."""
        return self.most_together - 1 + self.most_frames

    def pending(self) -> list[Publish]:
        return [p for p in self.publishes.values() if p.fate is None and p.order not in self.flight]

    def pick(self, orders: list[int], at: int) -> int:
        return orders[at % len(orders)]

    def find(self, order: int) -> Operation | None:
        """The operation itself, wherever the outbox keeps it; None if it is one with others."""
        if self.publishes[order].with_ack:
            found = self.outbox.queue.find(order)
            assert found is not None
            return found
        queue = self.outbox._queue
        return next((o for o in (*queue._waiting, *queue.in_flight._core) if o.order == order and o.count == 1), None)

    # --- publishers ---

    def _expect(self, frame: bytes, with_ack: bool, clean: bool) -> int:
        order = self.outbox.next_order
        assert order not in self.publishes
        subject = frame.split(b" ")[1]
        self.publishes[order] = Publish(order, subject, len(frame), with_ack, clean, self.now)
        return order

    def _offer(self, frame: bytes, with_ack: bool, counted: bool = False) -> None:
        outbox, connected = self.outbox, self.outbox.connected
        was_full, was_refused = outbox.capacity.full, outbox.capacity.refusals()
        waited = sorted(p.order for p in self.pending())
        order = self._expect(frame, with_ack, connected and not counted)
        try:
            if connected and not with_ack and not counted and order % 2:
                status = outbox.offer_frame(frame, self)
            else:
                status = outbox.offer(frame, with_ack=with_ack, owner=self, blocked=counted)
        except PublishError as error:
            if connected and error.reason == "queue_full":
                (refusal,) = [one for one in was_refused if one.destination == _destination(frame)]
                assert with_ack
                assert self.on_full == "reject"
                assert refusal.held
                assert self.now - refusal.since >= REFUSES_FOR_LONG
                del self.publishes[order]
                self.refused_by_share += 1
                return
            refused_rightly = was_full and not connected and not outbox.fail_open and self.on_full != "drop_oldest"
            if error.reason != "queue_full" or not refused_rightly:
                raise
            del self.publishes[order]
            if not counted:
                self.not_accepted_without_link[_kind(with_ack)] += 1
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
        """What is usual is one rule, so that what is unusual finds something to upset."""
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
        first = outbox.next_order
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
        # The queue only fills up here, so those refused are the last ones.
        for order in range(first + accepted, first + len(frames)):
            del self.publishes[order]
            self.not_accepted_without_link["publish"] += 1
        if not connected and not outbox.fail_open:
            self.queued += accepted

    def wait_for_room(self, subject: bytes, with_ack: bool) -> None:
        """One more publisher waits, or the first that waits finds room."""
        if self.outbox.blocks:
            waiter = Waiter(framing.publish(subject, b"waited"), with_ack)
            if not self.outbox.connected:
                self.outbox.capacity.blocked(with_ack)
                self.not_accepted_without_link[_kind(with_ack)] += 1
                waiter.counted = True
            self.waiters.append(waiter)
            return
        waiter = self.waiters.pop(0)
        before = self.outbox.ledger.accepted
        self._offer(waiter.frame, waiter.with_ack, waiter.counted)
        if waiter.counted and self.outbox.ledger.accepted > before:
            # The count is that of an accepted operation now.
            self.not_accepted_without_link[_kind(waiter.with_ack)] -= 1

    @precondition(lambda self: self.outbox.connected and self.publishes)
    @rule(number=PICKS)
    def a_neighbour_publishes(self, number: int) -> None:
        """Whatever is refused, or not answered: what is for another destination is accepted and written in no time."""
        for _ in range(UNANSWERED_WINDOWS):
            self.now += SLOW_AFTER + LOOK_EVERY
            self.write_everything()
        outbox = self.outbox
        assert not outbox.blocks
        assert not outbox.capacity.waits_for(b"n")
        order = outbox.next_order
        self._offer(framing.publish(b"n.%d" % number, b""), with_ack=True)
        self.write_everything()
        assert order in self.flight
        self.answer(order, "ack")
        assert self.publishes[order].fate is not None

    def write_everything(self) -> None:
        """Write what may be written, and answer the fences, which make room for more."""
        while True:
            while self._next_batch() or self.awake:
                pass
            if all(self.publishes[order].with_ack for order in self.flight):
                return
            self._fence()
            self.fence_answered(0)

    @precondition(lambda self: self.publishes)
    @rule(what=st.sampled_from(["give up", "denied", "fence", "ack", "later", "never"]), at=PICKS, subject=SUBJECTS)
    def out_of_turn(self, what: str, at: int, subject: bytes) -> None:
        """What comes when nobody expects it: late, doubled, or for something that is somewhere else."""
        if what == "give up":
            self.give_up(at)
        elif self.outbox.connected and what == "denied":
            self.denied(subject)
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
        assert had is None or self.outbox.queue.find(order) is None
        operation = (
            self.find(order)
            if had is None
            else (OperationWithAck if publish.with_ack else CoreOperation)(
                order, b"PUB a ", owner=self, accepted_at=0.0, clean=True
            )
        )
        if operation is None:
            return
        assert self.outbox.give_up(operation, "timeout", "the publisher's time is over") is (had is None)
        name = "failed_open" if self.outbox.fail_open else "failed"
        assert publish.fate == (had or Fate(name, "timeout"))

    @precondition(lambda self: self.publishes)
    @rule(subject=SUBJECTS, at=PICKS)
    def recall(self, subject: bytes, at: int) -> None:
        """An owner takes back what it would not send now; what is in flight stays where it is."""
        wanted = {o for o in self.publishes if self.publishes[o].subject == subject and o >= at % len(self.publishes)}
        before = {o for o in wanted if self.publishes[o].fate is None}
        self.outbox.recall(lambda operation: operation.count == 1 and operation.order in wanted)
        recalled = {o for o in before if self.publishes[o].fate is not None}
        assert all(self.publishes[o].fate.reason == "out_of_turn" for o in recalled)  # type: ignore[union-attr]
        assert not recalled & set(self.flight)
        assert all(o in recalled or o in self.flight or not self.publishes[o].with_ack for o in before)

    # --- the link ---

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
        """The link dies, or is left in peace: then nothing more is written and fences are still answered."""
        if left:
            self.outbox.hold_back()
            assert self.outbox.next_batch() == []
            self.in_hand.clear()
            self.fence_answered(at)
        self.flight.clear()
        self.drain = None
        self.outbox.link_down()

    def _idle(self) -> None:
        assert self.outbox.in_flight == 0
        self.idle_calls += 1

    def send(self, refuse: bool | None, at: int) -> None:
        """One turn of the sender; the link may refuse one operation of the batch, or a part of one that is several
        publishes, and a fence may overtake it.
        """
        batch = self._next_batch()
        self._fence()
        if batch and refuse is not None:
            refused = batch[at % len(batch)]
            if at % 2:
                parts = refused.split()
                refused = parts[at % len(parts)]
            if at % 3 == 0:
                # What the server denied comes while the link has the batch in hand.
                self.denied(self.publishes[refused.order].subject)
            self._refuse(refused, refuse)

    def _refuse(self, refused: Operation, retriable: bool) -> None:
        alive = [p for p in (self.publishes[one.order] for one in refused.split()) if p.fate is None]
        may_hold = self._may_hold(refused)
        self.outbox.write_refused(refused, "fault", "injected", retriable)
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
        """Whether the share of its destination has a place for it, if it is refused."""
        return isinstance(operation, OperationWithAck) and self.outbox.capacity.may_hold(operation)

    def _next_batch(self) -> list[Operation]:
        due = self.sleeps_until is not None and self.sleeps_until <= self.now
        may_sleep, self.awake = not self.awake and not due, False
        batch = self.outbox.next_batch()
        messages = _single(batch)
        self.in_hand = {one.order for one in messages}
        assert not (batch and may_sleep), "there was something to write and nobody was woken"
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
            self.sleeps_until = self.outbox.next_batch_at()
        return batch

    def _fence(self) -> None:
        behind = frozenset(o for o in self.flight if not self.publishes[o].with_ack and o not in self.in_hand)
        self.fences.append(Fence(self.link, self.outbox.sent, behind))

    def fence_answered(self, at: int) -> None:
        """Also one of a link that is long gone, and one that was overtaken by a later one."""
        if not self.fences:
            return
        fence = self.fences[-1 - at % len(self.fences)]
        in_flight = [o for o in self.flight if not self.publishes[o].with_ack]
        expected = sorted(fence.behind & set(in_flight)) if fence.link == self.link else []
        self.outbox.fenced(fence.mark)
        confirmed = [o for o in in_flight if o not in self.flight]
        assert all(self.publishes[o].fate == Fate("fenced") for o in confirmed)
        assert confirmed == expected[: len(confirmed)], "confirmed what was not written before the fence"
        # What was taken out may have been one of many that stay together, and are confirmed together.
        missing = len(expected) - len(confirmed)
        assert missing == 0 or (fence.taken_out_later and missing < fence.taken_out_later + self.largest_batch)

    def answers(self, answers: list[str]) -> None:
        """The streams answer what is in flight, from the oldest on."""
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
            told = Fate("acked", None, "S", order, False)
            self.outbox.acked([(order, stored("S", order))])
            assert publish.fate in ((had,) if had is not None else (told,) if flew else (told, None))
            return
        may_hold = self._may_hold(self.outbox.queue.find(order))
        self.outbox.ack_refused(order, "no_responders", "nobody", answer == "later")
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
        self.outbox.publish_denied(subject, "Permissions Violation")
        failed = [o for o in to_it if self.publishes[o].fate is not None]
        assert failed == ([min(to_it)] if to_it else [])
        assert all(self.publishes[o].fate.reason == "permission_denied" for o in failed)  # type: ignore[union-attr]

    def _was_entitled_to_fail(self, publish: Publish, retriable: bool) -> None:
        if retriable and publish.with_ack:
            assert self.now - max(self.link_up_at, publish.at) >= ACK_BUDGET, "failed before its time on this link"

    # --- time ---

    def time_passes(self, seconds: float) -> None:
        self.now += seconds
        if self.outbox.connected:
            self._sweep()
        self._expire()

    def _sweep(self) -> None:
        stale = [
            o for o, at in self.flight.items() if self.publishes[o].with_ack and at <= self.now - RESEND_UNACKED_AFTER
        ]
        self.outbox.sweep()
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
        self.outbox.sweep()
        assert all(p.fate is None for p in fresh)
        assert all(p.fate in (None, Fate("dropped", "expired")) for p in stale)
        if not self.outbox.connected:
            assert all(p.fate is not None for p in stale)

    # --- the end ---

    @precondition(lambda self: self.outbox.connected and len(self.publishes) > 8)
    @rule()
    def settle_everything(self) -> None:
        """A server that answers all: everything gets its fate in bounded time, and nobody has to be lucky."""
        unsettled = any(p.fate is None for p in self.publishes.values())
        for _ in range(4 * len(self.publishes) + 4):
            while self._next_batch():
                pass
            self.outbox.fenced(self.outbox.sent)
            for order in sorted(o for o in self.flight if self.publishes[o].with_ack):
                self.outbox.acked([(order, stored("S", order))])
            if all(p.fate is not None for p in self.publishes.values()):
                break
            self.now = max(self.now, self.outbox.next_batch_at() or 0.0)
        assert [p for p in self.publishes.values() if p.fate is None] == []
        assert (self.outbox.pending, self.outbox.in_flight, self.outbox.unfenced) == (0, 0, 0)
        assert self.idle_calls == self.idle_waiters or not unsettled

    @precondition(lambda self: len(self.publishes) > 16)
    @rule()
    def shut_down(self) -> None:
        left = [p for p in self.publishes.values() if p.fate is None]
        self.flight.clear()
        assert self.outbox.shut_down() == len(left)
        assert all(p.fate == Fate("dropped", "shutdown") for p in left)
        self.closed = True

    # --- the promises ---

    @invariant()
    def the_fates_add_up(self) -> None:
        outbox, ledger = self.outbox, self.outbox.ledger
        told = Counter(p.fate.name for p in self.publishes.values() if p.fate is not None)
        assert ledger.accepted == len(self.publishes)
        assert {name: n for name, n in ledger.settled.items() if n} == told
        assert outbox.in_flight == len(self.flight)
        assert outbox.pending == len(self.pending())
        assert ledger.accepted == outbox.pending + outbox.in_flight + sum(ledger.settled.values())
        assert ledger.unsettled == outbox.pending + outbox.in_flight
        behind = sum(not self.publishes[o].with_ack for o in self.flight if o not in self.in_hand)
        # One that is taken out of a batch in hand hides one from the fence, until the batch is sent.
        assert behind - len(self.in_hand) <= outbox.unfenced <= behind
        if not self.in_hand:
            assert outbox.unfenced == behind

    @invariant()
    def each_operation_is_counted_at_most_once(self) -> None:
        succeeded: Counter[str] = Counter()
        failed: Counter[tuple[str, str | None]] = Counter()
        for kind, count in self.not_accepted_without_link.items():
            failed[kind, "not_connected"] += count
        failed["publish_with_ack", "too_large"] += self.refused_before
        failed["publish_with_ack", "queue_full"] += self.refused_by_share
        for publish in self.publishes.values():
            kind, fate = _kind(publish.with_ack), publish.fate
            if not publish.clean:
                failed[kind, "not_connected"] += 1
            elif fate is not None and fate.delivered:
                succeeded[kind] += 1
            elif fate is not None and fate.name != "dropped":
                failed[kind, fate.reason] += 1
        assert +self.outbox.counters.succeeded == succeeded
        assert +self.outbox.counters.failed == +failed

    @invariant()
    def drops_are_counted_by_reason(self) -> None:
        reasons = Counter(p.fate.reason for p in self.publishes.values() if p.fate and p.fate.name == "dropped")
        assert +self.outbox.counters.dropped == reasons
        assert set(reasons) <= set(DROP_REASONS)
        assert self._sum(PendingDropped, reason="expired") == reasons["expired"]
        assert self._sum(PendingDropped, reason="shutdown") == reasons["shutdown"]
        assert self._sum(QueueFull, reason="dropped_oldest") == reasons["queue_full"]

    @invariant()
    def events_tell_the_same(self) -> None:
        fates = [(p.with_ack, p.fate) for p in self.publishes.values() if p.fate is not None]
        open_ones = sum(fate.name == "failed_open" for _, fate in fates)
        assert self._sum(PublishFailedOpen) == open_ones
        assert self._sum(PublishQueued) + self._sum(PublishWithAckQueued) == self.queued
        for kind, with_ack in ((PublishFailed, False), (PublishWithAckFailed, True)):
            failures = [
                f
                for acked, f in fates
                if acked is with_ack and f.name in ("failed", "failed_open") and f.reason != "not_connected"
            ]
            assert self._sum(kind) == len(failures) + (self.refused_before + self.refused_by_share) * with_ack

    def _sum(self, kind: type[Any], reason: str | None = None) -> int:
        return sum(e.count for e in self.events if isinstance(e, kind) and reason in (None, getattr(e, "reason", None)))

    @invariant()
    def drains_add_up(self) -> None:
        counters = self.outbox.counters
        assert self.outbox.settlement.draining is (self.drain is not None and self.drain.left > 0)
        assert counters.retried == sum(len(d.kept) for d in self.drains)
        assert counters.retry_succeeded == sum(d.success for d in self.drains)
        assert counters.retry_failed == sum(d.failed for d in self.drains)
        assert [e.pending_count for e in self.events if isinstance(e, RetryPending)] == [
            len(d.kept) for d in self.drains
        ]
        assert [(e.success_count, e.failed_count) for e in self.events if isinstance(e, RetryComplete)] == [
            (d.success, d.failed) for d in self.drains if not d.left
        ]

    @invariant()
    def limits_hold(self) -> None:
        outbox = self.outbox
        held = [p for p in self.pending() if p.with_ack and outbox._lanes.find(p.order)]
        waiting = [p for p in self.pending() if p not in held]
        assert not held or outbox.connected
        size, held_size = sum(p.size for p in waiting), sum(p.size for p in held)
        least = min(held_size, outbox.max_bytes // 2)
        assert outbox.capacity.full is (len(waiting) >= outbox.max_operations or size + least >= outbox.max_bytes)
        # The last one taken into a batch may be many that stay together; and each subject may have one probe above the
        # limit on its way.
        core = sum(not self.publishes[o].with_ack for o in self.flight)
        assert core < self.limits["MAX_UNFENCED"] + self.limits["BATCH_OPERATIONS"] + self.largest_batch - 1
        unanswered = UNANSWERED_WINDOWS * self.limits["MAX_UNACKED"]
        assert len(self.flight) - core <= self.limits["MAX_UNACKED"] + unanswered + 4
        if outbox.fail_open and not outbox.connected:
            assert (outbox.pending, outbox.in_flight) == (0, 0), "kept something in fail-open mode"


def _single(operations: Sequence[Operation]) -> list[Operation]:
    return [one for operation in operations for one in operation.split()]


def _destination(frame: bytes) -> str:
    return f"{frame.split(b' ')[1].split(b'.')[0].decode()}..."


def _kind(with_ack: bool) -> str:
    return "publish_with_ack" if with_ack else "publish"


TestOutbox = OutboxMachine.TestCase
TestOutbox.settings = settings(
    max_examples=120, stateful_step_count=25, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
TestOutbox = pytest.mark.timeout(120)(TestOutbox)
