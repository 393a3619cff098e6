"""A model of the outbox that is too simple to be wrong: each accepted publish, and the fate that its owner got."""

from __future__ import annotations

from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize

from router_trio.events import Event
from router_trio.message import Fate
from router_trio.outbox import queue as pending_module
from router_trio.outbox import sender as sender_module
from router_trio.outbox.operation import Operation
from router_trio.outbox.outbox import Outbox
from router_trio.outbox.retries import ACK_BUDGET, RESEND_UNACKED_AFTER
from tests.support.settled import Settled

SUBJECTS = st.sampled_from([b"a", b"b", b"r.1", b"r.2"])
"""Subjects below `r` are refused, left unanswered or answered like the others, as drawn."""

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
    """An accepted publish as the model knows it. `clean`: accepted without having found the connection missing."""

    order: int
    subject: bytes
    size: int
    with_ack: bool
    clean: bool
    at: float
    fate: Fate | None = None


@dataclass
class Fence:
    """A fence that was sent: what was written before it, and how many publishes written after it were taken out
    since.
    """

    link: int
    mark: int
    behind: frozenset[int]
    taken_out_later: int = 0


@dataclass
class Drain:
    """A drain: the numbers of the kept publishes, and how many were delivered or failed."""

    kept: frozenset[int]
    success: int = 0
    failed: int = 0

    @property
    def left(self) -> int:
        return len(self.kept) - self.success - self.failed


@dataclass
class Waiter:
    """A publisher that waits for room; `counted` once it has found the connection missing."""

    frame: bytes
    with_ack: bool
    counted: bool = field(default=False)


class OutboxModel(RuleBasedStateMachine):
    """An outbox with small limits, and the state of each of its publishes."""

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
        # Small limits make their corner cases likely; they are read at each call.
        self.patches = ExitStack()
        self.patches.enter_context(mock.patch.multiple(sender_module, **limits))
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

    def wake(self) -> None:
        self.awake = True

    def settle(self, operation: Operation, count: int, fate: Fate, now: float) -> None:
        """Record a fate, as the owner of every publish."""
        assert now == self.now
        for order in self.settled.orders(operation, count):
            self._record(order, fate)

    def _record(self, order: int, fate: Fate) -> None:
        if fate == Fate("failed", "queue_full"):
            self.refused_frames += 1
            del self.publishes[order]
            return
        publish = self.publishes[order]
        assert publish.fate is None, f"got {fate} after {publish.fate}"
        publish.fate = fate
        if self.flight.pop(publish.order, None) is not None and not publish.with_ack and fate.name != "fenced":
            for fence in self.fences:
                fence.taken_out_later += fence.link == self.link and publish.order not in fence.behind
        if self.drain is not None and publish.order in self.drain.kept:
            if fate.delivered:
                self.drain.success += 1
            else:
                self.drain.failed += 1

    @property
    def largest_batch(self) -> int:
        """The largest number of messages in one operation: frames of one route, behind others that left room for
        more.
        """
        return self.most_together - 1 + self.most_frames

    def pending(self) -> list[Publish]:
        return [p for p in self.publishes.values() if p.fate is None and p.order not in self.flight]

    def pick(self, orders: list[int], at: int) -> int:
        return orders[at % len(orders)]

    def find(self, order: int) -> Operation | None:
        """Return the operation, wherever the outbox keeps it; None if it is part of a batch."""
        if self.publishes[order].with_ack:
            found = self.outbox._queue.find(order)
            assert found is not None
            return found
        queue = self.outbox._queue
        return next((o for o in (*queue._waiting, *queue.in_flight.core()) if o.order == order and o.count == 1), None)


def destination(frame: bytes) -> str:
    return f"{frame.split(b' ')[1].split(b'.')[0].decode()}..."


def kind_of(with_ack: bool) -> str:
    return "publish_with_ack" if with_ack else "publish"
