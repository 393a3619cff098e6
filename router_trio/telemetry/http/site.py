"""The HTTP side as a whole: the pages, what they are made of, and their server.

Importing this imports Starlette, h11 and prometheus_client, which takes as long as all the rest
of the router: whoever starts a router does it later, and aside (see `telemetry`).
"""

from __future__ import annotations

from collections.abc import Sequence
from collections.abc import Set as AbstractSet

import trio
from starlette.routing import BaseRoute

from router_trio.states import Histogram
from router_trio.telemetry.http.application import Answers, application
from router_trio.telemetry.http.blocked import HandedOver
from router_trio.telemetry.http.server import serve_http
from router_trio.telemetry.logs.recent import Recent
from router_trio.telemetry.metrics.lag import measure_lag


async def serve_site(
    listeners: Sequence[trio.SocketListener],
    answers: Answers,
    recent: Recent,
    allowed_hosts: AbstractSet[str],
    pages: Sequence[BaseRoute],
    loop_lags: Histogram,
    handed_over: HandedOver,
) -> None:
    """Answer requests on `listeners` until cancelled, and measure the lag of the loop.

    See `application` for what there is to ask for.
    """
    app = application(answers, recent, allowed_hosts, pages)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(measure_lag, loop_lags)
        await serve_http(listeners, app, handed_over)
