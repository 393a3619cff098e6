"""The life of real links: let in and refused, poisoned, frozen, cut, moved and cancelled, with real nats-servers."""

from __future__ import annotations

import math
import os
import socket
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

from router_trio import Live, Receipt, Router, Settings
from router_trio.connection.supervisor import HAND_OVER_WITHIN
from router_trio.embedded import HOST, reserve_port
from router_trio.errors import (
    AuthorizationError,
    CertificateError,
    LinkError,
    PublishError,
    SourceError,
    UnexpectedError,
)
from router_trio.events import Level
from router_trio.link import ConsumerSpec
from router_trio.nats.info import ServerInfo, parse_info
from router_trio.nats.link import Dialer, NatsLink
from router_trio.protocol.framing import RawMessage, payload
from router_trio.settings import ConnectionSettings
from tests.contract.worlds import INBOX, Recorder, operation, operation_with_ack
from tests.support.certificates import Certificates, create_certificates
from tests.support.credentials import create_operator, nkey_config, user_nkey
from tests.support.impostors import impostor, saying
from tests.support.proxy import TcpProxy, tcp_proxy
from tests.support.raw_jetstream import JetStream
from tests.support.raw_nats import connect
from tests.support.servers import NatsServer, cluster, nats_server
from tests.support.watch import Watch, assert_alive, core_route, eventually, settings, watched

DIAL_WITHIN = 10.0
SECRET = "s3cr3t-of-the-test"
USERS = f'authorization {{ users: [ {{ user: router, password: "{SECRET}" }} ] }}\n'


@asynccontextmanager
async def link_to(url: str, listener: Recorder | None = None, **options: Any) -> AsyncIterator[NatsLink]:
    """A link, as a connection with these settings opens it."""
    config = ConnectionSettings(servers=[url], **options)
    server = str(config.servers[0])
    with trio.CancelScope(deadline=trio.current_time() + DIAL_WITHIN) as dialling:
        async with Dialer(config, "main")(server, INBOX, listener or Recorder()) as link:
            dialling.deadline = math.inf
            yield link
    assert not dialling.cancelled_caught, f"neither connected nor refused within {DIAL_WITHIN:g} s"


async def works(url: str, **options: Any) -> None:
    """Connect, and send a message to oneself over TCP and back."""
    received = Recorder()
    async with link_to(url, **options) as link:
        await link.subscribe("echo", received)
        assert list(await link.send([operation(1, b"echo", b"hello")])) == []
        await link.fence()
        assert [payload(raw) for raw in received.messages] == [b"hello"]
        assert link.server == url.rpartition("@")[2].removeprefix("nats://").removeprefix("tls://")


async def refused(kind: type[LinkError], url: str, **options: Any) -> LinkError:
    """Try to connect; returns the error, which must be of exactly this kind and hold no secret."""
    with pytest.raises(LinkError) as caught:
        async with link_to(url, **options):
            pass
    assert type(caught.value) is kind, repr(caught.value)
    assert SECRET not in str(caught.value)
    return caught.value


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return create_certificates(tmp_path_factory.mktemp("certificates"))


# --- logging in ---


async def test_a_server_without_credentials(core_server: NatsServer) -> None:
    await works(core_server.url)
    await works(core_server.url.replace("127.0.0.1", "localhost"))


async def test_user_and_password(tmp_path: Path) -> None:
    async with nats_server(tmp_path, config=USERS, jetstream=False) as server:
        await works(server.url, user="router", password=SECRET)
        await works(server.url.replace("//", f"//router:{SECRET}@"))
        for options in ({}, {"user": "router", "password": SECRET + "x"}, {"user": "nobody", "password": SECRET}):
            error = await refused(AuthorizationError, server.url, **options)
            assert "check user and password" in str(error)
        await refused(AuthorizationError, server.url.replace("//", f"//router:{SECRET}x@"))


async def test_a_token(tmp_path: Path) -> None:
    config = f'authorization {{ token: "{SECRET}" }}\n'
    async with nats_server(tmp_path, config=config, jetstream=False) as server:
        await works(server.url, token=SECRET)
        await works(server.url.replace("//", f"//{SECRET}@"))
        await refused(AuthorizationError, server.url, token=SECRET + "x")


async def test_an_nkey(tmp_path: Path) -> None:
    ours, another = user_nkey(), user_nkey()
    seed = tmp_path / "user.nk"
    async with nats_server(tmp_path, config=nkey_config(ours), jetstream=False) as server:
        seed.write_text(f"\n{ours.seed}\r\n")
        await works(server.url, nkey_seed_file=seed)
        seed.write_text(another.seed)
        await refused(AuthorizationError, server.url, nkey_seed_file=seed)
        for broken in (SECRET, "", ours.seed[:-4], "\xff"):
            seed.write_text(broken)
            error = await refused(AuthorizationError, server.url, nkey_seed_file=seed)
            assert f"nkey_seed_file {seed} holds no valid NKey seed" in str(error)
        seed.write_text(ours.seed)
        await works(server.url, nkey_seed_file=seed)


async def test_a_credentials_file(tmp_path: Path) -> None:
    operator = create_operator()
    file = tmp_path / "user.creds"
    async with nats_server(tmp_path, config=operator.config) as server:
        operator.credentials(file)
        await works(server.url, credentials_file=file)
        file.write_bytes(file.read_bytes().replace(b"\n", b"\r\n"))
        await works(server.url, credentials_file=file)
        operator.credentials(file, expires_in=-60)
        await refused(AuthorizationError, server.url, credentials_file=file)
        # nats-py would read such a file for ever.
        file.write_text("nothing of that kind")
        error = await refused(AuthorizationError, server.url, credentials_file=file)
        assert f"credentials_file {file} holds no user JWT" in str(error)
        file.write_text(f"-----BEGIN NATS USER JWT-----\nx\n-----BEGIN USER NKEY SEED-----\n{SECRET}\n")
        await refused(AuthorizationError, server.url, credentials_file=file)
        file.unlink()
        operator.credentials(file)
        await works(server.url, credentials_file=file)


async def test_credentials_that_expire_end_the_link_and_are_waited_for(tmp_path: Path) -> None:
    operator = create_operator()
    file = operator.credentials(tmp_path / "user.creds", expires_in=2)
    async with (
        nats_server(tmp_path, config=operator.config) as server,
        watched(settings(server.url, credentials_file=file)) as watch,
    ):
        lost = await watch.until("NATS_CONNECTION_LOST")
        assert lost.reason == "authorization"
        failed = await watch.until("NATS_CONNECTION_FAILED")
        assert failed.reason == "authorization"
        operator.credentials(file)
        await watch.until("NATS_CONNECTION_RESTORED")


# --- TLS ---


async def test_tls_by_upgrade(tmp_path: Path, certificates: Certificates) -> None:
    async with nats_server(tmp_path, config=certificates.server_config(), jetstream=False) as server:
        for url in (server.url, server.url.replace("nats:", "tls:")):
            await works(url, tls_ca_file=certificates.ca)
        error = await refused(CertificateError, server.url, tls_ca_file=certificates.other_ca)
        assert "set tls_ca_file to the authority" in str(error)
        await refused(CertificateError, server.url)
        error = await refused(
            CertificateError, server.url, tls_ca_file=certificates.ca, tls_hostname="nats.example.com"
        )
        assert "tls_hostname" in str(error)


async def test_tls_before_anything_else(tmp_path: Path, certificates: Certificates) -> None:
    config = certificates.server_config(handshake_first=True)
    async with nats_server(tmp_path, config=config, greets=False, jetstream=False) as server:
        first = {"tls_handshake_first": True}
        await works(server.url, tls_ca_file=certificates.ca, **first)
        await refused(CertificateError, server.url, tls_ca_file=certificates.other_ca, **first)


async def test_both_sides_show_a_certificate(tmp_path: Path, certificates: Certificates) -> None:
    config = certificates.server_config(verify=True)
    shown = {"tls_cert_file": certificates.client.certificate, "tls_key_file": certificates.client.key}
    async with nats_server(tmp_path, config=config, jetstream=False) as server:
        await works(server.url, tls_ca_file=certificates.ca, **shown)
        error = await refused(CertificateError, server.url, tls_ca_file=certificates.ca)
        assert "set tls_cert_file and tls_key_file" in str(error)


@pytest.mark.parametrize("which", ["expired_server", "wrong_host_server"])
async def test_a_certificate_that_is_not_good_enough(tmp_path: Path, certificates: Certificates, which: str) -> None:
    config = certificates.server_config(server=getattr(certificates, which))
    async with nats_server(tmp_path, config=config, jetstream=False) as server:
        error = await refused(CertificateError, server.url, tls_ca_file=certificates.ca)
        assert ("expired" if which == "expired_server" else "tls_hostname") in str(error)
        if which == "wrong_host_server":
            await works(server.url, tls_ca_file=certificates.ca, tls_hostname="nats.example.com")


async def test_a_server_without_tls_is_refused_when_tls_is_asked_for(
    core_server: NatsServer, certificates: Certificates
) -> None:
    for url, options in (
        (core_server.url.replace("nats:", "tls:"), {}),
        (core_server.url, {"tls_ca_file": certificates.ca}),
    ):
        error = await refused(LinkError, url, **options)
        assert error.reason == "tls"
        assert "does not offer TLS" in str(error)


async def test_a_file_that_is_no_certificate(tmp_path: Path, core_server: NatsServer) -> None:
    broken = tmp_path / "broken.pem"
    broken.write_text("no PEM")
    error = await refused(CertificateError, core_server.url, tls_ca_file=broken)
    assert "tls_ca_file" in str(error)


# --- names ---


@pytest.mark.parametrize("host", ["no-such-host.invalid", "a..b", "x" * 64, "x" * 64 + ".example.com"])
async def test_an_impossible_name_is_a_failure_of_its_own(host: str) -> None:
    error = await refused(LinkError, f"nats://{host}:4222")
    assert error.reason == "dns"
    assert repr(host) in str(error)


async def test_a_slow_resolver_delays_no_cancellation(monkeypatch: pytest.MonkeyPatch) -> None:
    asked, answer = trio.Event(), threading.Event()
    token = trio.lowlevel.current_trio_token()

    def slow(*question: Any) -> list[Any]:
        if question[-1] & socket.AI_NUMERICHOST:  # the look whether it is an address, which Trio doesn't wait for
            raise socket.gaierror(socket.EAI_NONAME, "not a number")
        trio.from_thread.run_sync(asked.set, trio_token=token)
        answer.wait(10)
        raise socket.gaierror(socket.EAI_NONAME, "at last")

    monkeypatch.setattr(socket, "getaddrinfo", slow)
    try:
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(use, link_to("nats://nats.example.com:4222"))
                await asked.wait()
                cancelled_at = trio.current_time()
                scope.cancel()
        assert scope.cancelled_caught
        assert trio.current_time() - cancelled_at < 0.5
    finally:
        answer.set()


async def use(link: Any) -> None:
    async with link:
        await trio.sleep_forever()


async def test_nobody_listens() -> None:
    with reserve_port() as port:
        error = await refused(LinkError, f"nats://{HOST}:{port}")
    assert error.reason == "network"
    assert "is the server running there?" in str(error)


# --- poison ---

BAD_SUBJECTS = (b"\xff\xfe", b"a\x0bb", b"a\x0cb", b"\xc3(")
BAD_HEADERS = (
    b"NATS/1.0",
    b"NATS/1.0\r\n",
    b"NATS/1.0 \xff\xfe\xfd\r\n\r\n",
    b"NATS/1.0 503 \xff\r\n\r\n",
    b"NATS/1.0 503 \r\nX: \xff\r\n\r\n",
    b"NATS/1.0\r\n\xff: \xff\r\n\r\n",
    b"\x00",
)
BAD_ANSWERS = (b"", b"{", b"null", b"[" * 100_000, b'{"stream":"S","seq":%b}' % (b"9" * 10_000), b'{"error":7}')


def poison(prefix: bytes) -> bytes:
    """Frames that a server relays and that no parser should die of, below a subject."""
    frames = [b"PUB %b.%b 1\r\nx\r\n" % (prefix, bad) for bad in BAD_SUBJECTS]
    frames += [b"PUB %b.1 %b 1\r\nx\r\n" % (prefix, bad) for bad in BAD_SUBJECTS]
    frames += [b"HPUB %b.1 %d %d\r\n%b\r\n" % (prefix, len(bad), len(bad), bad) for bad in BAD_HEADERS]
    frames += [b"PUB %b.1 %d\r\n%b\r\n" % (prefix, len(bad), bad) for bad in BAD_ANSWERS]
    return b"".join(frames)


async def test_poison_neither_kills_nor_wedges_a_link(server: NatsServer) -> None:
    spec = ConsumerSpec("ORDERS", "router", None, ack_wait=30.0, max_deliver=-1, max_ack_pending=100)
    heard, received, pulled = Recorder(), Recorder(), Recorder()
    async with connect(server.url) as client:
        await JetStream(client).create_stream("ORDERS", ["orders.>"])
        async with link_to(server.url, heard) as link:
            await link.subscribe("in.>", received)
            await link.open_consumer(spec, pulled)
            seen = await client.subscribe("poisoned.>")
            prefixes = [b"in", b"poisoned", INBOX, bytes(link._client._resp_sub_prefix or b"")[:-1]]
            for prefix in prefixes:
                await client.send(poison(prefix))
                await client.ping()
                await link.fence()
            frames = len(BAD_SUBJECTS) * 2 + len(BAD_HEADERS) + len(BAD_ANSWERS)
            assert len(seen.waiting()) == frames, "the server does not relay all of it"
            assert len(received.messages) == frames
            # nats-py lives, and its API is answered; and so do our own acks and subscriptions.
            assert (await link.open_consumer(spec, pulled)).ack_wait == 30.0
            await link.send([operation_with_ack(7, b"orders.7", b"fine")])
            await heard.until(lambda told: 7 in told.acks)
            await client.publish("in.last", b"fine")
            await received.until_delivered(frames + 1)
            assert payload(received.messages[-1]) == b"fine"


async def test_what_nobody_foresaw_ends_the_link_and_is_named_without_its_text(core_server: NatsServer) -> None:
    def deliver(batch: list[RawMessage]) -> None:
        raise ZeroDivisionError(SECRET)

    async def provoke() -> None:
        async with link_to(core_server.url) as link:
            await link.subscribe("in", deliver)
            await link.send([operation(1, b"in", b"x")])
            await trio.sleep_forever()

    with pytest.raises(UnexpectedError) as caught:
        await provoke()
    assert caught.value.reason == "protocol"
    assert caught.value.error_type == "ZeroDivisionError"
    assert SECRET not in str(caught.value)
    assert "please report it" in str(caught.value)


async def test_what_nobody_foresaw_is_an_event_and_the_router_lives(
    core_server: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read(text: bytes, before: ServerInfo) -> ServerInfo:
        if b'"server_id":"x"' in text:
            raise ZeroDivisionError(SECRET)
        return parse_info(text, before)

    async with impostor(saying(INFO, b"PONG\r\n", b"PONG\r\n" + INFO)) as bad:
        connections = {"main": {"servers": [bad.url]}, "other": {"servers": [core_server.url]}}
        watch = Watch()
        router = Router(Settings(telemetry={"listen": ""}, connections=connections), observers=[watch])
        monkeypatch.setattr("router_trio.nats.link.parse_info", read)
        async with router.open() as live:
            named = await watch.until("NATS_UNEXPECTED_ERROR")
            assert named.level == Level.ERROR
            assert named.error_type == "ZeroDivisionError"
            assert "in _on_info" in named.place
            assert "nats/link.py:" in named.place
            assert not any(SECRET in str(event) for event in watch.events)
            receipt = await live.publish("x", b"x", connection="other")
            with trio.fail_after(10):
                assert (await receipt.settled()).name == "fenced"


# --- servers in trouble ---


async def test_a_killed_server_ends_the_link(core_server: NatsServer) -> None:
    async with watched(settings(core_server.url)) as watch:
        await core_server.kill()
        lost = await watch.until("NATS_CONNECTION_LOST")
        assert lost.reason == "closed"
        assert (await watch.until("NATS_CONNECTION_FAILED")).reason == "network"
        await core_server.restart()
        await watch.until("NATS_CONNECTION_RESTORED")


async def test_a_frozen_server_is_lost_within_two_intervals(core_server: NatsServer) -> None:
    interval = 0.8
    async with watched(settings(core_server.url, liveness_interval="800ms")) as watch:
        await trio.sleep(0.5)
        core_server.stop()
        frozen_at = trio.current_time()
        try:
            lost = await watch.until("NATS_CONNECTION_LOST")
        finally:
            core_server.cont()
        assert lost.reason == "liveness"
        assert lost.at - frozen_at <= 2 * interval
        await watch.until("NATS_CONNECTION_RESTORED")


async def test_a_server_in_order_says_goodbye(core_server: NatsServer) -> None:
    async with watched(settings(core_server.url)) as watch:
        await core_server.restart()
        await watch.until("NATS_CONNECTION_LOST")
        await watch.until("NATS_CONNECTION_RESTORED")


async def test_a_full_server(tmp_path: Path) -> None:
    async with nats_server(tmp_path, config="max_connections: 1\n", jetstream=False) as server:
        await until_no_client(server)
        async with connect(server.url), watched(settings(server.url)) as watch:
            failed = await watch.until("NATS_CONNECTION_FAILED", 2)
            assert failed.reason == "max_connections", failed
        await until_no_client(server)
        await works(server.url)


async def test_a_login_that_comes_too_late_is_no_refusal(tmp_path: Path) -> None:
    config = USERS.replace("{ users", "{ timeout: 0.2, users")
    async with nats_server(tmp_path, config=config, jetstream=False) as server, tcp_proxy(HOST, server.port) as proxy:
        proxy.delay(0.5, "to_server")
        error = await refused(LinkError, proxy.url, user="router", password=SECRET)
        assert error.reason == "timeout"
        proxy.clear()
        await works(proxy.url, user="router", password=SECRET)


async def test_revoked_permissions_are_noticed(tmp_path: Path) -> None:
    def config(denied: str) -> str:
        allowed = f'permissions: {{ subscribe: {{ deny: ["{denied}"] }}, publish: {{ deny: ["{denied}"] }} }}'
        users = f"{{ user: router, password: p, {allowed} }}, {{ user: u, password: p }}"
        return f"authorization {{ users: [ {users} ] }}\n"

    async with nats_server(tmp_path, config=config("nothing"), jetstream=False) as server:
        route = core_route("in.*", "out.{{wildcard(1)}}")
        async with watched(settings(server.url, routes=[route], user="router", password="p")) as watch:
            assert watch.live is not None
            await server.reload(config("in.>"))
            refusal = await watch.until("NATS_SUBSCRIBE_ERROR")
            assert refusal.reason == "permission_denied"
            assert watch.live.routes[0].state != "running"
            receipt = await watch.live.publish("in.1", b"x")
            fate = await receipt.settled()
            assert (fate.name, fate.reason) == ("failed", "permission_denied")
            await server.reload(config("nothing"))
            await assert_alive(watch.live, within=15)
            async with connect(server.url, user="u", password="p") as client:
                subscription = await client.subscribe("out.*")
                await client.publish("in.2", b"routed again")
                assert (await subscription.next()).payload == b"routed again"


async def test_a_user_that_was_removed_is_refused_and_waited_for(tmp_path: Path) -> None:
    async with nats_server(tmp_path, config=USERS, jetstream=False) as server:
        async with watched(settings(server.url, user="router", password=SECRET)) as watch:
            await server.reload(USERS.replace("router", "somebody-else"))
            await watch.until("NATS_CONNECTION_LOST")
            failed = await watch.until("NATS_CONNECTION_FAILED")
            assert failed.reason == "authorization"
            await server.reload(USERS)
            await watch.until("NATS_CONNECTION_RESTORED")
        assert not any(SECRET in str(event) for event in watch.events)


def denied_to_subscribe(subject: str) -> str:
    permissions = f'permissions: {{ subscribe: {{ deny: ["{subject}"] }} }}'
    return f"authorization {{ users: [ {{ user: u, password: p, {permissions} }} ] }}\n"


async def test_without_an_inbox_publishes_with_ack_fail_and_say_why(tmp_path: Path) -> None:
    async with (
        nats_server(tmp_path, config=denied_to_subscribe("_INBOX.>")) as server,
        watched(settings(server.url, user="u", password="p")) as watch,
    ):
        assert watch.live is not None
        with pytest.raises(PublishError) as caught:
            await watch.live.publish_with_ack("out", b"x")
        assert caught.value.reason == "permission_denied"
        (failed,) = watch.of("NATS_PUBLISH_WITH_ACK_ERROR")
        assert "let this user subscribe to _INBOX.>" in failed.detail
        receipt = await watch.live.publish("out", b"x")
        assert (await receipt.settled()).name == "fenced"


async def test_two_refused_subscriptions_to_one_subject_are_both_told(tmp_path: Path) -> None:
    told: list[str] = []

    async def subscribe(link: NatsLink) -> None:
        with pytest.raises(SourceError) as caught:
            await link.subscribe("secret", Recorder())
        told.append(caught.value.reason)

    async with (
        nats_server(tmp_path, config=denied_to_subscribe("secret"), jetstream=False) as server,
        link_to(server.url, user="u", password="p") as link,
    ):
        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(subscribe, link)
        assert told == ["permission_denied"] * 3
        await link.fence()


# --- what is no server ---

INFO = b'INFO {"server_id":"x","version":"2.10.0","proto":1,"headers":true,"max_payload":1048576}\r\n'


@pytest.mark.parametrize(
    ("lines", "reason"),
    [
        ([b"HTTP/1.1 400 Bad Request\r\n\r\n"], "protocol"),
        ([b"SSH-2.0-OpenSSH_9.2\r\n"], "protocol"),
        ([b"\x00\xff\n" * 1000], "protocol"),
        ([b"INFO {\r\n"], "protocol"),
        ([b"INFO null\r\n"], "protocol"),
        ([b"INFO " + b"[" * 100_000 + b"\r\n"], "protocol"),
        ([b'INFO {"connect_urls": 7}\r\n'], "protocol"),
        ([b"-ERR 'maximum connections exceeded'\r\n"], "max_connections"),
        ([b"INFO {}\r\n", b"WHAT\r\n"], "protocol"),
        ([b"x" * 2_000_000], "protocol"),
        ([INFO, b"-ERR 'Authentication Timeout'\r\n"], "timeout"),
        ([INFO, b"-ERR 'Something New'\r\n"], "handshake"),
        ([INFO, b"PONG\r\n", b"PONG\r\nGARBAGE\r\n"], "protocol"),
        ([INFO, b"PONG\r\n", b"PONG\r\nMSG x 1000001 z\r\n"], "protocol"),
        ([INFO, b"PONG\r\n", b"PONG\r\nINFO []\r\n"], "protocol"),
        ([INFO, b"PONG\r\n", b"-ERR 'Stale Connection'\r\n"], "stale"),
    ],
)
async def test_what_talks_garbage_is_no_server(lines: Sequence[bytes], reason: str) -> None:
    async with impostor(saying(*lines)) as bad, watched(settings(bad.url, connect_timeout="2s")) as watch:
        await eventually(lambda: any(hasattr(event, "reason") for event in watch.events))
        assert next(event.reason for event in watch.events if hasattr(event, "reason")) == reason


@pytest.mark.parametrize("lines", [[b""], [INFO]])
async def test_a_server_that_hangs_up_in_the_handshake(lines: Sequence[bytes]) -> None:
    async with impostor(saying(*lines, then_close=True)) as bad:
        error = await refused(LinkError, bad.url)
        assert error.reason == "closed"


@pytest.mark.parametrize("lines", [[], [INFO], [b"INF"], [INFO, b"PONG\r\n"]])
async def test_a_server_that_does_not_speak_is_given_up_in_time(lines: Sequence[bytes]) -> None:
    async with impostor(saying(*lines)) as bad:
        began = trio.current_time()
        async with watched(settings(bad.url, connect_timeout="300ms")) as watch:
            (failed,) = watch.of("NATS_CONNECTION_FAILED")
            assert failed.reason == "timeout"
            assert 0.3 <= failed.at - began < 1.5


# --- a cluster ---


async def test_a_cluster_is_discovered_and_a_lame_duck_is_left_without_a_loss(tmp_path: Path) -> None:
    # It closes nothing before the router has waited, if it must, for PubAcks that went with the stream's leader.
    grace = f'lame_duck_grace_period: "{HAND_OVER_WITHIN + 2:g}s"\nlame_duck_duration: "30s"\n'
    async with cluster(tmp_path, config=grace) as group:
        first = group.servers[0]
        async with connect(group.urls[1]) as client:
            stream = JetStream(client)
            await stream.create_stream("OUT", ["out.>"], num_replicas=3)
            # Only one is configured: the others are known from what it tells.
            config = settings(first.url, liveness_interval="2s", max_pending_operations=10_000)
            async with watched(config) as watch:
                live = watch.live
                assert live is not None
                receipts: list[Receipt] = []
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(publish_numbers, live, receipts)
                    await eventually(lambda: len(receipts) > 200)
                    first.lame_duck()
                    announced = await watch.until("NATS_LAME_DUCK")
                    restored = await watch.until("NATS_CONNECTION_RESTORED")
                    assert restored.server in {url.removeprefix("nats://") for url in group.urls[1:]}
                    assert restored.at - announced.at < 4.5
                    moved_at = len(receipts)
                    await eventually(lambda: len(receipts) > moved_at + 200)
                    nursery.cancel_scope.cancel()
                with trio.fail_after(30):
                    fates = [await receipt.settled() for receipt in receipts]
                assert {fate.name for fate in fates} == {"acked"}
                assert watch.of("NATS_CONNECTION_LOST")[0].reason == "lame_duck"
                assert watch.count("NATS_CONNECTION_LOST") == 1
            stored = [int(message.payload) for message in await stream.stream_messages("OUT")]
            assert stored[: len(receipts)] == list(range(len(receipts)))
            assert len(stored) <= len(receipts) + 1, "one was under way when its publisher was cancelled"


async def publish_numbers(live: Live, receipts: list[Receipt]) -> None:
    while True:
        receipts.append(await live.publish_with_ack("out.1", b"%d" % len(receipts), timeout=20.0))


# --- cancelled in mid-life ---


@pytest.mark.parametrize("count", [60, pytest.param(300, marks=pytest.mark.nightly)])
async def test_links_that_are_cancelled_in_mid_life_leave_nothing(
    tmp_path: Path, certificates: Certificates, count: int
) -> None:
    async with nats_server(tmp_path, config=certificates.server_config(), jetstream=False) as server:
        await works(server.url, tls_ca_file=certificates.ca)
        left = {"descriptors": descriptors, "threads": threading.active_count, "tasks": tasks}
        before = {what: count_them() for what, count_them in left.items()}
        for number in range(count):
            # From the first microseconds of the dial to a link that is in use.
            with trio.move_on_after((number % 20) * 0.004):
                async with link_to(server.url, tls_ca_file=certificates.ca) as link:
                    await link.subscribe("echo", Recorder())
                    while True:
                        await link.send([operation(1, b"echo", b"x" * 10_000)])
                        await link.fence()
        after = {what: count_them() for what, count_them in left.items()}
        assert after["tasks"] == before["tasks"]
        assert after["descriptors"] <= before["descriptors"]
        assert after["threads"] <= before["threads"] + 1
        await until_no_client(server)


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def tasks() -> int:
    return trio.lowlevel.current_statistics().tasks_living


async def until_no_client(server: NatsServer) -> None:
    with trio.fail_after(10):
        while (await server.varz())["connections"]:
            await trio.sleep(0.02)


@pytest.mark.parametrize("moment", ["dialling", "blackholed", "sending"])
async def test_a_link_is_cancelled_at_once_whatever_the_peer_does(proxy: TcpProxy, moment: str) -> None:
    if moment == "dialling":
        proxy.blackhole()
    began: Callable[[], bool] = lambda: proxy.open_connections > 0  # noqa: E731 - one of three
    ready = trio.Event()

    async def live() -> None:
        async with link_to(proxy.url) as link:
            if moment != "dialling":
                proxy.blackhole()
            ready.set()
            while True:
                if moment == "sending":
                    await link.send([operation(1, b"x", b"x" * 500_000)])
                else:
                    await link.fence()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(live)
        await eventually(began)
        if moment != "dialling":
            await ready.wait()
        if moment == "sending":
            await trio.sleep(0.2)
        cancelled_at = trio.current_time()
        nursery.cancel_scope.cancel()
    assert trio.current_time() - cancelled_at < 0.5
