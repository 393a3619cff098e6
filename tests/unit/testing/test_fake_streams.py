"""Streams and consumers of the fake broker."""

from __future__ import annotations

from dataclasses import replace

import pytest
import trio
import trio.testing

from router_trio.errors import SubjectError
from router_trio.protocol.framing import payload
from router_trio.protocol.headers import Headers, encode
from router_trio.testing import FakeBroker
from tests.support.recorder import INBOX, Recorder, operation_with_ack
from tests.unit.testing.links import SERVER, SPEC


async def test_the_duplicate_window_ends(autojump_clock: trio.abc.Clock) -> None:
    broker = FakeBroker()
    broker.add_stream("ORDERS", ["orders.>"], duplicate_window=10.0)
    listener = Recorder()
    headers = encode(Headers({"Nats-Msg-Id": "7"}))
    async with broker.connect(SERVER, INBOX, listener) as link:
        for order, pause in ((1, 9.0), (2, 2.0), (3, 0.0)):
            await link.send([operation_with_ack(order, b"orders.new", headers=headers)])
            await trio.sleep(pause)
        await link.fence()
    assert listener.acks == {1: ("ORDERS", 1, False), 2: ("ORDERS", 1, True), 3: ("ORDERS", 2, False)}


def test_streams_must_not_share_names_or_subjects() -> None:
    broker = FakeBroker()
    broker.add_stream("ORDERS", ["orders.>"])
    with pytest.raises(ValueError, match="'ORDERS' already"):
        broker.add_stream("ORDERS", ["other"])
    with pytest.raises(ValueError, match="overlap with those of stream 'ORDERS'"):
        broker.add_stream("OTHER", ["*.new"])
    with pytest.raises(SubjectError):
        broker.add_stream("OTHER", ["other..new"])


async def test_a_fallback_stream_takes_what_no_other_stream_takes() -> None:
    broker = FakeBroker()
    broker.add_stream("ALL", [">"], fallback=True)
    broker.add_stream("ORDERS", ["orders.>"])
    with pytest.raises(ValueError, match="overlap with those of stream 'ALL'"):
        broker.add_stream("MORE", ["more.>"], fallback=True)
    broker.publish("orders.new")
    broker.publish("bills.new")
    assert [[one.subject for one in broker.messages(name)] for name in ("ORDERS", "ALL")] == [
        ["orders.new"],
        ["bills.new"],
    ]
    broker.add_stream("OTHER", ["other.>"])


async def test_a_stream_outlives_an_outage(autojump_clock: trio.abc.Clock) -> None:
    broker = FakeBroker()
    broker.add_stream("ORDERS", ["orders.>"])
    broker.publish("orders.before")
    broker.down()
    broker.publish("orders.meanwhile")
    broker.up()
    received = Recorder()
    async with broker.connect(SERVER, INBOX, Recorder()) as link:
        consumer = await link.open_consumer(SPEC, received)
        consumer.pull(2, 5.0)
        raws = await received.until_delivered(2)
    assert [raw[0] for raw in raws] == [b"orders.before", b"orders.meanwhile"]


async def test_a_delayed_redelivery_may_use_another_link(autojump_clock: trio.abc.Clock) -> None:
    broker = FakeBroker()
    broker.add_stream("ORDERS", ["orders.>"])
    broker.publish("orders.a")
    first, second = Recorder(), Recorder()
    async with broker.connect(SERVER, b"_INBOX.two", Recorder()) as other:
        waiting = await other.open_consumer(SPEC, second)
        async with broker.connect(SERVER, INBOX, Recorder()) as link:
            consumer = await link.open_consumer(SPEC, first)
            consumer.pull(1, 60.0)
            (raw,) = await first.until_delivered(1)
            waiting.pull(1, 60.0)
            link.nak(raw[1], 3.0)
            naked_at = trio.current_time()
        await second.until_delivered(1)
        assert trio.current_time() - naked_at == pytest.approx(3.0)


async def test_a_consumer_may_start_behind_the_last_message_of_its_stream(autojump_clock: trio.abc.Clock) -> None:
    broker = FakeBroker()
    broker.add_stream("ORDERS", ["orders.>"])
    received = Recorder()
    async with broker.connect(SERVER, INBOX, Recorder()) as link:
        probe = await link.open_consumer(SPEC, Recorder())
        broker.delete_consumer("ORDERS", "router")
        for n in range(1, 3):
            broker.publish("orders.old", b"%d" % n)
        spec = replace(SPEC, start_sequence=3, stream_created=probe.stream_created)
        consumer = await link.open_consumer(spec, received)
        consumer.pull(9, 60.0)
        for n in range(3, 5):
            broker.publish("orders.new", b"%d" % n)
        raws = await received.until_delivered(2)
    assert [payload(raw) for raw in raws] == [b"3", b"4"]


async def test_draining_waits_for_messages_held_back(autojump_clock: trio.abc.Clock) -> None:
    broker = FakeBroker()
    received = Recorder()
    async with broker.connect(SERVER, INBOX, Recorder()) as link:
        subscription = await link.subscribe("orders.*", received)
        broker.stall(3)
        broker.publish("orders.new")
        started_at = trio.current_time()
        await subscription.drain()
        assert trio.current_time() - started_at == pytest.approx(3)
        assert len(received.messages) == 1
        broker.publish("orders.new")
        await link.fence()
        assert len(received.messages) == 1
