"""Turns behind a message that a destination refused: no message overtakes it, and none waits for ever."""

from __future__ import annotations

from collections.abc import Iterable
from math import inf

from router_trio.routing.stream.subject_order import SubjectOrder
from tests.unit.routing.stream.order import LATE, Message


def messages(count: int, subject: bytes = b"a") -> list[Message]:
    return [Message(sequence, subject, b"%d" % sequence) for sequence in range(1, count + 1)]


def admitted(turns: SubjectOrder[Message], given: Iterable[Message]) -> list[int]:
    return [one.sequence for message in given if (one := turns.admit(message)) is not None]


def sequences(given: Iterable[Message]) -> list[int]:
    return [message.sequence for message in given]


def refuse(turns: SubjectOrder[Message], *refused: Message, due: float = 1.0) -> None:
    for message in refused:
        assert turns.await_redelivery(message, due, due + LATE) is None


def test_no_message_waits_while_none_is_refused() -> None:
    turns = SubjectOrder[Message]()
    assert not turns.lines
    assert admitted(turns, messages(3)) == [1, 2, 3]
    assert turns.release_behind(Message(1)) == []
    assert (turns.aside, turns.count_due(inf), turns.next_look(0.0)) == (0, 0, inf)
    assert turns.clear() == turns.stuck() == turns.give_up_waiting([1]) == []
    assert turns.late(inf) == []


def test_messages_behind_a_refused_one_wait_until_it_is_delivered() -> None:
    turns, (one, two, three) = SubjectOrder[Message](), messages(3)
    refuse(turns, one)
    assert admitted(turns, [three, two]) == []
    assert (turns.held, turns.awaited, turns.aside) == (2, 1, 3)
    assert admitted(turns, [one]) == [1], "it is redelivered"
    assert (turns.held, turns.awaited) == (2, 0)
    assert sequences(turns.release_behind(one)) == [2, 3]
    assert admitted(turns, [two, three]) == [2, 3]
    assert not turns.lines
    assert turns.aside == 0


def test_messages_of_other_subjects_do_not_wait() -> None:
    turns = SubjectOrder[Message]()
    refuse(turns, Message(1))
    assert admitted(turns, [Message(2, b"b"), Message(3), Message(4, b"c")]) == [2, 4]
    assert turns.release_behind(Message(2, b"b")) == []
    assert turns.held == 1


def test_one_message_at_a_time_is_tried_while_some_are_refused() -> None:
    turns, (one, two, three) = SubjectOrder[Message](), messages(3)
    refuse(turns, one, two, three)
    assert admitted(turns, [one, two, three]) == [1]
    refuse(turns, one)
    assert (turns.held, turns.awaited) == (2, 1)
    assert admitted(turns, [one]) == [1]
    assert sequences(turns.release_behind(one)) == [2, 3], (
        "messages refused before and redelivered since are released together"
    )


def test_waiting_messages_are_released_up_to_the_next_one_that_is_awaited() -> None:
    turns, (one, two, three, four, five) = SubjectOrder[Message](), messages(5)
    refuse(turns, one, four)
    assert admitted(turns, [two, three, five, one]) == [1]
    run = turns.release_behind(one)
    assert sequences(run) == [2, 3]
    assert admitted(turns, run) == [2, 3], "admitted again before they are routed"
    assert admitted(turns, [four]) == [4]
    assert sequences(turns.release_behind(four)) == [5]
    assert admitted(turns, [five]) == [5]
    assert not turns.lines


def test_a_released_message_waits_again_if_an_earlier_one_is_refused() -> None:
    turns, (one, two, three, four) = SubjectOrder[Message](), messages(4)
    refuse(turns, one, four)
    assert admitted(turns, [two, three, one]) == [1]
    run = turns.release_behind(one)
    assert admitted(turns, run[:1]) == [2]
    refuse(turns, two)
    assert admitted(turns, run[1:]) == []
    assert admitted(turns, [four, two]) == [2]
    assert sequences(turns.release_behind(two)) == [3, 4]


def test_messages_received_before_the_refusal_are_checked_when_they_are_routed() -> None:
    turns, (one, two, three) = SubjectOrder[Message](), messages(3)
    assert admitted(turns, [one, two, three]) == [1, 2, 3]
    refuse(turns, one)
    assert admitted(turns, [one]) == [1]
    assert admitted(turns, [two, three]) == [], "the first was redelivered, and is not routed yet"
    assert admitted(turns, [one]) == [1], "it is admitted again, too"
    assert sequences(turns.release_behind(one)) == [2, 3]


def test_an_older_message_that_arrives_late_is_tried_before_the_refused_one() -> None:
    turns, (one, two, three, four) = SubjectOrder[Message](), messages(4)
    refuse(turns, two)
    assert admitted(turns, [two]) == [2]
    assert admitted(turns, [one]) == []
    again = turns.await_redelivery(two, 1.0, 1.0 + LATE)
    assert again is one
    assert admitted(turns, [three, two]) == []
    assert sequences(turns.release_behind(one)) == [2, 3]
    assert admitted(turns, [four]) == [4]


def test_a_message_that_is_not_redelivered_in_time_is_not_waited_for_any_longer() -> None:
    turns, (one, two, three) = SubjectOrder[Message](), messages(3)
    refuse(turns, one)
    refuse(turns, two, due=2.0)
    assert admitted(turns, [three]) == []
    assert (turns.count_due(0.9), turns.count_due(1.0), turns.count_due(2.0)) == (0, 1, 2)
    assert (turns.next_look(0.0), turns.next_look(1.0), turns.next_look(2.0)) == (1.0, 2.0, 1.0 + LATE)
    turns.wait_longer(3.0, LATE)
    assert turns.late(2.0 + LATE) == []
    assert turns.late(3.0 + LATE) == [1, 2]
    assert turns.give_up_waiting([2]) == [], "the first is still awaited"
    assert sequences(turns.give_up_waiting([1])) == [3]
    assert admitted(turns, [three]) == [3]
    assert not turns.lines


def test_the_oldest_message_of_each_subject_is_looked_up_first() -> None:
    turns = SubjectOrder[Message]()
    refuse(turns, Message(1), Message(2), Message(3, b"b"), Message(4, b"b"))
    assert turns.late(1.0 + LATE) == [1, 3, 2, 4]


def test_messages_in_hand_are_not_among_those_returned_to_the_stream() -> None:
    turns, (one, two, three) = SubjectOrder[Message](), messages(3)
    assert turns.returned() == []
    refuse(turns, three, one, two, Message(4, b"b"))
    assert turns.returned() == [1, 2, 3, 4]
    assert turns.returned(2) == [1, 2]
    assert admitted(turns, [one]) == [1]
    assert turns.await_redelivery(one) is None
    assert turns.returned() == [2, 3, 4], "the first is in hand again"


def test_a_message_redelivered_and_refused_again_meanwhile_is_not_gone() -> None:
    turns, (one, two) = SubjectOrder[Message](), messages(2)
    refuse(turns, one)
    assert admitted(turns, [two, one]) == [1]
    assert turns.await_redelivery(one) is None, "other destinations have not answered"
    assert turns.give_up_waiting([1]) == []
    assert turns.awaited == 1


def test_a_message_in_progress_is_not_affected_by_another_that_is_not_redelivered() -> None:
    turns, (one, two, three) = SubjectOrder[Message](), messages(3)
    refuse(turns, one, two)
    assert admitted(turns, [one, three]) == [1]
    assert turns.late(1.0 + LATE) == [2]
    assert turns.give_up_waiting([2]) == []
    assert sequences(turns.release_behind(one)) == [3]
    assert admitted(turns, [three]) == [3]
    assert not turns.lines


def test_with_a_new_consumer_all_awaited_messages_are_due_at_once() -> None:
    turns = SubjectOrder[Message]()
    refuse(turns, *messages(2), due=50.0)
    assert [one.ack_subject for one in turns.expected()] == [b"1", b"2"]
    turns.all_due(3.0)
    assert turns.count_due(3.0) == 2


def test_at_the_end_only_messages_that_can_continue_stay() -> None:
    turns = SubjectOrder[Message]()
    a, b = messages(3), messages(3, b"b")
    refuse(turns, a[0], b[0])
    assert admitted(turns, [a[1], b[2], b[1], a[0]]) == [1]
    assert sequences(turns.stuck()) == [2, 3], "those of b wait for a message that will not be redelivered"
    assert turns.held == 1
    refuse(turns, a[0])
    assert sequences(turns.stuck()) == [2]
    assert (turns.held, turns.awaited) == (0, 2)


def test_a_message_refused_by_one_destination_is_awaited_before_another_has_answered() -> None:
    turns, (one, two, three) = SubjectOrder[Message](), messages(3)
    assert turns.await_redelivery(one) is None
    assert admitted(turns, [two]) == []
    assert (turns.awaited, list(turns.expected()), turns.count_due(1e9), turns.next_look(0.0)) == (1, [], 0, inf)
    refuse(turns, one)
    assert (turns.awaited, turns.count_due(1.0)) == (1, 1)
    assert admitted(turns, [one, three]) == [1]
    assert turns.await_redelivery(one) is None
    assert sequences(turns.release_behind(one)) == [2, 3], "the first was given up"
    assert admitted(turns, [two, three]) == [2, 3]
    assert not turns.lines
    assert turns.aside == 0


def test_a_message_in_progress_behind_a_refused_one_would_overtake_it() -> None:
    turns, (one, two, three) = SubjectOrder[Message](), messages(3)
    assert not turns.pass_by(three)
    refuse(turns, two)
    assert [turns.pass_by(message) for message in (one, two, three)] == [False, False, True]
    assert not turns.pass_by(Message(9, b"b"))
    assert admitted(turns, [two]) == [2]
    assert [turns.pass_by(message) for message in (one, two, three)] == [False, False, True], (
        "it is being tried, not settled"
    )
    turns.release_behind(two)
    assert not turns.pass_by(three)


def test_a_message_in_progress_would_overtake_those_that_wait() -> None:
    turns, (one, two, three, four) = SubjectOrder[Message](), messages(4)
    refuse(turns, one, three)
    assert admitted(turns, [three, two, one]) == [1]
    assert [turns.pass_by(message) for message in (one, two, four)] == [False, True, True]


def test_a_message_in_progress_would_overtake_released_ones_until_they_are_admitted() -> None:
    turns, (one, two, three, four, five) = SubjectOrder[Message](), messages(5)
    assert turns.await_redelivery(one) is None
    assert admitted(turns, [three, two]) == []
    assert sequences(turns.release_behind(one)) == [2, 3]
    assert turns.describe() == "messages that waited for a failed message are about to be routed"
    assert turns.pass_by(four), "the fourth is in a handler"
    assert not turns.pass_by(two)
    assert admitted(turns, [five]) == [5], "it arrived after them"
    assert turns.lines
    assert [turns.follows_run(message) for message in (one, two, three, Message(9, b"b"))] == [
        False,
        False,
        True,
        False,
    ]
    assert admitted(turns, [two]) == [2]
    assert turns.pass_by(four)
    assert admitted(turns, [three]) == [3]
    assert not turns.pass_by(four)
    assert not turns.lines


def test_everything_is_cleared_in_the_order_of_the_stream() -> None:
    turns = SubjectOrder[Message]()
    refuse(turns, Message(1), Message(2, b"b"))
    assert admitted(turns, [Message(5), Message(4, b"b"), Message(3)]) == []
    assert sequences(turns.clear()) == [3, 4, 5]
    assert not turns.lines
    assert turns.aside == 0


def test_the_newest_waiting_message_can_be_returned_and_is_then_awaited() -> None:
    turns, (one, two, three, four) = SubjectOrder[Message](), messages(4)
    other = Message(9, b"b")
    assert turns.give_back_newest(5.0, 6.0) is None
    refuse(turns, one)
    assert turns.give_back_newest(5.0, 6.0) is None, "no message waits in hand"
    refuse(turns, Message(8, b"b"))
    assert admitted(turns, [two, three, other]) == []
    assert turns.give_back_newest(5.0, 6.0) is other, "of all subjects"
    assert turns.give_back_newest(5.0, 6.0) is three
    assert (turns.held, turns.awaited) == (1, 4)
    assert (turns.count_due(4.0), turns.count_due(5.0), turns.late(6.0)) == (2, 4, [3, 9])
    assert admitted(turns, [one, four]) == [1]
    assert sequences(turns.release_behind(one)) == [2], "later messages wait for the one that was returned"
    assert admitted(turns, [two, three]) == [2, 3]
    assert sequences(turns.release_behind(three)) == [4]


def test_returned_messages_are_asked_back_once_no_refused_one_is_in_front_of_them() -> None:
    turns, (one, two, three, four, five) = SubjectOrder[Message](), messages(5)
    refuse(turns, one, four)
    assert admitted(turns, [two, three, five]) == []
    returned = [turns.give_back_newest(9.0, 10.0) for _ in range(3)]
    assert returned == [five, three, two]
    assert turns.ask_back(1.0, LATE) == []
    assert admitted(turns, [one]) == [1]
    assert turns.ask_back(2.0, LATE) == [], "the first is tried"
    assert turns.release_behind(one) == []
    asked = turns.ask_back(3.0, LATE)
    assert [(each.ack_subject, each.due, each.until) for each in asked] == [
        (b"2", 3.0, 3.0 + LATE),
        (b"3", 3.0, 3.0 + LATE),
    ], "the last one waits behind one that was refused"
    assert turns.ask_back(3.0, LATE) == [], "once"


def released_before_a_refused_one() -> tuple[SubjectOrder[Message], list[Message]]:
    """Return an order in which 2 and 4 were released and are not yet admitted, and 5 is to be redelivered."""
    turns, given = SubjectOrder[Message](), messages(5)
    one, two, _, four, five = given
    refuse(turns, one, five)
    assert admitted(turns, [two, four, one]) == [1]
    assert sequences(turns.release_behind(one)) == [2, 4]
    return turns, given


def test_a_released_message_does_not_overtake_one_refused_and_redelivered_meanwhile() -> None:
    turns, (_, two, _, four, _) = released_before_a_refused_one()
    assert admitted(turns, [two]) == [2]
    refuse(turns, two)
    assert admitted(turns, [two]) == [2], "the second is tried alone"
    assert admitted(turns, [four]) == []
    assert sequences(turns.release_behind(two)) == [4]


def test_a_message_about_to_be_tried_does_not_overtake_one_refused_and_redelivered_meanwhile() -> None:
    turns, (_, two, _, four, five) = released_before_a_refused_one()
    assert admitted(turns, [two, four, five]) == [2, 4, 5]
    refuse(turns, two)
    assert admitted(turns, [two]) == [], "5 is about to be tried"
    assert admitted(turns, [five]) == [2], "instead of 5, which waits"
    assert sequences(turns.release_behind(two)) == [5]


def test_messages_that_were_returned_at_the_end_of_a_route_are_awaited_under_the_keys_of_the_next_one() -> None:
    turns, (one, two, three) = SubjectOrder[Message](), messages(3)
    refuse(turns, three)
    for returned in (one, two):
        assert turns.await_returned(returned) is None
    turns.order_by(lambda message: b"even" if message.sequence % 2 == 0 else b"odd")
    assert (turns.awaited, turns.returned()) == (2, [1, 2]), "how the refused one would be ordered is not known"
    later = [Message(sequence, key) for sequence, key in ((4, b"even"), (5, b"odd"), (6, b"a"))]
    assert admitted(turns, later) == [6]
    assert admitted(turns, [Message(2, b"even")]) == [2]
    assert sequences(turns.release_behind(Message(2, b"even"))) == [4]
    assert (turns.held, turns.awaited) == (1, 1)
