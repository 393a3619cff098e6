"""Which PubAcks count, and what happens to the others."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any

import pytest

from router_trio.message import PubAck, stored
from router_trio.outbox import belief as belief_module
from router_trio.outbox.belief import Belief
from router_trio.outbox.operation import Operation, OperationWithAck
from router_trio.outbox.outbox import Outbox
from router_trio.protocol.framing import addresses
from router_trio.subjects.patterns import matches

INBOX = b"_INBOX.a"


class Asked:
    """Records what `belief.Lookups` was asked to look up, and what was reported to it."""

    def __init__(self) -> None:
        self.streams: list[str] = []
        self.passed_over: list[tuple[int, str]] = []
        self.destinations: list[Hashable] = []

    def matches(self, pattern: str, subject: str) -> bool:
        return matches(pattern, subject)

    def look_up(self, stream: str) -> None:
        self.streams.append(stream)

    def puback_passed_over(self, operation: OperationWithAck, stream: str) -> None:
        self.passed_over.append((operation.order, stream))

    def answered(self, key: Hashable) -> None:
        self.destinations.append(key)


class Desk:
    """An outbox with a link to which everything is written at once."""

    def __init__(self, emit: Callable[[Any], None] = lambda event: None) -> None:
        self.lookups = Asked()
        self.asked = self.lookups.streams
        self.found = 0
        self.now = 0.0
        self.outbox = Outbox(
            "main",
            emit=emit,
            clock=lambda: self.now,
            wake=lambda: None,
            fail_open=False,
            max_operations=100,
            max_bytes=100_000,
            on_full="reject",
            max_age=0.0,
        )
        self.outbox.belief.ask(self.lookups)
        self.outbox.link_up(INBOX)

    def publish(self, subject: bytes = b"out.x", puback_from: Hashable | None = None) -> int:
        _, order = self.outbox.offer_with_ack(subject, b"", b"", INBOX, puback_from=puback_from)
        self.outbox.sender.next_batch()
        return order

    def wait(self, seconds: float) -> None:
        """Let time pass: each second the outbox sweeps what is unanswered and sends it again."""
        until = self.now + seconds
        while self.now < until:
            self.now = min(self.now + 1.0, until)
            self.outbox.refusals.sweep()
            self.outbox.sender.next_batch()

    @property
    def acked(self) -> int:
        return self.outbox.ledger.settled["acked"]


def held(desk: Desk, order: int) -> OperationWithAck:
    """Return the unsettled publish with this number."""
    found = desk.outbox._queue.find(order)
    assert found is not None
    return found


def puback(order: int, stream: str = "OUT", sequence: int = 7) -> PubAck:
    return order, stored(stream, sequence)


def test_a_puback_counts_once_its_stream_is_known_to_take_the_subject() -> None:
    desk = Desk()
    desk.outbox.acked([puback(desk.publish()), puback(desk.publish(b"out.y"))])
    assert (desk.acked, desk.asked) == (0, ["OUT"])
    desk.outbox.stream_found("OUT", ("out.x",))
    assert desk.acked == 1
    desk.outbox.acked([puback(desk.publish())])
    assert (desk.acked, desk.asked) == (2, ["OUT"])


@pytest.mark.parametrize("subjects", [("evil.>",), ("out.y", "out.x.>"), ()])
def test_a_puback_of_another_stream_is_ignored_and_the_right_one_counts(subjects: tuple[str, ...]) -> None:
    desk = Desk()
    order = desk.publish()
    desk.outbox.acked([puback(order, "EVIL")])
    desk.outbox.stream_found("EVIL", subjects)
    assert desk.acked == 0
    desk.outbox.belief.learn({"OUT": ("out.*",)}, {})
    desk.outbox.acked([puback(order, "EVIL"), puback(order)])
    assert (desk.acked, desk.asked) == (1, ["EVIL"])


@pytest.mark.parametrize("subjects", [("evil.>",), ()])
def test_a_stream_that_does_not_take_the_subject_is_looked_up_once_a_second(subjects: tuple[str, ...]) -> None:
    desk = Desk()
    order = desk.publish()
    for _ in range(30):
        for _ in range(100):
            desk.outbox.acked([puback(order, "EVIL")])
            if len(desk.asked) > desk.found:
                desk.found += 1
                desk.outbox.stream_found("EVIL", subjects)
        desk.now += 0.1
    assert (desk.acked, len(desk.asked)) == (0, 3)
    desk.now += 1
    desk.outbox.acked([puback(order, "EVIL")])
    desk.outbox.stream_found("EVIL", ("out.*",))
    assert desk.acked == 1, "it takes the subject by now"


def test_the_subjects_of_a_stream_are_believed_for_five_seconds() -> None:
    desk = Desk()
    desk.outbox.acked([puback(desk.publish(), "OUT")])
    desk.outbox.stream_found("OUT", ("out.*",))
    desk.wait(3)
    desk.outbox.acked([puback(desk.publish(), "OUT")])
    assert (desk.acked, desk.asked) == (2, ["OUT"])
    desk.wait(2)
    desk.outbox.acked([puback(desk.publish(), "OUT")])
    assert (desk.acked, desk.asked) == (2, ["OUT", "OUT"])
    desk.outbox.stream_found("OUT", ())
    assert desk.acked == 2, "the stream no longer takes the subject"


def test_known_subjects_of_a_stream_are_believed_while_a_lookup_fails() -> None:
    desk = Desk()
    desk.outbox.acked([puback(desk.publish(), "OUT"), puback(desk.publish(), "EVIL")])
    desk.outbox.stream_found("OUT", ("out.*",))
    desk.outbox.stream_found("EVIL", None)
    assert desk.acked == 1
    desk.wait(10)
    desk.outbox.acked([puback(desk.publish(), "OUT"), puback(desk.publish(), "EVIL")])
    desk.outbox.stream_found("OUT", None)
    desk.outbox.stream_found("EVIL", None)
    assert desk.acked == 2


def test_the_stream_named_by_a_publish_confirms_it_whatever_its_subject() -> None:
    """No other publish: for those, the stream has to take the subject."""
    desk = Desk()
    order, other = desk.publish(puback_from="STORED"), desk.publish()
    assert desk.outbox.expects("STORED")
    desk.outbox.acked([puback(order, "EVIL"), puback(other, "STORED")])
    assert (desk.acked, desk.asked) == (0, ["EVIL", "STORED"])
    desk.outbox.acked([puback(order, "STORED")])
    assert (desk.acked, desk.outbox.expects("STORED")) == (1, False)
    assert desk.outbox.belief.may_answer("STORED", held(desk, desk.publish(puback_from="STORED"))) is True


def test_the_stream_named_by_a_publish_confirms_it_though_its_known_subjects_differ() -> None:
    desk = Desk()
    desk.outbox.belief.learn({"STORED": ("stored.*",)}, {"STORED": [("r", "t")]})
    desk.outbox.acked([puback(desk.publish(puback_from=one), "STORED") for one in ("STORED", ("r", "t"), ("r", "u"))])
    assert desk.acked == 2


def test_a_publish_is_reported_if_only_pubacks_arrived_that_do_not_count() -> None:
    desk = Desk()
    passed_over, answered = desk.lookups.passed_over, desk.lookups.destinations
    right, wrong, silent = desk.publish(b"out.x"), desk.publish(b"out.y"), desk.publish(b"out.z")
    desk.outbox.acked([puback(right, "STORED"), puback(wrong, "STORED")])
    desk.outbox.stream_found("STORED", ("stored.*",))
    desk.outbox.acked([puback(right)])
    desk.outbox.stream_found("OUT", ("out.x",))
    desk.wait(4)
    assert passed_over == []
    desk.wait(2)
    assert passed_over == [(wrong, "STORED")]
    assert answered == []
    assert "PubAcks from stream 'STORED'" in desk.outbox.refusals.no_puback(held(desk, wrong), 5)
    assert desk.outbox.refusals.no_puback(held(desk, silent), 5) == "no PubAck within 5 s"
    desk.outbox.belief.learn({"OUT": ("out.*",)}, {})
    desk.outbox.acked([puback(wrong)])
    desk.wait(1)
    assert answered == [b"out"], "none is left"


def test_a_publish_that_fails_without_a_puback_names_the_stream_whose_pubacks_did_not_count() -> None:
    events: list[Any] = []
    desk = Desk(events.append)
    order = desk.publish()
    for _ in range(31):
        desk.outbox.acked([puback(order, "STORED")])
        desk.outbox.stream_found("STORED", ("stored.*",))
        desk.wait(1)
    (failed,) = [event for event in events if event.code == "NATS_PUBLISH_WITH_ACK_ERROR"]
    assert failed.reason == "timeout"
    assert failed.detail == (
        "no PubAck within 30 s; PubAcks from stream 'STORED' for its subject don't count, because 'STORED' does not "
        "take it; if the server maps it to a subject that 'STORED' takes, set stream = 'STORED' for the destination"
    )


def test_a_stream_that_has_taken_over_the_subject_is_believed() -> None:
    desk = Desk()
    desk.outbox.belief.learn({"OUT": ("out.*",), "OTHER": ("other.*",)}, {})
    desk.outbox.acked([puback(desk.publish(), "OTHER")])
    assert desk.asked == ["OTHER"]
    desk.outbox.stream_found("OTHER", ("other.*", "out.*"))
    assert desk.acked == 1
    desk.outbox.belief.learn({"OTHER": ("other.*", "out.*")}, {})
    desk.outbox.acked([puback(desk.publish())])
    assert desk.acked == 1, "OUT no longer exists"


def test_a_new_link_forgets_the_known_subjects_of_streams() -> None:
    desk = Desk()
    desk.outbox.stream_found("OUT", ("out.*",))
    desk.outbox.belief.begin_link()
    desk.outbox.acked([puback(desk.publish())])
    assert (desk.acked, desk.asked) == (0, ["OUT"])


def refuse(desk: Desk, number: int) -> None:
    """Deliver an error with this number at the end of its subject."""
    operation = desk.outbox.answered_by("", (number, "limit", "full", False))
    if operation is not None:
        desk.outbox.refusals.ack_refused(operation.order, "limit", "full", False)


def number_in(operation: Operation) -> int:
    """Return the number at the end of the reply subject of a publish."""
    inbox, _, number = addresses(operation.frame)[1].rpartition(b".")
    assert inbox == INBOX
    return int(number)


def test_an_error_fails_a_publish_only_if_the_next_try_is_answered_with_one_as_well() -> None:
    """Numbers are consecutive: a client that has seen one can forge errors to those that follow."""
    desk = Desk()
    order = desk.publish()
    for _ in range(3):
        refuse(desk, order)
    desk.now = 0.1
    (again,) = desk.outbox.sender.next_batch()
    assert (again.order, number_in(again) != order) == (order, True)
    refuse(desk, order)
    refuse(desk, number_in(again) - 1)
    assert desk.outbox.ledger.settled["failed"] == 0
    refuse(desk, number_in(again))
    assert desk.outbox.ledger.settled["failed"] == 1
    refuse(desk, number_in(again))
    desk.outbox.acked([puback(number_in(again))])
    assert (desk.acked, desk.outbox.ledger.settled["failed"]) == (0, 1)


def test_the_next_link_expects_the_answer_to_the_number_of_the_publish() -> None:
    desk = Desk()
    order = desk.publish()
    before = desk.outbox.pending, desk.outbox._queue.waiting_bytes
    refuse(desk, order)
    desk.now = 0.1
    (again,) = desk.outbox.sender.next_batch()
    guessed = number_in(again)
    desk.outbox.link_down()
    desk.outbox.link_up(INBOX)
    assert number_in(again) == order
    desk.outbox.sender.next_batch()
    assert (desk.outbox.pending, desk.outbox._queue.waiting_bytes) == before
    refuse(desk, guessed)
    assert desk.outbox.ledger.settled["failed"] == 0
    desk.outbox.belief.learn({"OUT": ("out.*",)}, {})
    desk.outbox.acked([puback(order)])
    assert desk.acked == 1


def test_a_timeout_reported_by_the_link_fails_a_publish_without_a_second_try() -> None:
    desk = Desk()
    desk.outbox.refusals.ack_refused(desk.publish(), "timeout", "no answer for 0.2 s", False)
    assert desk.outbox.ledger.settled["failed"] == 1


@pytest.mark.parametrize("answered", ["before", "first", "second"])
def test_a_publish_that_is_stored_after_an_error_is_acked(answered: str) -> None:
    """The PubAck is received before the next try, or answers the first try or the second one after it."""
    desk = Desk()
    desk.outbox.belief.learn({"OUT": ("out.*",)}, {})
    order = desk.publish()
    refuse(desk, order)
    if answered != "before":
        desk.now = 0.1
        (again,) = desk.outbox.sender.next_batch()
    desk.outbox.acked([puback(number_in(again) if answered == "second" else order)])
    desk.outbox.refusals.sweep()
    assert (desk.acked, desk.outbox.ledger.settled["failed"], desk.outbox.refusals._asked) == (1, 0, {})


def test_memory_that_another_client_can_cause_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MAX_KEPT", "MAX_STREAMS", "MAX_SUBJECTS"):
        monkeypatch.setattr(belief_module, name, 3)
    belief = Belief(lambda: now)
    now = 0.0
    lookups = Asked()
    asked = lookups.streams
    belief.ask(lookups)
    belief.begin_link()
    belief.keep([puback(1, "S"), puback(2, "S"), puback(3, "T"), puback(4, "T"), puback(5, "U")])
    belief.keep_refusal("V", (6, "limit", "full", False))
    assert (asked, [len(belief.found(stream, ())[0]) for stream in "ST"]) == (["S", "T"], [2, 1])
    assert belief.found("V", ()) == ([], [])
    for number in range(20):
        belief.found(f"S{number}", ("a.*",))
        assert belief.takes(f"S{number}", b"a.%d" % number)
        assert not belief.takes(f"S{number}", b"b.%d" % number)
        assert belief.takes(f"S{number}", b"a.more")
    assert len(belief._streams) <= 3
    for number in range(20):
        belief.pass_over(number, "EVIL")
    assert [number for number in range(20) if belief.passed_over(number)] == [0, 1, 2]
    now = 10.0
    for number in range(20):
        belief.found(f"S{number}", ("a.*",))
        belief.sweep([], lambda order: order > 0)
        now += 10
    assert len(belief._streams) + len(belief._outdated) <= 3
    assert [number for number in range(20) if belief.passed_over(number)] == [0]
