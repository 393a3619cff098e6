"""The pages of the HTTP side, as a Starlette application. It knows no server."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, cast

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

from router_trio.telemetry.page import CONTENT_TYPE, MetricsPage
from router_trio.telemetry.status import health, readiness, status
from router_trio.telemetry.view import RouterView

if TYPE_CHECKING:
    from hypercorn.typing import ASGIFramework

_FRESH = {"cache-control": "no-store"}


def application(
    view: RouterView, page: MetricsPage, clock: Callable[[], float], pages: Sequence[BaseRoute] = ()
) -> ASGIFramework:
    """`/metrics`, `/healthz`, `/readyz` and `/status` of a router, and `pages`. `clock` is the one of the fences.

    No page of the router's own awaits anything: each is rendered from plain values, in a few milliseconds.
    """
    started_at = clock()

    async def metrics(_: Request) -> Response:
        return Response(page.render(), headers={**_FRESH, "content-type": CONTENT_TYPE})

    async def healthz(_: Request) -> Response:
        code, body = health(view)
        return JSONResponse(body, code, _FRESH)

    async def readyz(_: Request) -> Response:
        code, body = readiness(view, clock())
        return JSONResponse(body, code, _FRESH)

    async def status_page(_: Request) -> Response:
        return JSONResponse(status(view, clock() - started_at), headers=_FRESH)

    routes = [
        Route("/metrics", metrics),
        Route("/healthz", healthz),
        Route("/readyz", readyz),
        Route("/status", status_page),
        *pages,
    ]
    # Both follow ASGI; their type annotations of it do not match.
    return cast("ASGIFramework", Starlette(routes=routes))
