"""Routes from a core subscription, on fake brokers."""

from __future__ import annotations

from itertools import pairwise

import trio
from trio.testing import MockClock

from router_trio.message import Message
from router_trio.protocol.headers import Headers
from router_trio.states import FAILED, RUNNING, STARTING
from router_trio.testing import FakeBroker
from tests.support.eventually import eventually
from tests.support.world import core, handled, overhearing, to, world
from tests.unit.routing.published import published

# --- forwarding ------------------------------------------------------------------------------------------------------


async def test_headers_reply_and_payload_are_forwarded_unchanged(autojump_clock: MockClock) -> None:
    pairs = [("Twice", "a"), ("Twice", "b"), ("Nats-Service-Error", "S")]
    async with world([core("in.*", "out.{{wildcard(1)}}")]) as w, overhearing(w.broker, "out.*") as heard:
        w.broker.publish("in.1", b"\x00\r\n\xff", pairs, reply="answers.to.me")
        w.broker.publish("in.2", b"")
        await eventually(lambda: len(heard) == 2)
        assert w.broker.published == [
            ("out.1", Headers(pairs), b"\x00\r\n\xff"),
            ("out.2", Headers(), b""),
        ]
        assert [message[:2] for message in heard] == [(b"out.1", b"answers.to.me"), (b"out.2", b"")]
        await eventually(lambda: w.route.routed == {"out.{{wildcard(1)}}": 2})
        assert (w.route.received, dict(w.route.failed), w.route.state) == (2, {}, RUNNING)
        assert sum(w.route.durations.counts) == 2
        assert w.entry()["settled"] == {"fenced": 2}


async def test_every_destination_gets_every_message(autojump_clock: MockClock) -> None:
    brokers = {"main": FakeBroker(), "edge": FakeBroker()}
    for broker in brokers.values():
        broker.add_stream("S", ["js.>"])
    route = core(
        "in.*",
        to("a.{{wildcard(1)}}"),
        to("js.{{wildcard(1)}}", jetstream=True),
        to("b.{{wildcard(1)}}", "edge"),
        to("js.{{wildcard(1)}}.x", "edge", jetstream=True),
        connection="main",
    )
    async with world([route], brokers=brokers) as w:
        for number in range(20):
            w.broker.publish(f"in.{number}", b"%d" % number)
        await eventually(lambda: set(w.route.routed.values()) == {20})
        assert [s for s in w.subjects() if s.startswith("a.")] == [f"a.{n}" for n in range(20)]
        assert [s for s in w.subjects("edge") if s.startswith("b.")] == [f"b.{n}" for n in range(20)]
        assert w.payloads("S") == w.payloads("S", "edge") == [b"%d" % n for n in range(20)]
        assert w.entry()["settled"] == w.entry("edge")["settled"] == {"fenced": 20, "acked": 20}
        assert sum(w.route.durations.counts) == 20
        assert not w.route.failed


async def test_the_order_is_kept_across_an_outage_of_the_destination(autojump_clock: MockClock) -> None:
    brokers = {"main": FakeBroker(), "edge": FakeBroker()}
    async with world([core("in", to("out", "edge"), connection="main")], brokers=brokers) as w:
        for number in range(60):
            w.broker.publish("in", b"%d" % number)
            if number == 20:
                await published(w, 10, "edge")
                await w.lose("edge")
            if number == 40:
                await eventually(lambda: w.entry("edge")["pending"] >= 15)
                await w.find("edge")
        await eventually(lambda: w.route.routed["out"] == 60)
        payloads = [int(message.payload) for message in w.brokers["edge"].published]
        # Messages unconfirmed at the loss are resent: the first arrivals are in order, and nothing is missing.
        assert list(dict.fromkeys(payloads)) == list(range(60))


async def test_routes_of_one_queue_group_are_one_member_of_it(
    autojump_clock: MockClock,
) -> None:
    broker = FakeBroker()
    routes = [
        core("in", "one", name="one", queue="workers"),
        core("in", "two", name="two", queue="workers"),
        core("in", "all", name="all"),
    ]
    async with world(routes, brokers={"main": broker}) as w, world([routes[0]], brokers={"main": broker}) as other:
        for _ in range(10):
            broker.publish("in", b"x")
        await published(w, 25)
        assert {s: w.subjects().count(s) for s in ("one", "two", "all")} == {"one": 10, "two": 5, "all": 10}
        assert [route.received for route in (*w.live.routes, *other.live.routes)] == [5, 5, 10, 5]


# --- ids and expectations --------------------------------------------------------------------------------------------


async def test_a_jetstream_copy_has_an_id_and_no_expectations(autojump_clock: MockClock) -> None:
    broker = FakeBroker()
    broker.add_stream("S", ["js.>"])
    route = core("in", to("js.a", jetstream=True), to("js.b", jetstream=True), to("plain"))
    async with world([route], brokers={"main": broker}) as w:
        expected = [("Nats-Expected-Last-Sequence", "99"), ("Nats-Expected-Stream", "OTHER"), ("Keep", "1")]
        broker.publish("in", b"own", [("Nats-Msg-Id", "own"), *expected])
        broker.publish("in", b"none", expected)
        broker.publish("in", b"bare")
        await eventually(lambda: set(w.route.routed.values()) == {3})
        found = {(m.subject, m.payload): m.headers for m in broker.published}
        ids = [found[subject, b"own"]["Nats-Msg-Id"] for subject in ("js.a", "js.b", "plain")]
        assert [message_id.rpartition(":")[0] for message_id in ids] == ["own"] * 3
        assert len(set(ids)) == 3, "each copy has its own id"
        assert all(found[subject, b"own"].pairs()[1:] == (("Keep", "1"),) for subject in ("js.a", "js.b", "plain"))
        assert found["plain", b"bare"] == Headers(), "a core copy gets no id that its message did not have"
        made = [found["js.a", payload]["Nats-Msg-Id"] for payload in (b"none", b"bare")]
        made += [found["js.b", payload]["Nats-Msg-Id"] for payload in (b"none", b"bare")]
        assert len({*made, "own"}) == 5
        assert found["js.a", b"none"]["Keep"] == "1"


async def test_a_message_resent_after_an_outage_is_stored_once(autojump_clock: MockClock) -> None:
    brokers = {"main": FakeBroker(), "edge": FakeBroker()}
    brokers["edge"].add_stream("S", ["js"])
    async with world([core("in", to("js", "edge", jetstream=True), connection="main")], brokers=brokers) as w:
        # No answer arrives: the stream has stored the messages, and the router can't know.
        brokers["main"].publish("in", b"1")
        await eventually(lambda: w.route.routed["js"] == 1)
        brokers["edge"].blackhole()
        for number in range(2, 11):
            brokers["main"].publish("in", b"%d" % number)
        await eventually(lambda: w.entry("edge")["in_flight"] == 9)
        brokers["edge"].up()
        brokers["edge"].cut()
        await eventually(lambda: w.route.routed["js"] == 10)
        assert w.payloads("S", "edge") == [b"%d" % number for number in range(1, 11)]


# --- the source ------------------------------------------------------------------------------------------------------


async def test_a_refused_subscription_is_retried_with_growing_delays_while_others_work(
    autojump_clock: MockClock,
) -> None:
    broker = FakeBroker()
    broker.deny_subscribe("secret")
    routes = [core("secret", "out", name="denied"), core("in", "fine", name="fine")]
    async with world(routes, brokers={"main": broker}) as w:
        denied, fine = w.live.routes
        assert (denied.state, fine.state) == (FAILED, RUNNING)
        assert denied.unready is not None
        assert "secret" in denied.unready
        broker.publish("in", b"x")
        await eventually(lambda: fine.routed["fine"] == 1)
        await w.watch.until("NATS_SUBSCRIBE_ERROR", times=8, within=120)
        times = [event.at for event in w.watch.of("NATS_SUBSCRIBE_ERROR")]
        delays = [later - earlier for earlier, later in pairwise(times)]
        assert all(0.25 * 2**n <= delay <= 0.5 * 2**n for n, delay in enumerate(delays[:4]))
        assert all(5 <= delay <= 10 for delay in delays[5:])
        assert w.failures("subscribe") == {"permission_denied": 8}
        assert w.successes("subscribe") == 1


async def test_a_route_subscribes_again_after_an_outage(autojump_clock: MockClock) -> None:
    async with world([core("in", "out")]) as w:
        await w.lose()
        assert w.route.unready is not None
        w.broker.publish("in", b"no route is subscribed")
        await w.find()
        await eventually(lambda: w.route.state == RUNNING)
        w.broker.publish("in", b"x")
        await eventually(lambda: w.route.routed["out"] == 1)
        assert (w.route.received, w.watch.count("ROUTE_READY"), w.successes("subscribe")) == (1, 2, 2)


# --- the end ---------------------------------------------------------------------------------------------------------


async def test_messages_sent_before_the_end_are_still_routed(autojump_clock: MockClock) -> None:
    broker = FakeBroker()
    async with world([core("in", "out")], brokers={"main": broker}) as w:
        for _ in range(100):
            broker.publish("in", b"x")
    assert w.route.received == w.route.routed["out"] == len(broker.published) == 100
    assert w.live.unsettled == 0


async def test_messages_in_transit_at_the_end_are_still_routed(autojump_clock: MockClock) -> None:
    broker = FakeBroker()
    async with world([core("in", "out")], brokers={"main": broker}) as w:
        # All messages arrive only after the router has begun to close.
        broker.stall(1.0)
        for _ in range(100):
            broker.publish("in", b"x")
        await trio.lowlevel.checkpoint()
    assert w.route.received == w.route.routed["out"] == 100
    assert w.live.unsettled == 0


async def test_a_handler_that_does_not_end_is_cancelled_and_the_waiting_messages_are_counted(
    autojump_clock: MockClock,
) -> None:
    cancelled = 0

    async def hang(message: Message) -> Message:
        nonlocal cancelled
        try:
            await trio.sleep_forever()
        except trio.Cancelled:
            cancelled += 1
            raise
        raise AssertionError("unreachable")

    began = trio.current_time()
    async with world(handlers=[handled(hang, subject="in", to="out")], shutdown_timeout=3.0) as w:
        for _ in range(5):
            w.broker.publish("in", b"x")
        await eventually(lambda: w.route.received == 5)
        began = trio.current_time()
    assert 3.0 <= trio.current_time() - began <= 4.1
    assert cancelled == 1
    assert dict(w.route.failed) == {"shutdown": 5}
    assert w.live.unsettled == 5
    assert sum(event.count for event in w.watch.of("ROUTE_MESSAGE_FAILED")) == 5
    assert w.entry()["accepted"] == 0


async def test_a_route_that_waits_for_room_at_the_end_counts_the_messages_it_holds(autojump_clock: MockClock) -> None:
    brokers = {"main": FakeBroker(), "edge": FakeBroker()}
    edge = {"max_pending_operations": 3, "on_pending_full": "block"}
    route = core("in", to("out", "edge"), connection="main")
    async with world([route], brokers=brokers, connections={"edge": edge}, shutdown_timeout=1) as w:
        await w.lose("edge")
        for _ in range(10):
            w.broker.publish("in", b"x")
            await trio.sleep(0.01)
    accepted = w.entry("edge")["accepted"]
    assert 3 <= accepted < 10
    assert w.route.failed["shutdown"] == 10
    assert w.live.unsettled == 10
    assert w.entry("edge")["settled"] == {"dropped": accepted}


async def test_the_end_does_not_wait_for_a_server_that_was_never_reachable(autojump_clock: MockClock) -> None:
    broker = FakeBroker()
    broker.down()
    async with world([core("in.*", "out.$1"), core("in.*", "out.$1", name="kept", retry={})], brokers={"main": broker}):
        began = trio.current_time()
    assert trio.current_time() - began < 2


async def test_the_end_does_not_wait_for_the_answer_to_a_subscription(autojump_clock: MockClock) -> None:
    async with world() as w:
        w.broker.stall(1000)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(w.live.reload, w.configuration(core("in.*", "out.$1")))
            await trio.sleep(1)
            nursery.cancel_scope.cancel()
        assert [route.state for route in w.live.routes] == [STARTING]
        began = trio.current_time()
    assert trio.current_time() - began < 2
