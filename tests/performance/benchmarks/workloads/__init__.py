"""The workloads, by name."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from tests.performance.benchmarks.section import Section
from tests.performance.benchmarks.setting import Setting
from tests.performance.benchmarks.workloads.asyncio_handlers import asyncio_handlers
from tests.performance.benchmarks.workloads.buckets import buckets
from tests.performance.benchmarks.workloads.cluster import cluster
from tests.performance.benchmarks.workloads.concurrency import concurrency
from tests.performance.benchmarks.workloads.content import content
from tests.performance.benchmarks.workloads.distance import distance
from tests.performance.benchmarks.workloads.faults import faults
from tests.performance.benchmarks.workloads.latency import latency
from tests.performance.benchmarks.workloads.many import keys, routes, streams
from tests.performance.benchmarks.workloads.programs import drain, memory, publish, start
from tests.performance.benchmarks.workloads.routing import core, handler, stream
from tests.performance.benchmarks.workloads.scale import scale
from tests.performance.benchmarks.workloads.transport import websocket

Workload = Callable[[Setting], Awaitable[list[Section]]]

WORKLOADS: dict[str, Workload] = {
    "core": core,
    "handler": handler,
    "stream": stream,
    "cluster": cluster,
    "distance": distance,
    "websocket": websocket,
    "routes": routes,
    "streams": streams,
    "keys": keys,
    "buckets": buckets,
    "concurrency": concurrency,
    "asyncio": asyncio_handlers,
    "content": content,
    "latency": latency,
    "faults": faults,
    "publish": publish,
    "drain": drain,
    "scale": scale,
    "memory": memory,
    "start": start,
}
ESSENTIAL = ("core", "handler", "stream")
"""The workloads of a quick run without arguments."""
