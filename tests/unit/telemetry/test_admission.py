"""Admission: which connections are kept, which are closed for others, and whose request may be answered."""

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


def test_a_peer_with_too_many_connections_loses_its_oldest() -> None:
    admission, connections = full_of_waiting("b", *"aaaa")
    assert admission.arrive(Connection("a")) is connections[1]
    assert admission.arrive(Connection("a")) is connections[2]
    assert admission.arrive(Connection("b")) is None


def test_with_too_many_connections_the_peer_with_the_most_loses_one() -> None:
    admission, connections = full_of_waiting(*"cbbaaaab")
    assert admission.arrive(Connection("d")) is connections[3]


def test_a_connection_that_waits_again_counts_as_the_newest() -> None:
    admission, connections = full_of_waiting(*"aaaa")
    assert admission.may_answer(connections[0])
    admission.wait(connections[0])
    assert admission.arrive(Connection("a")) is connections[1]


def test_a_peer_may_have_fewer_requests_than_connections() -> None:
    admission, connections = full_of_waiting(*"aaaa")
    assert [admission.may_answer(one) for one in connections] == [True, True, True, False]
    # The refused one counts as waiting, so it is closed for a new connection.
    late = Connection("a")
    assert admission.arrive(late) is connections[3]
    assert not admission.may_answer(late)
    admission.leave(connections[0])
    assert admission.may_answer(late)


def test_there_may_be_fewer_requests_than_connections() -> None:
    admission, connections = full_of_waiting(*"aaabbbcd")
    assert [admission.may_answer(one) for one in connections] == [True] * 6 + [False] * 2
    # A waiting connection is closed for a new one, however few its peer has.
    assert admission.arrive(Connection("e")) is connections[6]
    assert admission.arrive(Connection("f")) is connections[7]


def test_a_new_connection_is_closed_if_all_others_are_being_answered() -> None:
    admission: Admission[Connection] = Admission(Limits(2, 2, 9, 9))
    for _ in range(2):
        connection = Connection()
        admission.arrive(connection)
        assert admission.may_answer(connection)
    for peer in "ab":
        late = Connection(peer)
        assert admission.arrive(late) is late
        assert not admission.may_answer(late)


def test_an_evicted_connection_is_not_answered() -> None:
    admission, connections = full_of_waiting(*"aaaa")
    assert admission.arrive(Connection("a")) is connections[0]
    assert not admission.may_answer(connections[0])
    admission.leave(connections[0])
    assert admission.arrive(Connection("a")) is connections[1]


@given(st.data())
def test_the_limits_hold_for_any_sequence_of_events(data: st.DataObject) -> None:
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


def test_nothing_is_kept_of_connections_that_have_ended() -> None:
    admission, connections = full_of_waiting(*"abc")
    for one in connections:
        admission.may_answer(one)
        admission.leave(one)
    assert not admission._peers
