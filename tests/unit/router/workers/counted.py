"""Routers with counts, set by hand, and their reports."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from os import close
from random import Random

from router_trio.router.workers.counts.block import Block, new_block
from router_trio.router.workers.counts.copying import Counting
from router_trio.router.workers.report import Report, Reporter
from router_trio.states import CONNECTED, RUNNING, BreakerState, Held, RouteState
from router_trio.telemetry.metrics.metric import Sources
from tests.support.telemetry_views import View, make_view


def router(*, streams: bool = True) -> View:
    """Return a router with two connections and two routes, the first of them from a stream unless `streams` is
    False.
    """
    view = make_view(["main", "edge"], ["stored", "passed"])
    for connection in view.connections.values():
        connection.state.enter(CONNECTED, server="127.0.0.1:4222")
    for route in view.routes:
        route.enter(RUNNING)
        route.breakers = [BreakerState("edge", "copy")]
    if streams:
        view.routes[0].source = {"stream": "ORDERS", "durable": "router"}
        view.routes[0].redelivers = True
        view.routes[0].held_by(Held(0))
    view.routes[1].source = {"subject": "in.*", "queue": "routers"}
    return view


def count(view: View, random: Random) -> None:
    """Count random events, and leave some publishes and messages unsettled."""
    for connection in view.connections.values():
        ledger, counters = connection.outbox.ledger, connection.outbox.counters
        accepted = random.randrange(100)
        settled = random.randrange(accepted + 1)
        ledger.accepted += accepted
        ledger.settle(random.choice([*ledger.settled]), settled)
        counters.succeeded["publish"] += settled
        counters.failed["publish_with_ack", "a reason. with dots"] += random.randrange(3)
        counters.retried += random.randrange(3)
        connection.state.lost += random.randrange(3)
    for route in view.routes:
        receive(route, random.randrange(100), random)
        route.failed["handler_error"] += random.randrange(3)
        route.filtered["when"] += random.randrange(3)
        route.limited += random.randrange(3)
        route.openings["edge", "copy"] += random.randrange(3)


def receive(route: RouteState, received: int, random: Random) -> None:
    """Let a route receive messages and settle some of them."""
    settled = random.randrange(received + 1)
    route.received += received
    route.duplicates += random.randrange(3)
    forwarded = random.randrange(settled + 1) if route.holder.in_hand is None else 0
    route.forwarded.record(0.01 * random.random(), forwarded)
    route.elapsed.record(random.random(), settled - forwarded)
    route.fates[random.choice([*route.fates])] += settled - forwarded
    route.delivered["copy"] += settled - forwarded
    if route.holder.in_hand is not None:
        route.held_by(Held(route.holder.in_hand + received - settled))


def report_of(view: View) -> Report:
    """Return the report of a worker with this router, as it arrives through the channel."""
    with block() as (one, _):
        counting = Counting(one)
        counting.watch(Sources(view))
        report = Reporter(view, None).report(counting.write_all, 0.0)
    sent: Report = pickle.loads(pickle.dumps(report))
    return sent


@contextmanager
def block() -> Iterator[tuple[Block, int]]:
    """Yield a block and its descriptor."""
    descriptor = new_block()
    try:
        yield Block(descriptor), descriptor
    finally:
        close(descriptor)
