"""Figures as numbers grow: of connections, bytes, traces. Those of routes, streams and keys are in `many`."""

from __future__ import annotations

from functools import partial

from tests.performance.benchmarks.contestants import CONTESTANTS, CORE
from tests.performance.benchmarks.measure import Turn, in_turns, routed
from tests.performance.benchmarks.section import COST, LOST, RATE, Column, Section
from tests.performance.benchmarks.setting import Setting
from tests.performance.benchmarks.workloads.routing import closed_spec

CONNECTIONS = (1, 10, 100)
PAYLOADS = (16, 128, 1024, 16 * 1024, 256 * 1024, 1024 * 1024)
RATIOS = (0.0, 0.01, 1.0)
ROUNDS = 3
"""Many points, fewer turns: the curve matters here, not the single figure."""


async def scale(setting: Setting) -> list[Section]:
    """Measure all of them."""
    return [await connections(setting), *await payloads(setting), await sampling(setting)]


async def connections(setting: Setting) -> Section:
    """Measure idle connections."""
    turns: dict[str, Turn] = {}
    for count in (1, 100) if setting.quick else CONNECTIONS:
        text = "".join(f'[connections.c{number}]\nservers = ["{setting.url}"]\n' for number in range(1, count))
        text += '[[routes]]\nname = "r"\nfrom = { connection = "main", subject = "in.*" }\n'
        text += 'to = [ { connection = "main", subject = "out.{{wildcard(1)}}" } ]\n'
        job = setting.job(CORE, routes=text, options=("--connections", str(count)))
        spec = {"job": "idle", "settle": 3.0, "seconds": 2 * setting.seconds, "url": setting.url}
        spec |= {"server_pids": setting.server_pids}
        for name in ("router_trio", "nats_py"):
            turns[f"{name}, {count}"] = partial(routed, spec, CONTESTANTS[name], job)
    results = await in_turns(2, turns, say=setting.say)
    told = "Connected, and nothing to do; in per cent of one processor."
    columns = (Column("idle_percent", "CPU %", 2), Column("resident_mb", "MB resident", 1))
    return Section("connections", "Idle connections", told, columns, results, against=(), more_is_better=False)


async def payloads(setting: Setting) -> list[Section]:
    """Measure payloads from tiny to the server's default limit."""
    sections = []
    for payload in (16, 1024 * 1024) if setting.quick else PAYLOADS:
        spec = closed_spec(setting, payload)
        job = setting.job(CORE)
        turns = {name: partial(routed, spec, CONTESTANTS[name], job) for name in ("router_trio", "nats_py", "raw")}
        results = await in_turns(ROUNDS, turns, say=setting.say)
        for one in results.values():
            for figures in one.figures:
                figures["mb_per_second"] = figures["rate"] * payload / 1e6
        columns = (RATE, Column("mb_per_second", "MB/s", 1), COST, LOST)
        sections.append(Section(f"payload-{payload}", f"Payload of {payload:,} B", "", columns, results))
    return sections


async def sampling(setting: Setting) -> Section:
    """Measure traces, to a collector that accepts all of them."""
    turns: dict[str, Turn] = {}
    spec = closed_spec(setting, 128)
    jobs = {"no endpoint": setting.job(CORE, collector="")}
    jobs |= {f"{ratio:.0%} sampled": setting.job(CORE, sampled=ratio) for ratio in RATIOS}
    jobs["1% sampled, without a limit"] = setting.job(CORE, sampled=0.01, limited=False)
    for name, job in jobs.items():
        turns[name] = partial(routed, spec, CONTESTANTS["router_trio"], job)
    results = await in_turns(ROUNDS, turns, say=setting.say)
    told = (
        "router_trio, core to core, 128 B, with a collector on the same machine that takes every span. What the SDK "
        "can't send in time is let go, and counted in `router_spans_dropped_total`: with every message sampled, most. "
        "Of a share below 100 % at most 100 a second are traced, if `max_traces_per_second` does not say more."
    )
    return Section("sampling", "Traces", told, (RATE, COST, LOST), results, against=("no endpoint",))
