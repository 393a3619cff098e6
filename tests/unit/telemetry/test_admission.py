"""Who is taken in, who is closed for others, and whose request may be answered."""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from router_trio.telemetry.http.admission import Admission, Limits

LIMITS = Limits(connections=8, connections_per_peer=4, requests=6, requests_per_peer=3)


@dataclass(eq=False)
class Connection:
    peer: str = "a"


def full_of_waiting(*peers: str) -> tuple[Admission[Connection], list[Connection]]:
    admission: Admission[Connection] = Admission(LIMITS)
    connections = [Connection(peer) for peer in peers]
    for connection in connections:
        assert admission.arrive(connection) is None
    return admission, connections


def test_the_oldest_of_a_peer_that_has_too_many_makes_room() -> None:
    admission, connections = full_of_waiting("b", *"aaaa")
    assert admission.arrive(Connection("a")) is connections[1]
    assert admission.arrive(Connection("a")) is connections[2]
    assert admission.arrive(Connection("b")) is None


def test_where_there_are_too_many_the_peer_that_has_the_most_makes_room() -> None:
    admission, connections = full_of_waiting(*"cbbaaaab")
    assert admission.arrive(Connection("d")) is connections[3]


def test_who_waits_again_is_the_youngest() -> None:
    admission, connections = full_of_waiting(*"aaaa")
    assert admission.may_answer(connections[0])
    admission.wait(connections[0])
    assert admission.arrive(Connection("a")) is connections[1]


def test_requests_of_a_peer_are_fewer_than_its_connections() -> None:
    admission, connections = full_of_waiting(*"aaaa")
    assert [admission.may_answer(one) for one in connections] == [True, True, True, False]
    # What was refused waits, and makes room.
    late = Connection("a")
    assert admission.arrive(late) is connections[3]
    assert not admission.may_answer(late)
    admission.leave(connections[0])
    assert admission.may_answer(late)


def test_requests_are_fewer_than_connections() -> None:
    admission, connections = full_of_waiting(*"aaabbbcd")
    assert [admission.may_answer(one) for one in connections] == [True] * 6 + [False] * 2
    # One that waits makes room, however few its peer has.
    assert admission.arrive(Connection("e")) is connections[6]
    assert admission.arrive(Connection("f")) is connections[7]


def test_where_all_are_being_answered_a_new_one_is_closed_itself() -> None:
    admission: Admission[Connection] = Admission(Limits(2, 2, 9, 9))
    for _ in range(2):
        connection = Connection()
        admission.arrive(connection)
        assert admission.may_answer(connection)
    for peer in "ab":
        late = Connection(peer)
        assert admission.arrive(late) is late
        assert not admission.may_answer(late)


def test_who_was_closed_while_its_request_came_has_no_place() -> None:
    admission, connections = full_of_waiting(*"aaaa")
    assert admission.arrive(Connection("a")) is connections[0]
    assert not admission.may_answer(connections[0])
    admission.leave(connections[0])
    assert admission.arrive(Connection("a")) is connections[1]


@given(st.data())
def test_the_limits_hold_whatever_happens(data: st.DataObject) -> None:
    admission: Admission[Connection] = Admission(LIMITS)
    waiting: list[Connection] = []
    answering: list[Connection] = []
    for _ in range(data.draw(st.integers(0, 60))):
        step = data.draw(st.sampled_from(["arrive", "arrive", "ask", "done", "leave"]))
        if step == "arrive":
            new = Connection(data.draw(st.sampled_from("abcde")))
            evicted = admission.arrive(new)
            if evicted is not new:
                waiting.append(new)
            if evicted is not None and evicted is not new:
                waiting.remove(evicted)
        elif step == "ask" and waiting:
            one = waiting.pop(data.draw(st.integers(0, len(waiting) - 1)))
            of_peer = [other for other in answering if other.peer == one.peer]
            expected = len(answering) < 6 and len(of_peer) < 3
            assert admission.may_answer(one) is expected
            (answering if expected else waiting).append(one)
        elif step == "done" and answering:
            waiting.append(answering.pop())
            admission.wait(waiting[-1])
        elif step == "leave" and waiting + answering:
            one = data.draw(st.sampled_from(waiting + answering))
            admission.leave(one)
            (waiting if one in waiting else answering).remove(one)
        together = waiting + answering
        assert len(together) <= 8
        assert all(sum(one.peer == peer for one in together) <= 4 for peer in "abcde")


def test_nothing_is_kept_of_who_is_gone() -> None:
    admission, connections = full_of_waiting(*"abc")
    for one in connections:
        admission.may_answer(one)
        admission.leave(one)
    assert not admission._peers
