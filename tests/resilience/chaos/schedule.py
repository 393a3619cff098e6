"""The faults and their times, drawn from a seed alone. Pure.

Two tracks run at the same time, so that faults overlap: one for the networks, one for the server and the router. Each
has its own faults, one after the other.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

Kind = Literal["stream", "core"]

Variant = Literal["plain", "max-deliver", "sparse", "memory", "two-routers", "content", "keys", "websocket"]
"""How streams, durable, routers and routes are created: see `variants`."""

VARIANTS: tuple[Variant, ...] = get_args(Variant)
OF_CORE: tuple[Variant, ...] = ("plain", "content", "websocket")
"""The variants of core routes."""

NETWORK: Mapping[str, int] = {
    "cut": 3,
    "reset": 3,
    "blackhole": 2,
    "deaf": 2,
    "mute": 2,
    "delay": 1,
    "throttle": 1,
    "slow_reads": 1,
    "cut_mid_publish": 4,
    "cut_mid_delivery": 2,
    "refuse": 1,
}
"""Faults of the network, by weight."""

SERVER: Mapping[str, int] = {
    "kill": 4,
    "terminate": 2,
    "freeze": 3,
    "lame_duck": 1,
    "less_payload": 1,
    "no_publish": 2,
    "no_inbox": 1,
    "few_connections": 1,
    "poison": 2,
    "restart_router": 2,
}
"""Faults of the server and of the router, by weight, for every kind of route."""

STREAM: Mapping[str, int] = {
    "consumer_deleted": 2,
    "sink_deleted": 1,
    "no_acks": 1,
    "no_api": 1,
    "delivered_twice": 2,
}
"""Faults that only a route between streams can survive."""

SHORTEST, LONGEST = 0.05, 1.2
"""Seconds that a fault lasts: below and above the time in which the routers under test detect a lost link."""


@dataclass(frozen=True, slots=True)
class Step:
    """A fault of `seconds`, after `after` seconds of quiet. `place` and `amount` are random numbers for its
    use.
    """

    after: float
    fault: str
    seconds: float
    place: int
    amount: int


@dataclass(frozen=True, slots=True)
class Schedule:
    """All that a seed decides. `connections` is 2 if the destination has a connection, and a proxy, of its own.

    `sampled` is the share of the messages that are traced.
    """

    seed: int
    kind: Kind
    messages: int
    connections: int
    max_pending: int
    max_in_flight: int
    network: tuple[Step, ...]
    server: tuple[Step, ...]
    sampled: float
    variant: Variant = "plain"

    @property
    def faults(self) -> list[str]:
        """The names of the faults, of both tracks."""
        return [step.fault for step in (*self.network, *self.server)]

    @property
    def seconds(self) -> float:
        """Return the duration of the longer track if every fault takes exactly its time."""
        return max(sum(step.after + step.seconds for step in track) for track in (self.network, self.server))


def draw(seed: int, kind: Kind, messages: int, variant: Variant = "plain") -> Schedule:
    """Return the schedule of a seed: the same for the same arguments. All variants have the same faults at the same
    times.
    """
    if kind == "core" and variant not in OF_CORE:
        raise ValueError(f"{variant} is a variant of routes from streams")
    dice = random.Random(f"{seed} {kind}")
    server = dict(SERVER) | (dict(STREAM) if kind == "stream" else {})
    return Schedule(
        seed=seed,
        kind=kind,
        messages=messages,
        connections=dice.choice((1, 2)),
        max_pending=dice.choice((50, 1000)),
        max_in_flight=dice.choice((32, 256, 1024)),
        network=_track(dice, NETWORK, dice.randint(2, 4)),
        server=_track(dice, server, dice.randint(2, 3)),
        sampled=dice.choice((0.0, 0.05, 0.5)),
        variant=variant,
    )


def _track(dice: random.Random, faults: Mapping[str, int], length: int) -> tuple[Step, ...]:
    names = dice.choices(list(faults), list(faults.values()), k=length)
    return tuple(
        Step(
            after=dice.uniform(0, 0.5),
            fault=name,
            seconds=dice.uniform(SHORTEST, LONGEST),
            place=dice.randrange(2),
            amount=dice.randrange(1, 50_000),
        )
        for name in names
    )
