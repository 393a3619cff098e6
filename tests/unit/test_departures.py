"""What leaves together: which frame is whose, also when some of them go by themselves."""

from __future__ import annotations

from typing import cast

from hypothesis import given
from hypothesis import strategies as st

from router_trio.departures import Departures
from router_trio.operation import Owner
from tests.unit.test_outbox import Desk


@st.composite
def runs_and_indexes(draw: st.DrawFn) -> tuple[list[int], set[int]]:
    """How many frames each owner has, and which of all of them are singled out."""
    runs = draw(st.lists(st.integers(0, 4), max_size=8))
    count = sum(runs)
    return runs, draw(st.sets(st.sampled_from(range(count)))) if count else set()


@given(runs_and_indexes())
def test_what_is_singled_out_gets_its_own_owner_and_the_others_keep_theirs(drawn: tuple[list[int], set[int]]) -> None:
    runs, indexes = drawn
    departures = Departures(Desk().outbox)
    frames, owners = departures.frames, departures.owners
    for owner, count in enumerate(runs):
        owners.append((cast(Owner, owner), count))
        frames += [b"%d.%d" % (owner, number) for number in range(count)]
    before = [*zip(_each(owners), frames, strict=True)]

    def replaced(owner: Owner, frame: bytes) -> tuple[Owner, bytes]:
        return cast(Owner, frame), b"traced " + frame

    departures.single_out(sorted(indexes), replaced)
    assert departures.frames is frames
    assert departures.owners is owners
    assert [*zip(_each(owners), frames, strict=True)] == [
        (frame, b"traced " + frame) if index in indexes else (owner, frame)
        for index, (owner, frame) in enumerate(before)
    ]


def _each(owners: list[tuple[Owner, int]]) -> list[Owner]:
    return [owner for owner, count in owners for _ in range(count)]
