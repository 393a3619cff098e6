"""Delays and scheduled retries in drawn histories of faults on the fake broker: none early, none lost, none twice."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from datetime import UTC, datetime
from random import Random
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from router_trio import Message, Retry
from router_trio.events import RouteScheduleLost
from router_trio.protocol.stream_config import StreamConfig
from router_trio.testing import FakeBroker
from router_trio.testing.streams import EPOCH
from tests.support.eventually import eventually
from tests.support.world import World, handled, world

COUNT = 40
SEEDS = 6
AFTER = 8.0
"""Seconds after which a failed message is tried again."""


class Drawn:
    """The history of one seed."""

    def __init__(self, seed: int) -> None:
        self.random = Random(seed)
        self.broker = FakeBroker()
        server = self.broker._server
        server.ensure_stream(StreamConfig("IN", ("in.*",)), 0.0)
        for name, subjects in (("OUT", ("out.*", "later.*")), ("RETRY", ("retry.>",))):
            server.ensure_stream(StreamConfig(name, subjects, allow_message_schedules=True), 0.0)
        self.due_ns: dict[int, int] = {}
        self.calls: defaultdict[int, list[float]] = defaultdict(list)
        self.failures: defaultdict[int, list[float]] = defaultdict(list)

    def handler(self, message: Message) -> Message:
        """Fail some messages at their first attempts."""
        number = json.loads(message.payload)["n"]
        self.calls[number].append(trio.current_time())
        if number % 3 == 0 and len(self.failures[number]) < 1 + number % 2:
            self.failures[number].append(trio.current_time())
            raise Retry(after=AFTER)
        return message

    def route(self) -> Any:
        """Return the route."""
        retry = {"initial": "50ms", "schedule": {"stream": "RETRY", "prefix": "retry", "after": "5s"}}
        delay = "timestamp(body.at)"
        to = {"subject": "out.{{wildcard(1)}}", "jetstream": True, "delay": delay, "schedule_prefix": "later"}
        source = {"stream": "IN", "durable": "router", "filter": "in.*", "ack_wait": "3s"}
        return handled(self.handler, to=[to], retry=retry, **source)

    async def publish(self) -> None:
        """Publish all messages, over some seconds."""
        for number in range(COUNT):
            await trio.sleep(self.random.choice((0.0, 0.0, 0.3)))
            milliseconds = round(1000 * (EPOCH + trio.current_time() + self.random.uniform(-1.0, 20.0)))
            self.due_ns[number] = milliseconds * 1_000_000
            at = datetime.fromtimestamp(milliseconds / 1000, UTC).isoformat(timespec="milliseconds")
            self.broker.publish(f"in.{number % 4}", json.dumps({"n": number, "at": at}).encode())

    async def trouble(self) -> None:
        """Draw faults for a while."""
        random, trouble = self.random, self.broker.trouble
        for _ in range(random.randint(2, 6)):
            await trio.sleep(random.uniform(0.1, 4.0))
            kind = random.choice(("cut", "down", "puback", "ack", "nak", "message", "elect"))
            if kind == "cut":
                self.broker.cut()
            elif kind == "down":
                self.broker.down()
                await trio.sleep(random.uniform(0.1, 5.0))
                self.broker.up()
            elif kind == "elect":
                trouble.elect(random.choice(("IN", "OUT", "RETRY")), random.uniform(0.1, 3.0))
            else:
                trouble.lose(kind, random.randint(1, 5))

    @property
    def published(self) -> list[tuple[int, int]]:
        """The number of each published message, and when it was stored, in nanoseconds since 1970."""
        stored = self.broker._server.streams["OUT"].stored
        found = [one for one in stored if one.subject.startswith("out.")]
        return [(json.loads(one.publish.payload)["n"], one.timestamp) for one in found]


@pytest.mark.parametrize("seed", range(SEEDS))
async def test_every_message_is_published_once_and_not_early(seed: int, autojump_clock: MockClock) -> None:
    drawn = Drawn(seed)
    w: World
    async with trio.open_nursery() as nursery:
        nursery.start_soon(drawn.publish)
        for _ in range(drawn.random.randint(1, 3)):
            async with world(handlers=[drawn.route()], brokers={"main": drawn.broker}) as w:
                await drawn.trouble()
    for kind in ("puback", "ack", "nak", "message"):
        drawn.broker.trouble.lose(kind, 0)
    async with world(handlers=[drawn.route()], brokers={"main": drawn.broker}) as w:
        await eventually(lambda: len(drawn.published) >= COUNT, 120.0, lambda: (len(drawn.published), w.route.settled))
        await trio.sleep(70.0)
        assert not [one for one in w.watch.events if isinstance(one, RouteScheduleLost)]
    numbers = Counter(number for number, _ in drawn.published)
    assert numbers == Counter(range(COUNT))
    assert [(number, at) for number, at in drawn.published if at < drawn.due_ns[number]] == []
    assert all(len(drawn.calls[number]) > len(failures) for number, failures in drawn.failures.items())
