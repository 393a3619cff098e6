"""A publish that ends every link it is sent on: it is found and set aside, and no innocent publish with it."""

from __future__ import annotations

from collections.abc import Callable
from itertools import permutations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router_trio.message import Fate, stored
from router_trio.outbox.operation import CoreOperation, FrameOwners, Operation
from router_trio.outbox.suspects import ANSWERED_WITHIN, KNOWN_FOR, Suspects
from router_trio.protocol import framing
from router_trio.routing.policy import hops
from tests.support.offers import INBOX, offer_with_ack
from tests.unit.outbox.desk import Desk, connected


class Server:
    """A server that accepts what a desk sends, link after link, and ends the link at a poisonous operation."""

    def __init__(self, desk: Desk, poison: Callable[[Operation], bool], reason: str = "closed") -> None:
        self.desk = desk
        self.poison = poison
        self.reason = reason
        self.links = 0
        self.taken: list[int] = []

    def serve_link(self) -> bool:
        """Serve one link until everything is confirmed (True), or until it ends (False)."""
        outbox = self.desk.outbox
        outbox.link_up()
        self.links += 1
        while batch := self._batch():
            for operation in (part for one in batch for part in one.split()):
                if self.poison(operation):
                    outbox.link_down(self.reason)
                    return False
                self.taken.append(operation.order)
                if operation.with_ack:
                    outbox.acked([(operation.order, stored("S", 1))])
        return True

    def _batch(self) -> list[Operation]:
        """Return the next batch; asking for it means that the previous one was sent and can be confirmed."""
        batch = self.desk.outbox.sender.next_batch()
        if not batch and self.desk.outbox.in_flight:
            self.desk.outbox.fenced(self.desk.outbox.fences.sent)
            batch = self.desk.outbox.sender.next_batch()
        return batch


def to(subject: bytes) -> Callable[[Operation], bool]:
    return lambda operation: operation.subject == subject


@pytest.mark.parametrize("with_ack", [False, True])
@pytest.mark.parametrize("reason", ["closed", "server_error"])
@pytest.mark.parametrize("at", [0, 1, 9])
def test_a_poisonous_publish_fails_alone(with_ack: bool, reason: str, at: int) -> None:
    desk = Desk()
    for number in range(10):
        desk.offer(b"bad" if number == at else b"good", with_ack=with_ack)
    server = Server(desk, to(b"bad"), reason)
    while not server.serve_link():
        assert server.links < 16
    accepted, pending, in_flight, settled = desk.books()
    assert (accepted, pending, in_flight) == (10, 0, 0)
    assert settled == {"failed": 1, "acked" if with_ack else "fenced": 9}
    assert desk.fates[at + 1] == [Fate("failed", "poison")]
    assert sorted(set(server.taken)) == [number + 1 for number in range(10) if number != at]


@given(st.lists(st.booleans(), min_size=1, max_size=60), st.booleans(), st.booleans())
def test_any_number_of_poisonous_publishes_fail_and_nothing_else(
    bad: list[bool], with_ack: bool, together: bool
) -> None:
    desk = Desk()
    if together and not with_ack:
        desk.outbox.link_up()
        frames = [framing.publish(b"bad" if one else b"good", b"%d" % number) for number, one in enumerate(bad)]
        desk.outbox.offer_frames(frames, FrameOwners([desk], [len(frames)]))
    else:
        for number, one in enumerate(bad):
            frame = framing.publish(b"bad" if one else b"good", b"%d" % number)
            if with_ack:
                offer_with_ack(desk.outbox, frame, owner=desk)
            else:
                desk.outbox.offer(frame, owner=desk)
    server = Server(desk, to(b"bad"))
    while not server.serve_link():
        assert server.links < 14 * len(bad) + 14
    failed = {order for order, fates in desk.fates.items() if fates[0].name == "failed"}
    assert failed == {number for number, one in enumerate(bad, 1) if one}
    assert desk.books()[:3] == (len(bad), 0, 0)


@pytest.mark.parametrize(("reason", "times"), [("server_error", 2), ("closed", 5)])
def test_a_server_that_does_not_report_the_error_needs_more_links(reason: str, times: int) -> None:
    desk = Desk()
    desk.offer()
    lose(desk, reason)  # nothing was confirmed: the sender is careful from now on
    lose(desk, reason, times - 1)
    assert desk.books() == (1, 1, 0, {})
    lose(desk, reason)
    assert desk.books() == (1, 0, 0, {"failed": 1})


def test_a_known_poisonous_publish_is_not_sent_again() -> None:
    desk = Desk()
    desk.offer(b"bad")
    server = Server(desk, to(b"bad"))
    while not server.serve_link():
        pass
    links = server.links
    desk.offer(b"bad")
    desk.offer(b"good")
    assert server.serve_link()
    assert server.links == links + 1
    assert desk.books() == (3, 0, 0, {"failed": 2, "fenced": 1})


def with_headers(*lines: str) -> bytes:
    block = "\r\n".join(("NATS/1.0", *lines, "", "")).encode()
    return framing.publish(b"bad", b"1", INBOX, block if lines else b"")


@pytest.mark.parametrize("name", [*hops.NAMES, "traceparent", "tracestate"])
@pytest.mark.parametrize("more", [(), ("Nats-Msg-Id: 1",)])
def test_a_known_poisonous_publish_is_known_with_the_headers_of_another_attempt(
    name: str, more: tuple[str, ...]
) -> None:
    """A redelivered message may be counted or traced which was not before, or the other way round."""
    for first, then in permutations([with_headers(*more), with_headers(f"{name}: 1", *more)]):
        desk = Desk()
        offer_with_ack(desk.outbox, first)
        server = Server(desk, to(b"bad"))
        while not server.serve_link():
            pass
        links = server.links
        offer_with_ack(desk.outbox, then)
        assert server.serve_link()
        assert server.links == links + 1
        assert desk.books() == (2, 0, 0, {"failed": 2})


def test_a_publish_with_other_headers_is_another_one() -> None:
    def publish(message_id: str) -> Operation:
        return CoreOperation(1, with_headers(f"Nats-Msg-Id: {message_id}"), None, 0.0, clean=True)

    suspects = Suspects()
    suspects.remember(publish("1"), 0.0)
    assert suspects.knows(publish("1"), 0.0)
    assert not suspects.knows(publish("2"), 0.0)


def lose(desk: Desk, reason: str = "closed", times: int = 1) -> None:
    for _ in range(times):
        desk.outbox.link_up()
        desk.outbox.sender.next_batch()
        desk.outbox.link_down(reason)


@pytest.mark.parametrize("reason", ["liveness", "server_shutdown", "network", "lame_duck", "stale"])
def test_a_link_that_ends_for_another_reason_makes_no_publish_suspect(reason: str) -> None:
    desk = Desk()
    desk.offer()
    lose(desk, reason, times=20)
    assert desk.books() == (1, 1, 0, {})


def test_a_server_that_was_unreachable_in_between_makes_no_publish_suspect() -> None:
    desk = Desk()
    desk.offer()
    for _ in range(20):
        lose(desk)
        desk.outbox.server_unreachable()
    assert desk.books() == (1, 1, 0, {})


def test_a_link_that_ended_long_after_makes_no_publish_suspect() -> None:
    desk = Desk()
    desk.offer()
    for _ in range(20):
        desk.outbox.link_up()
        desk.outbox.sender.next_batch()
        desk.now += ANSWERED_WITHIN
        desk.outbox.link_down("closed")
    assert desk.books() == (1, 1, 0, {})


def test_a_link_without_anything_in_flight_makes_no_publish_suspect() -> None:
    desk = Desk()
    desk.offer()
    for _ in range(20):
        desk.outbox.link_up()
        desk.outbox.link_down("closed")
    assert desk.books() == (1, 1, 0, {})


def test_suspects_are_sent_in_growing_windows_and_then_all_at_once() -> None:
    desk = Desk()
    for _ in range(20):
        desk.offer()
    lose(desk)
    desk.outbox.link_up()
    windows = []
    while batch := desk.batch():
        windows.append(len(batch))
        desk.outbox.sender.next_batch()
        desk.outbox.fenced(desk.outbox.fences.sent)
    assert windows == [1, 2, 4, 8, 5]
    for _ in range(20):
        desk.offer()
    assert len(desk.batch()) == 20


def test_publishes_identical_to_a_poisonous_one_are_sent_again_after_a_while() -> None:
    """The server may have been at fault, and a program may publish the same message for ever."""
    desk = connected()
    desk.outbox.link_down("liveness")
    desk.offer(b"tick")
    while not desk.fates:
        desk.outbox.link_up()
        assert desk.batch() == [1]
        desk.outbox.link_down("closed")
    desk.outbox.link_up()
    desk.offer(b"tick")
    assert desk.batch() == []
    assert desk.fates[2] == [Fate("failed", "poison")]
    desk.now += KNOWN_FOR
    desk.offer(b"tick")
    assert desk.batch() == [3]
