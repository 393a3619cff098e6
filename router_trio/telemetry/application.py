"""The pages of the HTTP side, as a Starlette application. It knows no server."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, cast

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import BaseRoute, Route

from router_trio.telemetry import watching
from router_trio.telemetry.page import CONTENT_TYPE, MetricsPage
from router_trio.telemetry.recent import Recent
from router_trio.telemetry.status import health, readiness, status
from router_trio.telemetry.view import RouterView

if TYPE_CHECKING:
    from hypercorn.typing import ASGIFramework

_FRESH = {"cache-control": "no-store"}


def application(
    view: RouterView,
    page: MetricsPage,
    clock: Callable[[], float],
    recent: Recent,
    started_at: float,
    pages: Sequence[BaseRoute] = (),
) -> ASGIFramework:
    """`/`, `/events`, `/metrics`, `/healthz`, `/readyz` and `/status` of a router, and `pages`.

    `clock` is the one of the fences, `started_at` the router's start on it. No page of the router's own but `/events`
    awaits anything: each is rendered from plain values, in a few milliseconds.
    """
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

    async def front(_: Request) -> Response:
        text, headers = watching.page()
        return HTMLResponse(text, headers=headers)

    def look() -> dict[str, Any]:
        now = clock()
        return {"status": status(view, now - started_at), "readiness": readiness(view, now)[1]}

    routes = [
        Route("/", front),
        Route("/events", watching.EventStream(look, recent), methods=["GET"]),
        Route("/metrics", metrics),
        Route("/healthz", healthz),
        Route("/readyz", readyz),
        Route("/status", status_page),
        *pages,
    ]
    # Both follow ASGI; their type annotations of it do not match.
    return cast("ASGIFramework", Starlette(routes=routes))
