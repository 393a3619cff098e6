"""The promises of the modelled outbox, checked after each step."""

from __future__ import annotations

from collections import Counter
from typing import Any

from hypothesis.stateful import invariant

from router_trio.events import (
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
from router_trio.outbox.ledger import DROP_REASONS
from router_trio.outbox.retries import UNANSWERED_WINDOWS
from tests.unit.outbox.model import OutboxModel, kind_of


class Promises(OutboxModel):
    """Invariants of the fates, the counts, the events, the drains and the limits."""

    @invariant()
    def the_fates_add_up(self) -> None:
        outbox, ledger = self.outbox, self.outbox.ledger
        fates = Counter(p.fate.name for p in self.publishes.values() if p.fate is not None)
        assert ledger.accepted == len(self.publishes)
        assert {name: n for name, n in ledger.settled.items() if n} == fates
        assert outbox.in_flight == len(self.flight)
        assert outbox.pending == len(self.pending())
        assert ledger.accepted == outbox.pending + outbox.in_flight + sum(ledger.settled.values())
        assert ledger.unsettled == outbox.pending + outbox.in_flight
        behind = sum(not self.publishes[o].with_ack for o in self.flight if o not in self.in_hand)
        # A publish taken out of a batch in hand hides another one from the fence until the batch is sent.
        assert behind - len(self.in_hand) <= outbox.fences.unfenced <= behind
        if not self.in_hand:
            assert outbox.fences.unfenced == behind

    @invariant()
    def each_operation_is_counted_at_most_once(self) -> None:
        succeeded: Counter[str] = Counter()
        failed: Counter[tuple[str, str | None]] = Counter()
        for kind, count in self.not_accepted_without_link.items():
            failed[kind, "not_connected"] += count
        failed["publish_with_ack", "too_large"] += self.refused_before
        failed["publish_with_ack", "queue_full"] += self.refused_by_share
        for publish in self.publishes.values():
            kind, fate = kind_of(publish.with_ack), publish.fate
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
    def events_match_the_fates(self) -> None:
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
        assert (self.outbox.settlement.drain_left > 0) is (self.drain is not None and self.drain.left > 0)
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
        # The last operation taken into a batch may hold many publishes; and each subject may have one probe in flight
        # above the limit.
        core = sum(not self.publishes[o].with_ack for o in self.flight)
        assert core < self.limits["MAX_UNFENCED"] + self.limits["BATCH_OPERATIONS"] + self.largest_batch - 1
        unanswered = UNANSWERED_WINDOWS * self.limits["MAX_UNACKED"]
        assert len(self.flight) - core <= self.limits["MAX_UNACKED"] + unanswered + 4
        if outbox.fail_open and not outbox.connected:
            assert (outbox.pending, outbox.in_flight) == (0, 0), "kept something in fail-open mode"
