"""Advisories that are forged, lost or late. Nothing may depend on one, so no oracle knows of them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from random import Random
from typing import Any

from router_trio.protocol.advisories import OF_DURABLES, OF_STREAMS, subject_of
from router_trio.testing import FakeBroker
from tests.simulation.schedule import Plan, Step

SHARE = 0.3
"""Share of the seeds with such advisories."""

FORGED, LOST, LATE = "advisories forged", "advisories lost", "advisories late"


def advised(brokers: Sequence[str], routes: Sequence[Plan], horizon: float, random: Random) -> list[Step]:
    """Return when advisories are forged, about names of the router and others, or do not arrive."""
    if random.random() >= SHARE:
        return []
    steps = []
    durables = ["other", *(plan.name for plan in routes if plan.stream)]
    for kind in random.sample((FORGED, FORGED, LOST, LATE), random.choice((1, 2, 3))):
        for _ in range(random.choice((1, 3, 8))):
            what: dict[str, Any] = {"broker": random.choice(brokers)}
            if kind == FORGED:
                what |= {
                    "stream": random.choice(("IN", "IN", "OUT", "DEAD", "OTHER")),
                    "durable": random.choice(("", *durables)),
                    "kinds": random.choice((("max_deliveries",), ("quorum_lost",), ("deleted",), ())),
                    "sequences": random.sample(range(1, 200), random.choice((1, 5, 50))),
                }
            else:
                what |= {"times": random.choice((1, 10, 1000)), "late": random.choice((0.1, 6.0, 30.0))}
            steps.append(Step(round(random.uniform(0.0, horizon), 3), kind, 0.0, what))
    return steps


def forge(broker: FakeBroker, stream: str, durable: str, kinds: Sequence[str], sequences: Sequence[int]) -> None:
    """Publish advisories as any client with the permission can, of all kinds if none are named."""
    for kind in kinds or (OF_DURABLES if durable else OF_STREAMS):
        for sequence in sequences:
            body = {
                "stream": stream,
                "consumer": durable,
                "stream_seq": sequence,
                "deliveries": 3,
                "paused": True,
                "leader": "evil",
                "replicas": [{"name": "two", "offline": True}],
            }
            broker.publish(subject_of(kind, stream, durable), json.dumps(body).encode())
