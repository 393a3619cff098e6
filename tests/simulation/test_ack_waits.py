"""Exactly what the judge allows for messages that a route can't request again."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.simulation.ack_waits import AckWaits
from tests.simulation.run import simulate
from tests.simulation.schedule import Plan, Schedule, Step, Target

SOURCE = {"stream": "IN", "durable": "r0", "filter": "in.*", "max_in_flight": 20, "ack_wait": 2.0}
OWN, ALL = "$JS.ACK.IN.{durable}.>", "$JS.ACK.>"


SCHEDULE = Schedule(
    seed=0,
    brokers={"a": 0.0},
    latency={"a": 0.02, "b": 0.0},
    connections={"a": {"servers": ["nats://one:4222"], "liveness_interval": 5.0}},
    shutdown_timeout=3.0,
    routes=(Plan("r0", "a", True, (Target("a", True),), None, SOURCE),),
    faults=("acks refused",),
    also=frozenset(),
    windows=dict.fromkeys(("IN", "OUT", "PUB", "DEAD"), 120.0),
    max_payload={"a": 1024 * 1024},
    steps=(),
)


def schedule(broker: str, durable: str, what: str) -> Schedule:
    return replace(
        SCHEDULE, steps=(Step(7.0, "acks refused", 3.0, {"broker": broker, "durable": durable, "what": what}),)
    )


@pytest.mark.parametrize(
    ("broker", "durable", "what", "now", "expected"),
    [
        ("a", "r0", OWN, 8.0, True),
        ("a", "r1", ALL, 8.0, True),
        ("a", "r0", OWN, 10.02, True),  # the naks were refused, and their answer took that long
        ("a", "r0", OWN, 6.9, False),
        ("a", "r0", OWN, 10.1, False),
        ("a", "r1", OWN, 8.0, False),
        ("b", "r0", ALL, 8.0, False),
    ],
)
def test_unacked_messages_may_pass_each_other_if_the_naks_of_their_route_are_refused_when_it_has_its_durable(
    broker: str, durable: str, what: str, now: float, expected: bool
) -> None:
    judge = AckWaits(schedule(broker, durable, what))
    judge.route_ready("r0", [3, 5], now)
    assert judge.may_pass("r0", 5, 3) is expected


def test_a_message_that_is_delivered_later_may_not_pass_them() -> None:
    judge = AckWaits(schedule("a", "r0", OWN))
    judge.route_ready("r0", [3, 5], 8.0)
    judge.route_ready("r0", [5, 7], 9.0)
    assert judge.may_pass("r0", 7, 5), "both were unacked when the route had its durable once more"
    assert not judge.may_pass("r0", 7, 3)
    assert not judge.may_pass("r1", 5, 3)


def test_messages_of_a_silent_server_pass_each_other_if_the_naks_are_refused_afterwards() -> None:
    """The link is lost when the server has redelivered some of them once more than later ones."""
    load = {"broker": "a", "subject": "in", "count": 10, "headers": "plain", "size": 0, "keys": 1}
    steps = (
        Step(1.0, "strangers publish", 1.5, load),
        Step(1.1, "silence", 12.0, {"broker": "a"}),
        Step(4.0, "acks refused", 20.0, {"broker": "a", "durable": "r0", "what": OWN}),
    )
    assert simulate(0, replace(SCHEDULE, faults=("silence", "acks refused"), steps=steps)).wrong == ()
