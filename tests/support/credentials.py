"""NKeys, and JWT credentials of an operator of our own, for a real nats-server.

Follows the JWT and NKey formats of https://docs.nats.io (running a NATS service, JWT authentication), version 2.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nkeys

_UNLIMITED_ACCOUNT = {
    "subs": -1, "data": -1, "payload": -1, "imports": -1, "exports": -1, "wildcards": True, "conn": -1, "leaf": -1,
    "mem_storage": -1, "disk_storage": -1, "streams": -1, "consumer": -1,
}  # fmt: skip
_UNLIMITED_USER = {"subs": -1, "data": -1, "payload": -1}


class Nkey:
    """An Ed25519 key in NATS' notation: `seed` is the secret, `public` the public key."""

    def __init__(self, seed: str) -> None:
        self.seed = seed
        self._pair = nkeys.from_seed(seed.encode())
        self.public: str = self._pair.public_key.decode()

    def sign(self, data: bytes) -> bytes:
        """Return the signature of the data, 64 bytes."""
        signature: bytes = self._pair.sign(data)
        return signature


def user_nkey() -> Nkey:
    """Return a new key of a user, `SU...` and `U...`."""
    return _new(nkeys.PREFIX_BYTE_USER)


def nkey_config(*users: Nkey) -> str:
    """Return the `authorization` block of a nats-server that accepts these keys."""
    entries = ", ".join(f'{{ nkey: "{user.public}" }}' for user in users)
    return f"authorization {{ users: [{entries}] }}\n"


@dataclass(frozen=True)
class Operator:
    """An operator with one JetStream account: `config` is for the server, `credentials()` for clients."""

    config: str
    _account: Nkey

    def credentials(
        self, path: Path, *, expires_in: float | None = None, permissions: dict[str, Any] | None = None
    ) -> Path:
        """Write the credentials file of a new user, and return its path.

        `expires_in` is in seconds, negative for a user that has expired; `permissions` are the JWT's `pub` and `sub`.
        """
        user = user_nkey()
        claims: dict[str, Any] = {"type": "user", **_UNLIMITED_USER, **(permissions or {})}
        jwt = _encode(user.public, "user", claims, signer=self._account, expires_in=expires_in)
        path.write_text(
            f"-----BEGIN NATS USER JWT-----\n{jwt}\n------END NATS USER JWT------\n\n"
            f"-----BEGIN USER NKEY SEED-----\n{user.seed}\n------END USER NKEY SEED------\n"
        )
        path.chmod(0o600)
        return path


def create_operator() -> Operator:
    """Return a new operator, with the system account that JetStream requires and an account for users."""
    operator = _new(nkeys.PREFIX_BYTE_OPERATOR)
    system, account = _new(nkeys.PREFIX_BYTE_ACCOUNT), _new(nkeys.PREFIX_BYTE_ACCOUNT)
    operator_claims = {"type": "operator", "system_account": system.public}
    account_claims = {"type": "account", "limits": _UNLIMITED_ACCOUNT}
    no_jetstream = {"mem_storage": 0, "disk_storage": 0, "streams": 0, "consumer": 0}
    system_claims = {"type": "account", "limits": _UNLIMITED_ACCOUNT | no_jetstream}
    config = (
        f"operator: {_encode(operator.public, 'operator', operator_claims, signer=operator)}\n"
        f"system_account: {system.public}\n"
        "resolver: MEMORY\n"
        "resolver_preload: {\n"
        f"  {system.public}: {_encode(system.public, 'system', system_claims, signer=operator)}\n"
        f"  {account.public}: {_encode(account.public, 'account', account_claims, signer=operator)}\n"
        "}\n"
    )
    return Operator(config, account)


def read_credentials(path: Path) -> tuple[str, str]:
    """Return the JWT and the seed of a credentials file."""
    lines = [line for line in path.read_text().splitlines() if line and not line.startswith("-")]
    jwt, seed = lines
    return jwt, seed


def _new(prefix: int) -> Nkey:
    return Nkey(nkeys.encode_seed(os.urandom(32), prefix).decode())


def _encode(subject: str, name: str, nats: dict[str, Any], *, signer: Nkey, expires_in: float | None = None) -> str:
    now = int(time.time())
    claims: dict[str, Any] = {"iat": now, "iss": signer.public, "name": name, "sub": subject}
    if expires_in is not None:
        claims["exp"] = int(now + expires_in)
    claims["nats"] = nats | {"version": 2}
    digest = hashlib.new("sha512_256", json.dumps(claims).encode()).digest()
    claims["jti"] = base64.b32encode(digest).decode().rstrip("=")
    signed = f"{_base64url({'typ': 'JWT', 'alg': 'ed25519-nkey'})}.{_base64url(claims)}"
    signature = base64.urlsafe_b64encode(signer.sign(signed.encode())).decode().rstrip("=")
    return f"{signed}.{signature}"


def _base64url(value: dict[str, Any]) -> str:
    return base64.urlsafe_b64encode(json.dumps(value).encode()).decode().rstrip("=")
