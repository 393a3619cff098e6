"""Rates of copies of KV buckets, beside copies of streams with as many subjects."""

from __future__ import annotations

from functools import partial

from tests.performance.benchmarks.contestants import BUCKET, CONTESTANTS, STREAM
from tests.performance.benchmarks.load_stream import LONGEST_HISTORY
from tests.performance.benchmarks.measure import Figures, Turn, in_turns, routed
from tests.performance.benchmarks.section import COST, LOST, RATE, Section
from tests.performance.benchmarks.setting import Setting

KEYS = 10_000
VALUES = 40
"""The number of values of each key."""
OURS = ("router_trio", "router_trio_compiled")
ROUNDS = 3
WARM_UP = 0.5
WATCHED = 8_000
"""Upper bound of the values per second of a loop that waits for each put."""


async def buckets(setting: Setting) -> list[Section]:
    """Measure bucket to bucket and stream to stream, with the same values under the same number of subjects."""
    turns: dict[str, Turn] = {}
    for name in OURS:
        if CONTESTANTS[name].is_there:
            turns[name] = partial(_turn, setting, name, BUCKET)
            turns[f"{name}, streams"] = partial(_turn, setting, name, STREAM)
    turns["nats_py"] = partial(_turn, setting, "nats_py", BUCKET)
    turns["nats_py, streams"] = partial(_turn, setting, "nats_py", STREAM)
    results = await in_turns(min(ROUNDS, setting.rounds), turns, say=setting.say)
    text = (
        f"From one bucket to another on one server, {KEYS:,} keys with {VALUES} values each; and the same values from "
        "stream to stream. `nats_py` copies a bucket by `kv.watch` and `kv.put`."
    )
    against = ("router_trio, streams", "router_trio_compiled, streams", "nats_py")
    return [Section("buckets", "Bucket to bucket, 128 B", text, (RATE, COST, LOST), results, against=against)]


async def _turn(setting: Setting, name: str, kind: str) -> Figures:
    assert VALUES <= LONGEST_HISTORY, "the copy keeps each value, so that they can be counted"
    most = KEYS * VALUES
    if name == "nats_py" and kind == BUCKET:
        most = round(WATCHED * (setting.seconds + WARM_UP))
    spec = {
        "job": "stream",
        "buckets": kind == BUCKET,
        "url": setting.url,
        "server_pids": setting.server_pids,
        "payload": 128,
        "tokens": KEYS,
        "messages": most,
        "warm_up": WARM_UP,
        "seconds": setting.seconds,
    }
    return await routed(spec, CONTESTANTS[name], setting.job(kind))
