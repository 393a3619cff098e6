"""Rates of routing: core to core, through a handler, and from stream to stream."""

from __future__ import annotations

from functools import partial
from typing import Any

from tests.performance.benchmarks.contestants import (
    CONTESTANTS,
    CORE,
    HANDLED,
    STREAM,
    Contestant,
    route_of,
    taking_part,
)
from tests.performance.benchmarks.measure import Figures, Turn, Turns, in_turns, routed
from tests.performance.benchmarks.section import COST, LOST, RATE, Section
from tests.performance.benchmarks.setting import Setting

WINDOW_BYTES = 32 * 1024 * 1024
"""Most messages under way: fewer than a server or a client holds before it drops."""
TOKENS = 1000
STREAM_MESSAGES = 100_000
"""Upper bound of the messages per second of a stream; a measurement ends early when it is reached."""
SERVER_MESSAGES = 150_000
"""The bound for a copy by the server itself."""
SLOWER = {"nats_py": 25_000, "nats_py_uvloop": 35_000, "watermill": 15_000}
"""The bound for contestants that need fewer: filling a stream takes time as well."""
IN_FLIGHT = (64, 256, 1024, 4096)
CEILING = "(no router)"
SERVER = "(the server itself)"


def closed_spec(setting: Setting, payload: int, **changes: Any) -> dict[str, Any]:
    """Return the job of the load generator for a closed loop."""
    return {
        "job": "closed",
        "url": setting.url,
        "server_pids": setting.server_pids,
        "prefix": "in.",
        "listen": "out.*",
        "tokens": TOKENS,
        "payload": payload,
        "window": max(8, min(CONTESTANTS["router_trio"].window, WINDOW_BYTES // payload)),
        "warm_up": 0.5,
        "seconds": setting.seconds,
    } | changes


async def core(setting: Setting) -> list[Section]:
    """Measure core to core, small and larger messages."""
    sections = []
    for payload in (128,) if setting.quick else (128, 4096):
        turns = await _closed(setting, CORE, payload)
        text = "Core subscription to core publish, closed loop; `(no router)` is the ceiling of load and server."
        sections.append(Section(f"core-{payload}", f"Core to core, {payload} B", text, (RATE, COST, LOST), turns))
    return sections


async def handler(setting: Setting) -> list[Section]:
    """Measure core to core, each message through an `async def`."""
    turns = await _closed(setting, HANDLED, 128)
    text = "Every message goes through an `async def` that changes its payload."
    return [Section("handler", "Python handler, 128 B", text, (RATE, COST, LOST), turns)]


async def stream(setting: Setting) -> list[Section]:
    """Measure stream to stream: PubAck of the destination, Msg-Id, ack of the source, both on file."""
    turns: dict[str, Turn] = {SERVER: partial(stream_turn, setting, None)}
    for contestant in taking_part(STREAM, essential=setting.quick):
        turns[contestant.name] = partial(stream_turn, setting, contestant)
    results = await in_turns(setting.rounds, turns, say=setting.say)
    text = (
        "From one stream on file to another, with Msg-Id and PubAck; the source is acked after the PubAck. "
        f"`{SERVER}` is a stream that has the other one as its source, and transforms its subjects."
    )
    section = Section("stream", "Stream to stream, 128 B", text, (RATE, COST, LOST), results)
    return [section] if setting.quick else [section, await _in_flight(setting)]


async def _in_flight(setting: Setting) -> Section:
    """Measure how the number of messages in flight affects the rate of a route."""
    turns: dict[str, Turn] = {name: partial(stream_turn, setting, CONTESTANTS[name]) for name in ("nats_py", "raw")}
    for most in IN_FLIGHT:
        routes = f"{route_of(STREAM)}from.max_in_flight = {most}\n"
        turns[f"router_trio, {most:,}"] = partial(stream_turn, setting, CONTESTANTS["router_trio"], routes=routes)
    results = await in_turns(setting.rounds, turns, say=setting.say)
    text = "The same with other values of `max_in_flight`, 4,096 by default. `raw` has up to 4,096."
    return Section("in-flight", "Stream to stream, by messages in flight", text, (RATE, COST, LOST), results)


async def stream_turn(
    setting: Setting,
    contestant: Contestant | None,
    *,
    warm_up: float = 0.5,
    most: int = STREAM_MESSAGES,
    tokens: int = TOKENS,
    sources: int = 0,
    replicas: int = 1,
    whole: bool = False,
    **changes: Any,
) -> Figures:
    """Measure once from stream to stream; without a contestant the server copies. `whole`: from the first message to
    the last one, not only some seconds in between.

    `most` is a rate in messages per second that no contestant is expected to exceed. `tokens` is the number of
    subjects, `sources` that of the streams that are read, 0 for one, `replicas` that of the replicas of each stream.
    Changes are those of the job.
    """
    rate = min(most, SLOWER.get(contestant.name, most)) if contestant else SERVER_MESSAGES
    spec = {
        "job": "stream",
        "url": setting.url,
        "server_pids": setting.server_pids,
        "payload": 128,
        "tokens": tokens,
        "messages": round(rate * (setting.seconds + warm_up + 0.5)),
        "warm_up": warm_up,
        "seconds": setting.seconds,
        "sourced": contestant is None,
        "sources": sources,
        "replicas": replicas,
        "whole": whole,
    }
    return await routed(spec, contestant, setting.job(STREAM, sources=sources, **changes))


async def _closed(setting: Setting, kind: str, payload: int) -> dict[str, Turns]:
    spec = closed_spec(setting, payload)
    turns: dict[str, Turn] = {}
    if kind == CORE:
        direct = closed_spec(setting, payload, listen="in.*")
        turns[CEILING] = partial(routed, direct, None, setting.job(CORE))
    for contestant in taking_part(kind, essential=setting.quick):
        turns[contestant.name] = partial(
            routed,
            spec | {"window": min(spec["window"], contestant.window)},
            contestant,
            setting.job(kind),
        )
    return await in_turns(setting.rounds, turns, say=setting.say)
