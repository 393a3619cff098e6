"""Figures with many routes, streams or keys, each beside the same load with one."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from tests.performance.benchmarks.contestants import CONTESTANTS, CORE, HANDLER, WINDOW, Contestant
from tests.performance.benchmarks.measure import Figures, Turn, in_turns, routed
from tests.performance.benchmarks.section import COST, LOST, RATE, Section
from tests.performance.benchmarks.setting import Setting
from tests.performance.benchmarks.workloads.routing import closed_spec, stream_turn

OURS = ("router_trio", "router_trio_compiled")
ROUTES = (1, 10, 100, 1000)
PEERS_OF_ROUTES = ("nats_py", "nats_go")
STREAMS = 200
PEERS_OF_STREAMS = ("nats_go",)
KEYS = (1, 200, 10_000)
CALLS = 64
BY_KEY = 60_000
"""Upper bound of the messages per second of a route by key."""


ROUNDS = 3
"""Turns of streams and keys, which take long to fill."""


def of(name: str, count: int) -> str:
    """Return the name of a contestant that has this many."""
    return f"{name}, {count:,}"


ONE = (of("router_trio", 1),)


async def routes(setting: Setting) -> list[Section]:
    """Measure wildcard routes, the load spread over all of them in turn: the worst case for routing in batches."""
    turns: dict[str, Turn] = {}
    for contestant in _there(OURS + PEERS_OF_ROUTES):
        # The curve is that of the router; for the others both of its ends are enough.
        for count in ROUTES if contestant.name == "router_trio" and not setting.quick else (ROUTES[0], ROUTES[-1]):
            spec = closed_spec(setting, 128, routes=count, listen="out.>", window=WINDOW)
            job = setting.job(CORE, sources=count)
            turns[of(contestant.name, count)] = partial(routed, spec, contestant, job)
    results = await in_turns(setting.rounds, turns, say=setting.say)
    text = "Core to core, by routes, with a wildcard each; the messages go to one after the other."
    return [Section("routes", "Number of routes, 128 B", text, (RATE, COST, LOST), results, against=ONE)]


async def streams(setting: Setting) -> list[Section]:
    """Measure streams with a durable each, copied to one stream, from the first message to the last one.

    A router takes up to 4,096 messages of each stream in hand before it has stored them, here all of them. So fewer are
    stored at first, and then more, than it can sustain: a part of the run would show either.
    """
    turns: dict[str, Turn] = {}
    for contestant in _there(OURS + PEERS_OF_STREAMS):
        for count in (1, STREAMS):
            turns[of(contestant.name, count)] = partial(stream_turn, setting, contestant, sources=count, whole=True)
    results = await in_turns(min(ROUNDS, setting.rounds), turns, say=setting.say)
    text = (
        "From several streams at once, each with a durable and a route, to one; all on file. As many messages in total."
    )
    return [Section("streams", "Number of streams, 128 B", text, (RATE, COST, LOST), results, against=ONE)]


async def keys(setting: Setting) -> list[Section]:
    """Measure a route by key with few and many keys."""
    turns: dict[str, Turn] = {
        of(contestant.name, count): partial(_key_turn, setting, contestant, count)
        for contestant in _there(OURS)
        for count in KEYS
    }
    results = await in_turns(min(ROUNDS, setting.rounds), turns, say=setting.say)
    text = (
        f"From stream to stream through a handler that does not wait, by keys (`key`), which are the source subjects, "
        f"with `concurrency = {CALLS}`. Of each key one message is under way at a time."
    )
    return [Section("keys", "Number of keys, 128 B", text, (RATE, COST, LOST), results, against=ONE)]


async def _key_turn(setting: Setting, contestant: Contestant, count: int) -> Figures:
    toml = (
        f'[[routes]]\nname = "bench"\nhandler = "{HANDLER}"\nconcurrency = {CALLS}\nkey = "subject"\n'
        'from = { stream = "IN", durable = "bench", filter = "in.*" }\n'
        'to = [ { subject = "out.{{wildcard(1)}}", jetstream = true } ]\n'
    )
    return await stream_turn(setting, contestant, most=BY_KEY, tokens=count, routes=toml)


def _there(names: Sequence[str]) -> list[Contestant]:
    return [CONTESTANTS[name] for name in names if CONTESTANTS[name].is_there]
