"""The handshake: what is sent before TLS is up, and what is accepted from a server.

Raw servers record every byte where the point is what they receive; real servers show that a correct server is still
understood.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import trio

from router_trio.errors import AuthorizationError, LinkError, ProtocolError
from router_trio.nats.handshake import MAX_LINES_BEFORE_PONG, Handshake
from router_trio.settings import ConnectionSettings
from tests.integration.dial import SECRET, until_no_client
from tests.integration.handshakes import link_to, serve_in_clear
from tests.support.certificates import Certificates
from tests.support.credentials import create_operator, read_credentials, user_nkey
from tests.support.impostors import impostor, info, saying
from tests.support.raw_nats import connect
from tests.support.servers import nats_server


async def refused(config: ConnectionSettings) -> LinkError:
    with pytest.raises(LinkError) as caught:
        async with link_to(config):
            pass
    return caught.value


# --- every way to ask for TLS, every kind of credential ---


def ask(way: str, url: str, certificates: Certificates) -> dict[str, Any]:
    """Return settings that ask for TLS in this way, of a server that has none."""
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
    """Return settings with a credential, and the texts that must stay secret."""
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


@pytest.mark.parametrize("kind", CREDENTIALS)
@pytest.mark.parametrize("way", WAYS)
async def test_nothing_is_sent_in_clear_to_a_server_without_tls(
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
async def test_no_answer_makes_the_client_speak_in_clear(certificates: Certificates, lie: str) -> None:
    async with impostor(saying(*LIES[lie], b"PONG\r\n")) as server:
        config = ConnectionSettings(
            servers=[server.url], tls_ca_file=certificates.ca, user="router", password=SECRET, token=SECRET
        )
        error = await refused(config)
        assert error.reason in ("tls", "protocol", "handshake"), error
        # An error in clear about our credentials is not believed: it would end the router.
        assert not isinstance(error, AuthorizationError)
        heard = server.heard_in_clear
        assert SECRET.encode() not in heard
        assert b"CONNECT" not in heard


async def test_the_handshake_refuses_to_send_in_clear(certificates: Certificates) -> None:
    ours, theirs = trio.socket.socketpair()
    with theirs, ours:
        config = ConnectionSettings(servers=["nats://a:4222"], tls_ca_file=certificates.ca)
        handshake = Handshake(trio.SocketStream(ours), "nats://a:4222", config, "main")
        with pytest.raises(LinkError, match="does not offer TLS"):
            await handshake.send(b"CONNECT {}\r\n")


async def test_a_full_server_with_tls_is_reported_as_full(tmp_path: Path, certificates: Certificates) -> None:
    config = certificates.server_config() + "max_connections: 1\n"
    async with nats_server(tmp_path, config=config, jetstream=False) as server:
        await until_no_client(server)  # the client that checked whether it is ready
        async with connect(server.url, tls=certificates.client_context()):
            error = await refused(ConnectionSettings(servers=[server.url], tls_ca_file=certificates.ca))
            assert error.reason in ("max_connections", "tls"), error  # it may close before its error is received
            assert not isinstance(error, ProtocolError)


@pytest.mark.parametrize(
    ("text", "reason"),
    [(b"maximum connections exceeded", "max_connections"), (b"Authentication Timeout", "timeout"), (b"x", "handshake")],
)
async def test_an_error_in_clear_is_reported_and_nothing_is_sent(
    certificates: Certificates, text: bytes, reason: str
) -> None:
    async with impostor(saying(info(tls_required=True) + b"-ERR '%b'\r\n" % text)) as server:
        error = await refused(ConnectionSettings(servers=[server.url], tls_ca_file=certificates.ca, token=SECRET))
        assert error.reason == reason
        assert server.heard_in_clear == b""


@pytest.mark.parametrize("asked", [True, False])
async def test_tls_that_is_optional_at_the_server(tmp_path: Path, certificates: Certificates, asked: bool) -> None:
    config = certificates.server_config() + "allow_non_tls: true\n"
    options: dict[str, Any] = {"tls_ca_file": certificates.ca} if asked else {}
    async with nats_server(tmp_path, config=config, jetstream=False) as server:
        await until_no_client(server)  # the client that checked whether it is ready
        async with link_to(ConnectionSettings(servers=[server.url], **options)) as link:
            assert link.info.tls_available
            (client,) = (await server.monitor("/connz"))["connections"]
            assert bool(client.get("tls_version")) is asked


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
async def test_lines_allowed_between_connect_and_its_pong(lines: bytes, fails: str | None) -> None:
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
