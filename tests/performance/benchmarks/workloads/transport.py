"""Rates of a router that reaches its server by WebSocket, against TCP."""

from __future__ import annotations

from functools import partial

from tests.performance.benchmarks.contestants import CONTESTANTS, CORE
from tests.performance.benchmarks.measure import Turn, in_turns, routed
from tests.performance.benchmarks.section import COST, LOST, RATE, Section
from tests.performance.benchmarks.setting import Setting
from tests.performance.benchmarks.workloads.routing import closed_spec, stream_turn

TCP, WEBSOCKET = "TCP", "WebSocket"


async def websocket(setting: Setting) -> list[Section]:
    """Measure core to core, small and larger messages, and stream to stream."""
    router = CONTESTANTS["router_trio"]
    urls = {TCP: setting.url, WEBSOCKET: setting.websocket_url}
    text = "A router by `nats://` and by `ws://` on the same server, without masking; the load comes by TCP."
    sections = []
    for payload in (128, 4096):
        turns: dict[str, Turn] = {
            name: partial(routed, closed_spec(setting, payload), router, setting.job(CORE, url=url))
            for name, url in urls.items()
        }
        results = await in_turns(setting.rounds, turns, say=setting.say)
        title = f"Core to core by WebSocket, {payload} B"
        sections.append(Section(f"websocket-{payload}", title, text, (RATE, COST, LOST), results, against=(TCP,)))
    turns = {name: partial(stream_turn, setting, router, url=url) for name, url in urls.items()}
    results = await in_turns(setting.rounds, turns, say=setting.say)
    title = "Stream to stream by WebSocket, 128 B"
    return [*sections, Section("websocket-stream", title, text, (RATE, COST, LOST), results, against=(TCP,))]
