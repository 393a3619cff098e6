"""Fast ingest: which sinks take batches, from how many publishes on, and what their servers do to batches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from random import Random
from unittest import mock

from router_trio.outbox import fast_ingest
from tests.simulation.schedule import Step

SHARE = 0.4
"""Share of the seeds in which sinks take batches."""


def batched(brokers: Sequence[str], random: Random) -> tuple[frozenset[str], int]:
    """Return where the sink takes batches, and for how many publishes one begins: few, as loads are small."""
    if random.random() >= SHARE:
        return frozenset(), fast_ingest.WORTH
    return frozenset(name for name in brokers if random.random() < 0.8), random.choice((1, 2, 2, 5, 12))


def trouble(brokers: frozenset[str], horizon: float, random: Random) -> list[Step]:
    """Return when the servers forget their batches, or take none for a while."""
    steps = []
    for broker in sorted(brokers):
        for _ in range(random.choice((0, 0, 1, 3))):
            kind, seconds = random.choice(
                (("batches forgotten", 0.0), ("batches forbidden", random.choice((0.5, 7.0))))
            )
            steps.append(Step(round(random.uniform(0.0, horizon), 3), kind, seconds, {"broker": broker}))
    return steps


@contextmanager
def worth(publishes: int) -> Iterator[None]:
    """Have batches begin for so many publishes."""
    with mock.patch.object(fast_ingest, "WORTH", publishes):
        yield
