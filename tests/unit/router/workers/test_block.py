"""The shared block: what is written is read, however it grows; and what counts is there before bytes leave."""

from __future__ import annotations

import os
import signal
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router_trio.connection.supervisor import ConnectionCounts
from router_trio.router.workers.counts import block as block_module
from router_trio.router.workers.counts.block import Block, read_block
from router_trio.router.workers.counts.copying import Counting
from router_trio.router.workers.counts.numbers import PROCESS, ROUTE, Counts, Left, settle
from router_trio.states import RouteState
from router_trio.telemetry.metrics.metric import Sources
from tests.support.telemetry_views import View
from tests.unit.router.workers.counted import Hand, block, came, count, router

NUMBERS = st.integers(-(2**63), 2**63 - 1)
TEXTS = st.text(max_size=20)


@given(st.lists(st.tuples(TEXTS, TEXTS, st.dictionaries(TEXTS, NUMBERS, max_size=5)), max_size=20))
def test_what_is_written_is_read(records: list[tuple[str, str, dict[str, int]]]) -> None:
    expected: Counts = {}
    with block() as (one, descriptor):
        for kind, name, numbers in records:
            one.new_record((kind, name), [*numbers], [0] * len(numbers)).write([*numbers.values()])
            expected.setdefault((kind, name), {}).update(numbers)
        assert read_block(descriptor) == expected


def test_it_grows_and_older_records_are_still_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(block_module, "FIRST_SIZE", 4096)
    with block() as (one, descriptor):
        records = [one.new_record((ROUTE, f"r{number}"), ["a", "b"], [number, 0]) for number in range(500)]
        for number, record in enumerate(records):
            record.write([number, 2 * number])
        assert os.fstat(descriptor).st_size > 4096
        assert read_block(descriptor) == {(ROUTE, f"r{n}"): {"a": n, "b": 2 * n} for n in range(500)}


def test_what_was_written_outlives_a_process_that_is_killed() -> None:
    with block() as (_, descriptor):
        child = os.fork()
        if not child:
            Block(descriptor).new_record((ROUTE, "r"), ["a"], [7])
            os.kill(os.getpid(), signal.SIGKILL)
        os.waitpid(child, 0)
        assert read_block(descriptor) == {(ROUTE, "r"): {"a": 7}}


def nonzero(counts: Counts) -> Counts:
    """What is not 0, but of the process: its time goes on."""
    return {
        key: {name: number for name, number in one.items() if number} for key, one in counts.items() if key != PROCESS
    }


@given(st.integers(0, 2**32), st.integers(1, 5))
def test_the_block_holds_what_is_counted(seed: int, times: int) -> None:
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
    """Also of a route that settles, without anything new, what it had in hand."""
    random, view = Random(seed), router()
    with block() as (one, descriptor):
        counting = Counting(one)
        counting.watch(Sources(view))
        for _ in range(times):
            ledger = view.connections["edge"].outbox.ledger
            ledger.accepted += 1
            ledger.settle("acked", random.randrange(2))
            route = view.routes[0]
            assert isinstance(route.holder, Hand)
            if random.randrange(2) or not route.holder.in_hand:
                came(route, random.randrange(10), random)
            else:
                route.holder.in_hand -= 1
                route.fates["routed"] += 1
            counting.write()
            counts = read_block(descriptor)
            assert counts["connection", "edge"]["accepted"] == ledger.accepted
            assert counts["connection", "edge"]["settled.acked"] == ledger.settled["acked"]
            assert counts["route", "stored"]["received"] == route.received
            assert {fate: counts["route", "stored"][f"fates.{fate}"] for fate in route.fates} == route.fates


def test_a_route_whose_destinations_change_goes_on_with_its_counts() -> None:
    view = router()
    with block() as (one, descriptor):
        counting = Counting(one)
        counting.watch(Sources(view))
        view.routes[1].received += 5
        view.routes[1].delivered["copy"] += 5
        counting.write()
        after = RouteState("passed", "main", ["out.{{wildcard(1)}}", "elsewhere"])
        after.received, after.delivered["elsewhere"] = 8, 3
        view.routes = [view.routes[0], after]
        counting.write()
        numbers = read_block(descriptor)["route", "passed"]
        assert (numbers["received"], numbers["delivered.copy"], numbers["delivered.elsewhere"]) == (8, 5, 3)


class Removed:
    """See `copying.Past`: a router of which everything was removed."""

    def __init__(self, view: View) -> None:
        self._view = view

    def connection(self, name: str) -> ConnectionCounts | None:
        found = self._view.connections.get(name)
        if found is None:
            return None
        return ConnectionCounts(name, found.state, found.outbox.ledger, found.outbox.counters)

    def route(self, name: str) -> RouteState | None:
        return next((route for route in self._view.routes if route.name == name), None)


def test_a_route_that_is_removed_leaves_its_last_counts_and_nothing_unsettled() -> None:
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
