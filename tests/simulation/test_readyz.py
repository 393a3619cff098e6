"""The judge recognizes what a router reports on `/readyz`, and how soon it must."""

from __future__ import annotations

from typing import Any

import pytest
from trio.testing import MockClock

from router_trio.routing.stream.pulling import checks
from router_trio.routing.stream.pulling.checks import CHECK_EVERY
from tests.simulation import readyz
from tests.simulation.oracles import TOLD_WITHIN
from tests.simulation.run import simulate
from tests.simulation.schedule import Plan, Schedule, Step, Target, schedule_of
from tests.simulation.simulation import LOOK_EVERY
from tests.support.eventually import eventually
from tests.support.world import fill, one_broker, stream, to, world


async def test_an_open_breaker_is_recognized_by_its_own_words(autojump_clock: MockClock) -> None:
    guarded = to("out.{{wildcard(1)}}", jetstream=True) | {"breaker": {"failures": 1, "pause": "60s"}}
    async with world([stream("IN", guarded, filter="in.*")], brokers=one_broker()) as w:
        w.broker.delete_stream("OUT")
        fill(w.broker, 1)
        await eventually(lambda: w.watch.of("ROUTE_BREAKER_OPENED"))
        assert readyz.unready(w.live, (), None, but_breakers=True) is None, "it quotes that the stream is missing"
        assert readyz.unready(w.live, (), None, but_breakers=False) is not None
        w.broker.add_stream("OUT", ["out.>"])
        await eventually(lambda: w.route.to[0].looked_up is None, 30)
        assert readyz.unready(w.live, (), None, but_breakers=True) is None
        assert readyz.unready(w.live, (), "route", but_breakers=False) is not None
        assert readyz.is_held_up(w.live, "route")


STALLED_AT, BEGINS_AT = 0.2, 8.2
"""When a durable stops delivering, and when its route begins once more: before the check that would report it."""


def stalled(step: Step) -> Schedule:
    """Return a schedule in which as many messages fail each time as a durable may have unacked, and then `step`."""
    source = {"stream": "IN", "durable": "r0", "filter": "in.*", "max_in_flight": 100, "ack_wait": 30.0}
    retry = {"initial": 1.0, "factor": 1.5, "max": 1.0}
    narrowed = {"broker": "a", "durable": "r0", "max_ack_pending": 3}
    load: dict[str, Any] = {"broker": "a", "subject": "in", "count": 30, "headers": "", "size": 0, "keys": 4}
    plan = Plan("r0", "a", True, (Target("a", True),), "poison", source, retry=retry)
    return schedule_of(
        plan,
        Step(0.1, "durable narrowed", 0.0, narrowed),
        Step(STALLED_AT, "strangers publish", 0.0, load),
        step,
        Step(BEGINS_AT + 2 * TOLD_WITHIN, "strangers publish", 0.0, load),
        faults=("durable narrowed", step.kind),
    )


begins_once_more = pytest.mark.parametrize(
    "step",
    [
        pytest.param(Step(BEGINS_AT, "reload", 0.0, {"routes": 1, "way": 0}), id="its reload"),
        pytest.param(Step(BEGINS_AT, "reload", 0.0, {"routes": 0, "way": 1}), id="a reload of its connection"),
        pytest.param(Step(BEGINS_AT, "restart", 0.0, {"after": 0.0}), id="a restart"),
    ],
)


@begins_once_more
def test_a_route_that_begins_once_more_has_the_time_of_two_checks_to_report_a_stall(step: Step) -> None:
    assert STALLED_AT + TOLD_WITHIN < BEGINS_AT + CHECK_EVERY < STALLED_AT + 3 * CHECK_EVERY
    assert simulate(0, stalled(step)).wrong == ()


@begins_once_more
def test_a_stall_that_is_never_reported_is_found_after_that_time(step: Step, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "standstill", lambda *args, **more: None)
    (promise, detail), *_ = simulate(0, stalled(step)).wrong
    assert promise == "standstill"
    assert BEGINS_AT + TOLD_WITHIN < float(detail.split()[1]) < BEGINS_AT + TOLD_WITHIN + 2 * LOOK_EVERY
