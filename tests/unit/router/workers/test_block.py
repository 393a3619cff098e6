"""The shared block: what is written can be read, however it grows, and counts are written before bytes leave."""

from __future__ import annotations

import os
import signal
import sys
from random import Random
from types import FrameType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router_trio.connection.supervisor import ConnectionCounts
from router_trio.message import Message
from router_trio.router.workers.counts import block as block_module
from router_trio.router.workers.counts import copying
from router_trio.router.workers.counts.block import LONGEST_REASON, Block, read_block, read_blocked, take_in_handlers
from router_trio.router.workers.counts.copying import Counting
from router_trio.router.workers.counts.numbers import CONNECTION, PROCESS, ROUTE, Counts, Left, settle
from router_trio.router.workers.in_handler import InHandlers
from router_trio.routing.route_counts import MOST_PAST_DESTINATIONS, continue_counts
from router_trio.settings import RouteSettings, Settings
from router_trio.states import DURATION_BOUNDS, Held, Histogram, RouteState
from router_trio.telemetry.metrics.metric import Sources
from tests.support.telemetry_views import View, make_view
from tests.unit.router.workers.counted import block, count, receive, router

NUMBERS = st.integers(-(2**63), 2**63 - 1)
TEXTS = st.text(max_size=20)


@given(st.lists(st.tuples(TEXTS, TEXTS, st.dictionaries(TEXTS, NUMBERS, max_size=5)), max_size=20))
def test_records_are_read_as_they_were_written(records: list[tuple[str, str, dict[str, int]]]) -> None:
    expected: Counts = {}
    with block() as (one, descriptor):
        for kind, name, numbers in records:
            one.new_record((kind, name), [*numbers], [0] * len(numbers)).write([*numbers.values()])
            expected.setdefault((kind, name), {}).update(numbers)
        assert read_block(descriptor) == expected


def test_a_grown_block_still_takes_writes_to_older_records(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(block_module, "FIRST_SIZE", 4096)
    with block() as (one, descriptor):
        records = [one.new_record((ROUTE, f"r{number}"), ["a", "b"], [number, 0]) for number in range(500)]
        for number, record in enumerate(records):
            record.write([number, 2 * number])
        assert os.fstat(descriptor).st_size > 4096
        assert read_block(descriptor) == {(ROUTE, f"r{n}"): {"a": n, "b": 2 * n} for n in range(500)}


def test_records_outlive_a_killed_process() -> None:
    with block() as (_, descriptor):
        child = os.fork()
        if not child:
            Block(descriptor).new_record((ROUTE, "r"), ["a"], [7])
            os.kill(os.getpid(), signal.SIGKILL)
        os.waitpid(child, 0)
        assert read_block(descriptor) == {(ROUTE, "r"): {"a": 7}}


def nonzero(counts: Counts) -> Counts:
    """Return the counts that are not 0, without those of the process, whose time advances."""
    return {
        key: {name: number for name, number in one.items() if number} for key, one in counts.items() if key != PROCESS
    }


@given(st.integers(0, 2**32), st.integers(1, 5))
def test_the_block_holds_every_count(seed: int, times: int) -> None:
    random, view = Random(seed), router()
    with block() as (one, descriptor):
        counting = Counting(one)
        counting.watch(Sources(view))
        for _ in range(times):
            count(view, random)
            found = counting.write_all()
            assert nonzero(read_block(descriptor)) == nonzero(found)


@given(st.integers(0, 2**32), st.integers(1, 8))
def test_before_bytes_leave_the_ledgers_are_in_the_block(seed: int, times: int) -> None:
    """This includes a route that receives nothing new and settles what it had in hand."""
    random, view = Random(seed), router()
    with block() as (one, descriptor):
        counting = Counting(one)
        counting.watch(Sources(view))
        for _ in range(times):
            ledger = view.connections["edge"].outbox.ledger
            ledger.accepted += 1
            ledger.settle("acked", random.randrange(2))
            route = view.routes[0]
            if random.randrange(2) or not route.in_hand:
                receive(route, random.randrange(10), random)
            else:
                route.held_by(Held(route.in_hand - 1))
                route.fates["routed"] += 1
            counting.write()
            counts = read_block(descriptor)
            assert counts["connection", "edge"]["accepted"] == ledger.accepted
            assert counts["connection", "edge"]["settled.acked"] == ledger.settled["acked"]
            assert counts["route", "stored"]["received"] == route.received
            assert {fate: counts["route", "stored"][f"fates.{fate}"] for fate in route.fates} == route.fates


def test_the_counts_of_a_route_continue_when_its_destinations_change() -> None:
    view = router()
    with block() as (one, descriptor):
        counting = Counting(one)
        counting.watch(Sources(view))
        view.routes[1].received += 5
        view.routes[1].delivered["copy"] += 5
        counting.write()
        after = change(view, "elsewhere")
        after.received += 3
        after.delivered["elsewhere"] += 3
        counting.write()
        numbers = read_block(descriptor)["route", "passed"]
        assert (numbers["received"], numbers["delivered.copy"], numbers["delivered.elsewhere"]) == (8, 5, 3)


def change(view: View, template: str) -> RouteState:
    """Reload the second route, which has nothing in hand, with another destination."""
    before, after = view.routes[1], RouteState("passed", "main", [template])
    before.is_over, before.elapsed = True, Histogram(DURATION_BOUNDS)
    before.elapsed.record(0.1, before.received)
    continue_counts(after, before)
    view.routes = [view.routes[0], after]
    return after


def test_a_route_reloaded_with_ever_new_destinations_needs_no_more_room() -> None:
    view, used = router(), {}
    with block() as (one, descriptor):
        counting = Counting(one)
        counting.watch(Sources(view))
        for number in range(3 * MOST_PAST_DESTINATIONS):
            after = change(view, f"elsewhere.{number}")
            after.received += 1
            after.delivered[f"elsewhere.{number}"] += 1
            after.fates["routed"] += 1
            after.openings["main", f"elsewhere.{number}"] += 1
            counting.write_all()
            used[number] = one.used
            numbers = read_block(descriptor)["route", "passed"]
            assert sum(count for name, count in numbers.items() if name.startswith("delivered.")) == number + 1
            assert (numbers["received"], numbers["fates.routed"]) == (number + 1, number + 1)
        assert used[3 * MOST_PAST_DESTINATIONS - 1] == used[MOST_PAST_DESTINATIONS + 5]


def test_routes_and_connections_of_ever_new_names_need_no_more_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(copying, "MOST_REMOVED", 5)
    view, used = router(), {}
    with block() as (one, descriptor):
        counting = Counting(one)
        counting.watch(Sources(view), Removed(view))
        handlers = InHandlers(one, lambda _: None)
        for number in range(50):
            name = f"{number:02}"
            view.routes = [view.routes[0], RouteState(name, "main", ["out"])]
            view.routes[1].received = view.routes[1].failed["handler_error"] = 1
            view.connections = {"main": view.connections["main"], name: make_view([name], []).connections[name]}
            view.connections[name].outbox.counters.succeeded["publish"] = 1
            handlers.around(route_named(name), lambda message: None)(Message("s", sequence=1))
            handlers.forget_removed({name})
            counting.write_all()
            used[number] = one.used
        assert used[49] == used[10]
        counts = read_block(descriptor)
        take_in_handlers(counts)
        for kind, kept in ((ROUTE, {"stored"}), (CONNECTION, {"main"})):
            names = {key[1] for key in counts if key[0] == kind} - kept
            assert "49" in names
            assert len(names) <= 6


def route_named(name: str) -> RouteSettings:
    route = {"name": name, "from": {"subject": "in"}, "to": [{"subject": "out"}]}
    return Settings(connections={"main": {"servers": ["nats://127.0.0.1:4222"]}}, routes=[route]).routes[0]


def test_a_block_can_be_read_whenever_its_worker_is_killed() -> None:
    """Read after each line that writes to the block: a replaced record stays until its replacement is complete."""
    seen: list[tuple[int, int]] = []
    with block() as (one, descriptor):

        def look(frame: FrameType, event: str, argument: object) -> Any:
            if frame.f_code.co_filename == block_module.__file__ and frame.f_code.co_name != "read_block":
                seen.append((number, read_block(descriptor)[ROUTE, "r"]["a"]))
            return look

        number, record = 0, one.new_record((ROUTE, "r"), ["a"], [0])
        sys.settrace(look)
        try:
            for number in range(1, 40):
                fields = ["a", *(f"b{index}" for index in range(number % 4))]
                before, record = record, one.new_record((ROUTE, "r"), fields, [number] * len(fields))
                one.free(before)
        finally:
            sys.settrace(None)
        assert one.used < 40 * 32, "the room of freed records is reused"
    assert len(seen) > 500
    assert all(now in (number - 1, number) for number, now in seen)


def test_the_cause_of_a_blocked_loop_can_be_read_meanwhile_and_is_not_a_count() -> None:
    with block() as (one, descriptor):
        assert read_blocked(descriptor) is None
        one.new_record((ROUTE, "r"), ["a"], [7])
        for why in ("not turned for 3 s: ü", "x" * 5000):
            one.write_blocked(why)
            assert read_blocked(descriptor) == why[:LONGEST_REASON]
            assert read_block(descriptor) == {(ROUTE, "r"): {"a": 7}}
        one.write_blocked(None)
        assert read_blocked(descriptor) is None


class Removed:
    """A router, as `copying.Past`, from which everything was removed."""

    def __init__(self, view: View) -> None:
        self._view = view

    def connection(self, name: str) -> ConnectionCounts | None:
        found = self._view.connections.get(name)
        if found is None:
            return None
        return ConnectionCounts(name, found.state, found.outbox.ledger, found.outbox.counters)

    def route(self, name: str) -> RouteState | None:
        return next((route for route in self._view.routes if route.name == name), None)


def test_a_removed_route_leaves_its_last_counts_and_nothing_unsettled() -> None:
    view, before = router(), router()
    before.connections, before.routes = view.connections, view.routes
    with block() as (one, descriptor):
        counting = Counting(one)
        counting.watch(Sources(view), Removed(before))
        route, ledger = before.routes[1], before.connections["edge"].outbox.ledger
        route.received += 5
        ledger.accepted += 5
        counting.write()
        route.elapsed.record(0.1, 5)
        route.fates["routed"] += 5
        ledger.settle("fenced", 5)
        view.routes = [before.routes[0]]
        view.connections = {"main": before.connections["main"]}
        counting.write_all()
        assert settle(read_block(descriptor)) == Left(0, 0, 0)
