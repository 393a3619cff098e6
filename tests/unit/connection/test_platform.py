"""A router uses the clock and the random source of its platform, and no others."""

from __future__ import annotations

from random import Random

import trio
from trio.testing import MockClock

from router_trio import Router, Settings
from router_trio.connection.platform import Platform
from router_trio.testing import FakeBroker


def outcome(seed: int) -> list[object]:
    """Return the results of a short run that depend on chance and on the wall clock."""
    broker = FakeBroker()
    inboxes: list[bytes] = []

    def connect(*_: object) -> object:
        def link(server: str, inbox: bytes, listener: object) -> object:
            inboxes.append(inbox)
            return broker.connect(server, inbox, listener)  # type: ignore[arg-type]

        return link

    dice = Random(seed)
    platform = Platform(lambda: 86_400.0, dice, lambda count: dice.randbytes(count).hex())
    settings = Settings(
        telemetry={"listen": ""},
        connections={"main": {"servers": ["nats://fake:4222"]}},
        routes=[{"name": "route", "from": {"subject": "in.*"}, "to": [{"subject": "out.{{random(1000000)}}"}]}],
    )
    delays: list[int] = []

    def listen(event: object) -> None:
        delays.extend([delay] if (delay := getattr(event, "delay_ms", None)) is not None else [])

    async def body() -> float:
        router = Router(settings, observers=[listen], connect=connect, platform=platform)  # type: ignore[arg-type]
        async with router.open() as live:
            broker.publish("in.x")
            await trio.sleep(1)
            broker.down()
            await trio.sleep(60)
            return live.connections["main"].state.since

    since = trio.run(body, clock=MockClock(autojump_threshold=0))
    return [since, inboxes[0], [message.subject for message in broker.published], delays]


def test_the_wall_clock_and_the_random_source_are_those_of_the_platform() -> None:
    since, inbox, subjects, delays = outcome(1)
    assert since == 86_400.0
    assert delays
    assert [since, inbox, subjects, delays] == outcome(1)
    assert outcome(2)[1:] != outcome(1)[1:]
