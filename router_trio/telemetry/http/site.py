"""The HTTP side as a whole: the pages, what they are made of, and their server.

Importing this imports Starlette, h11 and prometheus_client, which takes as long as all the rest
of the router: whoever starts a router does it later, and aside (see `telemetry`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from collections.abc import Set as AbstractSet

import trio
from starlette.routing import BaseRoute

from router_trio.telemetry.http.application import application
from router_trio.telemetry.http.server import serve_http
from router_trio.telemetry.logs.recent import Recent
from router_trio.telemetry.metrics.lag import measure_lag
from router_trio.telemetry.metrics.page import MetricsPage
from router_trio.telemetry.metrics.table import Sources


async def serve_site(
    listeners: Sequence[trio.SocketListener],
    sources: Sources,
    recent: Recent,
    clock: Callable[[], float],
    started_at: float,
    allowed_hosts: AbstractSet[str],
    pages: Sequence[BaseRoute],
) -> None:
    """Answer requests on `listeners` until cancelled. See `application` for what there is to ask for."""
    app = application(sources.view, MetricsPage(sources), clock, recent, started_at, allowed_hosts, pages)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(measure_lag, sources.loop_lags)
        await serve_http(listeners, app)
