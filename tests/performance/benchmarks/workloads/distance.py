"""The cost of distance to the server: a stream is copied over a long round trip."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from functools import partial
from typing import Any
from urllib.parse import urlsplit

from tests.performance.benchmarks.contestants import CONTESTANTS, STREAM, Contestant, taking_part
from tests.performance.benchmarks.measure import Turn, Turns, in_turns
from tests.performance.benchmarks.section import COST, LOST, RATE, Section
from tests.performance.benchmarks.setting import Setting, listening
from tests.performance.benchmarks.workloads.routing import stream_turn

ONE_WAY = 0.04
MOST = 60_000
"""Messages per second that no contestant reaches at this distance with its messages in flight."""
BRIDGES = ("router_trio", "router_trio_compiled", "nats_py", "nats_go")
"""Contestants that copy between two connections."""

SECONDS = 6.0
"""Seconds of one measurement. The first half is not counted: a contestant that adapts needs time to do so."""


async def distance(setting: Setting) -> list[Section]:
    """Measure stream to stream, 80 ms away: the server of both streams, or that of the destination alone."""
    async with listening("delaying.py", urlsplit(setting.url).netloc, str(ONE_WAY)) as port:
        url = f"nats://127.0.0.1:{port}"
        both = await _measured(setting, taking_part(STREAM, essential=setting.quick), url=url)
        bridges = [CONTESTANTS[name] for name in BRIDGES if CONTESTANTS[name].is_there]
        destination = await _measured(setting, bridges, to=url)
    way = f"a way that takes {ONE_WAY * 1e3:.0f} ms in each direction"
    return [
        Section(
            "distance",
            "Stream to stream, 80 ms away, 128 B",
            f"The same, with one connection, through {way}. What is pulled and what is published both take the way.",
            (RATE, COST, LOST),
            both,
        ),
        Section(
            "distance-destination",
            "Stream to stream, the destination 80 ms away, 128 B",
            f"The same, with a connection to a source beside it, and one to the destination through {way}.",
            (RATE, COST, LOST),
            destination,
        ),
    ]


async def _measured(setting: Setting, contestants: Iterable[Contestant], **ways: Any) -> dict[str, Turns]:
    patient = replace(setting, seconds=SECONDS)
    turns: dict[str, Turn] = {
        contestant.name: partial(stream_turn, patient, contestant, warm_up=SECONDS / 2, most=MOST, **ways)
        for contestant in contestants
    }
    return await in_turns(setting.rounds, turns, say=setting.say)
