"""Retries that settings have scheduled are retried after a reload that schedules them elsewhere, or not at all."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from router_trio import Message
from router_trio.events import RouteRetriesLeft
from router_trio.protocol.stream_config import StreamConfig
from router_trio.states import RouteState
from router_trio.telemetry.http.status import status
from router_trio.testing import FakeBroker
from router_trio.testing.frames import Publish
from tests.support.eventually import eventually
from tests.support.world import World, stream, world
from tests.unit.readiness import why

COUNT = 20
FAILS = "tests.unit.routing.stream.test_left_retries:fails"

A = {"stream": "RETRY", "prefix": "retry", "after": "5s"}
B = {"stream": "AGAIN", "prefix": "again", "after": "5s"}
OTHER_PREFIX = {"stream": "RETRY", "prefix": "other", "after": "5s"}
WITHOUT = None
NO_RETRY = "none"

left_to_fail: dict[bytes, int] = {}
"""How often the handler fails for a payload from now on."""


def fails(message: Message) -> Message:
    """Fail as often as the test wants."""
    if left_to_fail.get(message.payload, 0):
        left_to_fail[message.payload] -= 1
        raise ValueError
    return message


@pytest.fixture(autouse=True)
def _none_fails() -> Iterator[None]:
    left_to_fail.clear()
    yield
    left_to_fail.clear()


def brokers() -> dict[str, FakeBroker]:
    """Return a broker with the streams IN and OUT, and two for schedules; RETRY takes two prefixes."""
    broker = FakeBroker()
    broker.add_stream("IN", ["in.*"])
    broker.add_stream("OUT", ["out.>"])
    for name, subjects in (("RETRY", ("retry.>", "other.>")), ("AGAIN", ("again.>",))):
        broker._server.ensure_stream(StreamConfig(name, subjects, allow_message_schedules=True), 0.0)
    return {"main": broker}


def route(schedule: Any, **more: Any) -> dict[str, Any]:
    """Return a route whose failed messages are tried again a minute later, and wait in this schedule."""
    settings = stream("IN", "out.{{wildcard(1)}}", filter="in.*") | {"handler": FAILS}
    if schedule != NO_RETRY:
        settings["retry"] = {"initial": "60s", "factor": 1.0, "max": "60s", "schedule": schedule}
    return settings | more


async def fail(w: World, count: int = COUNT, times: int = 1, first: int = 0) -> None:
    """Publish messages that fail, and wait until all are scheduled."""
    before = w.route.settled["scheduled"]
    for number in range(first, first + count):
        left_to_fail[b"%d" % number] = times
        w.broker.publish("in.a", b"%d" % number)
    await eventually(lambda: w.route.settled["scheduled"] == before + count)


def waits(w: World, name: str = "RETRY") -> int:
    """Return how many schedules a stream has."""
    return len(w.broker._server.streams[name].schedules)


def numbers(count: int = COUNT) -> list[bytes]:
    """Return the sorted payloads of `count` messages."""
    return sorted(b"%d" % number for number in range(count))


def draining(w: World) -> Any:
    """Return what `/status` shows of the retries that drain."""
    [shown] = status(w.live, trio.current_time())["routes"].values()
    return shown.get("schedules", {}).get("draining")


def durables(w: World, name: str = "RETRY") -> list[str]:
    """Return the durables of a stream."""
    return sorted(durable for of, durable in w.broker._server.consumers if of == name)


async def reload(w: World, *routes: dict[str, Any]) -> None:
    """Reload, and wait until the routes have looked at what waits."""
    await w.live.reload(w.configuration(*routes))
    await trio.sleep(0.5)


@pytest.mark.parametrize("after", [WITHOUT, NO_RETRY, B, OTHER_PREFIX])
async def test_retries_that_wait_are_tried_under_the_new_settings(after: Any, autojump_clock: MockClock) -> None:
    async with world([route(A)], brokers=brokers()) as w:
        await fail(w)
        await reload(w, route(after))
        [event] = w.watch.of("ROUTE_RETRIES_DRAINING")
        assert (event.route, event.stream, event.prefix, event.waiting) == ("route", "RETRY", "retry", COUNT)
        assert draining(w) == [{"stream": "RETRY", "prefix": "retry", "waiting": COUNT}]
        assert why(w) == ""
        assert w.watch.metric("router_route_schedules_waiting_count", kind="retry") == COUNT
        await eventually(lambda: w.route.settled["routed"] == COUNT, 100)
        assert w.route_ledger() == (2 * COUNT, 0, {"scheduled": COUNT, "routed": COUNT})
        assert sorted(w.payloads("OUT")) == numbers()
        await eventually(lambda: w.watch.of("ROUTE_RETRIES_DRAINED"), 20)
        assert draining(w) is None
        assert why(w) == ""


@pytest.mark.parametrize("after", [B, OTHER_PREFIX])
async def test_retries_that_fail_again_are_scheduled_where_the_new_settings_want_it(
    after: Any, autojump_clock: MockClock
) -> None:
    async with world([route(A)], brokers=brokers()) as w:
        await fail(w, times=2)
        await reload(w, route(after))
        await eventually(lambda: w.route.settled["scheduled"] == 2 * COUNT, 100)
        await eventually(lambda: w.watch.of("ROUTE_RETRIES_DRAINED"), 20)
        stored = [one.subject for one in w.broker.published if one.subject.split(".")[:2] == [after["prefix"], "s"]]
        assert len(stored) == waits(w, after["stream"]) == COUNT
        await eventually(lambda: w.route.settled["routed"] == COUNT, 100)
        assert w.route_ledger() == (3 * COUNT, 0, {"scheduled": 2 * COUNT, "routed": COUNT})


async def test_retries_that_fail_again_without_a_schedule_drain_until_they_are_settled(
    autojump_clock: MockClock,
) -> None:
    async with world([route(A)], brokers=brokers()) as w:
        await fail(w, times=3)
        await reload(w, route(WITHOUT))
        await eventually(lambda: w.route.settled["returned"] == COUNT, 100)
        await trio.sleep(20)
        assert draining(w) == [{"stream": "RETRY", "prefix": "retry", "waiting": COUNT}]
        assert not w.watch.of("ROUTE_RETRIES_DRAINED")
        await eventually(lambda: w.route.settled["routed"] == COUNT, 200)
        await eventually(lambda: w.watch.of("ROUTE_RETRIES_DRAINED"), 20)
        assert w.route_ledger() == (4 * COUNT, 0, {"scheduled": COUNT, "returned": 2 * COUNT, "routed": COUNT})


async def test_a_second_prefix_of_a_stream_has_a_durable_that_a_restart_finds(autojump_clock: MockClock) -> None:
    there = brokers()
    async with world([route(A)], brokers=there) as w:
        await fail(w, 1)
        assert durables(w) == ["retry-route"]
        await reload(w, route(OTHER_PREFIX))
        assert len(durables(w)) == 2
        await fail(w, 1, first=1)
        await eventually(lambda: w.route.settled["routed"] == 1, 100)
    async with world([route(OTHER_PREFIX)], brokers=there) as w:
        await eventually(lambda: w.route.settled["routed"] == 1, 100)
        assert len(durables(w)) == 2
        assert why(w) == ""
        await reload(w, route(A))
        await fail(w, 1, first=2)
        await eventually(lambda: w.route.settled["routed"] == 2, 100)
        assert sorted(w.payloads("OUT")) == numbers(3)
        assert len(durables(w)) == 2


async def test_any_sequence_of_reloads_loses_nothing(autojump_clock: MockClock) -> None:
    async with world([route(A)], brokers=brokers()) as w:
        await fail(w, 3)
        await reload(w, route(WITHOUT))
        await reload(w, route(B))
        await fail(w, 3, first=3)
        await reload(w, route(OTHER_PREFIX))
        await fail(w, 3, first=6)
        assert draining(w) == [
            {"stream": "RETRY", "prefix": "retry", "waiting": 3},
            {"stream": "AGAIN", "prefix": "again", "waiting": 3},
        ]
        await reload(w, route(A))
        assert [one["prefix"] for one in draining(w)] == ["again", "other"]
        await fail(w, 3, first=9)
        await reload(w, route(NO_RETRY))
        assert [one["waiting"] for one in draining(w)] == [6, 3, 3]
        await eventually(lambda: w.route.settled["routed"] == 12, 100)
        assert w.route_ledger() == (24, 0, {"scheduled": 12, "routed": 12})
        assert sorted(w.payloads("OUT")) == numbers(12)
        await eventually(lambda: draining(w) is None, 20)
        await reload(w, route(NO_RETRY, key="subject"))
        w.broker.publish("in.a", b"12")
        await eventually(lambda: w.route.settled["routed"] == 13, 100)
        assert why(w) == ""


async def test_a_schedule_that_comes_back_while_it_drains_is_the_current_one(autojump_clock: MockClock) -> None:
    async with world([route(A)], brokers=brokers()) as w:
        await fail(w)
        await reload(w, route(WITHOUT))
        await reload(w, route(A))
        assert draining(w) is None
        await eventually(lambda: w.route.settled["routed"] == COUNT, 100)
        await trio.sleep(20)
        assert not w.watch.of("ROUTE_RETRIES_DRAINED")
        assert durables(w) == ["retry-route"]
        await fail(w, 1, first=COUNT)


async def test_other_reloads_and_lost_links_do_not_end_it(autojump_clock: MockClock) -> None:
    async with world([route(A)], brokers=brokers()) as w:
        await fail(w)
        await reload(w, route(WITHOUT))
        await reload(w, route(WITHOUT, concurrency=2))
        await w.lose()
        await trio.sleep(90)
        await w.find()
        await eventually(lambda: w.route.settled["routed"] == COUNT, 100)
        await eventually(lambda: w.watch.of("ROUTE_RETRIES_DRAINED"), 20)
        assert len(w.watch.of("ROUTE_RETRIES_DRAINING")) == 1
        assert sorted(w.payloads("OUT")) == numbers()


async def test_a_reload_without_anything_that_waits_reports_nothing(autojump_clock: MockClock) -> None:
    async with world([route(A)], brokers=brokers()) as w:
        await reload(w, route(WITHOUT))
        await trio.sleep(20)
        assert draining(w) is None
        assert not [code for code in w.watch.codes if code.startswith("ROUTE_RETRIES")]


async def test_a_schedule_on_its_way_is_waited_for(autojump_clock: MockClock) -> None:
    """Its stream stores it long after the reload, and has nothing that waits until then."""
    there = brokers()
    server = there["main"]._server
    receive = server.receive

    def receive_late(publish: Publish, now: float, is_own: Callable[[Any], bool]) -> None:
        late = 12.0 if publish.subject.startswith(b"retry.s.") else 0.0
        server.losses.schedule(now + late, lambda: receive(publish, now + late, is_own))

    async with world([route(A)], brokers=there, shutdown_timeout=1.0) as w:
        server.receive = receive_late  # type: ignore[method-assign]
        await trio.sleep(1)
        left_to_fail[b"0"] = 1
        w.broker.publish("in.a", b"0")
        await eventually(lambda: not left_to_fail[b"0"])
        await reload(w, route(WITHOUT))
        await eventually(lambda: w.route.settled["routed"] == 1, 200)
        assert w.route_ledger() == (2, 0, {"scheduled": 1, "routed": 1})


async def test_a_stream_that_is_deleted_has_nothing_that_waits(autojump_clock: MockClock) -> None:
    async with world([route(A)], brokers=brokers()) as w:
        await fail(w)
        await reload(w, route(WITHOUT))
        w.broker.delete_stream("RETRY")
        await eventually(lambda: w.watch.of("ROUTE_RETRIES_DRAINED"), 60)
        await trio.sleep(1)
        assert draining(w) is None
        assert why(w) == ""


async def test_a_removed_route_reports_what_it_leaves(autojump_clock: MockClock) -> None:
    async with world([route(A)], brokers=brokers()) as w:
        await fail(w)
        await reload(w)
        [event] = w.watch.of("ROUTE_RETRIES_LEFT")
        assert isinstance(event, RouteRetriesLeft)
        assert (event.route, event.connection, event.stream, event.prefix) == ("route", "main", "RETRY", "retry")
        assert event.waiting == COUNT
        assert event.sentence().startswith("Route route: 20 messages wait in stream RETRY of connection main below")
        assert "`router-trio schedules`" in event.sentence()
        await reload(w, route(A))
        await eventually(lambda: w.route.settled["routed"] == COUNT, 100)


async def test_a_route_that_was_removed_while_retries_drain_reports_them(autojump_clock: MockClock) -> None:
    async with world([route(A)], brokers=brokers()) as w:
        await fail(w)
        await reload(w, route(B))
        await reload(w, route(B, name="renamed"))
        [event] = w.watch.of("ROUTE_RETRIES_LEFT")
        assert (event.stream, event.prefix, event.waiting) == ("RETRY", "retry", COUNT)


@pytest.mark.parametrize(
    "source",
    [
        {"subject": "core.*", "connection": "main"},
        {"stream": "IN", "durable": "router", "filter": "in.*", "connection": "edge"},
    ],
)
async def test_a_source_that_can_not_drain_reports_what_is_left(source: Any, autojump_clock: MockClock) -> None:
    there = brokers() | {"edge": brokers()["main"]}
    end = {"to": [{"subject": "out.{{wildcard(1)}}", "connection": "main", "jetstream": True}]}
    reads = {"from": {"stream": "IN", "durable": "router", "filter": "in.*", "connection": "main"}}
    async with world([route(A) | end | reads], brokers=there) as w:
        await fail(w)
        await reload(w, route(A if source["connection"] == "edge" else NO_RETRY) | end | {"from": source})
        [event] = w.watch.of("ROUTE_RETRIES_LEFT")
        assert (event.connection, event.stream, event.waiting) == ("main", "RETRY", COUNT)
        assert not w.watch.of("ROUTE_RETRIES_DRAINING")


async def test_the_connection_of_a_schedule_that_is_removed_with_its_route_is_asked_before(
    autojump_clock: MockClock,
) -> None:
    there = brokers() | {"edge": brokers()["main"]}
    end = {"to": [{"subject": "out.{{wildcard(1)}}", "connection": "edge", "jetstream": True}]}
    reads = {"stream": "IN", "durable": "router", "filter": "in.*"}
    async with world([route(A) | end | {"from": reads | {"connection": "main"}}], brokers=there) as w:
        await fail(w)
        new = route(WITHOUT) | end | {"from": reads | {"connection": "edge"}}
        await w.live.reload(w.configuration(new, names=("edge",)))
        [event] = w.watch.of("ROUTE_RETRIES_LEFT")
        assert (event.connection, event.waiting) == ("main", COUNT)


async def test_another_stream_is_read_while_the_retries_of_the_last_one_drain(autojump_clock: MockClock) -> None:
    there = brokers()
    there["main"].add_stream("TWO", ["two.*"])
    async with world([route(A)], brokers=there) as w:
        await fail(w)
        reads = {"from": {"stream": "TWO", "durable": "router", "filter": "*.*"}}
        ends = {"to": [{"subject": "out.x.{{wildcard(2)}}", "jetstream": True}]}
        await reload(w, route(WITHOUT) | reads | ends)
        w.broker.publish("two.a", b"two")
        await eventually(lambda: w.route.settled["routed"] == COUNT + 1, 100)
        assert w.route_ledger() == (2 * COUNT + 1, 0, {"scheduled": COUNT, "routed": COUNT + 1})


def test_the_sum_of_generations_has_what_drains() -> None:
    from router_trio.routing.route_counts import total

    before, state = RouteState("route", "main", ["out"]), RouteState("route", "main", ["out"])
    state.earlier = [before]
    state.draining["RETRY", "retry"] = 3
    summed = total(state)
    assert summed is not state
    assert summed.draining == {("RETRY", "retry"): 3}
    assert summed.scheduled_retries is not None
    assert summed.scheduled_retries.waiting == 3
