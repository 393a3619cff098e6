"""A standby route on the fake broker: it waits, takes over, and reports its state."""

from __future__ import annotations

from typing import Any

import pytest
import trio
from trio.testing import MockClock

from router_trio import Message, Router, Settings
from router_trio.link import LEAD_ENDS_AFTER, ConsumerSpec
from router_trio.routing.stream.pulling.checks import CHECK_EVERY
from router_trio.states import RUNNING
from router_trio.telemetry.http.status import readiness, status
from router_trio.testing.subscriptions import FakePullConsumer
from tests.support.eventually import eventually
from tests.support.links import close_link
from tests.support.watch import Watch
from tests.support.world import LOCAL, fill, handled, numbers, one_broker, stream, to, two_brokers, world

STANDBY = stream("IN", "out.{{wildcard(1)}}", filter="in.*", standby=True)


async def test_a_lone_process_leads_and_routes(autojump_clock: MockClock) -> None:
    async with world([STANDBY], brokers=one_broker()) as w:
        fill(w.broker, 50)
        await eventually(lambda: w.payloads("OUT") == numbers(50))
        assert [event.code for event in w.watch.events if event.code in ("ROUTE_STANDBY", "ROUTE_READY")] == [
            "ROUTE_STANDBY",
            "ROUTE_READY",
        ]
        for message in w.broker.messages("OUT"):
            assert "Nats-Pin-Id" not in message.headers


async def test_another_process_waits_ready_and_takes_over(autojump_clock: MockClock) -> None:
    brokers = one_broker()
    async with world([STANDBY], brokers=brokers) as w:
        fill(w.broker, 10)
        await eventually(lambda: len(w.payloads("OUT")) == 10)
        watch = Watch()
        config = Settings(
            telemetry={"listen": ""}, connections={"main": {"servers": ["nats://fake:4222"]}}, routes=[STANDBY]
        )
        other = Router(config, observers=[watch], connect=lambda name, _: brokers["main"].connect)
        async with other.open() as live:
            await trio.sleep(3 * LEAD_ENDS_AFTER)
            assert readiness(live, trio.current_time())[0] == 200
            assert status(live, 0.0)["routes"]["route"]["standby"] is True
            assert not watch.of("ROUTE_READY")
            fill(w.broker, 10, first=10)
            await eventually(lambda: len(w.payloads("OUT")) == 20)
            assert live.routes[0].received == 0
            # The active process is cut off for longer than its lead lasts.
            close_link(w.live.connections["main"])
            brokers["main"].refuse_credentials()
            await eventually(lambda: live.routes[0].standby is False, 3 * LEAD_ENDS_AFTER)
            brokers["main"].accept_credentials()
            fill(w.broker, 10, first=20)
            await eventually(lambda: len(w.payloads("OUT")) == 30)
            assert live.routes[0].settled["routed"] > 0
            assert w.payloads("OUT") == numbers(30)
            await eventually(lambda: w.route.standby)
        await eventually(lambda: not w.route.standby, 2.0)  # released at the end of the other process
        fill(w.broker, 10, first=30)
        await eventually(lambda: w.payloads("OUT") == numbers(40))


async def test_a_durable_without_a_group_is_refused_with_the_cure(autojump_clock: MockClock) -> None:
    brokers = one_broker()
    async with world([LOCAL], brokers=brokers):
        pass
    async with world([STANDBY], brokers=brokers) as w:
        (event, *_) = w.watch.of("NATS_SUBSCRIBE_ERROR")
        assert event.reason == "consumer_mismatch"
        assert "Use another `durable`, or delete that consumer" in event.detail


async def test_a_link_that_only_the_server_believes_alive_gets_no_message(autojump_clock: MockClock) -> None:
    async with world([STANDBY], brokers=one_broker()) as w:
        fill(w.broker, 10)
        await eventually(lambda: len(w.payloads("OUT")) == 10)
        w.broker.trouble.half_open()
        w.broker.cut()
        for number in range(10, 60):
            fill(w.broker, 1, first=number)
            await trio.sleep(0.1)
        await eventually(lambda: len(w.payloads("OUT")) == 60, 2 * LEAD_ENDS_AFTER)
        assert w.payloads("OUT") == numbers(60)


@pytest.mark.parametrize("leader_is_away", [True, False])
async def test_a_process_that_never_led_recreates_a_deleted_durable_at_the_acked_position(
    leader_is_away: bool, autojump_clock: MockClock
) -> None:
    """The destination stores nothing, so each copy counts."""
    brokers = two_brokers()
    route = stream("IN", to("core", "edge"), connection="main", standby=True)
    config = Settings(
        telemetry={"listen": ""},
        connections={name: {"servers": ["nats://fake:4222"]} for name in brokers},
        routes=[route],
    )
    watch = Watch()
    async with world([route], brokers=brokers) as w:
        fill(w.broker, 100)
        await eventually(lambda: w.route.settled["routed"] == 100)
        other = Router(config, observers=[watch], connect=lambda name, _: brokers[name].connect)
        async with other.open() as live:
            await trio.sleep(1)
            fill(w.broker, 200, first=100)
            await eventually(lambda: w.route.settled["routed"] == 300)
            await trio.sleep(2 * CHECK_EVERY)  # by then it has noticed what the other has settled
            assert live.routes[0].standby
            if leader_is_away:
                close_link(w.live.connections["main"])
                brokers["main"].refuse_credentials()
            w.broker.delete_consumer("IN", "router")
            fill(w.broker, 10, first=300)
            routed = live.routes[0] if leader_is_away else w.route
            await eventually(lambda: routed.settled["routed"] == (10 if leader_is_away else 310), 60)
            brokers["main"].accept_credentials()
            await trio.sleep(60)
    arrived = [int(message.payload) for message in brokers["edge"].published]
    assert sorted(arrived) == list(range(310))


async def test_the_lead_is_kept_while_messages_in_hand_are_routed_and_released_right_after(
    autojump_clock: MockClock,
) -> None:
    began: dict[str, float] = {}
    ends = trio.Event()
    brokers = one_broker()

    def process(name: str) -> Any:
        async def handle(message: Message) -> Message:
            began[name] = trio.current_time()
            await trio.sleep(20)
            return message

        source = {"stream": "IN", "durable": "router", "filter": "in.*", "standby": True}
        route = handled(handle, to=to("out.x", jetstream=True), **source)
        return world(handlers=[route], brokers=brokers, shutdown_timeout=30)

    async def first() -> None:
        async with process("first"):
            fill(brokers["main"], 1)
            await ends.wait()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(first)
        await eventually(lambda: "first" in began)
        async with process("second") as w:
            await eventually(lambda: w.route.standby)
            ends.set()
            await trio.sleep(1)
            fill(brokers["main"], 1, first=1)
            await eventually(lambda: "second" in began, 60)
    assert 20 <= began["second"] - began["first"] < 20 + LEAD_ENDS_AFTER / 2


async def test_a_process_that_ends_while_it_waits_opens_no_consumer(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    brokers = one_broker()
    async with world([STANDBY], brokers=brokers) as first:
        await eventually(lambda: first.route.state == RUNNING and not first.route.standby)
        async with world([STANDBY], brokers=brokers) as second:
            await eventually(lambda: second.route.standby)
            opened: list[ConsumerSpec] = []
            monkeypatch.setattr(FakePullConsumer, "opened", lambda self, spec, consumer: opened.append(spec))
        assert opened == []
