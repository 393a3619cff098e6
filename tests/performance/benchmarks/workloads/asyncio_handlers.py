"""Rates of async handlers on asyncio, against the same handler on Trio, in FastStream and in a loop on nats-py."""

from __future__ import annotations

from functools import partial

from tests.performance.benchmarks.contestants import CONTESTANTS, HANDLED, HANDLER
from tests.performance.benchmarks.measure import Figures, Turn, in_turns, routed
from tests.performance.benchmarks.section import COST, LOST, RATE, Section
from tests.performance.benchmarks.setting import Setting
from tests.performance.benchmarks.workloads.routing import closed_spec

AT_A_TIME = 64
WINDOW = 1024
"""Messages under way: enough that none of the calls is idle."""
PEERS = ("faststream", "nats_py")


async def asyncio_handlers(setting: Setting) -> list[Section]:
    """Measure a handler that waits 10 ms, 64 at a time, and one that does not wait."""
    sections = []
    for waits in (True, False):
        turns: dict[str, Turn] = {}
        for loop in ("trio", "asyncio"):
            for most in (AT_A_TIME,) if waits else (1, AT_A_TIME):
                turns[f"router_trio on {loop}, {most}"] = partial(_turn, setting, loop, waits, most)
        for name in PEERS:
            contestant = CONTESTANTS[name]
            if contestant.is_there:
                job = setting.job("waiting" if waits else HANDLED)
                turns[name] = partial(routed, closed_spec(setting, 128, window=WINDOW), contestant, job)
        results = await in_turns(setting.rounds, turns, say=setting.say)
        title = "Handlers that wait 10 ms" if waits else "Handlers that do not wait"
        text = (
            "Core to core, each message through an `async def` that changes its payload"
            + (f" after 10 ms, {AT_A_TIME} at a time" if waits else "; the number is that of calls at a time")
            + ". FastStream and the loop on nats-py run the same function."
        )
        name = f"asyncio-{'waiting' if waits else 'not-waiting'}"
        sections.append(Section(name, f"{title}, on asyncio", text, (RATE, COST, LOST), results))
    return sections


async def _turn(setting: Setting, loop: str, waits: bool, most: int) -> Figures:
    suffix = {"trio": "_later", "asyncio": "_later_on_asyncio"}[loop] if waits else ""
    routes = (
        f'[[routes]]\nname = "bench"\nhandler = "{HANDLER}{suffix}"\nloop = "{loop}"\nconcurrency = {most}\n'
        'from = { connection = "main", subject = "in.*" }\n'
        'to = [ { connection = "main", subject = "out.{{wildcard(1)}}" } ]\n'
    )
    spec = closed_spec(setting, 128, window=WINDOW)
    return await routed(spec, CONTESTANTS["router_trio"], setting.job(HANDLED, routes=routes))
