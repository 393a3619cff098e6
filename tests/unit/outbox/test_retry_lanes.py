"""Retry lanes: what a stream refuses waits in order, is tried one at a time, and is never forgotten."""

from __future__ import annotations

from collections.abc import Sequence

from router_trio.outbox.operation import Operation, OperationWithAck
from router_trio.outbox.retry_lanes import TRIED_AT_ONCE, TRIES_A_TURN, TURN, RetryLanes


def operation(order: int, subject: bytes = b"a") -> OperationWithAck:
    frame = b"PUB %b 0\r\n\r\n" % subject
    return OperationWithAck(order, frame, owner=None, accepted_at=0.0, clean=True)


def nothing_waits(_: Operation) -> bool:
    return False


def due(lanes: RetryLanes, now: float) -> list[int]:
    return [one.order for one in lanes.take_due(now, nothing_waits)]


def next_due(lanes: RetryLanes) -> float | None:
    return lanes.next_try_at(nothing_waits)


def orders(operations: Sequence[Operation]) -> list[int]:
    return sorted(one.order for one in operations)


def test_without_a_lane_nothing_is_held_or_due() -> None:
    lanes = RetryLanes()
    assert lanes.held == 0
    assert lanes.held_bytes == 0
    assert not lanes.lanes
    assert b"a" not in lanes
    assert due(lanes, 1e9) == []
    assert next_due(lanes) is None
    assert lanes.release(operation(1), accepted=True) == []
    assert not lanes.withdraw(operation(1))
    assert lanes.find(1) is None
    assert lanes.clear() == []


def test_a_refused_operation_is_tried_again_when_it_is_due() -> None:
    lanes = RetryLanes()
    lanes.hold(operation(1), 5.0)
    assert b"a" in lanes
    assert lanes.held == 1
    assert lanes.held_bytes == len(operation(1).frame)
    assert next_due(lanes) == 5.0
    assert due(lanes, 4.9) == []
    assert due(lanes, 5.0) == [1]
    assert lanes.held == 0
    assert lanes.held_bytes == 0
    assert lanes.lanes, "the lane stays while its operation is in flight"
    assert b"a" in lanes


def test_one_operation_of_a_lane_is_in_flight_at_a_time_the_oldest_first() -> None:
    lanes = RetryLanes()
    for order in (3, 1, 2):
        lanes.hold(operation(order), 1.0)
    assert due(lanes, 1.0) == [1]
    assert due(lanes, 9.0) == []
    assert next_due(lanes) is None
    lanes.hold(operation(1), 2.0)
    assert next_due(lanes) == 2.0
    assert due(lanes, 2.0) == [1], "the refused one is still the oldest"


def test_lanes_of_different_subjects_are_independent() -> None:
    lanes = RetryLanes()
    lanes.hold(operation(1, b"a"), 1.0)
    lanes.hold(operation(2, b"b"), 2.0)
    lanes.hold(operation(3, b"b"))
    assert next_due(lanes) == 1.0
    assert due(lanes, 1.0) == [1]
    assert next_due(lanes) == 2.0
    assert due(lanes, 2.0) == [2]


def test_an_operation_that_would_overtake_an_older_one_is_not_due() -> None:
    lanes = RetryLanes()
    lanes.hold(operation(4), 1.0)
    assert lanes.take_due(9.0, lambda one: one.order == 4) == []
    assert lanes.next_try_at(lambda one: one.order == 4) is None
    lanes.hold(operation(2))
    assert [one.order for one in lanes.take_due(9.0, lambda one: one.order == 4)] == [2]


def test_an_ack_dissolves_the_lane_and_releases_all_of_it() -> None:
    lanes = RetryLanes()
    for order in (1, 2, 3):
        lanes.hold(operation(order), 1.0)
    due(lanes, 1.0)
    assert orders(lanes.release(operation(1), accepted=True)) == [2, 3]
    assert not lanes.lanes
    assert (lanes.held, lanes.held_bytes) == (0, 0)


def test_an_ack_of_another_publish_to_the_subject_dissolves_the_lane_too() -> None:
    lanes = RetryLanes()
    lanes.hold(operation(1), 1.0)
    assert orders(lanes.release(operation(2), accepted=True)) == [1]
    assert not lanes.lanes


def test_when_the_operation_in_flight_is_given_up_the_next_one_is_tried() -> None:
    lanes = RetryLanes()
    lanes.hold(operation(1), 1.0)
    lanes.hold(operation(2))
    assert due(lanes, 1.0) == [1]
    assert lanes.release(operation(1), accepted=False) == []
    assert due(lanes, 1.0) == [2]
    assert lanes.release(operation(2), accepted=False) == []
    assert not lanes.lanes, "an empty lane is removed"


def test_the_failure_of_an_operation_not_in_flight_changes_nothing() -> None:
    lanes = RetryLanes()
    lanes.hold(operation(1), 1.0)
    lanes.hold(operation(2))
    due(lanes, 1.0)
    assert lanes.release(operation(9), accepted=False) == []
    assert due(lanes, 9.0) == [], "1 is still in flight"
    assert lanes.held == 1


def test_a_held_operation_can_be_found_and_withdrawn_once() -> None:
    lanes = RetryLanes()
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
    assert not lanes.lanes, "an empty lane is removed"
    assert lanes.held_bytes == 0


def test_withdrawing_the_last_held_operation_keeps_the_lane_of_the_one_in_flight() -> None:
    lanes = RetryLanes()
    lanes.hold(operation(1), 1.0)
    lanes.hold(operation(2))
    due(lanes, 1.0)
    assert lanes.withdraw(operation(2))
    assert b"a" in lanes
    lanes.hold(operation(3))
    assert due(lanes, 9.0) == []
    assert orders(lanes.release(operation(1), accepted=True)) == [3]


def test_clear_returns_everything_that_is_held() -> None:
    lanes = RetryLanes()
    for order, subject in ((1, b"a"), (2, b"a"), (3, b"b")):
        lanes.hold(operation(order, subject), 1.0)
    assert due(lanes, 1.0) == [1, 3]
    assert orders(lanes.clear()) == [2]
    assert not lanes.lanes
    assert (lanes.held, lanes.held_bytes) == (0, 0)


# --- destinations ----------------------------------------------------------------------------------------------------


def refuse(lanes: RetryLanes, operations: Sequence[Operation], now: float) -> None:
    for one in operations:
        assert isinstance(one, OperationWithAck)
        lanes.hold(one, now + TURN, now=now)


def test_the_subjects_of_a_destination_are_tried_in_turns() -> None:
    lanes = RetryLanes()
    refuse(lanes, [operation(n, b"many.%d" % n) for n in range(1, 5001)], 0.0)
    now, tried = 1.0, []
    for _ in range(20):
        while batch := lanes.take_due(now, nothing_waits):
            assert len(batch) <= TRIED_AT_ONCE
            tried += [one.order for one in batch]
            refuse(lanes, batch, now)
        assert len(tried) <= TRIES_A_TURN * (now / TURN)
        again = next_due(lanes)
        assert again is not None
        assert again > now
        now = again
    assert len(tried) == 20 * TRIES_A_TURN
    assert len(set(tried[:5000])) == 5000, "each is tried once before any is tried twice"


def test_a_destination_with_few_held_publishes_gets_its_turn_beside_one_with_thousands() -> None:
    lanes = RetryLanes()
    refuse(lanes, [operation(n, b"many.%d" % n) for n in range(1, 5001)], 0.0)
    refuse(lanes, [operation(6000, b"one.a"), operation(6001, b"two.a")], 0.0)
    for turn in range(1, 20):
        tried: list[OperationWithAck] = []
        while batch := lanes.take_due(turn * 2 * TURN, nothing_waits):
            tried += batch
            refuse(lanes, batch, turn * 2 * TURN)
        assert {6000, 6001} <= set(orders(tried))


def test_an_acked_operation_uses_up_no_tries() -> None:
    lanes = RetryLanes()
    refuse(lanes, [operation(n, b"many.%d" % n) for n in range(1, 5001)], 0.0)
    while batch := lanes.take_due(1.0, nothing_waits):
        for one in batch:
            lanes.release(one, accepted=True, now=1.0)
    assert (lanes.held, lanes.lanes, lanes.destinations) == (0, {}, {})


def test_nothing_of_a_slow_destination_is_tried_and_everything_it_held_is_released_together() -> None:
    lanes = RetryLanes()
    lanes.destination_for(b"slow", 0.0).slow = True
    for order in (1, 2, 3):
        lanes.hold(operation(order, b"slow.%d" % (order % 2)))
    refuse(lanes, [operation(4, b"slow.refused")], 0.0)
    assert due(lanes, 9.0) == []
    assert next_due(lanes) is None
    assert lanes.release(operation(9, b"slow.0"), accepted=True) == [], "it would be held again at once"
    assert orders(lanes.not_slow([b"slow"])) == [1, 2, 3]
    assert due(lanes, 9.0) == [4]


def test_the_start_of_a_destinations_refusals_is_remembered_after_its_publishes_have_failed() -> None:
    lanes = RetryLanes()
    refuse(lanes, [operation(1, b"a.1")], 5.0)
    lanes.clear_idle()
    assert lanes.withdraw(operation(1, b"a.1"))
    lanes.clear_idle()
    refuse(lanes, [operation(2, b"a.2")], 8.0)
    assert lanes.destinations[b"a"].since == 5.0
    lanes.withdraw(operation(2, b"a.2"))
    lanes.clear_idle()
    lanes.clear_idle()
    assert not lanes.destinations


def test_a_lane_whose_only_publish_was_dropped_for_one_that_is_never_held_is_forgotten() -> None:
    lanes = RetryLanes()
    refuse(lanes, [operation(1)], 0.0)
    dropped = lanes.drop_oldest(b"a", lanes.destinations[b"a"])
    assert dropped is not None
    lanes.clear_idle()
    lanes.hold(operation(2))
    lanes.clear_idle()
    assert b"a" in lanes, "the publish for which there is room now was held in time"
    assert lanes.drop_oldest(b"a", lanes.destinations[b"a"]) is not None
    for _ in range(4):
        lanes.clear_idle()
    assert not lanes.lanes
    assert not lanes.destinations
