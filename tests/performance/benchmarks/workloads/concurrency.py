"""Rates of a route with several concurrent handler calls, in order for each of 200 keys."""

from __future__ import annotations

from functools import partial

from tests.performance.benchmarks.contestants import CONTESTANTS, HANDLER, STREAM
from tests.performance.benchmarks.measure import Figures, Turn, in_turns, routed
from tests.performance.benchmarks.section import COST, LOST, RATE, Section
from tests.performance.benchmarks.setting import Setting

KEYS = 200
AT_A_TIME = 64
WAITING = f"{HANDLER}_later"
EXPECTED = {WAITING: 8_000, HANDLER: 60_000}
"""Upper bound of the messages per second."""
SLOWEST = 150
"""The upper bound with one call of 10 ms at a time."""


async def concurrency(setting: Setting) -> list[Section]:
    """Measure from stream to stream, through a handler that waits 10 ms, and through one that does not wait."""
    turns: dict[str, Turn] = {}
    for handler, name in ((WAITING, "waits 10 ms"), (HANDLER, "does not wait")):
        for most in (1, AT_A_TIME):
            turns[f"{name}, {most}"] = partial(_turn, setting, handler, most)
    turns[f"does not wait, {AT_A_TIME}, by `key`"] = partial(_turn, setting, HANDLER, AT_A_TIME, "key = 'subject'\n")
    results = await in_turns(setting.rounds, turns, say=setting.say)
    text = (
        f"From one stream on file to another through a handler, with {KEYS} keys, which are the source subjects, by "
        f"calls at a time (`concurrency`). Of each key one message is under way at a time."
    )
    against = ("waits 10 ms, 1", "does not wait, 1")
    return [
        Section("concurrency", "Handler calls at a time, 128 B", text, (RATE, COST, LOST), results, against=against)
    ]


async def _turn(setting: Setting, handler: str, most: int, more: str = "") -> Figures:
    rate = SLOWEST if (handler, most) == (WAITING, 1) else EXPECTED[handler]
    spec = {
        "job": "stream",
        "url": setting.url,
        "server_pids": setting.server_pids,
        "payload": 128,
        "tokens": KEYS,
        "messages": round(rate * (setting.seconds + 1)),
        "warm_up": 0.5,
        "seconds": setting.seconds,
    }
    routes = (
        f'[[routes]]\nname = "bench"\nhandler = "{handler}"\nconcurrency = {most}\n{more}'
        'from = { stream = "IN", durable = "bench", filter = "in.*" }\n'
        'to = [ { subject = "out.{{wildcard(1)}}", jetstream = true } ]\n'
    )
    return await routed(spec, CONTESTANTS["router_trio"], setting.job(STREAM, routes=routes))
