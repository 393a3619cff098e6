"""Idle routes from streams take few turns of tasks, and many of them on a connection fewer checks and heartbeats."""

from __future__ import annotations

from typing import Any

import pytest
import trio
from trio.abc import Instrument
from trio.testing import MockClock

from router_trio import Message
from router_trio.link import SIGN_OF_WORK_EVERY
from router_trio.routing.stream.pulling import checks, pull_loop
from router_trio.telemetry.http.status import readiness
from router_trio.testing import FakeBroker
from router_trio.testing.subscriptions import FakePullConsumer
from tests.support.world import handled, one_broker, stream, to, world

ROUTES = 12
TURNS = 1.5
"""Turns of tasks that an idle route may take in a second, with those of its fake server: it takes 0.9."""


class Turns(Instrument):
    """Counts the turns of tasks."""

    def __init__(self) -> None:
        self.count = 0

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        self.count += 1


def routes() -> list[dict[str, Any]]:
    return [stream("IN", f"out.{n}", filter=f"in.{n}", route=f"r{n}", durable=f"d{n}") for n in range(ROUTES)]


def forget_pulls(broker: FakeBroker) -> None:
    """Have the server forget all pull requests without a status."""
    for consumer in broker._server.consumers.values():
        consumer._requests.clear()


async def test_idle_routes_take_few_turns(autojump_clock: MockClock) -> None:
    async with world(routes(), brokers=one_broker()):
        await trio.sleep(30)
        turns = Turns()
        trio.lowlevel.add_instrument(turns)
        await trio.sleep(120)
        trio.lowlevel.remove_instrument(turns)
        assert turns.count < TURNS * ROUTES * 120


async def test_a_message_that_arrives_after_a_long_pause_is_reported_to_be_in_progress(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    reported = []
    monkeypatch.setattr(FakePullConsumer, "say_at_work", lambda self: reported.append(trio.current_time()))

    async def slow(message: Message) -> Message:
        await trio.sleep(2)
        return message

    one = handled(slow, stream="IN", filter="in.*", durable="d", to=to("out.x", jetstream=True))
    async with world(handlers=[one], brokers=one_broker()) as w:
        await trio.sleep(100)
        assert not reported
        began = trio.current_time()
        w.broker.publish("in.a", b"x")
        await trio.sleep(1.9)
        assert len(reported) >= 6
        assert reported[0] <= began + 2 * SIGN_OF_WORK_EVERY
        await trio.sleep(1)
        before = len(reported)
        await trio.sleep(100)
        assert len(reported) == before


async def test_with_many_routes_each_consumer_is_checked_less_often(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checks, "CHECKS_A_SECOND", 0.5)
    asked = 0
    check = FakePullConsumer.check

    async def counted(self: FakePullConsumer, **more: Any) -> Any:
        nonlocal asked
        asked += 1
        return await check(self, **more)

    monkeypatch.setattr(FakePullConsumer, "check", counted)
    async with world(routes(), brokers=one_broker()):
        await trio.sleep(30)
        asked = 0
        await trio.sleep(240)
        assert asked == pytest.approx(240 * 0.5, abs=ROUTES)


async def test_with_many_routes_heartbeats_are_fewer_and_a_silent_consumer_is_noticed_later(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pull_loop, "HEARTBEATS_A_SECOND", 1)
    async with world(routes(), brokers=one_broker()) as w:
        for _ in range(125):
            await trio.sleep(1)
            assert readiness(w.live, trio.current_time())[0] == 200
        forget_pulls(w.broker)
        await trio.sleep(pull_loop.LONGEST_HEARTBEAT + 4)
        assert "nothing was heard from its consumer for 15 s" in str(readiness(w.live, trio.current_time())[1])
        await w.watch.until("NATS_SUBSCRIBE_ERROR", within=2 * pull_loop.LONGEST_HEARTBEAT)
        await trio.sleep(5)
        assert readiness(w.live, trio.current_time())[0] == 200
