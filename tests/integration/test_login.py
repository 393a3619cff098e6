"""Logging in to real servers, with each kind of credentials, with TLS and without."""

from __future__ import annotations

import os
from pathlib import Path
from socket import gethostname

import pytest

from router_trio import Router
from router_trio.errors import AuthorizationError, CertificateError, LinkError
from router_trio.settings import RouterSettings
from tests.integration.dial import SECRET, USERS, refused, works
from tests.support.certificates import Certificates
from tests.support.credentials import create_operator, nkey_config, user_nkey
from tests.support.servers import NatsServer, nats_server
from tests.support.settings import settings
from tests.support.watch import watched

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
        # nats-py would read such a file forever.
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
    async with nats_server(tmp_path, config=operator.config) as server:
        file = operator.credentials(tmp_path / "user.creds", expires_in=3)
        async with watched(settings(server.url, credentials_file=file)) as watch:
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


async def test_tls_first(tmp_path: Path, certificates: Certificates) -> None:
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


async def test_a_server_without_tls_is_refused_if_tls_is_required(
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


async def test_the_servers_reports_identify_router_connection_and_process(server: NatsServer) -> None:
    """Two routers on one server, each with a connection of the same name, can be distinguished."""
    names: set[str] = set()
    for name in ("orders", "returns"):
        config = settings(server.url).model_copy(update={"router": RouterSettings(name=name)})
        async with Router(config, log=False).open():
            found = await server.monitor("/connz")
            names |= {str(one["name"]) for one in found["connections"]}
    assert names == {f"{name} main {gethostname()}:{os.getpid()}" for name in ("orders", "returns")}
