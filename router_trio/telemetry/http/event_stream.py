"""Server-sent events at `/events`, which keep the status page live.

Follows the HTML standard, https://html.spec.whatwg.org/multipage/server-sent-events.html. Once a second a client gets
the full state of the router and the events that it has not received yet. A client that requests `changes` gets, after
its first message, only the routes that differ from what it has, and the names of those that are `gone`. Nothing is
queued for a client: one that reads slowly gets fewer messages, and the HTTP server disconnects one that stops reading.
At most `MAX_CLIENTS` are served at a time, `MAX_CLIENTS_PER_PEER` of them from one address. A stream ends after
`LIFETIME` seconds, or when the router stops; a browser then reconnects by itself and sends the number of the last event
that it received.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Awaitable, Callable

import trio
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from router_trio.telemetry.http.rendering import REST
from router_trio.telemetry.http.status import StatusText
from router_trio.telemetry.logs.recent import Recent
from router_trio.telemetry.pieces import in_pieces

MAX_CLIENTS = 16
MAX_CLIENTS_PER_PEER = 8
INTERVAL = 1.0
"""Seconds between two messages."""

LIFETIME = 25.0
"""Seconds after which a stream ends: shorter than the server's limit for a connection, so that it ends cleanly."""

LONGEST_INTERVAL = 3.0
SHARE = 2.0
"""The pause after a message is `SHARE` times as long as the message took, if that is longer than `INTERVAL`: with
thousands of routes. At most `LONGEST_INTERVAL` seconds: the page counts a router as silent after eight."""

COME_BACK_AFTER_MS = 1000

_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-store"),
    (b"connection", b"close"),
    (b"x-accel-buffering", b"no"),
]


class EventStream:
    """The ASGI application at `/events`. `status` and `readiness` return what `/status` and `/readyz` would."""

    def __init__(
        self, status: Callable[[], Awaitable[StatusText]], readiness: Callable[[], Awaitable[str]], recent: Recent
    ) -> None:
        self._status = status
        self._readiness = readiness
        self._recent = recent
        self._clients: Counter[str] = Counter()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one client until it disconnects, `LIFETIME` is over, or the router stops."""
        request = Request(scope)
        peer: str = scope["client"][0]
        full = self._full(peer)
        if full is not None:
            await JSONResponse({"reason": full}, 503, {"retry-after": "5"})(scope, receive, send)
            return
        if request.method == "HEAD":
            await Response(headers={"content-type": "text/event-stream; charset=utf-8"})(scope, receive, send)
            return
        self._clients[peer] += 1
        try:
            await send({"type": "http.response.start", "status": 200, "headers": _HEADERS})
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_until_gone, receive, nursery.cancel_scope)
                await self._send_events(send, *_seen(request), only_changes="changes" in request.query_params)
                nursery.cancel_scope.cancel()
            await send({"type": "http.response.body", "body": b""})
        finally:
            self._clients[peer] -= 1
            self._clients += Counter()  # removes counts of zero

    def _full(self, peer: str) -> str | None:
        if self._clients.total() >= MAX_CLIENTS:
            return f"{MAX_CLIENTS} clients are watching already"
        if self._clients[peer] >= MAX_CLIENTS_PER_PEER:
            return f"{MAX_CLIENTS_PER_PEER} clients of this address are watching already"
        return None

    async def _send_events(self, send: Send, last: int, wait: float, *, only_changes: bool) -> None:
        known: dict[str, int] = {}
        await _write(send, f"retry: {COME_BACK_AFTER_MS}\n\n")
        with trio.move_on_after(LIFETIME):
            with trio.move_on_after(wait):
                await self._recent.closing.wait()
            while not self._recent.closing.is_set():
                began_at = trio.current_time()
                text, readiness = await self._status(), await self._readiness()
                gone = f',"gone":{json.dumps([one for one in known if one not in text.routes])}' if known else ""
                status = await in_pieces(text.changes(known) if only_changes else text.parts(), REST)
                events = self._recent.since(last)
                last = events[-1]["number"] if events else last
                await _write(send, f'id: {last}\ndata: {{"status":')
                for part in status:
                    await _write(send, part)
                await _write(send, f',"readiness":{readiness},"events":{json.dumps(events)}{gone}}}\n\n')
                took = trio.current_time() - began_at
                with trio.move_on_after(max(INTERVAL, min(SHARE * took, LONGEST_INTERVAL))):
                    await self._recent.closing.wait()


async def _write(send: Send, text: str | bytes) -> None:
    body = text.encode() if isinstance(text, str) else text
    await send({"type": "http.response.body", "body": body, "more_body": True})


async def _until_gone(receive: Receive, scope: trio.CancelScope) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    scope.cancel()


def _seen(request: Request) -> tuple[int, float]:
    """Return the number of the last event that a client has, and how long it waits for more.

    A browser that reconnects sends the number that it received last. A page that was just served has the state.
    """
    last, served = request.headers.get("last-event-id"), request.query_params.get("after")
    return _number(served if last is None else last), (INTERVAL if last is None and served is not None else 0.0)


def _number(text: str | None) -> int:
    return int(text) if text is not None and text.isascii() and text.isdigit() and len(text) < 20 else 0
