"""Lanes: what a stream can't take waits in order, is tried one at a time, and nothing of it is forgotten."""

from __future__ import annotations

from collections.abc import Sequence

from router_trio.lanes import Lanes
from router_trio.operation import Operation, OperationWithAck


def operation(order: int, subject: bytes = b"a") -> OperationWithAck:
    frame = b"PUB %b 0\r\n\r\n" % subject
    return OperationWithAck(order, frame, owner=None, accepted_at=0.0, clean=True)


def nothing_waits(_: Operation) -> bool:
    return False


def due(lanes: Lanes, now: float) -> list[int]:
    return [one.order for one in lanes.due(now, nothing_waits)]


def next_due(lanes: Lanes) -> float | None:
    return lanes.next_due(nothing_waits)


def orders(operations: Sequence[Operation]) -> list[int]:
    return sorted(one.order for one in operations)


def test_no_lane() -> None:
    lanes = Lanes()
    assert lanes.held == 0
    assert lanes.held_bytes == 0
    assert not lanes.lanes
    assert b"a" not in lanes
    assert due(lanes, 1e9) == []
    assert next_due(lanes) is None
    assert lanes.settled(operation(1), accepted=True) == []
    assert not lanes.withdraw(operation(1))
    assert lanes.find(1) is None
    assert lanes.clear() == []


def test_a_refused_operation_is_tried_again_when_its_time_comes() -> None:
    lanes = Lanes()
    lanes.hold(operation(1), 5.0)
    assert b"a" in lanes
    assert lanes.held == 1
    assert lanes.held_bytes == len(operation(1).frame)
    assert next_due(lanes) == 5.0
    assert due(lanes, 4.9) == []
    assert due(lanes, 5.0) == [1]
    assert lanes.held == 0
    assert lanes.held_bytes == 0
    assert lanes.lanes, "the lane stays while its operation is under way"
    assert b"a" in lanes


def test_one_operation_of_a_lane_is_under_way_at_a_time_and_it_is_the_oldest() -> None:
    lanes = Lanes()
    for order in (3, 1, 2):
        lanes.hold(operation(order), 1.0)
    assert due(lanes, 1.0) == [1]
    assert due(lanes, 9.0) == []
    assert next_due(lanes) is None
    lanes.hold(operation(1), 2.0)
    assert next_due(lanes) == 2.0
    assert due(lanes, 2.0) == [1], "the refused one is still the oldest"


def test_lanes_of_other_subjects_go_their_own_way() -> None:
    lanes = Lanes()
    lanes.hold(operation(1, b"a"), 1.0)
    lanes.hold(operation(2, b"b"), 2.0)
    lanes.hold(operation(3, b"b"))
    assert next_due(lanes) == 1.0
    assert due(lanes, 1.0) == [1]
    assert next_due(lanes) == 2.0
    assert due(lanes, 2.0) == [2]


def test_one_that_would_overtake_an_older_one_is_not_due() -> None:
    lanes = Lanes()
    lanes.hold(operation(4), 1.0)
    assert lanes.due(9.0, lambda one: one.order == 4) == []
    assert lanes.next_due(lambda one: one.order == 4) is None
    lanes.hold(operation(2))
    assert [one.order for one in lanes.due(9.0, lambda one: one.order == 4)] == [2]


def test_an_ack_dissolves_the_lane_and_releases_all_of_it() -> None:
    lanes = Lanes()
    for order in (1, 2, 3):
        lanes.hold(operation(order), 1.0)
    due(lanes, 1.0)
    assert orders(lanes.settled(operation(1), accepted=True)) == [2, 3]
    assert not lanes.lanes
    assert (lanes.held, lanes.held_bytes) == (0, 0)


def test_an_ack_of_another_one_that_was_in_flight_dissolves_the_lane_too() -> None:
    lanes = Lanes()
    lanes.hold(operation(1), 1.0)
    assert orders(lanes.settled(operation(2), accepted=True)) == [1]
    assert not lanes.lanes


def test_when_the_one_under_way_is_given_up_the_next_one_is_tried() -> None:
    lanes = Lanes()
    lanes.hold(operation(1), 1.0)
    lanes.hold(operation(2))
    assert due(lanes, 1.0) == [1]
    assert lanes.settled(operation(1), accepted=False) == []
    assert due(lanes, 1.0) == [2]
    assert lanes.settled(operation(2), accepted=False) == []
    assert not lanes.lanes, "an empty lane is none"


def test_the_end_of_one_that_is_not_under_way_changes_nothing() -> None:
    lanes = Lanes()
    lanes.hold(operation(1), 1.0)
    lanes.hold(operation(2))
    due(lanes, 1.0)
    assert lanes.settled(operation(9), accepted=False) == []
    assert due(lanes, 9.0) == [], "1 is still under way"
    assert lanes.held == 1


def test_a_held_one_can_be_found_and_withdrawn_once() -> None:
    lanes = Lanes()
    lanes.hold(operation(1), 1.0)
    lanes.hold(operation(2), 1.0)
    found = lanes.find(2)
    assert found is not None
    assert found.order == 2
    assert lanes.withdraw(found)
    assert not lanes.withdraw(found)
    assert lanes.find(2) is None
    assert lanes.held == 1
    assert lanes.withdraw(operation(1))
    assert not lanes.lanes, "an empty lane is none"
    assert lanes.held_bytes == 0


def test_withdrawing_the_last_held_one_leaves_the_lane_to_the_one_under_way() -> None:
    lanes = Lanes()
    lanes.hold(operation(1), 1.0)
    lanes.hold(operation(2))
    due(lanes, 1.0)
    assert lanes.withdraw(operation(2))
    assert b"a" in lanes
    lanes.hold(operation(3))
    assert due(lanes, 9.0) == []
    assert orders(lanes.settled(operation(1), accepted=True)) == [3]


def test_clear_gives_back_everything_that_is_held() -> None:
    lanes = Lanes()
    for order, subject in ((1, b"a"), (2, b"a"), (3, b"b")):
        lanes.hold(operation(order, subject), 1.0)
    assert due(lanes, 1.0) == [1, 3]
    assert orders(lanes.clear()) == [2]
    assert not lanes.lanes
    assert (lanes.held, lanes.held_bytes) == (0, 0)
