"""Routes beside a route whose destination takes nothing."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio

from router_trio.outbox import capacity, sender
from router_trio.testing import FakeBroker
from tests.support.eventually import eventually
from tests.support.world import World, core, overhearing, stream, to, world

MESSAGES = 2_500
SUBJECTS = 250

PART = 16
"""The divisor of limits on messages in flight and forwarded at once: a sixteenth of the usual limits, so that a
sixteenth of the messages exceeds them as often.
"""

HEALTHY = [
    core("core.*", "fine.{{wildcard(1)}}", name="core"),
    stream("IN", "out.{{wildcard(1)}}", route="stream", filter="in.*"),
    core("store.*", to("out.stored.{{wildcard(1)}}", jetstream=True), name="store"),
]

REFUSED = core("bad.*", to("bad.copy.{{wildcard(1)}}", jetstream=True), name="refused")


@asynccontextmanager
async def beside(kind: str, *routes: dict[str, Any], part: int = PART, **options: Any) -> AsyncIterator[World]:
    """Run working routes and `routes`, whose destination `bad.copy.>` takes nothing: no stream, no leader, no
    answer.
    """
    broker = FakeBroker()
    broker.add_stream("IN", ["in.*"])
    broker.add_stream("OUT", ["out.>"])
    broker.add_stream("SRC", ["src.*"])
    if kind == "leaderless":
        broker.add_stream("BAD", ["bad.copy.>"])
        broker.trouble.elect("BAD", 1e6)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sender, "MAX_UNACKED", sender.MAX_UNACKED // part)
        patch.setattr(capacity, "FORWARDED", capacity.FORWARDED // part)
        async with world([*HEALTHY, *routes], brokers={"main": broker}, shutdown_timeout=1.0, **options) as w:
            if kind == "silent":
                async with overhearing(broker, "bad.copy.>"):
                    yield w
            else:
                yield w


def flood(w: World, count: int = MESSAGES, subjects: int = SUBJECTS) -> None:
    """Publish consecutive numbers for the destination that takes nothing."""
    for number in range(count):
        w.broker.publish(f"bad.{number % subjects}", b"%d" % number)


async def assert_neighbours_continue(w: World) -> None:
    """Assert that publishes and routes that share only the connection take no second."""
    before = [sum(route.routed.values()) for route in w.live.routes[:3]]
    with trio.fail_after(1):
        await w.live.publish("x", b"")
    with trio.fail_after(1):
        await w.live.publish_with_ack("out.published", b"")
    with trio.fail_after(1):
        for subject in ("core.1", "in.1", "store.1"):
            w.broker.publish(subject, b"")
        after = [number + 1 for number in before]
        await eventually(lambda: [sum(route.routed.values()) for route in w.live.routes[:3]] == after, 1)


async def routed(w: World, count: int, within: float) -> None:
    """Wait until `count` messages for the destination that took nothing are stored."""
    await eventually(lambda: w.live.routes[3].routed["bad.copy.{{wildcard(1)}}"] == count, within)


def in_order(payloads: list[bytes], subjects: int = SUBJECTS) -> bool:
    last: dict[int, int] = {}
    for number in map(int, payloads):
        if number <= last.get(number % subjects, -1):
            return False
        last[number % subjects] = number
    return True
