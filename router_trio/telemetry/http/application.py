"""The pages as a Starlette application, and their server.

This module imports Starlette, h11 and prometheus_client, which takes as long as the rest of the router. So `telemetry`
imports it late, and in a thread.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from functools import partial
from types import MappingProxyType
from typing import Any, Protocol

import trio
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route
from starlette.types import ASGIApp, Receive, Scope, Send

from router_trio.events import Emit
from router_trio.states import Histogram
from router_trio.telemetry.http.blocked import HandedOver
from router_trio.telemetry.http.event_stream import EventStream
from router_trio.telemetry.http.hosts import may_read, refusal
from router_trio.telemetry.http.rendering import REST, SharedPage
from router_trio.telemetry.http.server import serve_http
from router_trio.telemetry.http.status import Answer, StatusText, health, readiness_pieces, status_pieces
from router_trio.telemetry.http.status_page import in_page
from router_trio.telemetry.http.status_page import page as front_page
from router_trio.telemetry.http.tap_pages import OwnTaps, TapPages, TapSource
from router_trio.telemetry.logs.recent import Recent
from router_trio.telemetry.metrics.accepted import accepted_form
from router_trio.telemetry.metrics.lag import measure_lag
from router_trio.telemetry.metrics.metric import Form, Sources
from router_trio.telemetry.metrics.page import CONTENT_TYPES, MetricsPage
from router_trio.telemetry.pieces import Parts, Pieces, in_pieces
from router_trio.telemetry.tap.taps import Taps

PAGE_SECONDS = 5.0
"""Maximum seconds for a client to read a page about all routes. A slow client keeps the page in memory until then."""

HIDDEN = "reasons are shown to requests by an IP address, a loopback name, or a name in telemetry.allowed_hosts"
"""The detail of an answer whose reasons are withheld, because the request's Host is not allowed."""

_FRESH = {"cache-control": "no-store"}


class Answers(Protocol):
    """The contents of the pages, rendered in pieces. Only `refresh` waits."""

    async def refresh(self) -> None:
        """Update the state that the next pages are made from. Takes a moment at most; can be cancelled."""
        ...

    def health(self) -> Answer:
        """Return the answer of `/healthz`."""
        ...

    def readiness(self) -> Pieces[Answer]:
        """Return the answer of `/readyz`."""
        ...

    def status(self) -> Pieces[StatusText]:
        """Return the JSON text of `/status`."""
        ...

    def metrics(self, form: Form = "text") -> Pieces[Parts]:
        """Return the text of `/metrics`."""
        ...

    @property
    def taps(self) -> TapSource:
        """Where the messages of taps are read from."""
        ...


class RouterAnswers:
    """The `Answers` of the router in this process. `clock` is the clock of the fences; `started_at` is a time on it."""

    def __init__(self, sources: Sources, taps: Taps, clock: Callable[[], float], started_at: float) -> None:
        self.taps: TapSource = OwnTaps(taps, sources.view)
        self._view = sources.view
        self._page = MetricsPage(sources)
        self._clock = clock
        self._started_at = started_at

    async def refresh(self) -> None:
        """Do nothing: the state is in this process and always current."""

    def health(self) -> Answer:
        return health(self._view)

    def readiness(self) -> Pieces[Answer]:
        return readiness_pieces(self._view, self._clock)

    def status(self) -> Pieces[StatusText]:
        return status_pieces(self._view, self._clock() - self._started_at)

    def metrics(self, form: Form = "text") -> Pieces[Parts]:
        return self._page.pieces(form)


class JSONPage(JSONResponse):
    """A page of JSON that ends with a newline, for terminals."""

    def render(self, content: Any) -> bytes:
        """Return the bytes of the page."""
        return super().render(content) + b"\n"


class LargePage(Response):
    """A page that is sent in parts: of all pages with the same `turn`, one part in each turn of the event loop."""

    def __init__(
        self, parts: Parts, turn: trio.Lock, media_type: str, headers: Mapping[str, str] = MappingProxyType({})
    ) -> None:
        length = str(sum(map(len, parts)))
        super().__init__(headers={**_FRESH, **headers, "content-type": media_type, "content-length": length})
        self._unsent = deque(parts)  # freed one by one: to free an entire page at once takes milliseconds
        self._turn = turn

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the page. Raises `trio.BrokenResourceError` if that takes longer than `PAGE_SECONDS`."""
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        with trio.move_on_after(PAGE_SECONDS) as sending:
            while self._unsent and scope["method"] != "HEAD":
                async with self._turn:
                    await trio.lowlevel.checkpoint()
                await send({"type": "http.response.body", "body": self._unsent.popleft(), "more_body": True})
        if sending.cancelled_caught:
            raise trio.BrokenResourceError("the client was too slow")
        await send({"type": "http.response.body"})


def application(
    answers: Answers, recent: Recent, allowed_hosts: AbstractSet[str], pages: Sequence[BaseRoute] = ()
) -> ASGIApp:
    """Return an application with `/`, `/events`, `/metrics`, `/healthz`, `/readyz`, `/status`, and `pages`.

    All paths answer to requests whose Host is an IP address, a loopback name or in `allowed_hosts`. To other hosts only
    `/healthz` and `/readyz` answer, with their code and status but no reasons. Pages whose size grows with the number
    of routes are rendered one at a time, shared by all requests that wait for them, and sent in parts.
    """
    turn, sending = trio.Lock(), trio.Lock()
    forms: tuple[Form, ...] = ("text", "openmetrics")
    scrapes = {form: SharedPage(turn, partial(answers.metrics, form)) for form in forms}
    statuses = SharedPage(turn, answers.status)

    async def status_text() -> StatusText:
        await answers.refresh()
        return await statuses.get()

    async def readiness_text() -> str:
        return json.dumps((await in_pieces(answers.readiness()))[1])

    async def metrics(request: Request) -> Response:
        await answers.refresh()
        form = accepted_form(request.headers.getlist("accept"))
        return LargePage(await scrapes[form].get(), sending, CONTENT_TYPES[form])

    def probed(request: Request, answer: Answer) -> Response:
        code, body = answer
        if not may_read(request.scope["headers"], allowed_hosts):
            body = {"status": body["status"], "reasons": [], "detail": HIDDEN}
        return JSONPage(body, code, _FRESH)

    async def healthz(request: Request) -> Response:
        return probed(request, answers.health())

    async def readyz(request: Request) -> Response:
        # Not a shared page: a probe must not wait for other requests.
        await answers.refresh()
        return probed(request, await in_pieces(answers.readiness()))

    async def status_page(_: Request) -> Response:
        *parts, last = await in_pieces((await status_text()).parts(), REST)
        return LargePage([*parts, last + b"\n"], sending, "application/json")

    async def front(_: Request) -> Response:
        before, behind, headers = front_page()
        status = await in_pieces((await status_text()).parts(), REST)
        readiness, events = await readiness_text(), json.dumps(recent.since(0))
        rest = f',"readiness":{readiness},"events":{events}}}'.encode()
        parts = [before, b'{"status":', *map(in_page, status), in_page(rest), behind]
        return LargePage(parts, sending, "text/html; charset=utf-8", headers)

    routes = [
        Route("/", front),
        Route("/events", EventStream(status_text, readiness_text, recent), methods=["GET"]),
        Route("/metrics", metrics),
        Route("/healthz", healthz),
        Route("/readyz", readyz),
        Route("/status", status_page),
        *pages,
    ]
    return _Guard(Starlette(routes=routes), allowed_hosts)


async def serve_pages(
    listeners: Sequence[trio.SocketListener],
    answers: Answers,
    recent: Recent,
    allowed_hosts: AbstractSet[str],
    pages: Sequence[BaseRoute],
    loop_lags: Histogram,
    handed_over: HandedOver,
    emit: Emit,
) -> None:
    """Serve the pages of `application`, and those of taps, on `listeners` until cancelled.

    Measures the lag of the event loop meanwhile. `emit` reports the opening and closing of taps.
    """
    taps = TapPages(answers.taps, emit)
    app = application(answers, recent, allowed_hosts, [*taps.pages(), *pages])
    async with trio.open_nursery() as nursery:
        nursery.start_soon(measure_lag, loop_lags)
        nursery.start_soon(taps.keep)
        await serve_http(listeners, app, handed_over)


class _Guard:
    """Refuse requests that do not name this router or come from another site, before anything else handles them."""

    def __init__(self, app: ASGIApp, allowed_hosts: AbstractSet[str]) -> None:
        self._app = app
        self._allowed_hosts = allowed_hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        refused = refusal(scope["path"], scope["headers"], self._allowed_hosts)
        if refused is None:
            await self._app(scope, receive, send)
        else:
            code, why = refused
            await JSONPage({"error": why}, code, _FRESH)(scope, receive, send)
