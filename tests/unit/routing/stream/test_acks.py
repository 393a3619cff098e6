"""Acks that are lost or refused: each is resent once, and never to another incarnation of its stream."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping
from typing import Any
from unittest.mock import Mock

import pytest
import trio
from trio.testing import MockClock

from router_trio.connection import answers
from router_trio.link import ConsumerSpec, PullConsumer
from router_trio.protocol.permissions import ACK
from router_trio.routing.stream.acks import Acks
from router_trio.routing.stream.consumer.owed_acks import send_owed
from router_trio.routing.stream.pulling.checks import CHECK_EVERY
from router_trio.testing import FakeBroker
from router_trio.testing.links import FakeLink
from tests.support.eventually import eventually
from tests.support.world import REMOTE, World, all_acked, fill, numbers, two_brokers, unacked, world

REFUSED = "$JS.ACK.IN.router.>"


@pytest.fixture(autouse=True)
def _rarely_confirmed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave acks unconfirmed for longer, so that something can happen meanwhile."""
    monkeypatch.setattr(answers, "CONFIRMED_EVERY", 3.0)


def acks_of(broker: FakeBroker, monkeypatch: pytest.MonkeyPatch) -> Counter[bytes]:
    """Count the acks that reach a server, by reply subject."""
    server, sent = broker._server, Counter[bytes]()
    ack = server.ack

    def count_acks(reply: bytes, now: float, by: bytes) -> None:
        sent[reply] += 1
        ack(reply, now, by)

    monkeypatch.setattr(server, "ack", count_acks)
    return sent


async def unconfirmed(w: World, count: int, first: int) -> None:
    """Have `count` messages routed whose acks the server has not confirmed yet."""
    fill(w.broker, first)
    await all_acked(w, first)
    await eventually(lambda: w.live.connections["main"].listener.answers.unconfirmed("ack") == 0)
    fill(w.broker, count, first=first)
    await eventually(lambda: w.live.connections["main"].listener.answers.unconfirmed("ack") == count, 2.0)


async def reconnected(w: World) -> None:
    """Break the link, and wait for the next one."""
    lost = w.live.connections["main"].state.lost
    w.broker.cut()
    await eventually(lambda: w.live.connections["main"].state.lost > lost)
    await eventually(lambda: w.live.connections["main"].connected)


async def test_acks_of_an_earlier_incarnation_are_not_resent_when_their_link_is_lost(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    brokers = two_brokers()
    sent = acks_of(brokers["main"], monkeypatch)
    async with world([REMOTE], brokers=brokers) as w:
        await unconfirmed(w, 5, first=5)
        brokers["edge"].stall(20.0)
        w.broker.trouble.restore("IN", 0)
        fill(w.broker, 20, first=10)
        await w.watch.until("STREAM_WENT_BACK")
        await eventually(lambda: unacked(w) == 20)
        assert w.live.connections["main"].listener.answers.unconfirmed("ack") == 5
        await reconnected(w)
        await trio.sleep(5.0)
        assert unacked(w) == 20, "none of them has arrived"
        assert sent.total() == 10
        await eventually(lambda: unacked(w) == 0, 60)
        assert w.payloads("OUT", "edge") == numbers(30)


async def test_refused_acks_of_an_earlier_incarnation_are_not_resent(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    brokers = two_brokers()
    sent = acks_of(brokers["main"], monkeypatch)
    async with world([REMOTE], brokers=brokers) as w:
        await unconfirmed(w, 0, first=5)
        w.broker.trouble.travel(lambda: 0.5)
        w.broker.deny_publish(REFUSED)
        fill(w.broker, 5, first=5)
        await eventually(lambda: w.live.connections["main"].listener.answers.unconfirmed("ack") == 5, 2.0)
        brokers["edge"].stall(20.0)
        w.broker.trouble.restore("IN", 0)
        fill(w.broker, 20, first=10)
        await w.watch.until("STREAM_WENT_BACK")
        await eventually(lambda: "acks" in str(w.route.obstacles))
        w.broker.allow_publish(REFUSED)
        await eventually(lambda: not w.route.obstacles, 30)
        await trio.sleep(3.0)
        assert unacked(w) == 20
        assert sent.total() == 5
        await eventually(lambda: unacked(w) == 0, 60)


async def test_acks_refused_on_a_lost_link_are_resent_once(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    brokers = two_brokers()
    sent = acks_of(brokers["main"], monkeypatch)
    async with world([REMOTE], brokers=brokers) as w:
        await unconfirmed(w, 0, first=5)
        sent.clear()
        w.broker.deny_publish(REFUSED)
        fill(w.broker, 5, first=5)
        await eventually(lambda: w.failures("ack") == {"permission_denied": 5}, 2.0)
        w.broker.allow_publish(REFUSED)
        await reconnected(w)
        await eventually(lambda: unacked(w) == 0, 20)
        await trio.sleep(20.0)
        assert [*sent.values()] == [1] * 5
        assert (w.successes("ack"), w.failures("ack")) == (10, {"permission_denied": 5})


async def test_refused_acks_are_not_sent_to_a_durable_that_was_created_again_with_its_stream(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The route requests nothing when both are created again, and the first new messages are lost on their way."""
    brokers = two_brokers()
    sent = acks_of(brokers["main"], monkeypatch)
    route = {**REMOTE, "from": {**REMOTE["from"], "max_in_flight": 5}}
    async with world([route], brokers=brokers) as w:
        brokers["edge"].stall(2.0)
        w.broker.deny_publish(REFUSED)
        fill(w.broker, 5)
        await eventually(lambda: w.entry("edge")["in_flight"] == 5)
        w.broker.trouble.recreate("IN", "router")
        fill(w.broker, 5, first=5)
        w.broker.trouble.lose("message", 5)
        await eventually(lambda: unacked(w) == 5)
        assert w.payloads("OUT", "edge") == numbers(5)
        await trio.sleep(CHECK_EVERY)
        w.broker.allow_publish(REFUSED)
        await eventually(lambda: w.payloads("OUT", "edge") == numbers(10), 60)
        await all_acked(w, 5)
        assert sent.total() == 5, "none for the earlier stream"


async def test_a_consumer_is_opened_for_unsent_acks(autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch) -> None:
    """Then the link looks up the last known message, which costs a request."""
    opened: list[bool] = []
    open_consumer = FakeLink.open_consumer

    async def note(self: FakeLink, spec: ConsumerSpec, deliver: Any) -> PullConsumer:
        opened.append(spec.owes_acks)
        return await open_consumer(self, spec, deliver)

    monkeypatch.setattr(FakeLink, "open_consumer", note)
    async with world([REMOTE], brokers=two_brokers()) as w:
        await unconfirmed(w, 5, first=5)
        await reconnected(w)
        await eventually(lambda: len(opened) == 2)
        await eventually(lambda: w.live.connections["main"].listener.answers.unconfirmed("owed") == 5)
        await eventually(lambda: w.live.connections["main"].listener.answers.unconfirmed("owed") == 0)
        await reconnected(w)
        await eventually(lambda: len(opened) == 3)
        assert opened == [False, True, False]


async def test_refused_acks_are_not_sent_to_a_stream_that_was_restored(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No message shows the restore before the server accepts acks, and new messages have the sequences by then."""
    brokers = two_brokers()
    sent = acks_of(brokers["main"], monkeypatch)
    async with world([REMOTE], brokers=brokers) as w:
        await unconfirmed(w, 0, first=5)
        w.broker.deny_publish(REFUSED)
        fill(w.broker, 5, first=5)
        await eventually(lambda: w.failures("ack") == {"permission_denied": 5}, 5.0)
        w.broker.trouble.restore("IN", 5)
        w.broker.allow_publish(REFUSED)
        await eventually(lambda: not w.route.obstacles, 30)
        await trio.sleep(1.0)
        assert sent.total() == 5, "none for the messages that the stream has lost"
        fill(w.broker, 5, first=10)
        await eventually(lambda: w.payloads("OUT", "edge") == numbers(15), 60)
        await all_acked(w, 10)
        assert sent.total() == 10


async def test_messages_whose_refused_acks_are_not_sent_are_acked_when_they_are_redelivered(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    brokers = two_brokers()
    sent = acks_of(brokers["main"], monkeypatch)
    async with world([REMOTE], brokers=brokers) as w:
        await unconfirmed(w, 0, first=5)
        w.broker.deny_publish("$JS.API.STREAM.MSG.GET.IN")
        w.broker.deny_publish(REFUSED)
        fill(w.broker, 5, first=5)
        await eventually(lambda: w.failures("ack") == {"permission_denied": 5}, 5.0)
        w.broker.allow_publish(REFUSED)
        await eventually(lambda: not w.route.obstacles, 30)
        await trio.sleep(1.0)
        assert sent.total() == 5
        await eventually(lambda: unacked(w) == 0, 60)
        assert w.payloads("OUT", "edge") == numbers(10), "each once"


@pytest.mark.parametrize(("confirmed", "replaced"), [(True, False), (False, False), (True, True)])
async def test_refused_acks_are_sent_when_the_stream_has_the_last_of_their_messages(
    confirmed: bool, replaced: bool, autojump_clock: MockClock
) -> None:
    """An ack that is refused during the lookup is not sent: its message was not looked up."""
    link = Mock(**{"ack.return_value": []})
    acks = Acks(Mock(link=link), lambda event: None)
    acks.belong_to(Mock(obstacles={}), Mock(), lambda error: None, lambda: None)
    *replies, last, later = (b"$JS.ACK.IN.router.1.%d.1.%d.0" % (sequence, 7 * sequence) for sequence in (8, 9, 10, 11))
    looked_up = []

    async def gone(awaited: Mapping[int, bytes], in_hand: Callable[[], int]) -> Collection[int]:
        looked_up.append((awaited, in_hand()))
        assert not link.ack.mock_calls
        await trio.sleep(1.0)
        if replaced:
            acks.clear()
        acks.not_taken([later], acks.incarnation, refused=True)
        return () if confirmed else awaited

    async with trio.open_nursery() as nursery:
        nursery.start_soon(send_owed, Mock(gone=gone), acks)
        acks.passed(ACK)
        acks.not_taken([last, *replies], 0, refused=True)
        await trio.sleep(5.0)
        assert not looked_up, "acks are refused"
        acks.passed(ACK)
        await trio.sleep(1.5)
        nursery.cancel_scope.cancel()
    assert looked_up[0] == ({10: b"70"}, 0)
    sent = [call.args[0] for call in link.ack.mock_calls]
    assert sent == ([[last, *replies]] if confirmed and not replaced else [])


@pytest.mark.parametrize("replaced", [False, True])
def test_no_ack_is_sent_until_a_deleted_durable_is_found_again(replaced: bool) -> None:
    link = Mock(**{"ack.return_value": []})
    connection = Mock(link=link)
    acks, answers = Acks(connection, lambda event: None), connection.listener.answers
    first, second, third = (b"$JS.ACK.IN.router.1.%d.1.1.0" % sequence for sequence in (1, 2, 3))
    acks.not_taken([first], 0, refused=False)
    acks.hold()
    acks.belong_to(Mock(obstacles={}), Mock(), lambda error: None, lambda: None)
    acks.passed(ACK)
    acks.ack([second])
    acks.term(third, "timeout")
    assert not link.mock_calls
    assert acks.has_unsent
    if replaced:
        acks.clear()
    assert acks.has_unsent is not replaced
    acks.flush_unsent(link)
    assert not acks.has_unsent
    expected = [] if replaced else [second, third, first]
    assert [reply for sent in link.ack.mock_calls for reply in sent.args[0]] == expected
    counted = [] if replaced else [("ack", acks, [second, third]), ("owed", acks, [first])]
    assert [one.args for one in answers.sent.mock_calls] == counted
    acks.ack([second])
    link.ack.assert_called_with([second])
