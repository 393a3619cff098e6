"""Open a WebSocket (RFC 6455) on a stream of TCP or TLS.

An answer other than 101 fails the attempt, with an error that names what answered and the cure. Redirects are not
followed: the next request would carry this connection's credentials to a server that the configuration does not name.
"""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus

import trio
from pydantic import SecretStr

from router_trio.errors import AuthorizationError, LinkError, ProtocolError, reasons
from router_trio.errors.quotes import excerpt
from router_trio.nats.http_request import USER_AGENT, Answer, Header, request
from router_trio.nats.transport import SecureStream
from router_trio.nats.websocket import WebSocketStream
from router_trio.protocol.websocket import FrameReader, FrameWriter, accept_for, new_key
from router_trio.settings import ServerURL
from router_trio.settings.content import without_keys

_SWITCHING = 101


async def open_websocket(
    stream: trio.SocketStream | SecureStream, url: ServerURL, headers: Mapping[str, SecretStr]
) -> WebSocketStream:
    """Ask the server for a WebSocket, and return it. `headers` are added to the request.

    Raises `LinkError`, `AuthorizationError`, `CertificateError` or `ProtocolError`. Waits for the peer without a limit.
    """
    key = new_key()
    lines: list[Header] = [
        (b"Host", url.host_header.encode()),
        (b"Upgrade", b"websocket"),
        (b"Connection", b"Upgrade"),
        (b"Sec-WebSocket-Key", key),
        (b"Sec-WebSocket-Version", b"13"),
        # Masking protects proxies from scripts in browsers. Unmasked payload is sent without a copy.
        (b"Nats-No-Masking", b"true"),
        *((name.encode(), value.get_secret_value().encode()) for name, value in headers.items()),
    ]
    if not any(name.lower() == "user-agent" for name in headers):
        lines.append(USER_AGENT)
    answer = await request(stream, b"GET", url.target.encode(), lines, of=str(url))
    if answer.status != _SWITCHING:
        raise _refused(answer, url)
    _check(answer, key, url)
    masking = [one.lower() for one in answer.values(b"nats-no-masking")] != [b"true"]
    return WebSocketStream(stream, FrameReader(), FrameWriter(masking=masking), answer.rest)


def _check(answer: Answer, key: bytes, url: ServerURL) -> None:
    """Raise `ProtocolError` unless the 101 is the answer to this request."""
    wrong = None
    if [one.lower() for one in answer.values(b"upgrade")] != [b"websocket"]:
        wrong = "to something that is not a WebSocket"
    elif b"upgrade" not in [one.lower() for one in answer.values(b"connection")]:
        wrong = "without the header Connection: Upgrade"
    elif answer.values(b"sec-websocket-accept") != [accept_for(key)]:
        wrong = "with a Sec-WebSocket-Accept that does not answer the request, as a cache or a wrong server would"
    elif answer.values(b"sec-websocket-extensions") or answer.values(b"sec-websocket-protocol"):
        wrong = "with an extension or a protocol that the router did not ask for"
    if wrong is not None:
        raise ProtocolError(f"{url} answered 101 {wrong}; check the address, and any proxy or gateway on the way")


_PAGE = "this is an HTTP server, and not the WebSocket listener of a nats-server; check host, port and path"
_GATEWAY = "the gateway there does not reach its nats-server; check that this runs, and its WebSocket listener"
_HEADERS = "a reverse proxy must pass on HTTP/1.1 and the headers Upgrade and Connection"

_LOGIN: Mapping[int, str] = {
    401: "a gateway requires a login; set Authorization in websocket_headers",
    407: "a proxy on the way requires a login; set `proxy` to its address with user:password@",
}

_CURES: Mapping[int, tuple[str, str]] = {
    400: (reasons.HANDSHAKE, f"it did not see a WebSocket request: {_HEADERS}"),
    403: (
        reasons.HANDSHAKE,
        "a rule of a gateway, or allowed_origins of the server if websocket_headers has an Origin, forbids it",
    ),
    404: (reasons.PROTOCOL, f"there is nothing at this path, or {_PAGE}"),
    405: (reasons.PROTOCOL, _PAGE),
    426: (reasons.HANDSHAKE, f"it did not see a WebSocket request: {_HEADERS}"),
    429: (reasons.MAX_CONNECTIONS, "a gateway limits connections; raise its limit"),
    502: (reasons.NETWORK, _GATEWAY),
    503: (reasons.NETWORK, _GATEWAY),
    504: (reasons.NETWORK, f"{_GATEWAY}, or raise the timeout of the gateway"),
}
"""The reason and the cure for each status that is known to occur."""


def _refused(answer: Answer, url: ServerURL) -> LinkError:
    """Return the error for an answer other than 101."""
    text = f"{url} answered {answer} to the WebSocket request"
    if answer.status in _LOGIN:
        return AuthorizationError(f"{text}: {_LOGIN[answer.status]}")
    if 300 <= answer.status < 400:
        return ProtocolError(f"{text}{_location(answer)}; redirects are not followed: write that address in `servers`")
    reason, cure = _CURES.get(answer.status, (reasons.PROTOCOL if answer.status < 500 else reasons.NETWORK, _PAGE))
    if answer.status == HTTPStatus.BAD_REQUEST and not url.tls:
        cure = f"it requires TLS: write wss://; or {cure}"
    return LinkError(f"{text}: {cure}", reason=reason)


def _location(answer: Answer) -> str:
    """Return the target of a redirect as the end of a text, without parts that may hold a secret."""
    found = next((value for name, value in answer.headers if name == b"location"), b"").decode("latin-1")
    where = str(without_keys(found.partition("?")[0].partition("#")[0], path_shown=True))
    return f": see {excerpt(where)}" if where else ""
