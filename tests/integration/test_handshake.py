"""Before and beside the messages: what leaves before TLS is up, and which words of a server are believed.

The servers are raw ones that write down every byte, where the point is what they hear; and real ones, where the point
is that a server in order is still understood.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

from router_trio.embedded import HOST, reserve_port
from router_trio.errors import AuthorizationError, LinkError, ProtocolError
from router_trio.nats.dialer import Dialer
from router_trio.nats.handshake import MAX_LINES_BEFORE_PONG, Handshake
from router_trio.nats.link import NatsLink
from router_trio.settings import ConnectionSettings
from tests.integration.dial import until_no_client
from tests.support.certificates import Certificates
from tests.support.credentials import create_operator, read_credentials, user_nkey
from tests.support.eventually import eventually
from tests.support.impostors import Caller, Play, impostor, info, saying
from tests.support.raw_nats import connect
from tests.support.recorder import INBOX, Recorder
from tests.support.servers import cluster, nats_server
from tests.support.settings import settings
from tests.support.watch import assert_alive, watched

SECRET = "s3cr3t-of-the-test"
WITHIN = 10.0


@asynccontextmanager
async def link_to(config: ConnectionSettings, listener: Recorder | None = None) -> AsyncIterator[NatsLink]:
    with trio.fail_after(WITHIN):
        async with Dialer(config, "main")(str(config.servers[0]), INBOX, listener or Recorder()) as link:
            yield link


async def refused(config: ConnectionSettings) -> LinkError:
    with pytest.raises(LinkError) as caught:
        async with link_to(config):
            pass
    return caught.value


# --- every way to ask for TLS, every kind of credential ---


def ask(way: str, url: str, certificates: Certificates) -> dict[str, Any]:
    """Settings that ask for TLS in this way, of a server that has none."""
    client = {"tls_cert_file": certificates.client.certificate, "tls_key_file": certificates.client.key}
    ways: dict[str, dict[str, Any]] = {
        "tls:// here": {"servers": [url.replace("nats:", "tls:")]},
        "tls:// elsewhere": {"servers": [url, "tls://other.example.com:4222"]},
        "tls_ca_file": {"tls_ca_file": certificates.ca},
        "tls_cert_file": client,
        "tls_hostname": {"tls_hostname": "nats.example.com"},
        "tls_handshake_first": {"tls_handshake_first": True},
    }
    return {"servers": [url], **ways[way]}


WAYS = ("tls:// here", "tls:// elsewhere", "tls_ca_file", "tls_cert_file", "tls_hostname", "tls_handshake_first")
CREDENTIALS = ("password", "token", "nkey", "creds", "url")


def log_in(kind: str, folder: Path) -> tuple[dict[str, Any], list[str]]:
    """Settings with a credential, and the texts that nobody may see."""
    if kind == "password":
        return {"user": "router", "password": SECRET}, [SECRET]
    if kind == "token":
        return {"token": SECRET}, [SECRET]
    if kind == "nkey":
        key = user_nkey()
        (folder / "user.nk").write_text(key.seed)
        return {"nkey_seed_file": folder / "user.nk"}, [key.seed, key.public, '"sig"']
    if kind == "creds":
        file = create_operator().credentials(folder / "user.creds")
        return {"credentials_file": file}, [*read_credentials(file), '"sig"']
    return {}, [SECRET]


async def serve_in_clear(caller: Caller) -> None:
    """A NATS server without TLS that takes everybody."""
    await caller.say(info(auth_required=True))
    await caller.hear(b"PING\r\n")
    await caller.say(b"PONG\r\n")


@pytest.mark.parametrize("kind", CREDENTIALS)
@pytest.mark.parametrize("way", WAYS)
async def test_nothing_is_said_in_clear_to_a_server_that_has_no_tls(
    tmp_path: Path, certificates: Certificates, way: str, kind: str
) -> None:
    async with impostor(serve_in_clear) as server:
        options, secrets = log_in(kind, tmp_path)
        options |= ask(way, server.url, certificates)
        if kind == "url":
            options["servers"][0] = options["servers"][0].replace("//", f"//router:{SECRET}@")
        error = await refused(ConnectionSettings(**options))
        assert error.reason == "tls", error
        heard = server.heard_in_clear
        assert not [secret for secret in secrets if secret.encode() in heard]
        assert b"CONNECT" not in heard
        if way == "tls_handshake_first":
            assert heard[:1] == b"\x16"  # a ClientHello, and nothing else
        else:
            assert heard == b""
            assert "does not offer TLS" in str(error)
            assert "nothing was sent" in str(error)
            assert way.partition(" ")[0] in str(error)


LIES = {
    "says no": [info(tls_required=False, tls_available=False)],
    "says it later": [info(), info(tls_required=True)],
    "says it twice at once": [info(tls_required=True) + info(tls_required=False)],
    "takes it back instead of a handshake": [info(tls_required=True), info(tls_required=False)],
    "answers before it was asked": [info(tls_required=True) + b"PONG\r\n"],
    "goes on in clear": [info(tls_required=True), b"+OK\r\nPONG\r\n"],
    "is refusing": [b"-ERR 'Authorization Violation'\r\n"],
    "is refusing behind its INFO": [info(tls_required=True) + b"-ERR 'Authorization Violation'\r\n"],
    "says nothing": [b"\r\n"],
    "asks to be pinged": [b"PING\r\n" + info(tls_required=True)],
}


@pytest.mark.parametrize("lie", LIES)
async def test_a_lie_makes_nobody_speak_in_clear(certificates: Certificates, lie: str) -> None:
    async with impostor(saying(*LIES[lie], b"PONG\r\n")) as server:
        config = ConnectionSettings(
            servers=[server.url], tls_ca_file=certificates.ca, user="router", password=SECRET, token=SECRET
        )
        error = await refused(config)
        assert error.reason in ("tls", "protocol", "handshake"), error
        # What is said in clear is not believed of our credentials: that would end the router.
        assert not isinstance(error, AuthorizationError)
        heard = server.heard_in_clear
        assert SECRET.encode() not in heard
        assert b"CONNECT" not in heard


async def test_the_handshake_sends_nothing_in_clear_whatever_it_is_asked_to(certificates: Certificates) -> None:
    ours, theirs = trio.socket.socketpair()
    with theirs, ours:
        config = ConnectionSettings(servers=["nats://a:4222"], tls_ca_file=certificates.ca)
        handshake = Handshake(trio.SocketStream(ours), "nats://a:4222", config, "main")
        with pytest.raises(LinkError, match="does not offer TLS"):
            await handshake.send(b"CONNECT {}\r\n")


async def test_a_full_server_with_tls_says_so(tmp_path: Path, certificates: Certificates) -> None:
    config = certificates.server_config() + "max_connections: 1\n"
    async with nats_server(tmp_path, config=config, jetstream=False) as server:
        await until_no_client(server)  # whoever looked whether it is ready
        async with connect(server.url, tls=certificates.client_context()):
            error = await refused(ConnectionSettings(servers=[server.url], tls_ca_file=certificates.ca))
            assert error.reason in ("max_connections", "tls"), error  # it may close before it is heard
            assert not isinstance(error, ProtocolError)


@pytest.mark.parametrize(
    ("told", "reason"),
    [(b"maximum connections exceeded", "max_connections"), (b"Authentication Timeout", "timeout"), (b"x", "handshake")],
)
async def test_what_a_server_refuses_with_in_clear_is_told_and_nothing_is_sent(
    certificates: Certificates, told: bytes, reason: str
) -> None:
    async with impostor(saying(info(tls_required=True) + b"-ERR '%b'\r\n" % told)) as server:
        error = await refused(ConnectionSettings(servers=[server.url], tls_ca_file=certificates.ca, token=SECRET))
        assert error.reason == reason
        assert server.heard_in_clear == b""


@pytest.mark.parametrize("asked", [True, False])
async def test_tls_that_a_server_leaves_to_the_client(tmp_path: Path, certificates: Certificates, asked: bool) -> None:
    config = certificates.server_config() + "allow_non_tls: true\n"
    options: dict[str, Any] = {"tls_ca_file": certificates.ca} if asked else {}
    async with (
        nats_server(tmp_path, config=config, jetstream=False) as server,
        link_to(ConnectionSettings(servers=[server.url], **options)) as link,
    ):
        assert link.info.tls_available
        (client,) = (await server.monitor("/connz"))["connections"]
        assert bool(client.get("tls_version")) is asked


# --- what was said in clear is forgotten ---


def tls_server(
    certificates: Certificates, *, in_clear: dict[str, Any] | None = None, behind: bytes = b"", over_tls: bytes = b""
) -> Play:
    """Serve one link over TLS until its first fence is answered; whoever calls after that is turned away.

    `in_clear` is in its INFO, `behind` is what somebody adds to that, `over_tls` what it says before its first PONG.
    """
    served = False

    async def play(caller: Caller) -> None:
        nonlocal served
        if served:
            await caller.close()
            return
        await caller.say(info(tls_required=True, **(in_clear or {})) + behind)
        if not await caller.upgrade(certificates):
            return
        served = True
        await caller.hear(b"PING\r\n")
        await caller.say(over_tls + b"PONG\r\n")
        await caller.hear(b"PING\r\nSUB _INBOX")
        while caller.secured.count(b"PING\r\n") < 2:
            await caller.hear()
        await caller.say(b"PONG\r\n")
        await caller.hear()
        await caller.close()

    return play


@pytest.mark.parametrize(
    "behind",
    [
        info(connect_urls=["evil.example.com:4222"]),
        b"INFO {",
        b"PONG\r\n",
        b"PING\r\n",
        b"+OK\r\n",
        b"\r\n",
        b"\x00",
        b"MSG x 1 1\r\nx\r\n",
    ],
)
async def test_what_follows_info_in_clear_is_a_protocol_error(certificates: Certificates, behind: bytes) -> None:
    async with impostor(tls_server(certificates, in_clear={}, behind=behind)) as server:
        listener = Recorder()
        config = ConnectionSettings(servers=[server.url], tls_ca_file=certificates.ca, password=SECRET, user="router")
        with pytest.raises(ProtocolError, match="before the upgrade to TLS"):
            async with link_to(config, listener):
                pass
        assert server.heard_in_clear == b""
        assert listener.servers == []


@pytest.mark.parametrize("demanded", [True, False])
@pytest.mark.parametrize("where", ["in clear", "over TLS"])
async def test_only_a_host_that_was_named_over_tls_is_dialled(
    certificates: Certificates, monkeypatch: pytest.MonkeyPatch, where: str, demanded: bool
) -> None:
    """And then, if the configuration asks for TLS, with TLS: the password goes to nobody in clear."""
    monkeypatch.setenv("SSL_CERT_FILE", str(certificates.ca))
    demand: dict[str, Any] = {"tls_ca_file": certificates.ca} if demanded else {}
    async with impostor(serve_in_clear) as other:
        named = {"connect_urls": [other.address, f"{HOST}:99999", "[::1"]}
        if where == "in clear":
            play = tls_server(certificates, in_clear=named)
        else:
            play = tls_server(certificates, over_tls=info(**named))
        async with (
            impostor(play) as server,
            watched(settings(server.url, user="router", password=SECRET, connect_timeout="1s", **demand)) as watch,
        ):
            await watch.until("NATS_CONNECTION_LOST")
            await watch.until("NATS_CONNECTION_FAILED", 4)
            tried = {event.server for event in watch.of("NATS_RECONNECT_ATTEMPT")}
            if where == "in clear":
                assert tried == {server.url}
                assert other.callers == []
            elif demanded:
                assert tried == {server.url, f"tls://{other.address}"}
                assert other.callers
                assert other.heard_in_clear == b""
            else:
                assert tried == {server.url, other.url}


async def test_an_announced_server_of_a_mixed_list_is_dialled_with_tls(
    certificates: Certificates, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whichever of the list told of it, and whichever is next."""
    monkeypatch.setenv("SSL_CERT_FILE", str(certificates.ca))
    async with impostor(serve_in_clear) as other:
        play = tls_server(certificates, over_tls=info(connect_urls=[other.address]))
        async with impostor(play) as server:
            with reserve_port() as port:
                servers = [server.url, f"tls://{HOST}:{port}"]
                async with watched(settings(servers, user="router", password=SECRET)) as watch:
                    await watch.until("NATS_CONNECTION_LOST")
                    await eventually(lambda: len(other.callers) >= 2)
                    assert other.heard_in_clear == b""
                    assert f"tls://{other.address}" in {event.server for event in watch.of("NATS_RECONNECT_ATTEMPT")}


# --- garbage in what is announced ---

ADDRESSES = (f"{HOST}:99999", f"{HOST}:-1", "[::1", "[::1]:x", ":", "a b:4222", "u:p@h:1", "\x00:1", "é:1", "x" * 5000)


async def test_bad_announcements_are_dropped_and_the_link_lives() -> None:
    async def play(caller: Caller) -> None:
        await caller.say(info(connect_urls=[*ADDRESSES, "good.example.com:4222", None, 7, [], {}]))
        await caller.hear(b"PING\r\n")
        await caller.say(b"PONG\r\n" * 2)

    listener = Recorder()
    async with impostor(play) as server, link_to(ConnectionSettings(servers=[server.url]), listener):
        assert listener.servers == ["good.example.com:4222"]


@pytest.mark.parametrize("advertised", ["router.invalid:99999", "a b:4222"])
async def test_a_cluster_that_advertises_garbage_is_a_cluster_still(tmp_path: Path, advertised: str) -> None:
    async with cluster(tmp_path, 2, config=f'client_advertise: "{advertised}"\n') as group:
        first = group.servers[0]
        async with connect(first.url) as client:
            assert advertised in client.info["connect_urls"], "the server does not announce it"
        async with watched(settings(first.url)) as watch:
            await first.kill()
            await watch.until("NATS_CONNECTION_FAILED", 5)
            await first.restart()
            await watch.until("NATS_CONNECTION_RESTORED")
            await assert_alive(watch.router)
            assert {event.server for event in watch.of("NATS_RECONNECT_ATTEMPT")} == {first.url}


# --- lines between CONNECT and PONG ---


@pytest.mark.parametrize(
    ("lines", "fails"),
    [
        (b"+OK\r\nPING\r\n" + info(max_payload=99) + b"PONG\r\n", None),
        (b"+OK\r\n" * MAX_LINES_BEFORE_PONG + b"PONG\r\n", "protocol"),
        (info(max_payload=None) + b"PONG\r\n", "protocol"),
        (b"MSG x 1 1\r\nx\r\nPONG\r\n", "protocol"),
        (b"PONGO\r\n", "protocol"),
        (b"-ERR\r\n", "protocol"),
        (b"-ERR 'Authorization Violation'\r\n", "authorization"),
        (b"-ERR \xff\x00" + b"x" * 10_000 + b"\r\n", "handshake"),
    ],
)
async def test_what_may_come_between_connect_and_its_pong(lines: bytes, fails: str | None) -> None:
    async with impostor(saying(info(), lines, b"PONG\r\n" * 2)) as server:
        config = ConnectionSettings(servers=[server.url])
        if fails is None:
            async with link_to(config) as link:
                assert link.max_payload == 99
                assert b"PING\r\nPONG\r\n" in server.heard_in_clear
        else:
            error = await refused(config)
            assert error.reason == fails
            assert len(str(error)) < 400
            assert str(error).isprintable()
