"""Certificates for tests: an authority, certificates signed by it, and untrusted ones."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import trustme

from router_trio.embedded import quoted


@dataclass(frozen=True)
class KeyPair:
    """A certificate, with its chain, and its private key, both PEM files."""

    certificate: Path
    key: Path


@dataclass(frozen=True)
class Certificates:
    """Files below one directory. `other_ca` signed nothing that the servers use."""

    ca: Path
    other_ca: Path
    server: KeyPair
    expired_server: KeyPair
    wrong_host_server: KeyPair
    client: KeyPair

    def server_config(
        self, *, server: KeyPair | None = None, verify: bool = False, handshake_first: bool = False
    ) -> str:
        """Return the `tls` block of a nats-server; `verify` makes it require a client certificate.

        With `handshake_first` start the server with `greets=False`.
        """
        pair = server or self.server
        return (
            f"tls {{ cert_file: {quoted(pair.certificate)}, key_file: {quoted(pair.key)}, ca_file: {quoted(self.ca)}, "
            f"verify: {str(verify).lower()}, handshake_first: {str(handshake_first).lower()}, timeout: 5 }}\n"
        )

    def client_context(self, *, ca: Path | None = None, with_certificate: bool = False) -> ssl.SSLContext:
        """Return a client's TLS context that trusts the servers, or with `other_ca` none, optionally with a certificate
        of its own.
        """
        context = ssl.create_default_context(cafile=ca or self.ca)
        if with_certificate:
            context.load_cert_chain(self.client.certificate, self.client.key)
        return context


def create_certificates(directory: Path) -> Certificates:
    """Write an authority and its certificates for localhost and the loopback addresses."""
    directory.mkdir(parents=True, exist_ok=True)
    authority, other = trustme.CA(), trustme.CA()
    hosts = ("localhost", "127.0.0.1", "::1")
    now = datetime.now(UTC)
    expired = authority.issue_cert(*hosts, not_before=now - timedelta(days=2), not_after=now - timedelta(days=1))
    ca, other_ca = directory / "ca.pem", directory / "other-ca.pem"
    authority.cert_pem.write_to_path(str(ca))
    other.cert_pem.write_to_path(str(other_ca))
    return Certificates(
        ca=ca,
        other_ca=other_ca,
        server=_write(directory, "server", authority.issue_cert(*hosts)),
        expired_server=_write(directory, "expired", expired),
        wrong_host_server=_write(directory, "wrong-host", authority.issue_cert("nats.example.com")),
        client=_write(directory, "client", authority.issue_cert("client@example.com", common_name="client")),
    )


def _write(directory: Path, name: str, leaf: trustme.LeafCert) -> KeyPair:
    pair = KeyPair(directory / f"{name}.pem", directory / f"{name}.key")
    pair.certificate.write_bytes(b"".join(blob.bytes() for blob in leaf.cert_chain_pems))
    leaf.private_key_pem.write_to_path(str(pair.key))
    return pair
