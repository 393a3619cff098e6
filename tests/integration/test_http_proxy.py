"""Links through an HTTP proxy: every scheme by CONNECT, and a proxy that fails in each way."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import trio

from router_trio import Router, Settings
from router_trio.embedded import HOST, reserve_port
from router_trio.errors import AuthorizationError, CertificateError, LinkError
from router_trio.nats.link import Dialer
from router_trio.protocol.framing import payload
from router_trio.settings import ConnectionSettings
from tests.integration.dial import SECRET, refusal
from tests.support.certificates import Certificates
from tests.support.http_proxy import TUNNEL, hear_request, http_proxy, tunnel
from tests.support.impostors import Caller, impostor, info, saying
from tests.support.raw_nats import connect
from tests.support.recorder import INBOX, Recorder, operation
from tests.support.servers import NatsServer, nats_server
from tests.support.settings import settings
from tests.support.watch import watched
from tests.support.websockets import websocket_server


async def echo(config: ConnectionSettings) -> None:
    """Open a link, and send a message over it and back."""
    received = Recorder()
    with trio.fail_after(10):
        async with Dialer(config, "main")(str(config.servers[0]), INBOX, received) as link:
            await link.subscribe("echo", received)
            await link.send([operation(1, b"echo", b"hello")])
            await link.fence()
            assert [payload(raw) for raw in received.messages] == [b"hello"]


@pytest.mark.parametrize("scheme", ["nats", "tls", "tls, handshake first", "ws", "wss"])
async def test_every_scheme_passes_through_a_proxy(tmp_path: Path, certificates: Certificates, scheme: str) -> None:
    login = f"ann:{SECRET}"
    names = {"nats.example.com": HOST}  # only the proxy can resolve it
    config, options = "", {}
    if scheme.startswith("tls"):
        first = "first" in scheme
        config = certificates.server_config(handshake_first=first)
        options = {"tls_ca_file": certificates.ca, "tls_hostname": "localhost", "tls_handshake_first": first}
    async with http_proxy(login=login, names=names) as proxy:
        if scheme.startswith("ws"):
            secured = certificates if scheme == "wss" else None
            options = {"tls_ca_file": certificates.ca, "tls_hostname": "localhost"} if secured else {}
            async with websocket_server(tmp_path, secured, jetstream=False) as (_, url):
                url = f"{url.replace(HOST, 'nats.example.com')}/nats"
                await echo(ConnectionSettings(servers=[url], proxy=proxy.url, **options))
        else:
            greets = "first" not in scheme
            async with nats_server(tmp_path, config=config, jetstream=False, greets=greets) as server:
                url = f"{scheme.partition(',')[0]}://nats.example.com:{server.port}"
                await echo(ConnectionSettings(servers=[url], proxy=proxy.url, **options))
        (caller,) = proxy.callers
        head = bytes(caller.clear)
        target = url.partition("://")[2].partition("/")[0].encode()
        assert head.startswith(b"CONNECT %b HTTP/1.1\r\nHost: %b\r\nProxy-Authorization: Basic " % (target, target))


async def refused(proxy: str, url: str = "nats://nats.example.com:4222", **options: Any) -> LinkError:
    """Dial through a proxy; return the error, which has no secret."""
    login = f"http://ann:{SECRET}@" if options.pop("login", True) else "http://"
    return await refusal(url, **{"proxy": login + proxy, "connect_timeout": "1s", "token": SECRET} | options)


ANSWERS = {
    "301 Moved": ("protocol", "redirects are not followed"),
    "400 Bad Request": ("protocol", "this is an HTTP server and no proxy"),
    "403 Forbidden": ("handshake", "allow CONNECT to it"),
    "404 Not Found": ("protocol", "no proxy"),
    "405 Method Not Allowed": ("protocol", "without CONNECT"),
    "407 Proxy Authentication Required": ("authorization", "refused user and password in `proxy`"),
    "429 Too Many": ("max_connections", "limits connections"),
    "451 For Legal Reasons": ("handshake", "check `proxy`, and its log"),
    "501 Not Implemented": ("protocol", "without CONNECT"),
    "502 Bad Gateway": ("network", "it can't reach the server"),
    "503 Unavailable": ("network", "it can't reach the server"),
    "504 Gateway Timeout": ("network", "no answer in time"),
}


@pytest.mark.parametrize("answer", ANSWERS)
async def test_an_answer_without_a_tunnel_is_explained(answer: str) -> None:
    async def play(caller: Caller) -> None:
        await hear_request(caller)
        await caller.say(f"HTTP/1.1 {answer}\r\nContent-Length: 9\r\n\r\n<a>no</a>".encode())

    reason, words = ANSWERS[answer]
    async with impostor(play) as proxy:
        error = await refused(proxy.address)
        assert error.reason == reason, error
        assert isinstance(error, AuthorizationError) is (reason == "authorization")
        assert f"the proxy http://{proxy.address} answered {answer}" in str(error)
        assert "nats.example.com:4222" in str(error)
        assert words in str(error)


async def test_a_login_that_is_missing_or_wrong_is_distinguished() -> None:
    async with http_proxy(login="ann:right") as proxy:
        error = await refused(proxy.address, login=False)
        assert isinstance(error, AuthorizationError)
        assert "write user:password@ into `proxy`" in str(error)
        error = await refused(proxy.address)
        assert "refused user and password in `proxy`" in str(error)


Play = Callable[[Caller], Awaitable[None]]


def answering(answer: bytes, *, close: bool = True) -> Play:
    async def play(caller: Caller) -> None:
        await hear_request(caller)
        await caller.say(answer)
        if close:
            await caller.close()

    return play


LOGIN = b64encode(f"ann:{SECRET}".encode())


@pytest.mark.parametrize(
    "repeated",
    [
        b"HTTP/1.1 407 no such user as ann:%b\r\n\r\n" % SECRET.encode(),
        b"HTTP/1.1 502 %b\r\n\r\n" % LOGIN,
        b"%b is not HTTP" % SECRET.encode(),
    ],
)
async def test_a_proxy_that_repeats_its_login_does_not_bring_it_into_the_log(repeated: bytes) -> None:
    async with impostor(answering(repeated)) as server:
        error = await refused(server.address)
        assert LOGIN.decode() not in str(error)
        assert "[redacted]" in str(error)


async def answer_with_a_page(caller: Caller) -> None:
    """Answer 200, and everything that follows with a page, as a captive portal does."""
    await hear_request(caller)
    await caller.say(TUNNEL)
    await caller.hear()
    await caller.say(b"HTTP/1.1 400 Bad Request\r\nContent-Type: text/html\r\n\r\n<html>")
    await caller.close()


PAGE = b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 6\r\n\r\n<html>"
NATS, TLS, WS, WSS = "nats://h:4222", "tls://h:4222", "ws://h/nats", "wss://h/nats"
FAULTS: dict[str, tuple[Play, str, str, str]] = {
    "silence": (answering(b"", close=False), NATS, "timeout", "did not answer the request for a tunnel in time"),
    "closed": (answering(b""), NATS, "closed", "closed the connection without an answer"),
    "closed in the middle": (answering(b"HTTP/1.1 200 Conn"), WSS, "closed", "in the middle of its answer"),
    "endless headers": (answering(TUNNEL[:-2] + b"X-Y: z\r\n" * 50_000), TLS, "protocol", "of more than 16384 bytes"),
    "endless line": (answering(b"HTTP/1.1 200 " + b"x" * 500_000), WS, "protocol", "of more than 16384 bytes"),
    "no HTTP": (answering(b"\x05\xff"), NATS, "protocol", "did not answer in HTTP"),
    "a NATS server": (answering(info()), NATS, "protocol", "did not answer in HTTP"),
    "200 without a tunnel": (answering(TUNNEL), NATS, "closed", "check that it allows CONNECT"),
    "200 without a tunnel, for TLS": (answering(TUNNEL), WSS, "tls", "check that it allows CONNECT"),
    "200 without a tunnel, for ws": (answering(TUNNEL), WS, "closed", "check that it allows CONNECT"),
    "a page": (answering(PAGE), NATS, "closed", "check that it allows CONNECT"),
    "a page before TLS": (answering(PAGE), WSS, "protocol", "before anything was sent"),
    "a page instead of TLS": (answer_with_a_page, WSS, "tls", "check that it allows CONNECT"),
    "a page instead of a WebSocket": (answer_with_a_page, WS, "handshake", "400 Bad Request"),
    "a tunnel into nothing": (answering(TUNNEL, close=False), NATS, "timeout", "sent nothing"),
    "a tunnel into nothing, for ws": (answering(TUNNEL, close=False), WS, "timeout", "WebSocket request in time"),
}


@pytest.mark.parametrize("kind", FAULTS)
async def test_a_proxy_that_fails_ends_the_attempt_in_words(kind: str) -> None:
    play, url, reason, words = FAULTS[kind]
    async with impostor(play) as proxy:
        error = await refused(proxy.address, url, connect_timeout="0.5s" if reason == "timeout" else "5s")
        assert error.reason == reason, error
        assert words in str(error)
        assert f"the proxy http://{proxy.address}" in str(error)


async def test_a_proxy_that_is_away_or_has_no_name_is_named() -> None:
    with reserve_port() as port:
        error = await refused(f"{HOST}:{port}")
        assert f"refused by {HOST}:{port}; is the proxy running?" in str(error)
    error = await refused("proxy.invalid:3128", connect_timeout="5s")
    assert error.reason == "dns"
    assert "check `proxy`" in str(error)


async def test_a_proxy_that_inspects_tls_is_named(tmp_path: Path, certificates: Certificates) -> None:
    async with websocket_server(tmp_path, certificates, jetstream=False) as (_, url), http_proxy() as proxy:
        error = await refused(proxy.address, url, tls_ca_file=certificates.other_ca)
        assert isinstance(error, CertificateError)
        assert "if it inspects TLS, set tls_ca_file to its authority" in str(error)


async def test_a_proxy_gets_no_credentials_of_the_server_and_the_server_none_of_the_proxy() -> None:
    async with impostor(saying(info(), b"PONG\r\n", b"PONG\r\n")) as server:

        async def play(caller: Caller) -> None:
            head = await hear_request(caller)
            assert head.count(b"\r\n") == 5
            caller.clear.clear()
            await tunnel(caller, (HOST, int(server.address.rpartition(":")[2])))

        async with impostor(play) as proxy:
            config = ConnectionSettings(
                servers=["nats://h:4222"],
                user="router",
                password="of-the-server",
                proxy=f"http://ann:{SECRET}@{proxy.address}",
            )
            with trio.fail_after(5):
                async with Dialer(config, "main")("nats://h:4222", INBOX, Recorder()):
                    pass
        heard = server.heard_in_clear
        assert b"of-the-server" in heard
        assert SECRET.encode() not in heard
        assert b"Proxy-" not in heard


async def test_announced_servers_are_reached_through_the_proxy(tmp_path: Path) -> None:
    async with nats_server(tmp_path, jetstream=False) as other, http_proxy(names={"other.example.com": HOST}) as proxy:
        served = False

        async def play(caller: Caller) -> None:
            nonlocal served
            if served:
                await caller.close()
                return
            served = True
            await caller.say(info(connect_urls=[f"other.example.com:{other.port}"]))
            await caller.hear(b"PING\r\n")
            await caller.say(b"PONG\r\n" * 2)
            await caller.hear(b"SUB $SRV")
            await caller.close()

        async with impostor(play) as server, watched(settings(server.url, proxy=proxy.url)) as watch:
            await watch.until("NATS_CONNECTION_RESTORED")
            assert b"CONNECT other.example.com:%d " % other.port in proxy.heard_in_clear


async def test_a_reload_moves_a_connection_to_another_proxy(core_server: NatsServer) -> None:
    routes = [{"name": "r", "from": {"subject": "in"}, "to": [{"subject": "out"}]}]

    def through(url: str) -> Settings:
        return settings(core_server.url, proxy=url, routes=routes)

    async with (
        http_proxy() as one,
        http_proxy() as other,
        connect(core_server.url) as client,
        Router(through(one.url)).open() as live,
    ):
        out = await client.subscribe("out")
        await client.publish("in", b"1")
        assert (await out.next()).payload == b"1"
        assert (len(one.callers), len(other.callers)) == (1, 0)
        await live.reload(through(other.url))
        await client.publish("in", b"2")
        assert (await out.next()).payload == b"2"
        assert (len(one.callers), len(other.callers)) == (1, 1)
