"""Acks that are lost or refused: each is resent once, and never to another incarnation of its stream."""

from __future__ import annotations

from collections import Counter

import pytest
import trio
from trio.testing import MockClock

from router_trio.connection import answers
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
