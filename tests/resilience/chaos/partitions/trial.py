"""The steps of a trial and their times, drawn from a seed. Pure."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass, field

OF_MEMBERS: Mapping[str, int] = {"kill": 3, "suspend": 4, "terminate": 3, "start": 3}
OF_SERVERS: Mapping[str, int] = {"kill a server": 1, "stop a server": 1}
OF_CLUSTERS: Mapping[str, int] = {"step down": 1}
"""Kinds of steps, by weight. A member or server is chosen by a number of the step among those that live."""

SUSPENDED_FOR = (1.0, 3.0, 6.0, 12.0, 20.0)
"""Seconds for which a member may be suspended: shorter and longer than its lead lasts."""

SERVER_AWAY_FOR = (1.0, 3.0, 7.0)

FEWEST, MOST = 1, 6
"""Members that live at a time."""


@dataclass(frozen=True, slots=True)
class Step:
    """A step `at` a number of seconds after the start, which lasts for `seconds`. `place` chooses who is hit."""

    at: float
    kind: str
    seconds: float
    place: int

    def __str__(self) -> str:
        lasting = f" for {self.seconds:g} s" if self.seconds else ""
        return f"at {self.at:6.1f} s{lasting}: {self.kind} {self.place}"


@dataclass(frozen=True, slots=True)
class Trial:
    """The parameters of a trial. `own_token`: the source has the partitions; otherwise a stream sources it.

    `rate` is the number of messages published each second. A handler call takes `handler` seconds.
    """

    seed: int
    nodes: int = 1
    seconds: float = 45.0
    members: int = 4
    partitions: int = 16
    keys: int = 500
    rate: int = 300
    handler: float = 0.005
    own_token: bool = False
    workers: int = 0
    steps: tuple[Step, ...] = field(default=(), repr=False)

    @property
    def command(self) -> str:
        """Return the command that repeats this trial."""
        nodes = f" --nodes {self.nodes}" if self.nodes > 1 else ""
        workers = f" --workers {self.workers}" if self.workers else ""
        return f"python -m tests.resilience.chaos --kind partitions --seed {self.seed}{nodes}{workers}"


def draw(
    seed: int, nodes: int = 1, *, seconds: float = 45.0, shortest: float = 2.0, longest: float = 9.0, rate: int = 300
) -> Trial:
    """Return the trial of a seed, with `shortest` to `longest` seconds between its steps."""
    dice = random.Random(f"partitions {seed} {nodes}")
    kinds = dict(OF_MEMBERS) | dict(OF_SERVERS) | (dict(OF_CLUSTERS) if nodes > 1 else {})
    own_token = dice.random() < 0.5
    steps = []
    at = dice.uniform(1.0, 3.0)
    while at < seconds:
        kind = dice.choices(list(kinds), list(kinds.values()))[0]
        lasts = {"suspend": SUSPENDED_FOR, "kill a server": SERVER_AWAY_FOR, "stop a server": SERVER_AWAY_FOR}
        steps.append(Step(round(at, 2), kind, dice.choice(lasts.get(kind, (0.0,))), dice.randrange(60)))
        at += dice.uniform(shortest, longest)
    return Trial(seed, nodes, seconds, own_token=own_token, rate=rate, steps=tuple(steps))
