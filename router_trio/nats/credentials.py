"""The credentials that a connection logs in with, and its answer to the nonce of a server.

Files are read here for each connect, so that a renewed file is used. Keys are read and used by `nkeys`, the library of
nats-py.
"""

from __future__ import annotations

import re
from base64 import b64encode
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, cast

from pydantic import SecretStr

from router_trio.errors import AuthorizationError
from router_trio.nats.transport import out_of_resources
from router_trio.settings import ConnectionSettings

if TYPE_CHECKING:
    from nkeys import KeyPair

SECRET_FIELDS = frozenset({"jwt", "sig", "pass", "auth_token"})
"""Fields of CONNECT that are never shown."""

_JWT = re.compile(r"BEGIN NATS USER JWT-*\s+(\S+)")
_SEED = re.compile(r"BEGIN USER NKEY SEED-*\s+(\S+)")


@dataclass(frozen=True)
class Login:
    """The credentials of a connection. Its fields are secrets, and never shown."""

    user: str | None = field(default=None, repr=False)
    password: str = field(default="", repr=False)
    token: str | None = field(default=None, repr=False)
    jwt: str | None = field(default=None, repr=False)
    seed: str | None = field(default=None, repr=False)

    @property
    def secrets(self) -> tuple[str, ...]:
        """The fields that are never shown, even if a peer repeats them."""
        return tuple(one for one in (self.password, self.token, self.jwt, self.seed) if one)

    def answer_to(self, nonce: str) -> dict[str, str]:
        """Return the fields of CONNECT with which to log in. Signs `nonce` if there is one, and a key."""
        if self.seed is not None and nonce:
            pair = _key_pair(self.seed)
            # The library declares another type, and returns bytes.
            public_key = cast("bytes", pair.public_key)
            name = {"nkey": public_key.decode()} if self.jwt is None else {"jwt": self.jwt}
            signed = name | {"sig": b64encode(pair.sign(nonce.encode())).decode()}
            pair.wipe()
            # A token in addition to a key is for the auth callout of a server.
            return signed if self.token is None else signed | {"auth_token": self.token}
        if self.user is not None:
            return {"user": self.user, "pass": self.password}
        return {} if self.token is None else {"auth_token": self.token}


def login(settings: ConnectionSettings) -> Login:
    """Return the credentials. Raises `AuthorizationError`, without the secret, for a file that contains none."""
    # Credentials in the URL of one server are used for the servers that it announces, too.
    user, password, token = settings.user, settings.password, settings.token
    for url in settings.servers:
        user, password, token = user or _shown(url.user), password or url.password, token or url.token
    jwt = seed = None
    if settings.nkey_seed_file is not None:
        seed = _seed("nkey_seed_file", settings.nkey_seed_file, _text(settings.nkey_seed_file))
    if settings.credentials_file is not None:
        jwt, seed = _credentials(settings.credentials_file)
    return Login(user, _shown(password) or "", _shown(token), jwt, seed)


def _shown(secret: SecretStr | None) -> str | None:
    return None if secret is None else secret.get_secret_value()


def _credentials(file: Path) -> tuple[str, str]:
    """Return the JWT and the seed."""
    text = _text(file)
    jwt, seed = _JWT.search(text), _SEED.search(text)
    if jwt is None or seed is None:
        raise AuthorizationError(
            f"credentials_file {file} holds no user JWT with its NKey seed; create it again with nsc"
        )
    return jwt[1], _seed("credentials_file", file, seed[1])


def _seed(key: str, file: Path, text: str) -> str:
    # Imported here, because it imports cryptography and few connections log in with a key.
    import nkeys

    seed = text.strip()
    try:
        _key_pair(seed).wipe()
    except (nkeys.NkeysError, ValueError, IndexError):
        # Raised without its cause, which may show the seed.
        raise AuthorizationError(f"{key} {file} holds no valid NKey seed; it begins with SU and is one line") from None
    return seed


def _key_pair(seed: str) -> KeyPair:
    import nkeys

    return nkeys.from_seed(bytearray(seed.encode()))


def _text(file: Path) -> str:
    try:
        return file.read_text("utf-8", "replace")
    except OSError as error:
        if (lacking := out_of_resources(error)) is not None:
            raise lacking from error
        raise AuthorizationError(
            f"the file {file} can't be read: {error.strerror}; check its path and permissions"
        ) from error
