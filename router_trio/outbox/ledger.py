"""The ledger of one connection: how many publishes were accepted, and how many got each fate.

`accepted` and `settled` are counted here, each in one place. What is pending and in flight is *not* counted here: those
are lengths of the queue that holds the operations. So `accepted = pending + in_flight + settled` is a real check of two
independent counts and not an identity.
"""

from __future__ import annotations

from collections import Counter

from router_trio.errors import reasons
from router_trio.message import FATES


class Ledger:
    """Plain counters; every method is synchronous and never fails."""

    __slots__ = ("accepted", "settled")

    def __init__(self) -> None:
        self.accepted: int = 0
        self.settled: dict[str, int] = dict.fromkeys(FATES, 0)

    def settle(self, fate: str, count: int = 1) -> None:
        """Count `count` messages that got their final fate."""
        self.settled[fate] += count

    def add(self, other: Ledger) -> None:
        """Add the counts of another ledger."""
        self.accepted += other.accepted
        for fate, count in other.settled.items():
            self.settled[fate] += count

    @property
    def settled_count(self) -> int:
        """Number of messages that have a fate."""
        return sum(self.settled.values())

    @property
    def unsettled(self) -> int:
        """Number of accepted messages without a fate. If it differs from pending + in flight, messages were lost."""
        return self.accepted - self.settled_count


class Counters:
    """The per-operation counters of one connection, as plain numbers that a scrape reads.

    `succeeded` and `failed` are keyed by operation (`publish`, `publish_with_ack`, `ack`, `nak`, `subscribe`), `failed`
    also by reason.
    """

    __slots__ = ("dropped", "failed", "retried", "retry_failed", "retry_succeeded", "succeeded")

    def __init__(self) -> None:
        self.succeeded: Counter[str] = Counter()
        self.failed: Counter[tuple[str, str]] = Counter()
        self.dropped: Counter[str] = Counter()
        self.retried: int = 0
        self.retry_succeeded: int = 0
        self.retry_failed: int = 0

    def succeed(self, operation: str, count: int = 1) -> None:
        """Count operations of one kind as succeeded."""
        self.succeeded[operation] += count

    def fail(self, operation: str, reason: str, count: int = 1) -> None:
        """Count operations of one kind as failed for `reason`."""
        self.failed[operation, reason] += count

    def add(self, other: Counters) -> None:
        """Add the counts of another connection or generation."""
        self.succeeded.update(other.succeeded)
        self.failed.update(other.failed)
        self.dropped.update(other.dropped)
        self.retried += other.retried
        self.retry_succeeded += other.retry_succeeded
        self.retry_failed += other.retry_failed


OPERATIONS = ("publish", "publish_with_ack", "ack", "nak", "subscribe")
DROP_REASONS = reasons.labelled(reasons.DROPS)
