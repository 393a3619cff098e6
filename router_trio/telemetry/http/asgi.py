"""Run an ASGI application for one request on an `HTTPConnection`.

A body is read only when the application asks for it, with limits of size and time, and is not buffered. A body that
can't be read raises `HTTPException`, which the application turns into its answer.
"""

from __future__ import annotations

from typing import Any
from urllib.parse import unquote

import h11
import trio
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message

from router_trio.telemetry.http.connection import Header, HTTPConnection, RequestRefused

MAX_BODY_BYTES = 64 * 1024
"""Maximum size of a body in bytes; a larger body is refused with 413."""

BODY_SECONDS = 5.0
"""Maximum seconds for a body to arrive; a slower body is refused with 408."""


def path_of(request: h11.Request) -> str:
    """Return the decoded path of a request, without its query."""
    return unquote(request.target.partition(b"?")[0].decode("ascii"))


async def answer(connection: HTTPConnection, request: h11.Request, app: ASGIApp) -> None:
    """Let the application answer a request. Exceptions of the application propagate."""
    exchange = _Exchange(connection, request)
    await app(_scope(connection, request), exchange.receive, exchange.send)


def _scope(connection: HTTPConnection, request: h11.Request) -> dict[str, Any]:
    path, _, query = request.target.partition(b"?")
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": request.http_version.decode("ascii"),
        "method": request.method.decode("ascii"),
        "scheme": "http",
        "path": path_of(request),
        "raw_path": path,
        "query_string": query,
        "root_path": "",
        "headers": list(request.headers),
        "client": (connection.peer, 0),
    }


class _Exchange:
    def __init__(self, connection: HTTPConnection, request: h11.Request) -> None:
        self._connection = connection
        self._declared = sum(int(value) for name, value in request.headers if name == b"content-length")
        self._received = 0
        self._over = False
        self._body_by = trio.current_time() + BODY_SECONDS
        self._head: tuple[int, list[Header]] | None = None

    async def receive(self) -> Message:
        """Wait for the next part of the request's body; after its end, for the client to disconnect."""
        if self._over:
            await self._connection.wait_until_gone()
            return {"type": "http.disconnect"}
        part = await self._read() if self._connection.body_awaited else None
        self._over = part is None
        return {"type": "http.request", "body": part or b"", "more_body": not self._over}

    async def send(self, message: Message) -> None:
        """Send a part of the answer. The head is sent with the first part of the body, in one write."""
        if message["type"] == "http.response.start":
            self._head = message["status"], list(message["headers"])
            return
        data, more = message.get("body", b""), message.get("more_body", False)
        if self._head is None:
            await self._connection.send_body(data, more=more)
        else:
            (code, headers), self._head = self._head, None
            await self._connection.send_head(code, headers, data, more=more)

    async def _read(self) -> bytes | None:
        if self._declared > MAX_BODY_BYTES:
            raise _too_large()
        try:
            with trio.fail_at(self._body_by):
                part = await self._connection.read_body()
        except trio.TooSlowError:
            raise HTTPException(408, f"the body must arrive within {BODY_SECONDS:g} s") from None
        except RequestRefused as refused:
            raise HTTPException(refused.code, str(refused)) from None
        self._received += len(part or b"")
        if self._received > MAX_BODY_BYTES:
            raise _too_large()
        return part


def _too_large() -> HTTPException:
    return HTTPException(413, f"a body may have {MAX_BODY_BYTES} bytes")
