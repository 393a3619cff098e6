"""Messages of core routes that fail: which, why, and which messages are still routed."""

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock

from router_trio.message import Message
from router_trio.routing.core import intake_queue
from router_trio.states import RUNNING
from router_trio.testing import FakeBroker
from tests.support.eventually import eventually
from tests.support.world import core, handled, to, two_brokers, world
from tests.unit.routing.published import published

# --- failures --------------------------------------------------------------------------------------------------------


async def test_a_message_without_a_destination_subject_fails_and_the_others_are_routed(
    autojump_clock: MockClock,
) -> None:
    broker = FakeBroker()
    broker.add_stream("S", ["js.>"])
    route = core("in.*", to("out.{{split(1,-)}}"), to("js.{{split(1,-)}}", jetstream=True))
    async with world([route], brokers={"main": broker}) as w:
        for token in ("a-b", "--x", "c"):
            broker.publish(f"in.{token}", b"x")
        await eventually(lambda: set(w.route.routed.values()) == {2})
        assert sorted(w.subjects()) == ["js.a.b", "js.c", "out.a.b", "out.c"]
        assert w.route.failed["mapping"] == 2, "once for each destination"
        assert w.watch.count("ROUTE_MESSAGE_FAILED") == 2
        assert "--x" in w.watch.of("ROUTE_MESSAGE_FAILED")[0].detail
        assert w.entry()["accepted"] == 4


async def test_a_message_that_the_destination_refuses_fails_with_its_reason(autojump_clock: MockClock) -> None:
    brokers = {"main": FakeBroker(), "edge": FakeBroker(max_payload=100)}
    brokers["edge"].add_stream("FULL", ["js.>"], max_messages=1)
    brokers["edge"].deny_publish("out.denied")
    route = core(
        "in.*", to("out.{{wildcard(1)}}", "edge"), to("js.{{wildcard(1)}}", "edge", jetstream=True), connection="main"
    )
    async with world([route], brokers=brokers) as w:
        w.broker.publish("in.ok", b"x" * 20)
        await eventually(lambda: sum(w.route.routed.values()) == 2)
        w.broker.publish("in.denied", b"x" * 20)
        await eventually(lambda: sum(w.route.failed.values()) == 2)
        assert dict(w.route.failed) == {"permission_denied": 1, "limit": 1}
        w.broker.publish("in.large", b"x" * 101)
        await eventually(lambda: sum(w.route.failed.values()) == 4)
        assert w.route.failed["too_large"] == 2
        assert sum(w.route.routed.values()) == 2
        assert sum(w.route.durations.counts) == 3


async def test_a_destination_that_is_down_holds_up_no_other_route(autojump_clock: MockClock) -> None:
    brokers = {"main": FakeBroker(), "edge": FakeBroker()}
    routes = [
        core("in", to("out", "edge"), name="away", connection="main"),
        core("in", to("here"), name="here", connection="main"),
    ]
    async with world(routes, brokers=brokers, connections={"edge": {"max_pending_operations": 5}}) as w:
        await w.lose("edge")
        for number in range(8):
            w.broker.publish("in", b"%d" % number)
            await published(w, number + 1)
        away, here = w.live.routes
        await eventually(lambda: here.routed["here"] == 8)
        assert w.entry("edge") == {"accepted": 8, "pending": 5, "in_flight": 0, "settled": {"dropped": 3}}
        assert dict(away.failed) == {"queue_full": 3}
        assert w.failures("publish", "edge") == {"not_connected": 8}
        await w.find("edge")
        await eventually(lambda: away.routed["out"] == 5)
        assert [message.payload for message in w.brokers["edge"].published] == [b"3", b"4", b"5", b"6", b"7"]
        assert away.state == here.state == RUNNING


@pytest.mark.parametrize("jetstream", [False, True])
async def test_a_queue_that_rejects_fails_the_messages_it_rejects(autojump_clock: MockClock, jetstream: bool) -> None:
    brokers = {"main": FakeBroker(), "edge": FakeBroker()}
    brokers["edge"].add_stream("S", ["out"])
    edge = {"max_pending_operations": 2, "on_pending_full": "reject"}
    route = core("in", to("out", "edge", jetstream=jetstream), connection="main")
    async with world([route], brokers=brokers, connections={"edge": edge}) as w:
        await w.lose("edge")
        for _ in range(5):
            w.broker.publish("in", b"x")
        await eventually(lambda: w.route.failed["queue_full"] == 3)
        await w.find("edge")
        await eventually(lambda: w.route.routed["out"] == 2)
        assert w.entry("edge")["accepted"] == 2
        assert sum(w.route.durations.counts) == 5


async def test_a_queue_that_blocks_makes_the_route_wait_and_loses_nothing(autojump_clock: MockClock) -> None:
    brokers = {"main": FakeBroker(), "edge": FakeBroker()}
    edge = {"max_pending_operations": 2, "on_pending_full": "block"}
    route = core("in", to("out", "edge"), connection="main")
    async with world([route], brokers=brokers, connections={"edge": edge}) as w:
        await w.lose("edge")
        for number in range(50):
            w.broker.publish("in", b"%d" % number)
            await trio.sleep(0.01)
        assert w.entry("edge")["accepted"] < 50
        await w.find("edge")
        await eventually(lambda: w.route.routed["out"] == 50)
        assert [message.payload for message in w.brokers["edge"].published] == [b"%d" % n for n in range(50)]
        assert not w.route.failed


async def test_fail_open_drops_messages_and_counts_them(autojump_clock: MockClock) -> None:
    brokers = {"main": FakeBroker(), "edge": FakeBroker()}
    route = core("in", to("out", "edge"), connection="main")
    async with world([route], brokers=brokers, connections={"edge": {"fail_open": True}}) as w:
        await w.lose("edge")
        for _ in range(3):
            w.broker.publish("in", b"x")
        await eventually(lambda: w.route.failed["not_connected"] == 3)
        assert w.entry("edge") == {"accepted": 3, "pending": 0, "in_flight": 0, "settled": {"failed_open": 3}}
        assert w.failures("publish", "edge") == {"not_connected": 3}


@pytest.mark.timeout(20)
async def test_a_probe_that_fails_open_waits_for_the_next_pause_of_the_breaker(autojump_clock: MockClock) -> None:
    """The message is kept for another attempt, and each attempt fails at once, before the clock moves on."""
    brokers = two_brokers()
    edge = to("out.x", "edge", jetstream=True) | {"breaker": {"failures": 2, "pause": "1s"}}
    route = core("in", edge, connection="main", retry={"initial": "100ms"})
    async with world([route], brokers=brokers, connections={"edge": {"fail_open": True}}) as w:
        w.brokers["edge"].deny_publish("out.>")
        w.broker.publish("in", b"x")
        await eventually(lambda: w.route.breakers[0].state == "open")
        await w.lose("edge")
        await trio.sleep(20)
        assert w.route.failed["not_connected"] <= 21
        w.brokers["edge"].allow_publish("out.>")
        await w.find("edge")
        await eventually(lambda: w.route_ledger() == (1, 0, {"routed": 1}))


async def test_messages_beyond_the_intake_queue_are_refused_counted_and_reported(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(intake_queue, "MAX_MESSAGES", 10)
    gate = trio.Event()

    async def wait(message: Message) -> Message:
        await gate.wait()
        return message

    async with world(handlers=[handled(wait, subject="in", to="out")]) as w:
        w.broker.publish("in", b"first")
        await eventually(lambda: w.route.received == 1)
        for number in range(15):
            w.broker.publish("in", b"%d" % number)
        await eventually(lambda: w.route.received == 16)
        assert w.route.failed["slow_consumer"] == 5
        assert sum(event.count for event in w.watch.of("ROUTE_MESSAGE_FAILED")) == 5
        gate.set()
        await eventually(lambda: w.route.routed["out"] == 11)
        assert [m.payload for m in w.broker.published] == [b"first", *(b"%d" % n for n in range(10))]


async def test_the_intake_queue_is_bounded_by_bytes_too(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(intake_queue, "MAX_BYTES", 1000)
    refused: list[int] = []
    box = intake_queue.IntakeQueue(refused.append)
    raw = (b"s", b"", 0, 600, b"600\r\n" + b"x" * 600 + b"\r\n")
    for _ in range(4):
        box.deliver([raw])
    assert (len(box), refused) == (2, [1, 1])
    await box.take()
    box.deliver([raw])
    assert (len(box), refused) == (2, [1, 1])
