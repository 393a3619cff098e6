"""Promises of `router_trio.link` about acks, naks, pulls and requests that the server refuses and later accepts."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import replace

import pytest
import trio

from router_trio.errors import SourceError
from router_trio.link import Link, PullConsumer
from tests.contract.orders import SPEC, delivered
from tests.contract.peers import Peer, link_of
from tests.support.recorder import Recorder

ACKS = "$JS.ACK.ORDERS.router.>"
PULLS = "$JS.API.CONSUMER.MSG.NEXT.ORDERS.router"


async def test_a_refused_ack_is_reported_before_the_fence_and_the_message_is_redelivered(
    peer: Peer, clock: object
) -> None:
    await peer.add_stream("ORDERS", ["orders.>"])
    await peer.publish("orders.a")
    received, listener = Recorder(), Recorder()
    async with link_of(peer, listener) as link:
        consumer = await link.open_consumer(SPEC, received)
        consumer.pull(5, 20.0)
        first = (await received.until_delivered(1))[0]
        await peer.deny_publish(ACKS)
        assert not link.ack([first[1]])
        await link.fence()
        assert [subject for subject, _ in listener.denied] == [first[1]]
        again = (await received.until_delivered(2))[1]
        assert delivered(again) == 2
        await peer.deny_publish()
        assert not link.ack([again[1]])
        await link.fence()
        with trio.move_on_after(1.5):
            await received.until_delivered(3)
    assert len(received.messages) == 2
    assert len(listener.denied) == 1


@pytest.mark.parametrize("answer", ["nak", "term", "in_progress", "say_at_work"])
async def test_any_other_refused_answer_is_reported_and_changes_nothing(answer: str, peer: Peer, clock: object) -> None:
    await peer.add_stream("ORDERS", ["orders.>"])
    await peer.publish("orders.a")
    received, listener = Recorder(), Recorder()
    async with link_of(peer, listener) as link:
        consumer = await link.open_consumer(SPEC, received)
        consumer.pull(5, 20.0)
        first = (await received.until_delivered(1))[0]
        delivered_at = trio.current_time()
        await peer.deny_publish(ACKS)
        {
            "nak": lambda: link.nak(first[1], 0.0),
            "term": lambda: link.term(first[1], "never"),
            "in_progress": lambda: link.in_progress(first[1]),
            "say_at_work": consumer.say_at_work,
        }[answer]()
        await link.fence()
        assert [subject.startswith(b"$JS.ACK.ORDERS.router.") for subject, _ in listener.denied] == [True]
        # The message is redelivered when its ack wait is over: neither earlier nor later.
        await received.until_delivered(2)
        assert 0.8 <= trio.current_time() - delivered_at < 3.0


async def test_refused_naks_for_a_lost_link_are_reported(peer: Peer, clock: object) -> None:
    await peer.add_stream("ORDERS", ["orders.>"])
    await peer.publish("orders.a")
    received, listener = Recorder(), Recorder()
    async with link_of(peer, listener) as link:
        consumer = await link.open_consumer(replace(SPEC, ack_wait=30.0), received)
        consumer.pull(1, 20.0)
        await received.until_delivered(1)
        await peer.deny_publish(ACKS)
        assert not await consumer.again([1])
        await link.fence()
        assert {subject.startswith(b"$JS.ACK.ORDERS.router.") for subject, _ in listener.denied} == {True}
        consumer.pull(1, 1.0)
        with trio.move_on_after(0.5):
            await received.until_delivered(2)
    assert len(received.messages) == 1


async def test_a_refused_pull_is_reported_and_delivers_nothing(peer: Peer, clock: object) -> None:
    await peer.add_stream("ORDERS", ["orders.>"])
    received, listener = Recorder(), Recorder()
    async with link_of(peer, listener) as link:
        consumer = await link.open_consumer(SPEC, received)
        await peer.deny_publish(PULLS)
        consumer.pull(5, 20.0)
        await link.fence()
        assert [subject for subject, _ in listener.denied] == [PULLS.encode()]
        await peer.publish("orders.a")
        with trio.move_on_after(0.5):
            await received.until_delivered(1)
        assert not received.messages
        await peer.deny_publish()
        consumer.pull(5, 20.0)
        await received.until_delivered(1)
    assert len(listener.denied) == 1


REQUESTS: dict[str, Callable[[Link, PullConsumer], Awaitable[object]]] = {
    "STREAM.INFO.ORDERS": lambda link, _: link.stream_state("ORDERS"),
    "STREAM.NAMES": lambda link, _: link.find_streams("orders.>"),
    "CONSUMER.INFO.ORDERS.router": lambda _, consumer: consumer.check(),
    "CONSUMER.INFO.ORDERS.*": lambda _, consumer: consumer.gone({1: b""}, lambda: 1),
    "STREAM.MSG.GET.ORDERS": lambda _, consumer: consumer.gone({1: b""}, lambda: 0),
    "CONSUMER.DURABLE.CREATE.ORDERS.other": lambda link, _: link.open_consumer(
        replace(SPEC, durable="other"), Recorder()
    ),
}


@pytest.mark.parametrize("subject", REQUESTS)
async def test_a_refused_request_raises_at_once_and_succeeds_once_permitted(
    subject: str, peer: Peer, clock: object
) -> None:
    await peer.add_stream("ORDERS", ["orders.>"])
    await peer.publish("orders.a")
    received, listener = Recorder(), Recorder()
    ask = REQUESTS[subject]
    async with link_of(peer, listener) as link:
        consumer = await link.open_consumer(SPEC, received)
        consumer.pull(1, 20.0)
        await received.until_delivered(1)
        await peer.deny_publish(f"$JS.API.{subject}")
        with trio.fail_after(1.5), pytest.raises(SourceError, match="may not publish to") as caught:
            await ask(link, consumer)
        assert caught.value.reason == "permission_denied"
        assert not listener.denied
        await peer.deny_publish()
        await ask(link, consumer)
