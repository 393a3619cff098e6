"""Drawing of a schedule from a seed: configuration, load, and a subset of the faults (swarm testing)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from random import Random
from typing import Any

from router_trio.testing.streams import EPOCH
from tests.simulation.advisories import advised
from tests.simulation.content import decided
from tests.simulation.cut_short import cut_short
from tests.simulation.deleted import deleted
from tests.simulation.failing import SHARE, failing, refusing, trouble
from tests.simulation.faults import FAULTS, NOT_YET, OF_ADVISORIES, OF_DURABLES, OF_FORGERS, OF_LIMITS, OF_PERMISSIONS
from tests.simulation.flow import flowing
from tests.simulation.forger import forged
from tests.simulation.handlers import ASYNC, MAKE
from tests.simulation.keyed import SHARE as KEYED
from tests.simulation.keyed import keyed
from tests.simulation.limited import limited
from tests.simulation.permissions import taken_away
from tests.simulation.schedule import KEYS, Plan, Schedule, Step, Target
from tests.simulation.series import series
from tests.simulation.unequal import unequal

HORIZON = 40.0
"""Seconds of load and faults."""

MOST_FAULTS = 5
"""Kinds of faults in one schedule: few, so that each has time to matter; over all seeds every kind is drawn."""

BY_CONTENT = 0.4
"""Share of the seeds in which routes decide by content."""

WITH_FLOW = 0.35
"""Share of the seeds in which routes have limits, and destinations breakers."""

ON_ASYNCIO = 0.5
"""Share of the async handlers that run on asyncio."""

RELOADED = 0.2
"""Share of the seeds in which the configuration is reloaded, beside those that draw it among the faults."""


PATIENT = 0.2
"""Share of the connections with the default delays between attempts, which may be longer than most outages."""


def draw(seed: int, also: frozenset[str] = frozenset()) -> Schedule:
    """Return the schedule of a seed. `also` are kinds of `NOT_YET` that are drawn as well."""
    random = Random(f"simulation {seed}")
    there = "abc"[: random.choice((1, 1, 1, 2, 2, 3))]
    brokers = {name: EPOCH + random.choice((0, 0, -3600, 86_400, 1e9)) for name in there}
    kinds = [
        kind
        for kind in FAULTS
        if kind not in NOT_YET and kind not in (*OF_DURABLES, *OF_FORGERS, *OF_PERMISSIONS, *OF_ADVISORIES, *OF_LIMITS)
    ]
    wanted = sorted(also & FAULTS.keys())
    faults = [*wanted, *random.sample(kinds, random.randint(0, MOST_FAULTS))]
    if "reload" not in faults and Random(f"reloads {seed}").random() < RELOADED:
        faults.append("reload")
    names = list(brokers)
    connections = [*names, *(f"{name}2" for name in names if "second connection" in faults)]
    count = random.choice((1, 1, 2, 2, 3, 4))
    routes = tuple(_route(random, f"r{number}", names, connections, also) for number in range(count))
    # A generator of its own: the rest of a seed stays as it was before content routing existed.
    content = Random(f"content {seed}")
    if content.random() < BY_CONTENT:
        routes = tuple(decided(plan, connections, content) if content.random() < 0.7 else plan for plan in routes)
    failures = Random(f"failing {seed}")
    more: list[Step] = []
    if failures.random() < SHARE:
        routes = tuple(failing(plan, connections, failures) if failures.random() < 0.7 else plan for plan in routes)
        more = trouble(routes, HORIZON, failures)
    flow = Random(f"flow {seed}")
    if flow.random() < WITH_FLOW:
        routes = tuple(flowing(plan, flow) for plan in routes)
    keys = Random(f"keyed {seed}")
    if keys.random() < KEYED:
        routes = tuple(keyed(plan, keys) if keys.random() < 0.7 else plan for plan in routes)
    loops = Random(f"loops {seed}")
    routes = tuple(
        replace(plan, loop="asyncio") if plan.handler in ASYNC and loops.random() < ON_ASYNCIO else plan
        for plan in routes
    )
    routes, ends = deleted(routes, HORIZON, Random(f"deleted {seed}"))
    forgeries = forged(names, HORIZON, Random(f"forged {seed}"))
    more += [*ends, *forgeries]
    load = [*_load(random, routes, "ids used again" in faults), *_programs(random, names, also)]
    forgers = {one.what["broker"] for one in forgeries}
    denials = taken_away(names, routes, Random(f"permissions {seed}"), lambda dice: _when(dice, load), forgers)
    refusals = refusing(routes, Random(f"refusing {seed}"), lambda dice: _when(dice, load))
    advisories = advised(names, routes, HORIZON, Random(f"advisories {seed}"))
    limits = limited(names, routes, HORIZON, Random(f"limited {seed}"))
    cuts = cut_short(routes, load, Random(f"cut short {seed}"))
    routes, sizes = unequal(routes, Random(f"unequal {seed}"))
    reloads = series(routes, load, Random(f"series {seed}"))
    steps = [*load, *more, *denials, *advisories, *limits, *refusals, *cuts, *reloads, *sizes]
    for kind in faults:
        for _ in range(random.randint(1, 3)):
            step = FAULTS[kind].draw(random, names, routes)
            if step is not None:
                steps.append(Step(_when(random, load), kind, step.seconds, step.what))
    delays = Random(f"delays {seed}")
    added = (*ends, *forgeries, *denials, *advisories, *limits, *refusals, *cuts, *reloads, *sizes)
    return Schedule(
        seed=seed,
        brokers=brokers,
        latency={name: random.choice((0.0, 0.0, 0.001, 0.02)) for name in brokers},
        connections={name: _connection(random) | _delays(delays) for name in connections},
        shutdown_timeout=random.choice((1.0, 3.0, 10.0)),
        routes=routes,
        faults=(*faults, *dict.fromkeys(one.kind for one in added if one.kind in FAULTS)),
        also=also,
        max_payload={
            name: random.choice((200, 1024 * 1024)) if "small max_payload" in faults else 1024 * 1024
            for name in brokers
        },
        windows={
            "IN": 2.0 if "ids used again" in faults else 120.0,
            "OUT": 5.0 if "short window" in faults else 120.0,
            "PUB": 120.0,
            "DEAD": 120.0,
        },
        steps=tuple(sorted(steps, key=lambda step: step.at)),
    )


def _when(random: Random, load: Sequence[Step]) -> float:
    """Draw when a fault begins: mostly while messages are published, or just before."""
    if random.random() < 0.25:
        return round(random.uniform(0.0, HORIZON), 3)
    busy = random.choice(load)
    after = random.choice((0.0, random.uniform(-1.0, 0.5), random.uniform(0, busy.seconds)))
    return round(max(0.0, busy.at + after), 3)


def _connection(random: Random) -> dict[str, Any]:
    policy = random.choice(("drop_oldest", "reject", "block"))
    return {
        "servers": ["nats://one:4222", "nats://two:4222"][: random.choice((1, 2))],
        "reconnect_delay": random.choice((0.05, 0.5)),
        "max_reconnect_delay": random.choice((0.5, 3.0)),
        "reconnect_attempts": random.choice((2, 10)),
        "connect_timeout": random.choice((1.0, 2.0)),
        "liveness_interval": random.choice((1.0, 5.0)),
        "max_pending_operations": random.choice((3, 20, 1000)),
        "max_pending_bytes": random.choice((2000, 64 * 1024 * 1024)),
        "on_pending_full": policy,
        "fail_open": random.random() < 0.15,
        "pending_max_age": random.choice((0, 0, 0, 2.0)),
    }


def _delays(random: Random) -> dict[str, Any]:
    """Draw the delays between attempts to connect: as `_connection` has them, or longer than most outages."""
    return {"reconnect_delay": 1.0, "max_reconnect_delay": 30.0} if random.random() < PATIENT else {}


def _route(random: Random, name: str, brokers: list[str], connections: list[str], also: frozenset[str]) -> Plan:
    stream = random.random() < 0.65
    targets = tuple(
        Target(random.choice(connections), random.random() < (0.8 if stream else 0.4))
        for _ in range(random.choice((1, 1, 1, 2, 3)))
    )
    handlers = [kind for kind in MAKE if kind not in NOT_YET or kind in also]
    handler = random.choice(handlers) if random.random() < 0.45 else None
    retry: dict[str, Any] = {}
    if stream:
        in_flight = random.choice((1, 2, 5, 20, 100))
        source: dict[str, Any] = {
            "stream": "IN",
            "durable": name,
            "filter": f"in.{random.choice(('*', '*', '*', KEYS[0]))}",
            "max_in_flight": in_flight,
            "ack_wait": random.choice((2.0, 5.0, 30.0)),
        }
        retry["initial"] = random.choice((0.05, 0.1, 1.0))
        if random.random() < 0.15:
            retry["attempts"] = random.choice((1, 3))
    else:
        source = {"subject": f"core.{name}.{random.choice(('*', '*', '*', KEYS[0]))}"}
        if random.random() < 0.3:
            source["queue"] = "routers"
    return Plan(name, random.choice(brokers), stream, targets, handler, source, retry=retry)


def _load(random: Random, routes: tuple[Plan, ...], ids_again: bool) -> list[Step]:
    """Draw the bursts in which strangers publish to the subjects that routes read."""
    steps = []
    places = dict.fromkeys((plan.broker, "in" if plan.stream else f"core.{plan.name}") for plan in routes)
    for broker, subject in places:
        for _ in range(random.randint(1, 4)):
            what = {
                "broker": broker,
                "subject": subject,
                "count": random.choice((1, 20, 60, 60)),
                "headers": "same id" if ids_again else random.choice(("", "", "plain", "id")),
                "size": random.choice((0, 0, 300)),
                "keys": random.choice((1, 2, 4)),
            }
            seconds = random.choice((0.0, 0.5, 3.0, 3.0, 10.0))
            steps.append(Step(round(random.uniform(0, HORIZON), 3), "strangers publish", seconds, what))
    return steps


def _programs(random: Random, brokers: list[str], also: frozenset[str]) -> list[Step]:
    """Draw programs that publish, and are cancelled at random."""
    steps = []
    for _ in range(random.choice((4, 8) if also else (0, 1, 3))):
        what = {
            "broker": random.choice(brokers),
            "with_ack": random.random() < 0.6,
            "count": random.choice((1, 5, 30)),
            "together": random.random() < 0.5,
            "cancel": random.choice((0.0, 0.0, 0.05, 1.0)),
            "timeout": random.choice((0.5, 5.0)),
            "outlives": random.random() < 0.3,
        }
        steps.append(Step(round(random.uniform(0, HORIZON), 3), "a program publishes", 0.0, what))
    return steps
