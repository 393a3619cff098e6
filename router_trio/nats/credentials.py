"""What a connection logs in with, in the words of nats-py's `connect`.

Files are read here, anew for each connect, so that a renewed file is used; and whole: nats-py reads a credentials file
without a JWT for ever, and fails on a bad seed with errors that nobody would know how to take.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from nats.aio.client import RawCredentials
from pydantic import SecretStr

from router_trio.errors import AuthorizationError
from router_trio.nats.dial import out_of_resources
from router_trio.settings import ConnectionSettings

_JWT = re.compile(r"BEGIN NATS USER JWT-*\s+(\S+)")
_SEED = re.compile(r"BEGIN USER NKEY SEED-*\s+(\S+)")


def login(settings: ConnectionSettings) -> dict[str, Any]:
    """Return the options. Raises `AuthorizationError`, without the secret, for a file that holds none."""
    options: dict[str, Any] = {}
    # Credentials in the URL of one server serve the others that it tells of, too.
    user, password, token = settings.user, settings.password, settings.token
    for url in settings.servers:
        user, password, token = user or _shown(url.user), password or url.password, token or url.token
    if user is not None:
        options["user"], options["password"] = user, _shown(password) or ""
    if token is not None:
        options["token"] = _shown(token)
    if settings.credentials_file is not None:
        options["user_credentials"] = _credentials(settings.credentials_file)
    if settings.nkey_seed_file is not None:
        options["nkeys_seed_str"] = _seed("nkey_seed_file", settings.nkey_seed_file, _text(settings.nkey_seed_file))
    return options


def _shown(secret: SecretStr | None) -> str | None:
    return None if secret is None else secret.get_secret_value()


def _credentials(file: Path) -> RawCredentials:
    text = _text(file)
    jwt, seed = _JWT.search(text), _SEED.search(text)
    if jwt is None or seed is None:
        raise AuthorizationError(
            f"credentials_file {file} holds no user JWT with its NKey seed; create it again with nsc"
        )
    key = _seed("credentials_file", file, seed[1])
    return RawCredentials(f"-----BEGIN NATS USER JWT-----\n{jwt[1]}\n-----BEGIN USER NKEY SEED-----\n{key}\n")


def _seed(key: str, file: Path, text: str) -> str:
    # Imported here, with the cryptography that it brings: few log in with a key.
    import nkeys

    seed = text.strip()
    try:
        nkeys.from_seed(bytearray(seed.encode()))
    except (nkeys.NkeysError, ValueError, IndexError):
        # Without its cause, which may show the seed.
        raise AuthorizationError(f"{key} {file} holds no valid NKey seed; it begins with SU and is one line") from None
    return seed


def _text(file: Path) -> str:
    try:
        return file.read_text("utf-8", "replace")
    except OSError as error:
        if (lacking := out_of_resources(error)) is not None:
            raise lacking from error
        raise AuthorizationError(
            f"the file {file} can't be read: {error.strerror}; check its path and permissions"
        ) from error
