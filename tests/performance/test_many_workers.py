"""The pages of a router with many workers: ledgers add up, and cost grows with workers and routes, not faster.

Instructions are counted: their number does not depend on the load of the machine.
"""

from __future__ import annotations

from random import Random
from typing import Any

import trio

from router_trio import Settings
from router_trio.router.workers.answers import WorkersAnswers
from router_trio.router.workers.report import Report
from router_trio.router.workers.supervisor import Supervisor
from router_trio.states import RUNNING
from router_trio.telemetry.metrics.metric import Sources
from router_trio.telemetry.pieces import complete
from tests.performance.instructions import instructions
from tests.support.telemetry_views import View, make_view
from tests.unit.router.workers.counted import count, report_of

WORKERS, ROUTES = 64, 64
FEW, TIMES = 16, 4
GROWTH = 1.2 * TIMES
"""The largest factor by which instructions may grow from n to 4n workers, or routes."""


def worker(routes: int, number: int) -> View:
    """Return a worker that has counted something of each route."""
    view = make_view(["main", "edge"], [f"r{one}" for one in range(routes)])
    for route in view.routes:
        route.enter(RUNNING)
    count(view, Random(number))
    return view


def settings_of(workers: int, routes: int) -> Settings:
    """Return the settings of these workers."""
    servers: dict[str, Any] = {"servers": ["nats://127.0.0.1:4222"]}
    to = [{"connection": "main", "subject": subject} for subject in ("out.{{wildcard(1)}}", "copy")]
    named = [
        {"name": f"r{one}", "from": {"connection": "main", "subject": f"in.{one}.*", "queue": "routers"}, "to": to}
        for one in range(routes)
    ]
    return Settings(router={"workers": workers}, connections={"main": servers, "edge": servers}, routes=named)


def supervised(reports: list[Report], routes: int) -> Supervisor:
    """Return a supervisor that has these reports of its workers."""
    settings = settings_of(len(reports), routes)
    supervisor = Supervisor(settings, emit=lambda event: None, recent=None, lock=0, uniform=lambda low, high: low)
    for slot, report in zip(supervisor.slots, reports, strict=True):
        slot.report = report
        supervisor.reported(slot.number, report)
    return supervisor


def of_pages(workers: int, routes: int) -> int:
    """Return the instructions of a scrape, and of the same for `/status` and `/readyz`."""
    supervisor = supervised([report_of(worker(routes, number)) for number in range(workers)], routes)

    async def run() -> int:
        answers = WorkersAnswers(supervisor, Sources(make_view()), trio.current_time)

        def pages() -> None:
            complete(answers.metrics())
            complete(answers.status())
            complete(answers.readiness())

        return instructions(pages)

    return trio.run(run)


def test_the_ledgers_of_many_workers_add_up() -> None:
    views = [worker(ROUTES, number) for number in range(WORKERS)]
    summed = supervised([report_of(view) for view in views], ROUTES).sum()
    for name, entry in summed.ledger().items():
        ledgers = [view.connections[name].outbox.ledger for view in views]
        assert entry["accepted"] == sum(one.accepted for one in ledgers)
        assert entry["settled"] == {fate: sum(one.settled[fate] for one in ledgers) for fate in ledgers[0].settled}
    for place, route in enumerate(summed.routes):
        assert route.received_in_all == route.in_hand + sum(route.settled.values())
        assert route.received_in_all == sum(view.routes[place].received_in_all for view in views)


def test_pages_of_many_workers_cost_no_more_a_worker_than_those_of_few() -> None:
    of_pages(2, 2)  # imports what is needed
    few, many = of_pages(FEW, FEW), of_pages(TIMES * FEW, FEW)
    assert many < GROWTH * few, f"{few} instructions for {FEW} workers, {many} for {TIMES} times as many"


def test_pages_of_workers_cost_no_more_a_route_with_many_routes_than_with_few() -> None:
    of_pages(2, 2)  # imports what is needed
    few, many = of_pages(4, FEW), of_pages(4, TIMES * TIMES * FEW)
    assert many < TIMES * GROWTH * few, f"{few} instructions for {FEW} routes, {many} for {TIMES * TIMES} times as many"
