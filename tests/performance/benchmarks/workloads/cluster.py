"""Rates over three servers with three replicas of each stream, which is how streams are run in production."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from tests.performance.benchmarks.contestants import STREAM, taking_part
from tests.performance.benchmarks.measure import Turn, in_turns
from tests.performance.benchmarks.section import COST, LOST, RATE, Section
from tests.performance.benchmarks.setting import SERVER_CONFIG, Setting
from tests.performance.benchmarks.workloads.routing import stream_turn
from tests.support.servers import cluster as running_cluster

REPLICAS = 3
ROUNDS = 3
MOST = 60_000
"""Messages per second that no contestant reaches here."""
TOO_SLOW = ("mq_bridge", "watermill", "nats_py_uvloop")
"""Contestants that are left out: a source is filled slowly here, and the workload `stream` has them."""


async def cluster(setting: Setting) -> list[Section]:
    """Measure stream to stream; the source is led by the server that is connected to, OUT by another one."""
    async with running_cluster(setting.directory, REPLICAS, config=SERVER_CONFIG) as there:
        setting = replace(setting, servers=there.servers)
        turns: dict[str, Turn] = {
            contestant.name: partial(stream_turn, setting, contestant, most=MOST, replicas=REPLICAS)
            for contestant in taking_part(STREAM, essential=setting.quick)
            if contestant.name not in TOO_SLOW
        }
        results = await in_turns(min(ROUNDS, setting.rounds), turns, say=setting.say)
    text = (
        f"The same over {REPLICAS} servers on this machine, each stream on file with {REPLICAS} replicas. Source and "
        "destination are led by different servers; contestants are connected to that of the source."
    )
    title = f"Stream to stream, {REPLICAS} servers with R{REPLICAS}, 128 B"
    return [Section("cluster", title, text, (RATE, COST, LOST), results)]
