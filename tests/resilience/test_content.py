"""Every strategy at once, on a real server that is killed twice: counts are exact, and every route's ledger adds up."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import trio

from router_trio.states import RouteState
from tests.support.eventually import eventually
from tests.support.raw_jetstream import JetStream
from tests.support.raw_nats import connect
from tests.support.servers import NatsServer
from tests.support.settings import settings
from tests.support.watch import assert_accounted, assert_alive, watched

SCRAPES = 100


def to(subject: str, **options: Any) -> dict[str, Any]:
    return {"subject": subject, "jetstream": True, **options}


ROUTES: dict[str, dict[str, Any]] = {
    "all": {
        "to": [to("all.two", when="body.n % 2 == 0"), to("all.three", when="body.n % 3 == 0")],
    },
    "first": {
        "strategy": "first_match",
        "to": [to("first.two", when='headers["even"] == "yes"'), to("first.rest", payload='{"m": body.n}')],
    },
    "weighted": {
        "strategy": "weighted",
        "to": [to("weighted.one", weight=1), to("weighted.two", weight=2), to("weighted.seven", weight=7)],
    },
    "sticky": {
        "strategy": "sticky",
        "key": "body.n % 100",
        "to": [to("sticky.a"), to("sticky.b"), to("sticky.c")],
    },
    "fallback": {"strategy": "fallback", "to": [to("fallback.a"), to("fallback.b")]},
    "mirror": {"when": "body.n % 5 != 0", "to": [to("mirror.real"), to("mirror.shadow", mirror=0.1)]},
}


def adds_up(route: RouteState) -> bool:
    return route.in_hand >= 0 and route.received_in_all == route.in_hand + sum(route.settled.values())


@pytest.mark.parametrize("count", [2_000, pytest.param(100_000, marks=pytest.mark.nightly)])
async def test_every_strategy_at_once_loses_and_duplicates_nothing(server: NatsServer, count: int) -> None:
    async with connect(server.url) as client:
        stream = JetStream(client)
        await stream.create_stream("SOURCE", ["source"])
        for name in ROUTES:
            await stream.create_stream(name.upper(), [f"{name}.>"])
        await stream.publish_many(
            [("source", b'{"n": %d}' % n, [("even", "no" if n % 2 else "yes")]) for n in range(count)]
        )
    within = 60 + count / 200
    routes = [{"name": name, "from": {"stream": "SOURCE", "durable": name}, **route} for name, route in ROUTES.items()]
    expected = {
        "all": Counter(
            {"all.two": len(range(0, count, 2)), "all.three": len(range(0, count, 3))},
        ),
        "first": Counter({"first.two": len(range(0, count, 2)), "first.rest": len(range(1, count, 2))}),
        "weighted": Counter(
            {"weighted.one": count // 10, "weighted.two": count // 5, "weighted.seven": 7 * count // 10}
        ),
        "mirror": Counter({"mirror.real": count - len(range(0, count, 5))}),
    }
    filtered = {"all": sum(1 for n in range(count) if n % 2 and n % 3), "mirror": len(range(0, count, 5))}
    async with watched(settings(server.url, routes=routes)) as watch:
        live = watch.router
        states = {one.name: one for one in live.routes}
        scrapes = 0

        async def scrape() -> None:
            nonlocal scrapes
            while True:
                assert all(adds_up(route) for route in live.routes), {r.name: r.settled for r in live.routes}
                assert_accounted(live)
                scrapes += 1
                await trio.sleep(0.02)

        def done() -> bool:
            settled = [route.settled for route in live.routes]
            return all(one["routed"] + one["filtered"] >= count for one in settled)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(scrape)
            for share in (0.3, 0.6):
                await eventually(lambda share=share: states["weighted"].settled["routed"] >= share * count, within)  # type: ignore[misc]
                await server.kill()
                await watch.until("NATS_RECONNECT_ATTEMPT", times=2)
                await server.restart()
                await assert_alive(live, 90)
            await eventually(done, within)
            await eventually(lambda: scrapes >= SCRAPES, 30)
            nursery.cancel_scope.cancel()
        for name, number in filtered.items():
            assert states[name].settled["filtered"] >= number
        assert all(not +route.mirror_failed for route in live.routes)
    async with connect(server.url) as client:
        for name in ROUTES:
            await _check(JetStream(client), name, count, expected.get(name))


async def _check(stream: JetStream, name: str, count: int, expected: Counter[str] | None) -> None:
    messages = await stream.stream_messages(name.upper())
    real = [message for message in messages if message.subject != "mirror.shadow"]
    assert len({(one.subject, one.payload) for one in real}) == len(real), "nothing is doubled"
    found = Counter(message.subject for message in real)
    if expected is not None:
        # This holds by weight as well: a choice is kept with its message, so that the proportion is exact over two
        # kills.
        assert found == expected
    else:
        assert found.total() == count
