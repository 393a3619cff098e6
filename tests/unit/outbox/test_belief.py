"""Whose PubAcks count, and what becomes of others."""

from __future__ import annotations

import pytest

from router_trio.message import PubAck, stored
from router_trio.outbox import belief as belief_module
from router_trio.outbox.belief import Belief
from router_trio.outbox.outbox import Outbox
from router_trio.protocol.framing import publish
from router_trio.subjects.patterns import matches

INBOX = b"_INBOX.a"


class Desk:
    """An outbox with a link, of which everything is written at once."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.now = 0.0
        self.outbox = Outbox(
            "main",
            emit=lambda event: None,
            clock=lambda: self.now,
            wake=lambda: None,
            fail_open=False,
            max_operations=100,
            max_bytes=100_000,
            on_full="reject",
            max_age=0.0,
        )
        self.outbox.belief.ask, self.outbox.belief.matches = self.asked.append, matches
        self.outbox.belief.begin_link()
        self.outbox.refusals.asks_after = True
        self.outbox.link_up(INBOX)

    def publish(self, subject: bytes = b"out.x") -> int:
        order = self.outbox.next_order
        self.outbox.offer(publish(subject, b"", b"%b.%d" % (INBOX, order)), with_ack=True)
        self.outbox.sender.next_batch()
        return order

    @property
    def acked(self) -> int:
        return self.outbox.ledger.settled["acked"]


def puback(order: int, stream: str = "OUT", sequence: int = 7) -> PubAck:
    return order, stored(stream, sequence)


def test_a_puback_waits_until_its_stream_is_known_to_take_the_subject() -> None:
    desk = Desk()
    desk.outbox.acked([puback(desk.publish()), puback(desk.publish(b"out.y"))])
    assert (desk.acked, desk.asked) == (0, ["OUT"])
    desk.outbox.stream_found("OUT", ("out.x",))
    assert desk.acked == 1
    desk.outbox.acked([puback(desk.publish())])
    assert (desk.acked, desk.asked) == (2, ["OUT"])


@pytest.mark.parametrize("subjects", [("evil.>",), ("out.y", "out.x.>"), ()])
def test_a_puback_of_another_stream_is_passed_over_and_the_right_one_counts(subjects: tuple[str, ...]) -> None:
    desk = Desk()
    order = desk.publish()
    desk.outbox.acked([puback(order, "EVIL")])
    desk.outbox.stream_found("EVIL", subjects)
    assert desk.acked == 0
    desk.outbox.belief.learn({"OUT": ("out.*",)}, {})
    desk.outbox.acked([puback(order, "EVIL"), puback(order)])
    assert desk.acked == 1
    assert desk.asked == ["EVIL", "EVIL"], "it may take the subject by now"


def test_a_stream_that_has_taken_over_the_subject_is_believed() -> None:
    desk = Desk()
    desk.outbox.belief.learn({"OUT": ("out.*",), "OTHER": ("other.*",)}, {})
    desk.outbox.acked([puback(desk.publish(), "OTHER")])
    assert desk.asked == ["OTHER"]
    desk.outbox.stream_found("OTHER", ("other.*", "out.*"))
    assert desk.acked == 1
    desk.outbox.belief.learn({"OTHER": ("other.*", "out.*")}, {})
    desk.outbox.acked([puback(desk.publish())])
    assert desk.acked == 1, "it is gone"


def test_a_link_begins_without_knowledge() -> None:
    desk = Desk()
    desk.outbox.stream_found("OUT", ("out.*",))
    desk.outbox.belief.begin_link()
    desk.outbox.acked([puback(desk.publish())])
    assert (desk.acked, desk.asked) == (0, ["OUT"])


def test_an_error_decides_only_when_it_is_repeated() -> None:
    desk = Desk()
    order = desk.publish()
    desk.outbox.refusals.ack_refused(order, "limit", "full", False)
    assert desk.outbox.ledger.settled["failed"] == 0
    desk.outbox.refusals.ack_refused(order, "limit", "full", False)
    desk.now = 0.1
    assert [one.order for one in desk.outbox.sender.next_batch()] == [order]
    desk.outbox.refusals.ack_refused(order, "limit", "full", False)
    assert desk.outbox.ledger.settled["failed"] == 1


def test_what_the_link_itself_gives_up_is_not_asked_after() -> None:
    desk = Desk()
    desk.outbox.refusals.ack_refused(desk.publish(), "timeout", "no answer for 0.2 s", False)
    assert desk.outbox.ledger.settled["failed"] == 1


@pytest.mark.parametrize("again", [False, True])
def test_what_is_stored_though_an_error_came_is_acked(again: bool) -> None:
    desk = Desk()
    desk.outbox.belief.learn({"OUT": ("out.*",)}, {})
    order = desk.publish()
    desk.outbox.refusals.ack_refused(order, "wrong_expectation", "made up", False)
    if again:
        desk.now = 0.1
        desk.outbox.sender.next_batch()
    desk.outbox.acked([puback(order)])
    assert (desk.acked, desk.outbox.ledger.settled["failed"]) == (1, 0)


def test_what_a_client_can_have_us_keep_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MAX_KEPT", "MAX_STREAMS", "MAX_SUBJECTS"):
        monkeypatch.setattr(belief_module, name, 3)
    belief = Belief()
    asked: list[str] = []
    belief.ask, belief.matches = asked.append, matches
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
