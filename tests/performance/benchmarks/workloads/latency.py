"""The time that a contestant adds to a message, at a rate that all of them can sustain."""

from __future__ import annotations

from functools import partial

from tests.performance.benchmarks.contestants import CORE, QUICK, STREAM, Contestant, taking_part
from tests.performance.benchmarks.measure import Figures, Turn, Turns, in_turns, routed
from tests.performance.benchmarks.section import COST, LOST, Column, Section
from tests.performance.benchmarks.setting import Setting
from tests.performance.benchmarks.workloads.routing import CEILING

RATE = 5_000
PATIENT = {CORE: {*QUICK, "watermill", "mq_bridge"}, STREAM: {*QUICK, "watermill"}}
"""Contestants whose latency is measured."""
NATS_PY_OPTIONS = ("--fetch", "50")
"""A batch of 500 would take a tenth of a second to fill at this rate: nats-py should not be slow for that."""
COLUMNS = (
    Column("p50", "p50 us"),
    Column("p99", "p99 us"),
    Column("p99.9", "p99.9 us"),
    Column("added_p50", "added p50 us"),
    Column("added_p99", "added p99 us"),
    COST,
    LOST,
)


async def latency(setting: Setting) -> list[Section]:
    """Measure core and stream."""
    sections = []
    for kind, subject in ((CORE, "Core to core"), (STREAM, "Stream to stream")):
        turns: dict[str, Turn] = {CEILING: partial(_turn, setting, None, kind)}
        for contestant in taking_part(kind, essential=setting.quick):
            if contestant.name in PATIENT[kind]:
                turns[contestant.name] = partial(_turn, setting, contestant, kind)
        results = await in_turns(setting.rounds, turns, say=setting.say)
        _add_what_was_added(results)
        text = (
            f"{RATE:,} messages a second, evenly spaced; from the time at which a message was due to its arrival. "
            "`added` is what is left when the same percentile without a router is taken off."
        )
        title = f"Latency, {subject.lower()}, 128 B"
        sections.append(Section(f"latency-{kind}", title, text, COLUMNS, results, more_is_better=False))
    return sections


async def _turn(setting: Setting, contestant: Contestant | None, kind: str) -> Figures:
    spec = {
        "job": "paced",
        "url": setting.url,
        "prefix": "in.",
        "listen": "out.*" if contestant else "in.*",
        "streams": kind == STREAM,
        "payload": 128,
        "rate": RATE,
        "warm_up": 0.5,
        "seconds": setting.seconds,
    }
    return await routed(spec, contestant, setting.job(kind, options=NATS_PY_OPTIONS))


def _add_what_was_added(results: dict[str, Turns]) -> None:
    direct = results[CEILING]
    for name, turns in results.items():
        if name != CEILING:
            for figures in turns.figures:
                for percentile in ("p50", "p99"):
                    figures[f"added_{percentile}"] = figures[percentile] - direct.median(percentile)
