"""Drawing of a schedule of several routers from a seed."""

from __future__ import annotations

from random import Random
from typing import Any

from tests.simulation.partitions.schedule import Schedule
from tests.simulation.schedule import Step

HORIZON = 60.0
"""Seconds of load and changes."""

MOST_STEPS = 12

KINDS: dict[str, tuple[int, tuple[float, ...], dict[str, tuple[Any, ...]]]] = {
    # --- processes ---
    "join": (4, (0.0,), {}),
    "leave": (3, (0.0,), {}),
    "kill": (3, (0.0,), {}),
    "machine off": (2, (0.0,), {}),
    "suspend": (5, (0.5, 3.0, 4.6, 5.5, 8.0, 20.0), {}),
    "move": (2, (0.0,), {}),
    "forge": (3, (5.0, 20.0, 60.0, 300.0), {"count": (1, 2, 30), "every": (0.0, 1.0, 3.0)}),
    # --- the network of one process ---
    "cut": (2, (0.0,), {}),
    "mute": (2, (1.0, 4.0, 7.0, 12.0), {}),
    "deaf": (2, (1.0, 4.0, 7.0, 12.0), {}),
    "cut off": (2, (1.0, 4.0, 7.0, 12.0), {}),
    "half-open": (2, (0.0, 3.0), {}),
    "slow": (1, (5.0, 15.0), {"latency": (0.05, 0.4), "jitter": (0.0, 0.3)}),
    # --- the server ---
    "bucket without leader": (3, (0.5, 4.0, 6.0, 10.0), {}),
    "durable without leader": (3, (0.0, 0.5, 3.0), {}),
    "stream without leader": (1, (0.0, 0.5, 3.0), {}),
    "durables paused": (2, (15.0, 30.0), {"restart": (False, True)}),
    "copying stalled": (1, (3.0, 15.0), {}),
    "source without tail": (2, (0.0,), {"count": (1, 5, 40)}),
    "copy without tail": (2, (0.0,), {"count": (1, 5, 40)}),
    "sink without tail": (1, (0.0,), {"count": (1, 5, 40)}),
    "sink without leader": (1, (0.5, 3.0), {}),
    "restart": (1, (0.5, 4.0), {}),
    "announce lost": (2, (0.0,), {"times": (1, 3, 10)}),
    "look lost": (2, (0.0,), {"times": (1, 3, 10)}),
    "announce late": (1, (0.0,), {"times": (1, 5), "late": (0.5, 3.0, 10.0)}),
    "pull lost": (1, (0.0,), {"times": (1, 3)}),
    "pull late": (1, (0.0,), {"times": (1, 3), "late": (0.5, 3.0, 10.0)}),
    "ack lost": (1, (0.0,), {"times": (1, 3)}),
    "ack late": (1, (0.0,), {"times": (1, 10), "late": (0.01, 0.5, 6.0)}),
    "nak lost": (1, (0.0,), {"times": (1, 3)}),
    "puback lost": (1, (0.0,), {"times": (1, 3)}),
    "puback late": (1, (0.0,), {"times": (1, 10), "late": (0.01, 0.5, 6.0)}),
}
"""The kinds of steps: the weight of each, how many seconds it lasts, and the values of its details."""

OF_ONE = frozenset({"leave", "kill", "machine off", "suspend", "cut", "mute", "deaf", "cut off", "half-open", "slow"})
"""Kinds that happen to one process: `which` is its place among those that live, by the time when they joined."""


def draw(seed: int) -> Schedule:
    """Return the schedule of a seed."""
    random = Random(f"partitions {seed}")
    members, partitions = random.choice((1, 2, 2, 3, 4)), random.choice((1, 3, 4, 8, 16))
    slow = random.choice((0.0, 0.005, 0.1, 0.4, 2.0))
    keys = random.choice((2, 6, 20))
    kinds = list(KINDS)
    # Few kinds, so that each has time to matter.
    wanted = random.sample(kinds, random.randint(1, 5), counts=[weight for weight, _, _ in KINDS.values()])
    if "source without tail" in wanted:
        # Acks on their way to the copy would ack other messages under the same sequences: see `faults.NOT_YET`.
        wanted = [kind for kind in wanted if kind != "copy without tail"]
    steps = [_step(random, random.choice(wanted), partitions) for _ in range(random.randint(1, MOST_STEPS))]
    # As many messages as the handler can take.
    most = 400 if slow <= 0.1 else 60
    for _ in range(random.randint(2, 5)):
        what = {"count": random.choice((1, most // 4, most))}
        seconds = random.choice((0.0, 3.0, 10.0, 25.0))
        steps.append(Step(round(random.uniform(0.0, HORIZON), 3), "publish", seconds, what))
    return Schedule(
        seed=seed,
        members=members,
        partitions=partitions,
        keys=keys,
        by_key=random.random() < 0.6,
        own_token=random.random() < 0.5,
        slow=slow,
        fails_every=random.choice((0, 0, 0, 7, 30)),
        concurrency=random.choice((1, 4, 16)),
        max_in_flight=random.choice((1, 5, 20, 100)),
        ack_wait=random.choice((5.0, 30.0)),
        window=random.choice((120.0, 120.0, 10.0)),
        liveness=random.choice((1.0, 5.0)),
        latency=random.choice((0.0, 0.001, 0.02)),
        sends_on=random.random() < 0.5,
        shutdown_timeout=random.choice((1.0, 5.0)),
        steps=tuple(sorted(steps, key=lambda step: step.at)),
    )


def _step(random: Random, kind: str, partitions: int) -> Step:
    _, seconds, details = KINDS[kind]
    what: dict[str, Any] = {name: random.choice(values) for name, values in details.items()}
    if kind in OF_ONE:
        what["which"] = random.randrange(8)
    if kind in ("move", "durable without leader"):
        what["partition"] = random.randrange(partitions)
    if kind == "move":
        what["which"] = random.randrange(8)
    if kind == "slow":
        what["dice"] = random.randrange(1000)
    return Step(round(random.uniform(1.0, HORIZON), 3), kind, random.choice(seconds), what)
