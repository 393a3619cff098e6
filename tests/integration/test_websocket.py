"""Links by WebSocket: with real servers, and with raw ones that answer, fragment, ping and close as a test wants."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from random import Random
from typing import Any

import pytest
import trio

from router_trio.errors import AuthorizationError, CertificateError, LinkError, UnexpectedError
from router_trio.nats.link import Dialer, NatsLink
from router_trio.protocol.framing import payload
from router_trio.settings import ConnectionSettings
from tests.integration.dial import SECRET, link_to, refusal
from tests.support.certificates import Certificates
from tests.support.eventually import eventually
from tests.support.impostors import Caller, impostor, info
from tests.support.recorder import INBOX, Recorder, operation
from tests.support.servers import NatsServer
from tests.support.settings import settings
from tests.support.watch import watched
from tests.support.websockets import (
    BINARY,
    CLOSE,
    PING,
    PONG,
    ClientFrame,
    WebSocketCaller,
    server_frame,
    switching,
    websocket_impostor,
    websocket_server,
)


async def echoes(link: NatsLink, size: int = 5) -> None:
    """Send messages over a link and back, more at a time than a socket takes."""
    received = Recorder()
    await link.subscribe("echo", received)
    bodies = [bytes([number]) * size for number in range(64)]
    assert list(await link.send([operation(number, b"echo", body) for number, body in enumerate(bodies)])) == []
    await link.fence()
    assert [payload(raw) for raw in received.messages] == bodies


@pytest.fixture(params=["ws", "wss"])
async def served(
    request: pytest.FixtureRequest, tmp_path: Path, certificates: Certificates
) -> AsyncIterator[tuple[NatsServer, str, dict[str, Any]]]:
    """A nats-server, the URL of its WebSocket listener, and the settings that it needs."""
    used = certificates if request.param == "wss" else None
    async with websocket_server(tmp_path, used) as (server, url):
        yield server, url, {} if used is None else {"tls_ca_file": certificates.ca}


async def test_a_link_carries_messages_and_requests(served: tuple[NatsServer, str, dict[str, Any]]) -> None:
    server, url, options = served
    before: list[int] = []
    async with link_to(f"{url}/nats?token={SECRET}", before_write=lambda: before.append(1), **options) as link:
        await echoes(link)
        assert before
        await echoes(link, 500_000)
        assert await link.find_streams("in.*") == ()  # by nats-py, over the same wire
        (client,) = [one for one in (await server.monitor("/connz"))["connections"] if one["name"] == "main"]
        assert client["type"] == "websocket" or client.get("kind") == "Client"
        assert bool(client.get("tls_version")) is url.startswith("wss")


@asynccontextmanager
async def rewriting(url: str, rewrite: Callable[[bytes], bytes]) -> AsyncIterator[str]:
    """Run a gateway before a WebSocket listener that rewrites the requests; yield its URL."""
    host, _, port = url.removeprefix("ws://").rpartition(":")

    async def play(caller: Caller) -> None:
        assert isinstance(caller, WebSocketCaller)
        await caller.hear_request()
        async with await trio.open_tcp_stream(host, int(port)) as behind:
            await behind.send_all(rewrite(caller.request))

            async def back() -> None:
                async for data in behind:
                    await caller.write(bytes(data))

            async with trio.open_nursery() as nursery:
                nursery.start_soon(back)
                async for data in caller.stream:
                    await behind.send_all(data)
                nursery.cancel_scope.cancel()

    async with websocket_impostor(play, opens=False) as gateway:
        yield gateway.url


async def test_a_server_that_wants_masks_gets_them(tmp_path: Path) -> None:
    def without_offer(request: bytes) -> bytes:
        assert request.count(b"Nats-No-Masking: true") == 1
        return request.replace(b"Nats-No-Masking: true", b"X-Removed: by a proxy")

    async with (
        websocket_server(tmp_path) as (_, url),
        rewriting(url, without_offer) as gateway,
        link_to(gateway) as link,
    ):
        await echoes(link)
        await echoes(link, 100_000)


# --- the request, and answers to it ---


async def test_the_request_carries_path_query_and_headers() -> None:
    async with websocket_impostor(serve) as server:
        headers = {"Authorization": f"Bearer {SECRET}", "Cookie": "a=b"}
        url = f"{server.url}/a/nats?key={SECRET}"
        config = ConnectionSettings(servers=[server.url, url], websocket_headers=headers)
        async with dialled(config, 1):
            (caller,) = server.callers
            assert isinstance(caller, WebSocketCaller)
            first, *lines = caller.request.decode().removesuffix("\r\n\r\n").split("\r\n")
            assert first == f"GET /a/nats?key={SECRET} HTTP/1.1"
            assert f"Host: {server.address}" in lines
            assert f"Authorization: Bearer {SECRET}" in lines
            assert "Cookie: a=b" in lines
            assert [line for line in lines if line.lower().startswith("user-agent")] == ["User-Agent: router-trio"]
            assert not [line for line in lines if line.lower().startswith("sec-websocket-extensions")]


@asynccontextmanager
async def dialled(config: ConnectionSettings, number: int = 0) -> AsyncIterator[NatsLink]:
    with trio.fail_after(10):
        async with Dialer(config, "main")(str(config.servers[number]), INBOX, Recorder()) as link:
            yield link


async def refused(url: str, **options: object) -> LinkError:
    """Dial with a secret in the URL, in a header and as the password; return the error, which has none of them."""
    options = {"connect_timeout": "5s", "websocket_headers": {"X-Key": SECRET}, **options}
    return await refusal(f"{url}/nats?token={SECRET}", user="router", password=SECRET, **options)


ANSWERS = {
    "200 OK": ("protocol", "200 OK", "an HTTP server, and not the WebSocket listener"),
    "301 Moved\r\nLocation: wss://me:pw@there/x?secret=1": (
        "protocol",
        "see wss://there/x",
        "redirects are not followed",
    ),
    "302 Found\r\nLocation: /login?to=x": ("protocol", "see /login;", "write that address"),
    "400 Bad Request": ("handshake", "400 Bad Request", "requires TLS: write wss://; or", "must pass on HTTP/1.1"),
    "401 Unauthorized": ("authorization", "401 Unauthorized", "set Authorization in websocket_headers"),
    "403 origin not allowed": ("handshake", "403 origin not allowed", "allowed_origins"),
    "404": ("protocol", "404 Not Found", "nothing at this path"),
    "405 Method Not Allowed": ("protocol", "405", "check host, port and path"),
    "407 Proxy Authentication Required": ("authorization", "407", "set `proxy`"),
    "426 Upgrade Required": ("handshake", "426", "headers Upgrade and Connection"),
    "418 I'm a teapot": ("protocol", "418 I'm a teapot", "not the WebSocket listener"),
    "429 Too Many Requests": ("max_connections", "429", "raise its limit"),
    "500 Internal Server Error": ("network", "500", "check host"),
    "502 Bad Gateway": ("network", "502 Bad Gateway", "does not reach its nats-server"),
    "503 Service Unavailable": ("network", "503", "does not reach"),
    "504 Gateway Timeout": ("network", "504", "raise the timeout"),
    "599": ("network", "599", "check host"),
}


@pytest.mark.parametrize("answer", ANSWERS)
async def test_an_answer_other_than_101_is_explained(answer: str) -> None:
    async def play(caller: Caller) -> None:
        assert isinstance(caller, WebSocketCaller)
        await caller.hear_request()
        await caller.write(f"HTTP/1.1 {answer}\r\nContent-Length: 4\r\n\r\nbody".encode())

    reason, *words = ANSWERS[answer]
    async with websocket_impostor(play, opens=False) as server:
        error = await refused(server.url)
        assert error.reason == reason, error
        assert isinstance(error, AuthorizationError) is (reason == "authorization")
        for text in words:
            assert text in str(error)
        assert "secret=" not in str(error)
        assert f"{server.url}/nats" in str(error)


def head(*lines: bytes) -> bytes:
    return b"\r\n".join((*lines, b"", b""))


HOSTILE: dict[str, tuple[Callable[[bytes], bytes], str, str]] = {
    "wrong accept": (lambda request: switching(request, accept=b"x" * 28), "protocol", "Sec-WebSocket-Accept"),
    "no accept": (
        lambda request: head(b"HTTP/1.1 101 S", b"Upgrade: websocket", b"Connection: Upgrade"),
        "protocol",
        "Sec-WebSocket-Accept",
    ),
    "two accepts": (lambda request: switching(request, b"Sec-WebSocket-Accept: x"), "protocol", "Sec-WebSocket-Accept"),
    "another protocol": (lambda request: switching(request, b"Upgrade: h2c"), "protocol", "not a WebSocket"),
    "compression": (
        lambda request: switching(request, b"Sec-WebSocket-Extensions: permessage-deflate"),
        "protocol",
        "did not ask for",
    ),
    "endless headers": (lambda request: b"HTTP/1.1 101 S\r\n" + b"X-Filler: y\r\n" * 100_000, "protocol", "more than"),
    "endless line": (lambda request: b"HTTP/1.1 200 " + b"y" * 1_000_000, "protocol", "more than"),
    "endless informational answers": (lambda request: b"HTTP/1.1 103 Hints\r\n\r\n" * 50_000, "protocol", "more than"),
    "a NATS server": (lambda request: info(), "protocol", "the client port of a nats-server, for nats://"),
    "TLS": (lambda request: b"\x15\x03\x01\x00\x02\x02\x16", "protocol", "did not answer in HTTP"),
    "HTTP/0.9": (lambda request: b"<html>\r\n\r\n", "protocol", "did not answer in HTTP"),
    "nothing": (lambda request: b"", "closed", "closed the connection without an answer"),
    "half an answer": (lambda request: b"HTTP/1.1 101 Swi", "closed", "in the middle of its answer"),
    "garbage behind it": (lambda request: switching(request) + b"\xff" * 100, "protocol", "WebSocket protocol"),
    "a close behind it": (
        lambda request: switching(request) + server_frame(CLOSE, b"\x03\xf3"),
        "closed",
        "1011 (internal error)",
    ),
    "a status that repeats a header": (
        lambda _: f"HTTP/1.1 401 {SECRET}\r\n\r\n".encode(),
        "authorization",
        "401 [redacted]",
    ),
    "a redirect that repeats the query": (
        lambda _: f"HTTP/1.1 301 M\r\nLocation: /nats;{SECRET}\r\n\r\n".encode(),
        "protocol",
        "see /nats;[redacted]",
    ),
    "a close frame with a secret": (
        lambda request: switching(request) + server_frame(CLOSE, b"\x03\xf0password=" + SECRET.encode()),
        "closed",
        "1008 (policy violation): password=[redacted]",
    ),
    "a foreign protocol in frames": (
        lambda request: switching(request) + server_frame(BINARY, b"HELLO\r\n"),
        "protocol",
        "not a NATS server",
    ),
}


@pytest.mark.parametrize("kind", HOSTILE)
async def test_a_hostile_answer_ends_the_attempt(kind: str) -> None:
    answer, reason, words = HOSTILE[kind]

    async def play(caller: Caller) -> None:
        assert isinstance(caller, WebSocketCaller)
        await caller.hear_request()
        await caller.write(answer(caller.request))
        await caller.close()

    async with websocket_impostor(play, opens=False) as server:
        error = await refused(server.url)
        assert error.reason == reason, error
        assert words in str(error)


async def test_headers_that_come_slowly_are_limited_in_time() -> None:
    async def play(caller: Caller) -> None:
        assert isinstance(caller, WebSocketCaller)
        await caller.hear_request()
        await caller.write(b"HTTP/1.1 101 S\r\n")
        while True:
            await caller.write(b"X: y\r\n")
            await trio.sleep(0.05)

    async with websocket_impostor(play, opens=False) as server:
        error = await refused(server.url, connect_timeout="0.5s")
        assert error.reason == "timeout"
        assert "did not finish the WebSocket request in time" in str(error)


async def test_a_websocket_without_an_info_is_reported() -> None:
    async def play(caller: Caller) -> None:
        pass

    async with websocket_impostor(play) as server:
        error = await refused(server.url, connect_timeout="0.3s")
        assert error.reason == "timeout"
        assert "sent no INFO" in str(error)


# --- TLS ---


async def test_nothing_is_sent_in_clear_to_a_server_without_tls(certificates: Certificates) -> None:
    async def play(caller: Caller) -> None:
        await caller.hear()
        await caller.say(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        await caller.close()

    async with impostor(play) as server:
        error = await refused(f"wss://{server.address}", tls_ca_file=certificates.ca)
        assert error.reason == "tls"
        assert "write ws://" in str(error)
        assert "tls_handshake_first" not in str(error)
        assert server.heard_in_clear[:1] == b"\x16"  # a ClientHello, and nothing else
        assert SECRET.encode() not in server.heard_in_clear


async def close(caller: Caller) -> None:
    await caller.close()


async def test_a_setting_of_tls_is_no_reason_to_trust_a_websocket_in_clear(certificates: Certificates) -> None:
    """A complete configuration refuses this; a link does so too."""
    async with websocket_impostor(close) as server:
        error = await refused(server.url, tls_ca_file=certificates.ca)
        assert error.reason == "tls"
        (caller,) = server.callers
        assert isinstance(caller, WebSocketCaller)
        assert caller.request == b""


async def test_certificates_are_verified(tmp_path: Path, certificates: Certificates) -> None:
    async with websocket_server(tmp_path, certificates, jetstream=False) as (server, url):
        error = await refused(url, tls_ca_file=certificates.other_ca)
        assert isinstance(error, CertificateError)
        error = await refused(url, tls_ca_file=certificates.ca, tls_hostname="nats.example.com")
        assert isinstance(error, CertificateError)
        error = await refused(url.replace("wss", "ws"))
        assert error.reason in ("closed", "handshake"), error
        error = await refused(f"ws://127.0.0.1:{server.port}")
        assert error.reason == "protocol"
        assert "did not answer in HTTP" in str(error)


async def test_a_user_for_other_kinds_of_connections_is_refused(tmp_path: Path) -> None:
    def user(name: str, kind: str) -> str:
        return f'{{ user: {name}, password: "{SECRET}", allowed_connection_types: ["{kind}"] }}'

    config = f"authorization {{ users: [ {user('router', 'STANDARD')}, {user('other', 'WEBSOCKET')} ] }}\n"
    async with websocket_server(tmp_path, config=config, jetstream=False) as (_, url):
        assert isinstance(await refused(url), AuthorizationError)
        async with link_to(url, user="other", password=SECRET) as link:
            await echoes(link)


# --- a live link ---


async def serve(caller: Caller, **fields: Any) -> None:
    """Play a server until the first fence of a link is answered."""
    await caller.say(info(**fields))
    for pings in (1, 2):
        while caller.clear.count(b"PING\r\n") < pings:
            await caller.hear()
        await caller.say(b"PONG\r\n")


async def test_pings_are_answered_at_once_with_the_latest_body() -> None:
    async def play(caller: Caller) -> None:
        assert isinstance(caller, WebSocketCaller)
        await serve(caller)
        caller.control.clear()
        await caller.write(b"".join(server_frame(PING, b"%d" % number) for number in range(100)))

    async with websocket_impostor(play) as server, link_to(server.url):
        caller = server.callers[0]
        assert isinstance(caller, WebSocketCaller)
        await eventually(lambda: caller.control[-1:] == [ClientFrame(PONG, b"99", False, 4)])
        assert {frame.opcode for frame in caller.control} == {PONG}
        assert len(caller.control) <= 100


@pytest.mark.parametrize(
    ("body", "reason", "words"),
    [
        (b"\x03\xe9Server Shutdown", "server_shutdown", "WebSocket closed with 1001 (going away): Server Shutdown"),
        (b"\x03\xf0Slow Consumer (Pending Bytes)", "slow_consumer", "1008 (policy violation)"),
        (b"\x03\xf4", "closed", "WebSocket closed with 1012 (service restart)"),
        (b"", "closed", "WebSocket closed without a status"),
    ],
)
async def test_the_close_code_is_in_the_log_of_the_lost_link(body: bytes, reason: str, words: str) -> None:
    async def play(caller: Caller) -> None:
        assert isinstance(caller, WebSocketCaller)
        await serve(caller)
        await caller.hear(b"SUB $SRV")  # the router is up
        await caller.write(server_frame(CLOSE, body))
        await caller.hear()
        await caller.close()

    async with websocket_impostor(play) as server, watched(settings(server.url, connect_timeout="200ms")) as watch:
        await watch.until("NATS_CONNECTION_LOST")
        event = watch.of("NATS_CONNECTION_LOST")[0]
        assert event.reason == reason
        assert words in event.detail
        assert event.server == server.url


async def test_a_server_that_is_stopped_says_so(tmp_path: Path) -> None:
    async with websocket_server(tmp_path, jetstream=False) as (server, url), watched(settings(url)) as watch:
        await watch.until("NATS_CONNECTION_ESTABLISHED")
        await server.terminate()
        await watch.until("NATS_CONNECTION_LOST")
        event = watch.of("NATS_CONNECTION_LOST")[0]
        assert event.reason in ("server_shutdown", "server_error", "closed")
        await server.restart()
        await watch.until("NATS_CONNECTION_RESTORED")
        assert watch.of("NATS_CONNECTION_RESTORED")[0].server == url


async def test_announced_servers_are_reached_by_websocket() -> None:
    async with websocket_impostor(serve) as other:
        served = False

        async def play(caller: Caller) -> None:
            nonlocal served
            if served:
                await caller.close()
                return
            served = True
            await serve(caller, connect_urls=[other.address, server.address], tls_required=True)
            await caller.close()

        async with websocket_impostor(play) as server, watched(settings(f"{server.url}/nats")) as watch:
            await watch.until("NATS_CONNECTION_RESTORED")
            assert watch.of("NATS_CONNECTION_RESTORED")[0].server == other.url
            tried = {event.server for event in watch.of("NATS_RECONNECT_ATTEMPT")}
            assert tried == {f"{server.url}/nats", other.url}


SIZES = (0, 1, 2, 125, 126, 200, 70_000)
OPCODES = (0, 1, 2, 2, 2, 3, 8, 9, 9, 10, 11, 15)


async def test_no_drawn_frame_ends_more_than_its_link() -> None:
    """Frames of any kind and size, at any step of a session."""
    for seed in range(25):
        random = Random(seed)

        async def play(caller: Caller, random: Random = random) -> None:
            assert isinstance(caller, WebSocketCaller)
            steps = random.randint(0, 3)
            if steps:
                await caller.say(info())
            if steps > 1:
                with trio.move_on_after(0.5):
                    await caller.hear(b"PING\r\n")
                await caller.say(b"PONG\r\n" * 2)
            frames = [
                server_frame(
                    random.choice([0, 1, 2, 2, 2, 3, 8, 9, 9, 10, 11, 15]), random.randbytes(random.choice(SIZES))
                )
                for _ in range(random.randint(1, 8))
            ]
            await caller.write(b"".join(frames)[: random.choice([30, 10_000_000])])
            await caller.close()

        async with websocket_impostor(play) as server:
            with pytest.raises(LinkError) as caught:
                async with dialled(ConnectionSettings(servers=[server.url])):
                    await trio.sleep(5)
            assert not isinstance(caught.value, UnexpectedError), f"seed {seed}: {caught.value}"
            assert str(caught.value).isprintable()
