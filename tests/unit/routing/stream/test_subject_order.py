"""Whose turn it is behind a message that a destination refused: nobody passes, nobody waits for ever."""

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


def test_nothing_waits_while_nothing_is_refused() -> None:
    turns = SubjectOrder[Message]()
    assert not turns.lines
    assert admitted(turns, messages(3)) == [1, 2, 3]
    assert turns.release_behind(Message(1)) == []
    assert (turns.aside, turns.count_due(inf), turns.next_look(0.0)) == (0, 0, inf)
    assert turns.clear() == turns.stuck() == turns.give_up_waiting([1]) == []
    assert turns.late(inf) == []


def test_what_is_behind_a_refused_message_waits_until_that_is_delivered() -> None:
    turns, (one, two, three) = SubjectOrder[Message](), messages(3)
    refuse(turns, one)
    assert admitted(turns, [three, two]) == []
    assert (turns.held, turns.awaited, turns.aside) == (2, 1, 3)
    assert admitted(turns, [one]) == [1], "it came again"
    assert (turns.held, turns.awaited) == (2, 0)
    assert sequences(turns.release_behind(one)) == [2, 3]
    assert admitted(turns, [two, three]) == [2, 3]
    assert not turns.lines
    assert turns.aside == 0


def test_other_subjects_don_t_wait() -> None:
    turns = SubjectOrder[Message]()
    refuse(turns, Message(1))
    assert admitted(turns, [Message(2, b"b"), Message(3), Message(4, b"c")]) == [2, 4]
    assert turns.release_behind(Message(2, b"b")) == []
    assert turns.held == 1


def test_one_at_a_time_is_tried_while_something_is_refused() -> None:
    turns, (one, two, three) = SubjectOrder[Message](), messages(3)
    refuse(turns, one, two, three)
    assert admitted(turns, [one, two, three]) == [1]
    refuse(turns, one)
    assert (turns.held, turns.awaited) == (2, 1)
    assert admitted(turns, [one]) == [1]
    assert sequences(turns.release_behind(one)) == [2, 3], "those that were refused before and are here go as one run"


def test_what_waited_goes_up_to_the_next_one_that_has_to_come_again() -> None:
    turns, (one, two, three, four, five) = SubjectOrder[Message](), messages(5)
    refuse(turns, one, four)
    assert admitted(turns, [two, three, five, one]) == [1]
    run = turns.release_behind(one)
    assert sequences(run) == [2, 3]
    assert admitted(turns, run) == [2, 3], "looked at again before they are routed"
    assert admitted(turns, [four]) == [4]
    assert sequences(turns.release_behind(four)) == [5]
    assert admitted(turns, [five]) == [5]
    assert not turns.lines


def test_what_is_let_go_waits_again_if_one_before_it_is_refused() -> None:
    turns, (one, two, three, four) = SubjectOrder[Message](), messages(4)
    refuse(turns, one, four)
    assert admitted(turns, [two, three, one]) == [1]
    run = turns.release_behind(one)
    assert admitted(turns, run[:1]) == [2]
    refuse(turns, two)
    assert admitted(turns, run[1:]) == []
    assert admitted(turns, [four, two]) == [2]
    assert sequences(turns.release_behind(two)) == [3, 4]


def test_what_came_before_the_refusal_is_looked_at_when_it_is_routed() -> None:
    turns, (one, two, three) = SubjectOrder[Message](), messages(3)
    assert admitted(turns, [one, two, three]) == [1, 2, 3]
    refuse(turns, one)
    assert admitted(turns, [one]) == [1]
    assert admitted(turns, [two, three]) == [], "one came again, and is not routed yet"
    assert admitted(turns, [one]) == [1], "it is looked at again, too"
    assert sequences(turns.release_behind(one)) == [2, 3]


def test_an_older_one_that_came_late_is_tried_before_the_refused_one_that_is_here() -> None:
    turns, (one, two, three, four) = SubjectOrder[Message](), messages(4)
    refuse(turns, two)
    assert admitted(turns, [two]) == [2]
    assert admitted(turns, [one]) == []
    again = turns.await_redelivery(two, 1.0, 1.0 + LATE)
    assert again is one
    assert admitted(turns, [three, two]) == []
    assert sequences(turns.release_behind(one)) == [2, 3]
    assert admitted(turns, [four]) == [4]


def test_what_does_not_come_in_time_is_waited_for_no_longer() -> None:
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


def test_the_oldest_of_each_subject_is_asked_about_first() -> None:
    turns = SubjectOrder[Message]()
    refuse(turns, Message(1), Message(2), Message(3, b"b"), Message(4, b"b"))
    assert turns.late(1.0 + LATE) == [1, 3, 2, 4]


def test_what_has_come_again_meanwhile_and_is_refused_again_is_not_gone() -> None:
    turns, (one, two) = SubjectOrder[Message](), messages(2)
    refuse(turns, one)
    assert admitted(turns, [two, one]) == [1]
    assert turns.await_redelivery(one) is None, "other destinations have not answered"
    assert turns.give_up_waiting([1]) == []
    assert turns.awaited == 1


def test_one_under_way_is_not_disturbed_by_another_that_does_not_come() -> None:
    turns, (one, two, three) = SubjectOrder[Message](), messages(3)
    refuse(turns, one, two)
    assert admitted(turns, [one, three]) == [1]
    assert turns.late(1.0 + LATE) == [2]
    assert turns.give_up_waiting([2]) == []
    assert sequences(turns.release_behind(one)) == [3]
    assert admitted(turns, [three]) == [3]
    assert not turns.lines


def test_a_new_consumer_gives_at_once_what_the_old_one_was_to_give_later() -> None:
    turns = SubjectOrder[Message]()
    refuse(turns, *messages(2), due=50.0)
    assert [one.ack_subject for one in turns.expected()] == [b"1", b"2"]
    turns.all_due(3.0)
    assert turns.count_due(3.0) == 2


def test_at_the_end_only_what_can_go_on_stays() -> None:
    turns = SubjectOrder[Message]()
    a, b = messages(3), messages(3, b"b")
    refuse(turns, a[0], b[0])
    assert admitted(turns, [a[1], b[2], b[1], a[0]]) == [1]
    assert sequences(turns.stuck()) == [2, 3], "those of b: what they wait for does not come any more"
    assert turns.held == 1
    refuse(turns, a[0])
    assert sequences(turns.stuck()) == [2]
    assert (turns.held, turns.awaited) == (0, 2)


def test_a_message_that_one_destination_refused_and_another_has_yet_to_answer_is_waited_for() -> None:
    turns, (one, two, three) = SubjectOrder[Message](), messages(3)
    assert turns.await_redelivery(one) is None
    assert admitted(turns, [two]) == []
    assert (turns.awaited, list(turns.expected()), turns.count_due(1e9), turns.next_look(0.0)) == (1, [], 0, inf)
    refuse(turns, one)
    assert (turns.awaited, turns.count_due(1.0)) == (1, 1)
    assert admitted(turns, [one, three]) == [1]
    assert turns.await_redelivery(one) is None
    assert sequences(turns.release_behind(one)) == [2, 3], "it was given up"
    assert admitted(turns, [two, three]) == [2, 3]
    assert not turns.lines
    assert turns.aside == 0


def test_what_is_under_way_behind_a_refused_one_would_pass_it_by() -> None:
    turns, (one, two, three) = SubjectOrder[Message](), messages(3)
    assert not turns.pass_by(three)
    refuse(turns, two)
    assert [turns.pass_by(message) for message in (one, two, three)] == [False, False, True]
    assert not turns.pass_by(Message(9, b"b"))
    assert admitted(turns, [two]) == [2]
    assert [turns.pass_by(message) for message in (one, two, three)] == [False, False, True], "it is tried, not settled"
    turns.release_behind(two)
    assert not turns.pass_by(three)


def test_what_is_under_way_would_pass_by_what_waits() -> None:
    turns, (one, two, three, four) = SubjectOrder[Message](), messages(4)
    refuse(turns, one, three)
    assert admitted(turns, [three, two, one]) == [1]
    assert [turns.pass_by(message) for message in (one, two, four)] == [False, True, True]


def test_what_is_under_way_would_pass_by_what_was_let_go_until_that_is_looked_at() -> None:
    turns, (one, two, three, four, five) = SubjectOrder[Message](), messages(5)
    assert turns.await_redelivery(one) is None
    assert admitted(turns, [three, two]) == []
    assert sequences(turns.release_behind(one)) == [2, 3]
    assert turns.describe() == "messages that waited for a failed message are about to be routed"
    assert turns.pass_by(four), "it is in a handler"
    assert not turns.pass_by(two)
    assert admitted(turns, [five]) == [5], "it came behind them"
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


def test_all_is_forgotten_in_the_order_of_the_stream() -> None:
    turns = SubjectOrder[Message]()
    refuse(turns, Message(1), Message(2, b"b"))
    assert admitted(turns, [Message(5), Message(4, b"b"), Message(3)]) == []
    assert sequences(turns.clear()) == [3, 4, 5]
    assert not turns.lines
    assert turns.aside == 0


def test_the_newest_that_waits_can_be_given_back_and_is_awaited_then() -> None:
    turns, (one, two, three, four) = SubjectOrder[Message](), messages(4)
    other = Message(9, b"b")
    assert turns.give_back_newest(5.0, 6.0) is None
    refuse(turns, one)
    assert turns.give_back_newest(5.0, 6.0) is None, "nothing waits in hand"
    refuse(turns, Message(8, b"b"))
    assert admitted(turns, [two, three, other]) == []
    assert turns.give_back_newest(5.0, 6.0) is other, "of all subjects"
    assert turns.give_back_newest(5.0, 6.0) is three
    assert (turns.held, turns.awaited) == (1, 4)
    assert (turns.count_due(4.0), turns.count_due(5.0), turns.late(6.0)) == (2, 4, [3, 9])
    assert admitted(turns, [one, four]) == [1]
    assert sequences(turns.release_behind(one)) == [2], "what follows waits for the one that was given back"
    assert admitted(turns, [two, three]) == [2, 3]
    assert sequences(turns.release_behind(three)) == [4]


def let_go_before_a_refused_one() -> tuple[SubjectOrder[Message], list[Message]]:
    """2 and 4 were let go and are not yet looked at; 5 has to come again."""
    turns, given = SubjectOrder[Message](), messages(5)
    one, two, _, four, five = given
    refuse(turns, one, five)
    assert admitted(turns, [two, four, one]) == [1]
    assert sequences(turns.release_behind(one)) == [2, 4]
    return turns, given


def test_what_was_let_go_does_not_pass_one_that_is_refused_and_comes_again_meanwhile() -> None:
    turns, (_, two, _, four, _) = let_go_before_a_refused_one()
    assert admitted(turns, [two]) == [2]
    refuse(turns, two)
    assert admitted(turns, [two]) == [2], "it is tried alone"
    assert admitted(turns, [four]) == []
    assert sequences(turns.release_behind(two)) == [4]


def test_what_is_to_be_tried_does_not_pass_one_that_is_refused_and_comes_again_meanwhile() -> None:
    turns, (_, two, _, four, five) = let_go_before_a_refused_one()
    assert admitted(turns, [two, four, five]) == [2, 4, 5]
    refuse(turns, two)
    assert admitted(turns, [two]) == [], "5 is about to be tried"
    assert admitted(turns, [five]) == [2], "instead of 5, which waits"
    assert sequences(turns.release_behind(two)) == [5]
