"""Which messages in the inbox of a route count as deliveries of its stream, though any client may publish there."""

from __future__ import annotations

from types import SimpleNamespace
from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock

from router_trio.link import ConsumerSpec
from router_trio.protocol.framing import RawMessage
from router_trio.routing.stream.cursor import StreamCursor
from router_trio.routing.stream.deliveries import FEW, Deliveries, Read
from router_trio.routing.stream.delivery import Keeper
from router_trio.states import RUNNING, RouteState
from router_trio.testing.frames import raw
from tests.support.world import LOCAL, all_acked, another_link, fill, hear, one_broker, unacked, world

STATUS = raw(b"_INBOX.x", b"", b"NATS/1.0 409 Batch Completed\r\n\r\n", b"")


SOURCE = cast(Keeper, SimpleNamespace(state=RouteState("r", "main", ("out",)), copied=None))


def read(batch: list[RawMessage], stream: str = "IN", durable: str = "router") -> Read:
    return Deliveries(SOURCE, stream, durable).read(batch, StreamCursor(), 0.0)


def delivery(sequence: int | str = 5, number: int | str = 5, *, at: str = "$JS.ACK.IN.router") -> RawMessage:
    return raw(b"in.x", f"{at}.1.{sequence}.{number}.1700000000000000000.0".encode(), b"", b"x")


NONE = {
    "nothing": b"",
    "elsewhere": b"elsewhere",
    "the beginning alone": b"$JS.ACK.IN.router.",
    "another stream": b"$JS.ACK.OTHER.router.1.5.5.1.0",
    "another durable": b"$JS.ACK.IN.other.1.5.5.1.0",
    "a longer name": b"$JS.ACK.IN.router2.1.5.5.1.0",
    "a domain and another stream": b"$JS.ACK.hub.ACC.OTHER.router.1.5.5.1.0",
    "our names where domain and account are": b"$JS.ACK.IN.router.OTHER.victim.1.5.5.1.0",
    "our names further behind": b"$JS.ACK.a.b.c.IN.router.1.5.5.1.0",
    "an API": b"$JS.API.STREAM.DELETE.IN.router.1.5.5.1.0",
    "sequence 0": b"$JS.ACK.IN.router.1.0.5.1.0",
    "delivery 0": b"$JS.ACK.IN.router.1.5.0.1.0",
    "beyond the last": b"$JS.ACK.IN.router.1.18446744073709551616.5.1.0",
    "20 digits": b"$JS.ACK.IN.router.1.5.99999999999999999999.1.0",
    "3,000 digits": b"$JS.ACK.IN.router.1.%b.5.1.0" % (b"9" * 3000),
    "5,000 digits": b"$JS.ACK.IN.router.1.5.%b.1.0" % (b"9" * 5000),
    "below 0": b"$JS.ACK.IN.router.1.-5.5.1.0",
    "a sign": b"$JS.ACK.IN.router.1.+5.5.1.0",
    "an underscore": b"$JS.ACK.IN.router.1.1_0.5.1.0",
    "other digits": "$JS.ACK.IN.router.1.٣.5.1.0".encode(),
    "a word": b"$JS.ACK.IN.router.1.x.5.1.0",
    "a time that is a word": b"$JS.ACK.IN.router.1.5.5.x.0",
    "empty tokens": b"$JS.ACK.IN.router.1...1.0",
    "numbers alone": b"1.1.1.1.1.1.5.5.1.0",
    "our names twice": b"$JS.ACK.IN.router.$JS.ACK.IN.router.1.5.5.1.0",
    "too few": b"$JS.ACK.IN.router.1.5.5.1",
    "too many": b"$JS.ACK.IN.router.1.5.5.1.0.1.1.1",
    "no UTF-8": b"$JS.ACK.IN.router.\xff.5.5.1.0",
}


@pytest.mark.parametrize("reply", NONE.values(), ids=NONE.keys())
def test_a_message_that_is_not_a_delivery_is_ignored_and_its_neighbours_are_not(reply: bytes) -> None:
    more = [delivery(number, number) for number in range(3, 3 + FEW)]
    few = [delivery(1, 1), raw(b"in.x", reply, b"", b"forged"), delivery(2, 2), STATUS]
    for batch in (few, few + more):
        deliveries, _, others = read(batch)
        assert [one.sequence for one in deliveries] == [1, 2, *range(3, len(batch) - 1)]
        assert list(others) == [batch[1], STATUS]


@pytest.mark.parametrize(
    ("message", "sequence"),
    [
        (delivery(), 5),
        (delivery(2**64 - 1, 2**64 - 1), 2**64 - 1),
        (delivery(at="$JS.ACK.hub.ACC.IN.router"), 5),
        (raw(b"in.x", b"$JS.ACK._.ACC.IN.router.1.7.5.1.0.token", b"", b""), 7),
    ],
)
def test_a_valid_delivery_is_accepted(message: RawMessage, sequence: int) -> None:
    deliveries, _, others = read([message])
    assert [one.sequence for one in deliveries] == [sequence]
    assert not others


def test_names_are_not_taken_for_patterns() -> None:
    batch = [delivery(at="$JS.ACK.I+N.r(outer"), delivery(at="$JS.ACK.hub.ACC.I+N.r(outer"), delivery()]
    deliveries, _, others = read(batch, "I+N", "r(outer")
    assert (len(deliveries), len(others)) == (2, 1)


def test_statuses_alone_are_no_deliveries() -> None:
    assert read([STATUS, STATUS]) == ([], ([], [], []), [STATUS, STATUS])


@given(
    usual=st.lists(st.builds(delivery, st.integers(1, 2**64 - 1), st.integers(1, 2**64 - 1)), max_size=FEW + 2),
    odd=st.lists(
        st.just(STATUS)
        | st.builds(delivery, st.integers(-1, 2**64), st.integers(-1, 2**64))
        | st.builds(delivery, st.text("0123456789.-_٣x", max_size=25), st.integers(0, 9))
        | st.builds(delivery, st.integers(1, 9), at=st.sampled_from(["$JS.ACK.a.b.IN.router", "$JS.ACK.IN.other", "x"]))
        | st.binary(max_size=60).map(lambda reply: raw(b"in.x", reply, b"", b""))
        | st.binary(max_size=60).map(lambda reply: raw(b"in.x", b"$JS.ACK.IN.router." + reply, b"", b"")),
        max_size=3,
    ),
    at=st.integers(0, FEW),
)
def test_both_ways_to_read_a_batch_give_the_same_result(
    usual: list[RawMessage], odd: list[RawMessage], at: int
) -> None:
    ours, position = Deliveries(SOURCE, "IN", "router"), StreamCursor()
    for batch in (usual, [*usual[:at], STATUS, *usual[at:]], [*usual[:at], *odd, *usual[at:]]):
        fast, slow = ours.read(batch, position, 0.0), ours.one_by_one(batch, position, 0.0)
        found = [(one.ack_subject, one.sequence, one.number, one.time, one.message_id) for one in fast[0]]
        assert found == [(one.ack_subject, one.sequence, one.number, one.time, one.message_id) for one in slow[0]]
        assert [*map(list, fast[1])] == [*map(list, slow[1])]
        assert list(fast[2]) == list(slow[2])
        assert all(0 < sequence < 2**64 and 0 < number < 2**64 for _, sequence, number, _, _ in found)


def test_usual_deliveries_are_read_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Deliveries, "one_by_one", None)
    deliveries, _, others = read([*(delivery(number, number) for number in range(1, FEW + 2)), STATUS])
    assert (len(deliveries), others) == (FEW + 1, [STATUS])


@pytest.mark.parametrize("reply", NONE.values(), ids=NONE.keys())
async def test_a_forged_delivery_does_not_make_the_router_ack_for_another_consumer(
    autojump_clock: MockClock, reply: bytes
) -> None:
    """An ack is a publish with the router's permissions."""
    broker = one_broker()["main"]
    broker.add_stream("OTHER", ["other"])
    broker.publish("other", b"precious")
    async with world([LOCAL], brokers={"main": broker}) as w, another_link(broker) as victim:
        spec = ConsumerSpec("OTHER", "router", (), ack_wait=3600.0, max_deliver=-1, max_ack_pending=10)
        consumer = await victim.open_consumer(spec, lambda batch: None)
        consumer.pull(1, 60.0)
        await victim.fence()
        assert broker.unacked("OTHER", "router") == 1
        fill(broker, 2)
        await all_acked(w, 2)
        inbox = w.live.connections["main"].inbox.decode()
        broker.publish(f"{inbox}-pull-1", b"forged", reply=reply.decode("utf-8", "surrogateescape") or None)
        fill(broker, 2)
        await all_acked(w, 4)
        await victim.fence()
        assert broker.unacked("OTHER", "router") == 1
        assert b"forged" not in w.payloads("OUT")
        assert (w.route.state, w.watch.count("NATS_SUBSCRIBE_ERROR")) == (RUNNING, 0)


@pytest.mark.parametrize(
    "block",
    [
        b"NATS/1.0 408 Request Timeout\r\nNats-Pending-Messages: %b\r\nNats-Pending-Bytes: %b\r\n\r\n"
        % (b"9" * 5000, b"9" * 5000),
        b"NATS/1.0 408 x\r\nNats-Pending-Messages: -7\r\nNats-Pending-Bytes: 1e999\r\n\r\n",
        b"NATS/1.0 409 Batch Completed\r\nNats-Pending-Messages: x\r\n\r\n",
        b"NATS/1.0 409 Message Size Exceeds MaxBytes\r\nNats-Pending-Bytes: %b\r\n\r\n" % (b"9" * 18),
        b"NATS/1.0 409 Message Size Exceeds MaxBytes\r\n\r\n",
        b"NATS/1.0 409 Exceeded MaxRequestBatch of %b\r\n\r\n" % (b"9" * 5000),
        b"NATS/1.0 " + b"9" * 5000 + b" x\r\n\r\n",
        b"NATS/1.0 503\r\n\r\n",
        b"NATS/1.0 100 Idle Heartbeat\r\n\r\n",
        b"NATS/1.0 777 " + b"x" * 100_000 + b"\r\n\r\n",
        b"NATS/1.0 \xff\xfe\r\n\r\n",
        b"\xff" * 300,
        b"",
    ],
    ids=lambda block: repr(block[:40]),
)
async def test_no_status_ends_the_router_or_the_route(autojump_clock: MockClock, block: bytes) -> None:
    async with world([LOCAL], brokers=one_broker()) as w:
        fill(w.broker, 2)
        await all_acked(w, 2)
        await hear(w.broker, w.live.connections["main"].inbox + b"-pull-1", block)
        fill(w.broker, 2)
        await all_acked(w, 4)
        assert unacked(w) == 0
        assert all(len(event.detail) < 300 for event in w.watch.of("NATS_SUBSCRIBE_ERROR"))
