"""The pages of the HTTP side, as a Starlette application. It knows no server."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from collections.abc import Set as AbstractSet
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import BaseRoute, Route
from starlette.types import ASGIApp, Receive, Scope, Send

from router_trio.telemetry.http import watching
from router_trio.telemetry.http.hosts import refusal
from router_trio.telemetry.http.status import health, readiness, status
from router_trio.telemetry.http.status_page import page as front_page
from router_trio.telemetry.logs.recent import Recent
from router_trio.telemetry.metrics.page import CONTENT_TYPE, MetricsPage
from router_trio.telemetry.metrics.rendering import Rendering, SharedPage
from router_trio.telemetry.view import RouterView

_FRESH = {"cache-control": "no-store"}


def application(
    view: RouterView,
    page: MetricsPage,
    clock: Callable[[], float],
    recent: Recent,
    started_at: float,
    allowed_hosts: AbstractSet[str],
    pages: Sequence[BaseRoute] = (),
) -> ASGIApp:
    """`/`, `/events`, `/metrics`, `/healthz`, `/readyz` and `/status` of a router, and `pages`.

    `clock` is the one of the fences, `started_at` the router's start on it. All but `/healthz` and `/readyz` answer
    only to IP addresses, loopback names and `allowed_hosts`. What grows with the number of routes is made one at a
    time, for all who wait for it.
    """

    def look() -> dict[str, Any]:
        now = clock()
        return {"status": status(view, now - started_at), "readiness": readiness(view, now)[1]}

    rendering = Rendering()
    scrape = SharedPage(rendering, page.render)
    looks = SharedPage(rendering, look)

    async def metrics(_: Request) -> Response:
        return Response(await scrape.get(), headers={**_FRESH, "content-type": CONTENT_TYPE})

    async def healthz(_: Request) -> Response:
        code, body = health(view)
        return JSONResponse(body, code, _FRESH)

    async def readyz(_: Request) -> Response:
        # Not shared: a probe waits for nobody.
        code, body = readiness(view, clock())
        return JSONResponse(body, code, _FRESH)

    async def status_page(_: Request) -> Response:
        return JSONResponse((await looks.get())["status"], headers=_FRESH)

    async def front(_: Request) -> Response:
        text, headers = front_page()
        return HTMLResponse(text, headers=headers)

    routes = [
        Route("/", front),
        Route("/events", watching.EventStream(looks.get, recent), methods=["GET"]),
        Route("/metrics", metrics),
        Route("/healthz", healthz),
        Route("/readyz", readyz),
        Route("/status", status_page),
        *pages,
    ]
    return _Guard(Starlette(routes=routes), allowed_hosts)


class _Guard:
    """Refuses what does not name this router, or comes from another site, before anything else is done."""

    def __init__(self, app: ASGIApp, allowed_hosts: AbstractSet[str]) -> None:
        self._app = app
        self._allowed_hosts = allowed_hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        refused = refusal(scope["path"], scope["headers"], self._allowed_hosts)
        if refused is None:
            await self._app(scope, receive, send)
        else:
            code, why = refused
            await JSONResponse({"error": why}, code, _FRESH)(scope, receive, send)
