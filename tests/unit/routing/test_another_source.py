"""A source of another kind needs only its own file: here, a source that watches the keys of a bucket."""

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock

from router_trio import Message
from router_trio.connection.latch import Latch
from router_trio.connection.shared_subscription import SharedSubscription
from router_trio.connection.supervisor import Connection
from router_trio.events import Emit
from router_trio.link import Link
from router_trio.protocol.framing import RawMessage
from router_trio.routing.core import keeper
from router_trio.routing.core.keeper import SubjectKeeper
from router_trio.routing.dead_letters import DeadLetters
from router_trio.routing.pipeline import Routing
from router_trio.routing.source import KeptSource
from router_trio.states import RUNNING
from tests.support.eventually import eventually
from tests.support.world import handled, to, world

BUCKET = "$KV.prices."


class Watch(KeptSource[SubjectKeeper]):
    """A source that receives changes of the keys of a bucket, as subjects, while linked. Nothing is redelivered."""

    def __init__(
        self, routing: Routing, connection: Connection, emit: Emit, letters: DeadLetters | None, _: SharedSubscription
    ) -> None:
        super().__init__(routing, connection, emit)
        self.keeper: SubjectKeeper = SubjectKeeper(routing, connection, emit, letters, self)

    async def _receive(self, link: Link, tried: Latch) -> None:
        self._receiving_begins()
        try:
            watch = await link.subscribe(f"{BUCKET}>", self._changed)
            self.state.enter(RUNNING)
            self._retry.ready(BUCKET)
            self._retry.tried(tried)
            await self._closing.wait()
            await watch.drain()
        finally:
            self._receiving_ends("no watch: the connection is down")

    def _changed(self, batch: list[RawMessage]) -> None:
        self.keeper.received([(raw[0][len(BUCKET) :], raw[1], raw[2], raw[3], raw[4]) for raw in batch])


async def test_messages_of_a_watch_are_routed_retried_and_counted_like_any_others(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keeper, "KeptSubject", Watch)
    attempts = 0

    async def fails_once(message: Message) -> Message:
        nonlocal attempts
        attempts += 1
        await trio.sleep(0.1)
        if attempts == 1:
            raise ValueError("not yet")
        return message

    route = handled(fails_once, subject="*.price", to=to("out.{{wildcard(1)}}.new"), retry={})
    async with world(handlers=[route]) as w:
        w.broker.publish(f"{BUCKET}gold.price", b"1")
        w.broker.publish("gold.price", b"this is no key of the bucket")
        await eventually(lambda: [one.subject for one in w.broker.published] == ["out.gold.new"])
        assert (w.route_ledger(), attempts) == ((1, 0, {"routed": 1}), 2)
        await w.lose()
        await w.find()
        await eventually(lambda: w.route.state == RUNNING)
        w.broker.publish(f"{BUCKET}tin.price", b"2")
        await eventually(lambda: w.route_ledger() == (2, 0, {"routed": 2}))


async def test_messages_of_a_watch_in_hand_at_the_end_are_lost(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keeper, "KeptSubject", Watch)

    async def hangs(message: Message) -> None:
        await trio.sleep_forever()

    route = handled(hangs, subject="*.price", to=to("out.{{wildcard(1)}}.new"), retry={})
    async with world(handlers=[route], shutdown_timeout=1.0) as w:
        for key in ("gold", "tin"):
            w.broker.publish(f"{BUCKET}{key}.price", b"1")
        await eventually(lambda: w.route.received == 2)
    assert w.route_ledger() == (2, 0, {"lost": 2})
    assert w.live.unsettled == 2
