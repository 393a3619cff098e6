"""Who is taken in, who is closed for others, and whose request may be answered."""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from router_trio.telemetry.admission import Admission, Limits

LIMITS = Limits(connections=8, per_peer=4, kept=2, kept_per_peer=1)


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
    assert admission.may_answer(connections[0], probe=False)
    admission.wait(connections[0])
    assert admission.arrive(Connection("a")) is connections[1]


def test_of_a_peer_a_probe_is_answered_where_other_requests_are_not() -> None:
    admission, connections = full_of_waiting(*"aaaa")
    assert [admission.may_answer(one, probe=False) for one in connections] == [True, True, True, False]
    assert admission.may_answer(connections[3], probe=True)
    late = Connection("a")
    assert admission.arrive(late) is late  # each of the four is being answered
    admission.leave(connections[3])
    assert admission.arrive(late) is None


def test_of_all_a_probe_is_answered_where_other_requests_are_not() -> None:
    admission, connections = full_of_waiting(*"aaabbbcd")
    assert [admission.may_answer(one, probe=False) for one in connections] == [True] * 6 + [False] * 2
    assert admission.may_answer(connections[7], probe=True)
    # The one that waits makes room, however few its peer has.
    assert admission.arrive(Connection("e")) is connections[6]


def test_what_was_refused_waits_and_makes_room() -> None:
    admission, connections = full_of_waiting(*"aaaa")
    for one in connections:
        admission.may_answer(one, probe=False)
    assert admission.arrive(Connection("a")) is connections[3]


def test_who_was_closed_while_its_request_came_may_still_be_answered() -> None:
    admission, connections = full_of_waiting(*"aaaa")
    assert admission.arrive(Connection("a")) is connections[0]
    assert admission.may_answer(connections[0], probe=True)
    admission.leave(connections[0])
    admission.leave(connections[0])
    assert admission.arrive(Connection("a")) is not None


@given(st.data())
def test_the_limits_hold_whatever_happens(data: st.DataObject) -> None:
    admission: Admission[Connection] = Admission(LIMITS)
    waiting: list[Connection] = []
    answering: list[Connection] = []
    for _ in range(data.draw(st.integers(0, 60))):
        step = data.draw(st.sampled_from(["arrive", "arrive", "ask", "probe", "done", "leave"]))
        if step == "arrive":
            new = Connection(data.draw(st.sampled_from("abcde")))
            evicted = admission.arrive(new)
            if evicted is not new:
                waiting.append(new)
            if evicted is not None and evicted is not new:
                waiting.remove(evicted)
        elif step in ("ask", "probe") and waiting:
            one = waiting.pop(data.draw(st.integers(0, len(waiting) - 1)))
            of_peer = [other for other in answering if other.peer == one.peer]
            kept, kept_of_peer = (0, 0) if step == "probe" else (2, 1)
            expected = len(answering) < 8 - kept and len(of_peer) < 4 - kept_of_peer
            assert admission.may_answer(one, probe=step == "probe") is expected
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
        admission.may_answer(one, probe=False)
        admission.leave(one)
    assert not admission._peers
