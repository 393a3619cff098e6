"""Open a tunnel through an HTTP proxy with CONNECT. Afterwards the stream is one to the server.

The proxy resolves the name of the server. It sees host and port, and of a connection with TLS nothing else.
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Mapping

import trio

from router_trio.errors import AuthorizationError, LinkError, ProtocolError, reasons
from router_trio.nats.http_request import USER_AGENT, Header, request
from router_trio.settings import ProxyURL, ServerURL


async def open_tunnel(stream: trio.SocketStream, proxy: ProxyURL, url: ServerURL) -> bytes:
    """Ask the proxy for a tunnel to the server; return the bytes that were received after its answer.

    Raises `LinkError`, `AuthorizationError` or `ProtocolError`. Waits for the proxy without a limit.
    """
    target = url.address.encode()
    lines: list[Header] = [(b"Host", target)]
    if proxy.user is not None:
        password = "" if proxy.password is None else proxy.password.get_secret_value()
        login = b64encode(f"{proxy.user.get_secret_value()}:{password}".encode())
        lines.append((b"Proxy-Authorization", b"Basic " + login))
    lines.append(USER_AGENT)
    answer = await request(stream, b"CONNECT", target, lines, of=f"the proxy {proxy}")
    if 200 <= answer.status < 300:
        return answer.rest
    text = f"the proxy {proxy} answered {answer} to the request for a tunnel to {url.address}"
    if answer.status == 407:
        if proxy.user is None:
            raise AuthorizationError(f"{text}: it requires a login; write user:password@ into `proxy`")
        raise AuthorizationError(f"{text}: it refused user and password in `proxy`; correct them")
    if 300 <= answer.status < 400:
        raise ProtocolError(f"{text}: redirects are not followed; check `proxy`")
    reason, cure = _CURES.get(answer.status, (reasons.HANDSHAKE, "check `proxy`, and its log"))
    raise LinkError(f"{text}: {cure}", reason=reason)


_UNREACHED = "it can't reach the server; check `servers`, and the name as the proxy resolves it"
_NO_PROXY = "this is an HTTP server and no proxy, or one without CONNECT; check `proxy`"

_CURES: Mapping[int, tuple[str, str]] = {
    400: (reasons.PROTOCOL, _NO_PROXY),
    401: (reasons.PROTOCOL, _NO_PROXY),
    403: (reasons.HANDSHAKE, "its rules forbid that host or port; allow CONNECT to it, or use wss:// on port 443"),
    404: (reasons.PROTOCOL, _NO_PROXY),
    405: (reasons.PROTOCOL, _NO_PROXY),
    429: (reasons.MAX_CONNECTIONS, "it limits connections; raise its limit"),
    501: (reasons.PROTOCOL, _NO_PROXY),
    502: (reasons.NETWORK, _UNREACHED),
    503: (reasons.NETWORK, _UNREACHED),
    504: (reasons.NETWORK, f"{_UNREACHED}; it got no answer in time"),
}
"""The reason and the cure for each status that is known to occur."""
