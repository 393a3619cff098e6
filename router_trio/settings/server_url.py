"""Parse the address of a NATS server, and separate the secrets from it.

A server URL may contain a user, a password or a token. They are separated while it is parsed, so that later output and
logs can't show them: `str()` of a `ServerURL` is always safe.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from pydantic import SecretStr
from pydantic_core import CoreSchema, core_schema

from router_trio.errors.quotes import looks_secret

if TYPE_CHECKING:
    from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler
    from pydantic.json_schema import JsonSchemaValue

DEFAULT_PORT = 4222

# Servers announce addresses as well: each alternative matches a text in one way only, in bounded time.
_HOST = re.compile(
    r"[A-Za-z0-9_]([A-Za-z0-9_.-]*[A-Za-z0-9_.])?|(?=[0-9A-Fa-f.]*:)[0-9A-Fa-f:.]{2,}(%[A-Za-z0-9_.-]+)?"
)
_ADDRESS = re.compile(r"([A-Za-z]{1,8}://)?([A-Za-z0-9_.-]{1,253}|\[[0-9A-Fa-f:.]{2,45}\])(:[0-9]{1,5})?")
_FORM = "'nats://host:4222', 'tls://host:4222' or 'host:4222'"


def _shown(text: str) -> str:
    """Return the address in a text, or a placeholder for it: the rest of the text may be a secret."""
    # Everything up to the last @ may be the user part, and what follows the host a token.
    scheme, separator, rest = text.rpartition("@")[2].rpartition("://")
    address = scheme + separator + re.split("[/?#]", rest, maxsplit=1)[0]
    return repr(address) if _ADDRESS.fullmatch(address) else "this"


@dataclass(frozen=True, slots=True)
class ServerURL:
    """The address of a server, whether its URL requires TLS, and the credentials that were part of the URL."""

    host: str
    port: int = DEFAULT_PORT
    tls: bool = False
    user: SecretStr | None = None
    password: SecretStr | None = None
    token: SecretStr | None = None

    @classmethod
    def parse(cls, text: str) -> ServerURL:
        """Parse `nats://`, `tls://` or a bare `host[:port]`; a user part without a password is a token.

        Raises ValueError with a message that quotes scheme, host and port, and nothing else of the URL.
        """
        shown = _shown(text)
        if looks_secret(text.rpartition("@")[2]):
            raise ValueError(f"holds what looks like an NKey seed, a JWT or a key; write {_FORM}, and that into a file")
        if any(character <= " " or character == "\x7f" for character in text):
            raise ValueError(f"a server URL has no spaces or control characters; write {_FORM}")
        scheme, separator, _ = text.partition("://")
        if not separator:
            scheme, text = "nats", f"nats://{text}"
        if scheme.lower() in ("ws", "wss"):
            raise ValueError(f"WebSocket servers ({scheme}://) are not supported; give the client port, as {_FORM}")
        if scheme.lower() not in ("nats", "tls"):
            raise ValueError(f"{shown} has a scheme that NATS servers don't speak; write {_FORM}")
        try:
            parts = urlsplit(text)
            host, port = parts.hostname or "", parts.port
        except ValueError as error:
            if "out of range" in str(error):
                raise ValueError(f"{shown} is not a server URL: ports go up to 65535; write {_FORM}") from None
            raise ValueError(f"{shown} is not a server URL; write {_FORM}") from None
        if not _HOST.fullmatch(host) or port == 0 or parts.netloc.endswith(":"):
            raise ValueError(f"{shown} is not a server URL; write {_FORM}")
        if parts.path not in ("", "/") or parts.query or parts.fragment:
            raise ValueError(f"{shown} has more than a host and a port; write {_FORM}")
        user, password = (
            None if part is None else SecretStr(unquote(part)) for part in (parts.username, parts.password)
        )
        token = None
        if user is not None and password is None:
            user, token = None, user
        return cls(host, port or DEFAULT_PORT, scheme.lower() == "tls", user, password, token)

    @property
    def address(self) -> str:
        """`host:port`, with brackets around an IPv6 host."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"

    @property
    def has_credentials(self) -> bool:
        """Return True if the URL carried a user, a password or a token."""
        return self.user is not None or self.token is not None

    def __str__(self) -> str:
        return f"{'tls' if self.tls else 'nats'}://{self.address}"

    @classmethod
    def _read(cls, value: object) -> ServerURL:
        if isinstance(value, cls):
            return value
        if isinstance(value, str):
            return cls.parse(value)
        raise ValueError(f"must be a server URL; write {_FORM}")

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(
            cls._read, serialization=core_schema.to_string_ser_schema(when_used="json")
        )

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        return {"type": "string", "examples": ["nats://127.0.0.1:4222", "tls://nats.example.com:4222"]}
