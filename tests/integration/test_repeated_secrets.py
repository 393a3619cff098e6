"""Peers that repeat the credentials that they were sent, in any form and any text: none reaches an error."""

from __future__ import annotations

import json
from base64 import b64encode, urlsafe_b64encode
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from urllib.parse import quote

import pytest
import trio

from router_trio.errors import LinkError
from router_trio.settings import ConnectionSettings
from tests.integration.handshakes import link_to
from tests.support.http_proxy import hear_request
from tests.support.impostors import Caller, impostor, info, saying
from tests.support.websockets import CLOSE, WebSocketCaller, server_frame, switching, websocket_impostor

PASSWORD = 'needle+"/é%&haystack'

FORMS: dict[str, str] = {
    "as it is": PASSWORD,
    "in a URL": quote(PASSWORD, safe=""),
    "in JSON": json.dumps(PASSWORD)[1:-1],
    "in Base64": b64encode(PASSWORD.encode()).decode(),
    "in Base64 of a URL": urlsafe_b64encode(PASSWORD.encode()).decode().rstrip("="),
    "as Basic credentials": b64encode(f"router:{PASSWORD}".encode()).decode(),
    "cut by a long text": "." * 90 + PASSWORD + "." * 500,
}
PIECES = [PASSWORD[:6], *(form[:8] for form in FORMS.values() if not form.startswith(".")), "haystack"]
"""Beginnings of the password in each form: none may be shown."""

Peer = Callable[[bytes], AbstractAsyncContextManager[tuple[str, dict[str, str]]]]


def saying_in(*lines: bytes) -> Peer:
    """Return a NATS server that sends these lines, with the text in place of TEXT, and then closes the connection."""

    @asynccontextmanager
    async def peer(text: bytes) -> AsyncIterator[tuple[str, dict[str, str]]]:
        async with impostor(saying(*(line.replace(b"TEXT", text) for line in lines), then_close=True)) as server:
            yield server.url, {}

    return peer


def answering(answer: Callable[[bytes, bytes], bytes]) -> Peer:
    """Return an HTTP server whose answer to a request for a WebSocket is made of the request and the text."""

    @asynccontextmanager
    async def peer(text: bytes) -> AsyncIterator[tuple[str, dict[str, str]]]:
        async def play(caller: Caller) -> None:
            assert isinstance(caller, WebSocketCaller)
            await caller.hear_request()
            await caller.write(answer(bytes(caller.request), text))

        async with websocket_impostor(play, opens=False) as server:
            yield server.url, {}

    return peer


def proxy(answer: bytes) -> Peer:
    """Return an HTTP proxy that answers a request for a tunnel, with the text in place of TEXT."""

    @asynccontextmanager
    async def peer(text: bytes) -> AsyncIterator[tuple[str, dict[str, str]]]:
        async def play(caller: Caller) -> None:
            await hear_request(caller)
            await caller.say(answer.replace(b"TEXT", text))

        async with impostor(play) as server:
            yield "nats://192.0.2.1:4222", {"proxy": f"http://router:{quote(PASSWORD, safe='')}@{server.address}"}

    return peer


PEERS: dict[str, Peer] = {
    "no INFO": saying_in(b"you are TEXT\r\n"),
    "a malformed INFO": saying_in(b'INFO {"TEXT\r\n'),
    "an error before the login": saying_in(b"-ERR 'TEXT'\r\n"),
    "an error as the answer to the login": saying_in(info(), b"-ERR 'TEXT'\r\n"),
    "another answer to the login": saying_in(info(), b"TEXT\r\n"),
    "an error of authorization": saying_in(info(), b"-ERR 'Authorization Violation of TEXT'\r\n"),
    "an error on a live link": saying_in(info(), b"PONG\r\n", b"PONG\r\n-ERR 'TEXT'\r\n"),
    "an error that ends a live link": saying_in(info(), b"PONG\r\n", b"PONG\r\n-ERR 'Stale Connection TEXT'\r\n"),
    "a malformed INFO on a live link": saying_in(info(), b"PONG\r\n", b'PONG\r\nINFO {"TEXT\r\n'),
    "a gateway": answering(lambda _, text: b"HTTP/1.1 401 %b\r\n\r\n" % text),
    "a redirect": answering(lambda _, text: b"HTTP/1.1 301 Moved\r\nLocation: /x;%b\r\n\r\n" % text),
    "a close frame": answering(
        lambda request, text: switching(request) + server_frame(CLOSE, b"\x03\xf0" + text[:120])
    ),
    "a proxy": proxy(b"HTTP/1.1 403 TEXT\r\n\r\n"),
    "what comes through a tunnel": proxy(b"HTTP/1.1 200 OK\r\n\r\nyou sent TEXT\r\n"),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("peer", PEERS)
async def test_no_error_has_a_secret_that_a_peer_repeats(peer: str, form: str) -> None:
    async with PEERS[peer](FORMS[form].encode()) as (url, options):
        config = ConnectionSettings.model_validate(
            {"servers": [url], "user": "router", "password": PASSWORD, "connect_timeout": "5s", **options}
        )
        with pytest.raises(LinkError) as caught, trio.fail_after(10):
            async with link_to(config):
                await trio.sleep_forever()
    shown = str(caught.value)
    assert not [piece for piece in PIECES if piece in shown], shown
