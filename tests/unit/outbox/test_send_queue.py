"""The pending queue: each operation is in one place, leaves it once, and returns to where it was."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from router_trio.client.receipt import Receipt
from router_trio.outbox.operation import CoreOperation, FrameOwners, Operation, OperationWithAck
from router_trio.outbox.queue import SendQueue

ALL = {"max_operations": 1000, "max_bytes": 1 << 30, "max_unacked": 1000}


def operation(order: int, *, subject: bytes = b"a", size: int = 0, at: float = 0.0) -> Operation:
    return CoreOperation(order, frame(subject, size), owner=None, accepted_at=at, clean=True)


def with_ack(order: int, *, subject: bytes = b"a", size: int = 0) -> OperationWithAck:
    return OperationWithAck(order, frame(subject, size), owner=None, accepted_at=0.0, clean=True)


def frame(subject: bytes, size: int) -> bytes:
    return b"PUB %b %d\r\n%b\r\n" % (subject, size, b"x" * size)


def queue_of(*operations: Operation) -> SendQueue:
    queue = SendQueue()
    for one in operations:
        queue.append(one)
    return queue


def orders(operations: Sequence[Operation]) -> list[int]:
    return [one.order for one in operations]


def test_the_subject_is_that_of_the_frame() -> None:
    assert operation(1, subject=b"a.\xff.b").subject == b"a.\xff.b"


def test_an_empty_queue_has_nothing() -> None:
    queue = SendQueue()
    assert (queue.pending, queue.pending_bytes, queue.in_flight.count) == (0, 0, 0)
    assert queue.oldest_accepted_at is None
    assert queue.take_batch(0.0, **ALL) == []
    assert queue.drop_oldest() is None
    assert queue.in_flight.take_fenced(queue.in_flight.written) == []
    queue.requeue_all()
    assert queue.take_batch(0.0, **ALL) == []


def times(one: OperationWithAck) -> tuple[float | None, float]:
    return one.first_written_at, one.written_at


# --- take ------------------------------------------------------------------------------------------------------------


def test_operations_taken_in_a_batch_are_in_flight_in_order_of_acceptance() -> None:
    queue = queue_of(operation(1), with_ack(2), operation(3))
    assert orders(queue.take_batch(0.0, **ALL)) == [1, 2, 3]
    assert (queue.pending, queue.pending_bytes, queue.in_flight.count) == (0, 0, 3)
    assert (queue.in_flight.unfenced, len(queue.in_flight.unacked)) == (2, 1)


def test_a_batch_ends_at_the_maximum_number_of_operations() -> None:
    queue = queue_of(*(operation(order) for order in range(1, 6)))
    assert orders(queue.take_batch(0.0, max_operations=2, max_bytes=1 << 30, max_unacked=9)) == [1, 2]
    assert orders(queue.take_batch(0.0, max_operations=2, max_bytes=1 << 30, max_unacked=9)) == [3, 4]


def test_an_operation_larger_than_a_batch_is_taken_alone() -> None:
    queue = queue_of(operation(1, size=100), operation(2))
    assert orders(queue.take_batch(0.0, max_operations=9, max_bytes=1, max_unacked=9)) == [1]
    assert queue.pending_bytes == len(operation(2).frame)


def test_a_batch_ends_at_the_first_publish_with_ack_that_has_no_room() -> None:
    queue = queue_of(with_ack(1), with_ack(2), operation(3))
    assert orders(queue.take_batch(0.0, max_operations=9, max_bytes=1 << 30, max_unacked=1)) == [1]
    # The core publish behind it doesn't overtake: the order is that of acceptance.
    assert queue.take_batch(0.0, max_operations=9, max_bytes=1 << 30, max_unacked=1) == []
    assert queue.in_flight.take_acked(1) is not None
    assert orders(queue.take_batch(0.0, max_operations=9, max_bytes=1 << 30, max_unacked=1)) == [2, 3]


def test_the_time_of_the_first_write_is_kept_until_the_link_is_lost() -> None:
    one = with_ack(1)
    queue = queue_of(one)
    queue.take_batch(5.0, **ALL)
    queue.in_flight.take_acked(1)
    queue.in_flight.add_with_ack(one, 9.0)
    assert times(one) == (5.0, 9.0)
    queue.requeue_all()
    assert times(one) == (None, 9.0)
    queue.take_batch(11.0, **ALL)
    assert times(one) == (11.0, 11.0)


def test_the_time_of_the_first_write_is_reset_also_for_a_publish_put_back_before_the_loss() -> None:
    one = with_ack(1)
    queue = queue_of(one)
    queue.take_batch(5.0, **ALL)
    queue.in_flight.take_acked(1)
    queue.put_back([one])
    assert times(one) == (5.0, 5.0)
    queue.requeue_all()
    assert times(one) == (None, 5.0)


# --- confirm ---------------------------------------------------------------------------------------------------------


def test_a_fence_confirms_only_core_publishes_written_before_its_mark() -> None:
    queue = queue_of(operation(1), with_ack(2), operation(3), operation(4))
    queue.take_batch(0.0, max_operations=3, max_bytes=1 << 30, max_unacked=9)
    mark = queue.in_flight.written
    queue.take_batch(0.0, **ALL)
    assert orders(queue.in_flight.take_fenced(mark)) == [1, 3]
    assert queue.in_flight.take_fenced(mark) == []
    assert queue.in_flight.unfenced == 1
    assert len(queue.in_flight.unacked) == 1


def test_fences_answered_out_of_order_confirm_each_operation_once() -> None:
    queue = queue_of(operation(1), operation(2), operation(3))
    marks = []
    for _ in range(3):
        queue.take_batch(0.0, max_operations=1, max_bytes=1, max_unacked=0)
        marks.append(queue.in_flight.written)
    assert orders(queue.in_flight.take_fenced(marks[1])) == [1, 2]
    assert queue.in_flight.take_fenced(marks[0]) == []
    assert orders(queue.in_flight.take_fenced(marks[2])) == [3]


def test_a_mark_of_a_dead_link_confirms_nothing_on_the_next_one() -> None:
    queue = queue_of(operation(1), operation(2))
    queue.take_batch(0.0, **ALL)
    mark = queue.in_flight.written
    assert queue.in_flight.count == 2
    queue.requeue_all()
    assert queue.in_flight.count == 0
    queue.take_batch(1.0, **ALL)
    assert queue.in_flight.take_fenced(mark) == []
    assert orders(queue.in_flight.take_fenced(queue.in_flight.written)) == [1, 2]


def test_an_operation_withdrawn_from_the_middle_never_makes_a_fence_confirm_too_much() -> None:
    before, after = operation(2), operation(4)
    queue = queue_of(operation(1), before, operation(3), after)
    queue.take_batch(0.0, max_operations=3, max_bytes=1 << 30, max_unacked=9)
    mark = queue.in_flight.written
    queue.take_batch(0.0, **ALL)
    assert queue.withdraw(before)
    assert queue.withdraw(after)
    # The fence confirms one too few now; the next fence confirms it.
    assert orders(queue.in_flight.take_fenced(mark)) == [1]
    assert orders(queue.in_flight.take_fenced(queue.in_flight.written)) == [3]


def test_a_puback_confirms_once() -> None:
    queue = queue_of(with_ack(1), operation(2))
    queue.take_batch(0.0, **ALL)
    found = queue.in_flight.take_acked(1)
    assert found is not None
    assert found.order == 1
    assert queue.in_flight.take_acked(1) is None
    assert queue.in_flight.take_acked(2) is None, "a core publish has no PubAck"


# --- back ------------------------------------------------------------------------------------------------------------


def test_after_a_loss_everything_in_flight_is_resent_first_in_order_of_acceptance() -> None:
    queue = queue_of(*(with_ack(order) if order % 2 == 0 else operation(order) for order in range(1, 8)))
    size = queue.pending_bytes
    queue.take_batch(0.0, max_operations=5, max_bytes=1 << 30, max_unacked=9)
    assert queue.in_flight.count == 5
    queue.requeue_all()
    assert queue.pending_bytes == size
    assert orders(queue.take_batch(0.0, **ALL)) == [1, 2, 3, 4, 5, 6, 7]


def test_operations_put_back_in_several_steps_are_merged_in_order_of_acceptance() -> None:
    taken = [with_ack(order) for order in range(1, 7)]
    queue = queue_of(*taken)
    queue.take_batch(0.0, **ALL)
    for one in taken:
        queue.in_flight.take_acked(one.order)
    queue.put_back([taken[2], taken[3]])
    queue.put_back([taken[4], taken[0]])
    queue.put_back([])
    assert orders(queue.take_batch(0.0, **ALL)) == [1, 3, 4, 5]


@given(st.lists(st.sampled_from(["take", "put_back", "requeue", "ack", "fence"]), max_size=30), st.data())
def test_the_queue_stays_in_order_of_acceptance_whatever_is_put_back(steps: list[str], data: st.DataObject) -> None:
    queue = queue_of(*((with_ack if order % 3 else operation)(order, size=order) for order in range(1, 20)))
    out: dict[int, Operation] = {}
    left = set(range(1, 20))
    for step in steps:
        if step == "take":
            queue.take_batch(0.0, max_operations=data.draw(st.integers(1, 6)), max_bytes=1 << 30, max_unacked=8)
        elif step == "ack":
            found = queue.in_flight.take_acked(data.draw(st.integers(1, 19)))
            if found is not None:
                out[found.order] = found
        elif step == "put_back":
            chosen = data.draw(st.lists(st.sampled_from(sorted(out)), unique=True)) if out else []
            queue.put_back([out.pop(order) for order in chosen])
        elif step == "fence":
            left -= set(orders(queue.in_flight.take_fenced(queue.in_flight.written)))
        else:
            queue.requeue_all()
        assert queue.pending + queue.in_flight.count + len(out) == len(left)
    queue.put_back(list(out.values()))
    queue.requeue_all()
    assert queue.pending_bytes == sum(len(operation(order, size=order).frame) for order in left)
    assert orders(queue.take_batch(0.0, **ALL)) == sorted(left)
    assert queue.pending_bytes == 0


# --- removed without being sent --------------------------------------------------------------------------------------


def test_the_oldest_is_dropped_first() -> None:
    queue = queue_of(operation(1, at=1.0), operation(2, at=2.0))
    assert queue.oldest_accepted_at == 1.0
    dropped = queue.drop_oldest()
    assert dropped is not None
    assert dropped.order == 1
    assert queue.oldest_accepted_at == 2.0
    assert queue.pending_bytes == len(operation(2).frame)


def test_older_operations_are_dropped_and_one_of_exactly_the_age_stays() -> None:
    queue = queue_of(operation(1, at=1.0), operation(2, at=2.0), operation(3, at=3.0))
    assert orders(queue.drop_older_than(2.0)) == [1]
    assert queue.pending == 2
    assert orders(queue.drop_older_than(float("inf"))) == [2, 3]
    assert queue.pending_bytes == 0


def test_withdraw_finds_an_operation_wherever_it_is_and_only_once() -> None:
    unacked, fenced, waiting = with_ack(1), operation(2), operation(3)
    queue = queue_of(unacked, fenced, waiting)
    queue.take_batch(0.0, max_operations=2, max_bytes=1 << 30, max_unacked=9)
    for one in (unacked, fenced, waiting):
        assert queue.withdraw(one)
        assert not queue.withdraw(one)
    assert (queue.pending, queue.pending_bytes, queue.in_flight.count) == (0, 0, 0)


def test_operations_in_flight_to_a_subject_are_found_with_and_without_ack() -> None:
    queue = queue_of(
        operation(1, subject=b"b"),
        with_ack(2, subject=b"a"),
        operation(3, subject=b"a"),
        with_ack(4, subject=b"a"),
        operation(5, subject=b"a"),
        operation(6, subject=b"c"),
    )
    queue.take_batch(0.0, max_operations=5, max_bytes=1 << 30, max_unacked=9)
    in_flight = queue.in_flight
    assert orders(in_flight.take_core_to(b"c")) == [], "it is pending, not in flight"
    assert orders(in_flight.take_core_to(b"a")) == [3, 5]
    assert orders(in_flight.take_core_to(b"a")) == []
    assert [one.order for one in iter(lambda: in_flight.take_unacked_to(b"a"), None)] == [2, 4]
    assert (in_flight.unfenced, in_flight.count) == (1, 1)
    queue.take_batch(0.0, **ALL)
    assert orders([*in_flight.core()]) == [1, 6]
    assert orders(in_flight.take_fenced(in_flight.written - 1)) == [1]
    assert orders(in_flight.take_all_core()) == [6]


def test_a_publish_written_after_the_first_denial_is_found_by_a_later_one() -> None:
    queue = queue_of(*(with_ack(order, subject=b"a") for order in range(1, 5)))
    in_flight = queue.in_flight
    queue.take_batch(0.0, max_operations=2, max_bytes=1 << 30, max_unacked=9)
    assert in_flight.take_unacked_to(b"b") is None
    in_flight.take_acked(1)
    queue.take_batch(0.0, max_operations=2, max_bytes=1 << 30, max_unacked=9)
    assert [one.order for one in iter(lambda: in_flight.take_unacked_to(b"a"), None)] == [2, 3, 4]


def test_an_older_publish_to_the_same_subject_is_seen_while_it_waits() -> None:
    probe = with_ack(4)
    queue = queue_of(operation(1), with_ack(2, subject=b"b"), with_ack(5), operation(6))
    assert not queue.older_waits(probe)
    queue.put_back([with_ack(3)])
    assert queue.older_waits(probe)


def test_publishes_that_waited_long_for_a_puback_are_listed() -> None:
    queue = queue_of(with_ack(1), with_ack(2), operation(3))
    queue.take_batch(1.0, max_operations=1, max_bytes=1 << 30, max_unacked=9)
    queue.take_batch(2.0, **ALL)
    assert orders(queue.in_flight.unacked_since(0.9)) == []
    assert orders(queue.in_flight.unacked_since(1.0)) == [1]
    assert orders(queue.in_flight.unacked_since(9.0)) == [1, 2]


def test_selected_operations_are_taken_out_of_the_pending_ones() -> None:
    queue = queue_of(*(operation(order, size=order) for order in range(1, 6)))
    queue.take_batch(0.0, **(ALL | {"max_operations": 1}))
    size = queue.pending_bytes
    taken = queue.take_out(lambda one: one.order in (1, 3, 5))
    assert orders(taken) == [3, 5], "1 is in flight"
    assert (queue.pending, queue.in_flight.count) == (2, 1)
    assert queue.pending_bytes == size - sum(len(one.frame) for one in taken)
    assert queue.take_out(lambda _: False) == []
    assert orders(queue.take_batch(0.0, **ALL)) == [2, 4]


def test_frames_kept_together_have_consecutive_numbers_also_when_one_between_was_withdrawn() -> None:
    queue = SendQueue()
    queue.append_frame(1, b"PUB a 0\r\n\r\n", Receipt(), 0.0)
    between = with_ack(2)
    queue.append(between)
    assert queue.withdraw(between)
    queue.append_frame(3, b"PUB a 0\r\n\r\n", Receipt(), 0.0)
    queue.append_frames(5, [b"PUB a 0\r\n\r\n"] * 2, FrameOwners([Receipt()], [2]), 0.0)
    waiting = queue.take_batch(0.0, max_operations=9, max_bytes=999, max_unacked=9)
    assert [part.order for one in waiting for part in one.split()] == [1, 3, 4, 5]
