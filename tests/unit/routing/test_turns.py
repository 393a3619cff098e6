"""Handlers that block the loop: it runs other tasks between two calls, in every kind of route."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from router_trio.message import Message
from router_trio.routing.turns import BATCH
from tests.support.eventually import eventually
from tests.support.world import fill, handled, one_broker, to, world
from tests.unit.routing.by_key import IN, KEY, publish

CALLS = 7
EACH = 0.06
"""Duration of a call in seconds, longer than a turn should last."""


called: list[Message] = []


def slow(message: Message) -> None:
    called.append(message)
    time.sleep(EACH)


def blocks(message: Message) -> Message:
    slow(message)
    return message


async def never_awaits(message: Message) -> Message:
    slow(message)
    return message


def raises(message: Message) -> Message:
    slow(message)
    raise ValueError("no")


def new_payload(message: Message) -> Message:
    slow(message)
    return message.replace(payload=message.payload + b"!")


Retry = {"initial": "10ms", "attempts": 1}

KINDS: dict[str, dict[str, Any]] = {
    "core": {},
    "core to a stream": {"jetstream": True},
    "core by content": {"when": "size > 0"},
    "core with a limit": {"limit": {"rate": "100000/s", "burst": 100000}},
    "core retrying": {"retry": Retry},
    "core by key": {"key": "subject + string(payload)", "concurrency": 2},
    "core with concurrency": {"concurrency": 4},
    "stream": {"stream": True},
    "stream by content": {"stream": True, "when": "size > 0"},
    "stream by key": {"stream": True, "key": "string(payload)", "concurrency": 2},
    "stream with a limit": {"stream": True, "limit": {"rate": "100000/s", "burst": 100000}},
}


def route_of(handler: Callable[[Message], Any], **more: Any) -> Any:
    from_stream, jetstream = more.pop("stream", False), more.pop("jetstream", False)
    source = {"stream": "IN", "durable": "router"} if from_stream else {"subject": "in.*"}
    if from_stream:  # failed messages are redelivered after the end of the test
        more["retry"] = {"initial": "1m"}
    return handled(handler, to=to("out.x", jetstream=from_stream or jetstream), **source, **more)


@pytest.mark.slow
@pytest.mark.parametrize("handler", [blocks, never_awaits, raises, new_payload])
@pytest.mark.parametrize("kind", KINDS)
async def test_other_tasks_run_between_two_slow_calls(kind: str, handler: Callable[[Message], Any]) -> None:
    called.clear()
    most = 0

    async def watch(task_status: trio.TaskStatus[None]) -> None:
        nonlocal most
        before = 0
        task_status.started()
        while True:
            await trio.lowlevel.checkpoint()
            most, before = max(most, len(called) - before), len(called)

    async with world(handlers=[route_of(handler, **KINDS[kind])], brokers=one_broker()) as w:
        async with trio.open_nursery() as nursery:
            await nursery.start(watch)  # started before the first call
            fill(w.broker, CALLS, subjects="x")
            await eventually(lambda: sum(w.route.elapsed.counts) >= CALLS, within=20)
            nursery.cancel_scope.cancel()
        assert most < 4, f"{most} calls in one turn"
        assert w.route.received == CALLS


@pytest.mark.parametrize("source", [{"subject": "in.*"}, IN], ids=["subject", "stream"])
async def test_other_tasks_run_while_many_messages_fail_for_lack_of_the_value_that_they_are_limited_by(
    autojump_clock: MockClock, source: dict[str, Any]
) -> None:
    waiting, go_on = 3 * BATCH, trio.Event()

    async def waits(message: Message) -> None:
        await go_on.wait()

    limit = {"rate": "1000/s", "burst": 1000, "per": KEY}
    more: dict[str, Any] = {"max_in_flight": 1000} if source is IN else {}
    async with world(
        handlers=[handled(waits, to=to("out.x"), limit=limit, **more, **source)], brokers=one_broker()
    ) as w:
        publish(w.broker, "a:1", *[":0"] * waiting)
        await eventually(lambda: w.route.in_hand == 1 + waiting)
        go_on.set()
        most = failed = 0
        while failed < waiting:
            await trio.lowlevel.checkpoint()
            before, failed = failed, w.route.failed["expression"]
            most = max(most, failed - before)
        assert most <= BATCH
