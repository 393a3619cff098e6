"""Check that the files of a connection exist and have the expected content.

They may be replaced while a router runs, so each is read again for each attempt to connect. These checks report a wrong
file at the start, and in `check`, instead of at the first reconnect.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Set
from pathlib import Path
from typing import TYPE_CHECKING

from router_trio.errors import Problem
from router_trio.errors.quotes import looks_secret
from router_trio.settings.sections import ConnectionSettings

if TYPE_CHECKING:
    import ssl


FILES = ("credentials_file", "nkey_seed_file", "tls_ca_file", "tls_cert_file", "tls_key_file")


def check_files(path: str, connection: ConnectionSettings) -> Iterator[Problem]:
    """Yield a problem for each file of a connection that is missing or lacks what its key stands for."""
    there: set[str] = set()
    for key in FILES:
        file: Path | None = getattr(connection, key)
        if file is None:
            continue
        try:
            if file.is_file():
                if file.stat().st_size:  # `check` warns of an empty file, which may be filled later
                    there.add(key)
                continue
            text = f"there is no file {str(file)!r}; create it or correct the path"
        except OSError as error:
            text = f"{str(file)!r} can't be accessed ({error.strerror}); correct the path"
        if looks_secret(str(file)) or "\n" in str(file):
            text = "is the content of a file, not its path; write it into a file, and give the file's path"
        yield Problem(f"{path}.{key}", text)
    if connection.tls_hostname is not None and looks_secret(connection.tls_hostname):
        yield Problem(f"{path}.tls_hostname", "is not a host name; give the name that the server's certificate is for")
    if connection.tls_cert_file is not None and connection.tls_key_file is None:
        yield Problem(f"{path}.tls_key_file", "missing; tls_cert_file needs its private key")
    if connection.tls_key_file is not None and connection.tls_cert_file is None:
        yield Problem(f"{path}.tls_cert_file", "missing; tls_key_file needs its certificate")
    for key in ("credentials_file", "nkey_seed_file"):
        if key in there and (wrong := _no_login(key, getattr(connection, key))) is not None:
            yield Problem(f"{path}.{key}", wrong)
    yield from _certificates(path, connection, there)


def empty_files(path: str, connection: ConnectionSettings) -> Iterator[Problem]:
    """Yield a warning for each empty file of a connection."""
    for key in FILES:
        file: Path | None = getattr(connection, key)
        if file is not None and file.is_file() and not file.stat().st_size:
            yield Problem(f"{path}.{key}", f"{str(file)!r} is empty: no connection succeeds before it is filled")


def _no_login(key: str, file: Path) -> str | None:
    """Return what a file of credentials lacks. The text quotes nothing of the file."""
    try:
        text = file.read_text("utf-8", "replace")
    except OSError:
        return None  # the service may run as another user, who can read it
    if key == "nkey_seed_file":
        return (
            None if _NKEY_SEED.fullmatch(text.strip()) else "holds no NKey seed, which is one line that begins with SU"
        )
    if _JWT.search(text) is None:
        return (
            "holds no user JWT (BEGIN NATS USER JWT); create the file again with nsc, or use nkey_seed_file for a seed"
        )
    seed = _SEED.search(text)
    if seed is None or not _NKEY_SEED.fullmatch(seed[1]):
        return "holds a user JWT without its NKey seed (BEGIN USER NKEY SEED); create the file again with nsc"
    return None


_JWT = re.compile(r"BEGIN NATS USER JWT-*\s+(\S+)")
_SEED = re.compile(r"BEGIN USER NKEY SEED-*\s+(\S+)")
_NKEY_SEED = re.compile(r"SU[A-Z2-7]{56}")


def _certificates(path: str, connection: ConnectionSettings, there: Set[str]) -> Iterator[Problem]:
    if not there & {"tls_ca_file", "tls_cert_file", "tls_key_file"}:
        return
    import ssl  # here, because most configurations have none of these

    for key in sorted(there & {"tls_ca_file", "tls_cert_file"}):
        try:
            ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cafile=getattr(connection, key))
        except ssl.SSLError:
            there = there - {key}
            yield Problem(f"{path}.{key}", "holds no certificate in PEM form (BEGIN CERTIFICATE); give such a file")
        except OSError:
            there = there - {key}  # the service may run as another user, who can read it
    if {"tls_cert_file", "tls_key_file"} <= there:
        try:
            load_certificate(ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT), connection)
        except ssl.SSLError as error:
            text = "holds no private key in PEM form that can be read without a password; give such a file"
            if error.reason == "KEY_VALUES_MISMATCH":
                text = "is not the private key of the certificate in tls_cert_file; give the two that belong together"
            yield Problem(f"{path}.tls_key_file", text)
        except (OSError, ValueError):
            pass  # as above


def load_certificate(context: ssl.SSLContext, connection: ConnectionSettings) -> None:
    """Load the certificate of a connection into a TLS context, without a password prompt. Raises `OSError`."""
    if connection.tls_cert_file is not None:
        # Without this, OpenSSL would prompt at the terminal, and wait.
        context.load_cert_chain(connection.tls_cert_file, connection.tls_key_file, password=lambda: b"")
