"""Many reloads leave no more behind than a few: memory stays flat, the ledger continues, and pages answer."""

from __future__ import annotations

import gc
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from router_trio.routing.route_counts import MOST_PAST_DESTINATIONS, PAST_DESTINATIONS
from router_trio.telemetry.http.status import readiness, status
from router_trio.testing import FakeBroker
from tests.support.eventually import eventually
from tests.support.world import World, core, one_broker, stream, to, world
from tests.unit.router.traffic import by_name

pytestmark = pytest.mark.slow

WARM_UP, RELOADS = 20, 60
DEEPEST, MANY = 300, 350
"""The recursion limit that a test sets, and a number of reloads above it."""

KINDS: dict[str, Callable[[int], list[dict[str, Any]]]] = {
    "a destination": lambda n: [core("b.*", f"new{n % 2}.$1")],
    "a destination that is new each time": lambda n: [core("b.*", f"new{n}.$1")],
    "the subject": lambda n: [core(f"b{n}.*", "new.$1")],
    "a route added and removed": lambda n: [core("b.*", "new.$1", name="added and removed")][: n % 2],
    "with retry and dead letters": lambda n: [
        core("b.*", f"new{n % 2}.$1")
        | {"retry": {"attempts": 3}, "dead_letter": {"subject": "dead.$1", "jetstream": False}}
    ],
    "by key": lambda n: [core("b.*", f"new{n % 2}.$1") | {"key": "subject"}],
    "with a limit": lambda n: [core("b.*", f"new{n % 2}.$1") | {"limit": {"rate": f"{5 + n % 2}/s", "burst": 3}}],
    "with a mirror": lambda n: [core("b.*", f"new{n % 2}.$1", to("copy.$1") | {"mirror": 0.5})],
    "to a stream": lambda n: [core("b.*", to(f"out.{n % 2}.$1", jetstream=True))],
    "from a stream": lambda n: [stream("IN", f"out.{n % 2}.$1", filter="in.*")],
    "from a stream, the durable": lambda n: [stream("IN", "out.$1", durable=f"router-{n % 2}", filter="in.*")],
    "from a stream by key": lambda n: [stream("IN", f"out.{n % 2}.$1", filter="in.*") | {"key": "subject"}],
}


def two() -> dict[str, FakeBroker]:
    return {"main": FakeBroker(), "edge": FakeBroker()}


async def reload(w: World, *routes: Mapping[str, Any]) -> None:
    await w.live.reload(w.configuration(*routes))
    w.watch.events.clear()  # the watch remembers each event


def objects() -> Counter[str]:
    """Return the number of live objects of this package, by kind."""
    while gc.collect():  # objects released by a finalizer are collected in the next round
        pass
    kinds = (type(one) for one in gc.get_objects())
    # Objects of some compiled types of other packages have a `__module__` that is not text.
    return Counter(kind.__qualname__ for kind in kinds if str(kind.__module__).startswith("router_trio"))


@pytest.fixture
def _low_recursion_limit() -> Iterator[None]:
    """Make code that recurses once for each reload fail after hundreds of reloads, not after a thousand."""
    most = sys.getrecursionlimit()
    sys.setrecursionlimit(DEEPEST)
    yield
    sys.setrecursionlimit(most)


@pytest.mark.parametrize("kind", KINDS)
async def test_a_reload_leaves_nothing_behind(kind: str, autojump_clock: MockClock) -> None:
    routes = KINDS[kind]
    async with world(routes(0), brokers=one_broker()) as w:
        for number in range(1, WARM_UP):
            await reload(w, *routes(number))
        before = objects()
        for number in range(WARM_UP, WARM_UP + RELOADS):
            if number % 25 == 0:  # the broker remembers each message
                w.broker.publish("b.x", b"x")
                w.broker.publish("in.x", b"x")
            await reload(w, *routes(number))
        await eventually(lambda: sum(one.in_hand for one in w.live.routes) == 0)
        await trio.sleep(1)  # requests to streams are forgotten after the next fence
        more = {name: count for name, count in (objects() - before).items() if count > RELOADS // 3}
        assert more == {}


async def test_connections_that_change_and_are_removed_leave_nothing_behind(autojump_clock: MockClock) -> None:
    def number(n: int) -> dict[str, Any]:
        return {"connections": {"main": {"max_pending_operations": 100 + n}}}

    async with world([core("b.*", "new.$1")]) as w:
        for n in range(WARM_UP + RELOADS):
            if n == WARM_UP:
                before = objects()
            await w.live.reload(w.configuration(core("b.*", "new.$1"), **number(n)))
            w.watch.events.clear()
        await trio.sleep(1)
        more = {name: count for name, count in (objects() - before).items() if count > RELOADS // 3}
        assert more == {}


@pytest.mark.usefixtures("_low_recursion_limit")
async def test_pages_answer_after_many_reloads_between_two_scrapes(autojump_clock: MockClock) -> None:
    async with world([core("b.*", "new.$1")]) as w:
        for number in range(1, MANY + 1):
            w.broker.publish("b.x", b"x")
            await reload(w, core("b.*", f"{('old', 'new')[number % 2]}.$1"))
        status(w.live, 0.0)
        readiness(w.live, 0.0)
        await eventually(lambda: w.route.in_hand == 0)
        assert w.route.received == MANY
        assert w.route.settled["routed"] == sum(w.route.routed.values()) == MANY


@pytest.mark.usefixtures("_low_recursion_limit")
async def test_messages_waiting_since_before_many_reloads_are_counted_until_they_are_settled(
    autojump_clock: MockClock,
) -> None:
    def changed(number: int) -> dict[str, Any]:
        return core("b.*", to(f"{('old', 'new')[number % 2]}.$1", "edge"), connection="main")

    async with world([changed(0)], brokers=two(), max_pending_operations=10_000) as w:

        def waits(count: int) -> bool:
            return w.live.connections["edge"].outbox.pending == count

        await w.lose("edge")
        for number in range(1, MANY + 1):
            w.broker.publish("b.x", b"x")
            await eventually(partial(waits, number))
            await reload(w, changed(number))
        assert w.route.received == w.route.in_hand == MANY
        status(w.live, 0.0)
        readiness(w.live, 0.0)
        await w.find("edge")
        await eventually(lambda: w.route.in_hand == 0)
        assert w.route.settled["routed"] == sum(w.route.routed.values()) == MANY


async def test_a_route_remembers_a_bounded_number_of_past_destinations(autojump_clock: MockClock) -> None:
    changes = MOST_PAST_DESTINATIONS + 50
    async with world([core("b.*", "new.$1")]) as w:

        def settled(count: int) -> bool:
            return w.route.received == count and not w.route.in_hand

        for number in range(changes):
            await reload(w, core("b.*", f"new{number}.$1"))
            w.broker.publish("b.x", b"x")
            await eventually(partial(settled, number + 1))
        routed = w.route.routed
        assert sum(routed.values()) == changes
        assert len(routed) <= MOST_PAST_DESTINATIONS + 3
        assert routed[f"new{changes - 1}.$1"] == 1
        assert routed[PAST_DESTINATIONS] > 1


async def test_a_route_that_is_added_again_while_its_last_messages_are_in_flight_is_shown_once(
    autojump_clock: MockClock,
) -> None:
    async with world([core("b.*", to("new.$1", "edge"), connection="main")], brokers=two(), shutdown_timeout=0.5) as w:
        await w.lose("edge")
        w.broker.publish("b.x", b"x")
        await eventually(lambda: w.route.in_hand == 1)
        await reload(w)
        assert by_name(w)["route"].in_hand == 1
        await reload(w, core("b.*", to("new.$1", "edge"), connection="main"))
        assert [route.name for route in w.live.routes] == ["route"]
        assert w.route.received == w.route.in_hand == 1
        await w.find("edge")
        await eventually(lambda: w.route.in_hand == 0)
        assert w.route.settled["routed"] == 1
