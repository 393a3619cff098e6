"""Acks that are lost or refused: each is resent once, and never to another incarnation of its stream."""

from __future__ import annotations

from collections import Counter
from unittest.mock import Mock

import pytest
import trio
from trio.testing import MockClock

from router_trio.connection import answers
from router_trio.protocol.permissions import ACK
from router_trio.routing.stream.acks import Acks
from router_trio.routing.stream.pulling.checks import CHECK_EVERY
from router_trio.testing import FakeBroker
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


@pytest.mark.parametrize("replaced", [False, True])
def test_no_ack_is_sent_until_a_deleted_durable_is_found_again(replaced: bool) -> None:
    link = Mock(**{"ack.return_value": []})
    connection = Mock(link=link)
    acks, answers = Acks(connection, lambda event: None), connection.listener.answers
    first, second, third = (b"$JS.ACK.IN.router.1.%d.1.1.0" % sequence for sequence in (1, 2, 3))
    acks.not_taken([first], 0, refused=True)
    acks.hold()
    acks.belong_to(Mock(obstacles={}), Mock(), lambda error: None, lambda: None)
    acks.passed(ACK)
    acks.ack([second])
    acks.term(third, "timeout")
    assert not link.mock_calls
    if replaced:
        acks.clear()
    acks.flush_unsent(link)
    expected = [] if replaced else [first, second, third]
    assert [reply for sent in link.ack.mock_calls for reply in sent.args[0]] == expected
    assert [one.args for one in answers.sent.mock_calls] == ([] if replaced else [("ack", acks, expected)]), "counted"
    acks.ack([second])
    link.ack.assert_called_with([second])
