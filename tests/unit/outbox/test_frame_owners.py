"""The owners of the frames of a batch, also when some frames get owners of their own, and the fates that they get."""

from __future__ import annotations

from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router_trio.message import FENCED, Fate
from router_trio.outbox.operation import CountedOwner, FrameOwners, Operation, OperationBatch, Owner
from router_trio.states import DURATION_BOUNDS, Histogram
from tests.support.compiled import looks_inside


@st.composite
def runs_and_indexes(draw: st.DrawFn) -> tuple[list[int], set[int]]:
    """Draw how many frames each owner has, and which of all the frames are singled out."""
    counts = draw(st.lists(st.integers(0, 4), max_size=8))
    total = sum(counts)
    return counts, draw(st.sets(st.sampled_from(range(total)))) if total else set()


@given(runs_and_indexes())
def test_frames_that_are_singled_out_get_their_own_owner_and_the_others_keep_theirs(
    drawn: tuple[list[int], set[int]],
) -> None:
    counts, indexes = drawn
    runs = FrameOwners([cast(Owner, f"owner {number}") for number in range(len(counts))], [*counts])
    before = [*runs.each()]
    assert len(before) == sum(counts)
    owners: dict[int, Owner] = {}

    def replaced(index: int, owner: Owner) -> Owner:
        owners[index] = owner
        return cast(Owner, f"of {index}")

    runs.single_out(sorted(indexes), replaced)
    assert owners == {index: before[index] for index in indexes}
    assert [*runs.each()] == [f"of {index}" if index in indexes else owner for index, owner in enumerate(before)]
    assert sum(runs.counts) == len(before)


class Called:
    """An owner that is called for each fate."""

    def __init__(self) -> None:
        self.fates: list[tuple[int, Fate, float]] = []

    def settle(self, operation: Operation, count: int, fate: Fate, now: float) -> None:
        self.fates.append((count, fate, now))


def counted_owner() -> tuple[CountedOwner, list[tuple[int, Fate, float]]]:
    """Return an owner whose fenced publishes are only counted, and the calls that it gets for other fates."""
    fates = []

    class Counted(CountedOwner):
        def settle(self, operation: Operation, count: int, fate: Fate, now: float) -> None:
            fates.append((count, fate, now))

    return Counted(Histogram(DURATION_BOUNDS)), fates


def batch_of(*runs: FrameOwners) -> OperationBatch:
    """Return a batch that was accepted at 1.0, with one step for each of `runs`."""
    batch = OperationBatch(0, [], 0, FrameOwners([], []), 1.0)
    order = 0
    for one in runs:
        order += sum(one.counts)
        batch.extend(order, [b"PUB a 0\r\n\r\n"] * sum(one.counts), 1, one)
    return batch


@looks_inside
def test_fenced_frames_are_counted_or_reported_as_their_owner_asks() -> None:
    (counted, fates), called = counted_owner(), Called()
    batch = batch_of(FrameOwners([counted, called], [2, 1]), FrameOwners([counted], [3]))
    batch.settle(FENCED, 1.004)
    assert fates == []
    recorded = Histogram(DURATION_BOUNDS)
    recorded.record(1.004 - 1.0, 5)
    assert counted.fenced.counts == recorded.counts
    assert counted.fenced.total == pytest.approx(recorded.total)
    assert called.fates == [(1, FENCED, 1.004)]


@looks_inside
def test_every_owner_is_called_for_any_other_fate() -> None:
    (counted, fates), called = counted_owner(), Called()
    failed = Fate("failed", "permission_denied")
    batch_of(FrameOwners([counted, called], [2, 1])).settle(failed, 2.0)
    assert fates == [(2, failed, 2.0)]
    assert called.fates == [(1, failed, 2.0)]
    assert not any(counted.fenced.counts)


@looks_inside
def test_a_batch_settled_in_parts_is_counted_and_reported_like_an_entire_one() -> None:
    (counted, fates), called = counted_owner(), Called()
    for part in batch_of(FrameOwners([counted, called], [2, 1])).split():
        part.settle(FENCED, 2.0)
    assert fates == []
    assert sum(counted.fenced.counts) == 2
    assert counted.fenced.total == pytest.approx(2.0)
    assert called.fates == [(1, FENCED, 2.0)]
