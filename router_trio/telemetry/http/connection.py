"""The connection of one HTTP client: HTTP/1.1 over a stream, parsed and written by h11.

Only HTTP/1.1 and 1.0 are supported: a request to upgrade is answered as if it had not asked for it, HTTP/2 is refused.
Requests are handled one at a time. What a client sends ahead stays in the kernel's buffer, except for one read.
"""

from __future__ import annotations

from collections.abc import Iterable
from email.utils import formatdate
from http import HTTPStatus

import h11
import trio

MAX_HEADER_BYTES = 16 * 1024
"""Maximum size of request line and headers in bytes; larger ones are refused with 431."""

SEND_SECONDS = 5.0
"""Maximum seconds for one write to a client."""

LINGER_SECONDS = 1.0
"""Seconds for which data from the client is discarded before closing; closing at once could lose the answer."""

_READ_BYTES = 16 * 1024
_VERSIONS = (b"1.0", b"1.1")

Header = tuple[bytes, bytes]


class RequestRefused(Exception):
    """The request is refused with this HTTP status."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(reason)
        self.code = code


class HTTPConnection:
    """The connection of one client; `peer` is its address.

    Reading and writing raise `trio.BrokenResourceError` if the client has disconnected or reads too slowly.
    """

    def __init__(self, stream: trio.SocketStream, peer: str) -> None:
        self.peer = peer
        self._stream = stream
        self._h11 = h11.Connection(h11.SERVER, max_incomplete_event_size=MAX_HEADER_BYTES)
        self._is_head = False
        self.close_after_answer: bool = False
        """Set it to True to close the connection after the answer."""

    @property
    def request_begun(self) -> bool:
        """True if part of the next request has arrived."""
        return bool(self._h11.trailing_data[0])

    @property
    def body_awaited(self) -> bool:
        """True if the body of the request has not been read completely."""
        return self._h11.their_state is h11.SEND_BODY

    async def next_request(self) -> h11.Request | None:
        """Wait for the headers of a request; return None if the client has closed. Raises `RequestRefused`."""
        request = await self._next_event()
        if not isinstance(request, h11.Request):
            return None
        self._is_head = request.method == b"HEAD"
        # h11 limits incomplete headers only; these may have arrived at once. 4 is for colon, space, CR and LF.
        size = len(request.target) + sum(len(name) + len(value) + 4 for name, value in request.headers)
        if size > MAX_HEADER_BYTES:
            raise RequestRefused(431, f"request line and headers may have {MAX_HEADER_BYTES} bytes")
        if request.http_version not in _VERSIONS:
            raise RequestRefused(505, "only HTTP/1.1 and HTTP/1.0 are supported")
        names = {name for name, _ in request.headers}
        if b"transfer-encoding" in names and (b"content-length" in names or request.http_version == b"1.0"):
            # A proxy in front may read it as another number of requests: RFC 9112, 6.1 and 6.3.
            raise RequestRefused(400, "Transfer-Encoding is refused with Content-Length and in HTTP/1.0")
        if not request.target.startswith(b"/"):
            raise RequestRefused(400, "the target of a request must be a path")
        # Without a body the next event is the end of the request, which the caller does not need.
        if not self._expects_body(request):
            await self._next_event()
        return request

    async def read_body(self) -> bytes | None:
        """Wait for a part of the body; return None at its end. Raises `RequestRefused`."""
        if self._h11.they_are_waiting_for_100_continue:
            await self.write(self._h11.send(h11.InformationalResponse(status_code=100, headers=[])) or b"")
        event = await self._next_event()
        return bytes(event.data) if isinstance(event, h11.Data) else None

    async def wait_until_gone(self) -> None:
        """Wait until the client has closed its side. Waits until cancelled if the client sends its next request."""
        if not self.request_begun:
            self._h11.receive_data(await self._stream.receive_some(_READ_BYTES))
        if self.request_begun:
            await trio.sleep_forever()

    async def send_head(self, code: int, headers: Iterable[Header], data: bytes = b"", *, more: bool = False) -> None:
        """Send status and headers of the answer, with the first part of its body.

        If the connection will be closed after the answer, a header `connection: close` is added.
        """
        lines = [*headers, (b"date", formatdate(usegmt=True).encode())]
        if (self.close_after_answer or self.body_awaited) and not any(name == b"connection" for name, _ in lines):
            lines.append((b"connection", b"close"))
        response = h11.Response(status_code=code, headers=lines, reason=HTTPStatus(code).phrase.encode())
        await self.send_body(data, more=more, after=self._h11.send(response) or b"")

    async def send_body(self, data: bytes, *, more: bool, after: bytes = b"") -> None:
        """Send a part of the answer's body after the bytes `after`, and the end of the answer unless `more`."""
        if data and not self._is_head:
            after += self._h11.send(h11.Data(data=data)) or b""
        if not more:
            after += self._h11.send(h11.EndOfMessage()) or b""
        await self.write(after)

    async def refuse(self, refused: RequestRefused) -> None:
        """Answer with a line of text, and close the connection after it."""
        text = f"{refused}\n".encode()
        headers = [
            (b"content-type", b"text/plain; charset=utf-8"),
            (b"content-length", str(len(text)).encode()),
            (b"cache-control", b"no-store"),
        ]
        if refused.code == HTTPStatus.SERVICE_UNAVAILABLE:
            headers.append((b"retry-after", b"1"))
        self.close_after_answer = True
        await self.send_head(refused.code, headers, text)

    async def write(self, data: bytes) -> None:
        """Send bytes. Raises `trio.BrokenResourceError` if that takes longer than `SEND_SECONDS`."""
        with trio.move_on_after(SEND_SECONDS) as scope:
            await self._stream.send_all(data)
        if scope.cancelled_caught:
            raise trio.BrokenResourceError("the client was too slow")

    def start_next_request(self) -> bool:
        """Prepare for the next request; return False if this connection can't have another one."""
        if self._h11.our_state is h11.DONE and self._h11.their_state is h11.DONE:
            self._h11.start_next_cycle()
            self._is_head = False
            return True
        return False

    async def linger(self) -> None:
        """Close the sending side, and discard what the client still sends for up to `LINGER_SECONDS`."""
        if self._h11.their_state in (h11.DONE, h11.MUST_CLOSE, h11.CLOSED) and not self.request_begun:
            return
        with trio.move_on_after(LINGER_SECONDS):
            await self._stream.send_eof()
            while await self._stream.receive_some(_READ_BYTES):
                pass

    # --- inside ---

    async def _next_event(self) -> object:
        try:
            while (event := self._h11.next_event()) is h11.NEED_DATA:
                self._h11.receive_data(await self._stream.receive_some(_READ_BYTES))
        except h11.RemoteProtocolError as error:
            raise RequestRefused(error.error_status_hint, str(error)) from None
        return event

    def _expects_body(self, request: h11.Request) -> bool:
        return any(
            name == b"transfer-encoding" or (name == b"content-length" and value.strip(b"0"))
            for name, value in request.headers
        )
