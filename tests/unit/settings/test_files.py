"""The files of a connection: their content is checked before anything connects."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization

from router_trio import Settings
from router_trio.settings.checks.warnings import warnings
from tests.support.certificates import Certificates, create_certificates
from tests.support.credentials import user_nkey
from tests.unit.settings.problems import problems


def connection(**keys: Any) -> Settings:
    return Settings(connections={"main": {"servers": ["nats://h"], **keys}})


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return create_certificates(tmp_path_factory.mktemp("certificates"))


def test_a_key_that_does_not_belong_to_its_certificate_is_refused(certificates: Certificates) -> None:
    pair = {"tls_cert_file": certificates.client.certificate, "tls_key_file": certificates.server.key}
    assert problems(lambda: connection(**pair)) == {
        "connections.main.tls_key_file": "is not the private key of the certificate in tls_cert_file; give the two "
        "that belong together"
    }
    assert connection(tls_cert_file=certificates.client.certificate, tls_key_file=certificates.client.key)


def test_swapped_files_are_named(certificates: Certificates) -> None:
    files = {"tls_cert_file": certificates.client.key, "tls_key_file": certificates.client.certificate}
    assert list(problems(lambda: connection(**files))) == ["connections.main.tls_cert_file"]
    files = {"tls_cert_file": certificates.client.certificate, "tls_key_file": certificates.ca}
    assert list(problems(lambda: connection(**files))) == ["connections.main.tls_key_file"]
    assert list(problems(lambda: connection(tls_ca_file=certificates.client.key))) == ["connections.main.tls_ca_file"]


def test_an_encrypted_key_is_refused_without_a_password_prompt(certificates: Certificates, tmp_path: Path) -> None:
    """OpenSSL would prompt at the terminal, and wait."""
    key = serialization.load_pem_private_key(certificates.client.key.read_bytes(), None)
    locked = tmp_path / "locked.key"
    how = serialization.BestAvailableEncryption(b"secret")
    locked.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL, how)
    )
    files = {"tls_cert_file": certificates.client.certificate, "tls_key_file": locked}
    assert problems(lambda: connection(**files)) == {
        "connections.main.tls_key_file": "holds no private key in PEM form that can be read without a password; give "
        "such a file"
    }


JWT = "-----BEGIN NATS USER JWT-----\neyJhbGci.eyJqdGki.c2ln\n------END NATS USER JWT------\n"


def seed_block(seed: str) -> str:
    return f"-----BEGIN USER NKEY SEED-----\n{seed}\n------END USER NKEY SEED------\n"


def test_a_credentials_file_needs_a_jwt_and_a_seed(tmp_path: Path) -> None:
    file, seed = tmp_path / "user.creds", user_nkey().seed
    for text, message in [
        (seed, "holds no user JWT"),
        (seed_block(seed), "holds no user JWT"),
        (JWT, "holds a user JWT without its NKey seed"),
        (JWT + seed_block("SUHUSH"), "holds a user JWT without its NKey seed"),
        (JWT + seed_block(seed)[:-60], "holds a user JWT without its NKey seed"),
    ]:
        file.write_text(text)
        found = problems(lambda: connection(credentials_file=file))
        assert list(found) == ["connections.main.credentials_file"]
        assert found["connections.main.credentials_file"].startswith(message), text
        assert seed not in str(found)
        assert "HUSH" not in str(found)
    file.write_text(JWT + seed_block(seed))
    assert connection(credentials_file=file)


def test_an_empty_file_is_a_warning(tmp_path: Path) -> None:
    file = tmp_path / "user.creds"
    file.touch()
    settings = connection(credentials_file=file, tls_ca_file=file)
    message = f"{str(file)!r} is empty: no connection succeeds before it is filled"
    found = [(one.path, one.message) for one in warnings(settings.connections, settings.routes) if one.path != "routes"]
    assert found == [("connections.main.credentials_file", message), ("connections.main.tls_ca_file", message)]


@pytest.mark.parametrize("text", ["HUSH", JWT])
def test_a_seed_file_needs_a_seed(text: str, tmp_path: Path) -> None:
    file = tmp_path / "user.nk"
    file.write_text(text)
    found = problems(lambda: connection(nkey_seed_file=file))
    assert found == {"connections.main.nkey_seed_file": "holds no NKey seed, which is one line that begins with SU"}
    file.write_text(f"{user_nkey().seed}\n")
    assert connection(nkey_seed_file=file)
