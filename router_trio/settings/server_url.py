"""Parse the address of a NATS server or of an HTTP proxy, and separate the secrets from it.

A URL may contain a user, a password, a token or a query. They are separated while it is parsed, so that later output
and logs can't show them: `str()` of a `ServerURL` or a `ProxyURL` is always safe.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import SplitResult, unquote, urlsplit

from pydantic import SecretStr
from pydantic_core import CoreSchema, core_schema

from router_trio.errors.quotes import looks_secret

if TYPE_CHECKING:
    from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler
    from pydantic.json_schema import JsonSchemaValue

DEFAULT_PORT = 4222

_DEFAULT_PORTS = {"nats": DEFAULT_PORT, "tls": DEFAULT_PORT, "ws": 80, "wss": 443, "http": 80}

# Servers announce addresses as well: each alternative matches a text in one way only, in bounded time.
_HOST = re.compile(
    r"[A-Za-z0-9_]([A-Za-z0-9_.-]*[A-Za-z0-9_.])?|(?=[0-9A-Fa-f.]*:)[0-9A-Fa-f:.]{2,}(%[A-Za-z0-9_.-]+)?"
)
_ADDRESS = re.compile(r"([A-Za-z]{1,8}://)?([A-Za-z0-9_.-]{1,253}|\[[0-9A-Fa-f:.]{2,45}\])(:[0-9]{1,5})?")
_FORM = "'nats://host:4222', 'tls://host:4222', 'wss://host/path' or 'host:4222'"
_PROXY_FORM = "'http://proxy:3128', with user and password before the host if it requires a login"
_OTHER_PROXIES = frozenset({"https", "socks", "socks4", "socks4a", "socks5", "socks5h"})
# No ':' and no '@': they would look like the end of credentials when the URL is quoted.
_PATH = re.compile(r"(/[A-Za-z0-9._~!$&*+,;=%-]*)*")
_QUERY = re.compile(r"[A-Za-z0-9._~!$&'()*+,;=:@/?%-]*")
_OTHER_PROTOCOLS = {"/leafnode": "leaf nodes", "/mqtt": "MQTT"}
"""Ends of paths by which a NATS server recognizes other protocols over WebSocket."""


def _shown(text: str) -> str:
    """Return the address in a text, or a placeholder for it: the rest of the text may be a secret."""
    # Everything up to the last @ may be the user part, and what follows the host a token.
    if "?" in text.rpartition("@")[0]:
        return "this"  # the @ may be part of a query
    scheme, separator, rest = text.rpartition("@")[2].rpartition("://")
    address = scheme + separator + re.split("[/?#]", rest, maxsplit=1)[0]
    return repr(address) if _ADDRESS.fullmatch(address) else "this"


@dataclass(frozen=True, slots=True)
class ServerURL:
    """The address of a server, how to reach it, and the secrets that were part of the URL.

    With `tls` the connection must use TLS. With `websocket` it is a WebSocket, at `path` with `query`.
    """

    host: str
    port: int = DEFAULT_PORT
    tls: bool = False
    user: SecretStr | None = None
    password: SecretStr | None = None
    token: SecretStr | None = None
    websocket: bool = False
    path: str = ""
    query: SecretStr | None = None

    @classmethod
    def parse(cls, text: str) -> ServerURL:
        """Parse `nats://`, `tls://`, `ws://`, `wss://` or a bare `host[:port]`; a user without a password is a token.

        Raises ValueError with a message that quotes scheme, host and port, and nothing else of the URL.
        """
        shown = _shown(text)
        if "://" not in text:
            text = f"nats://{text}"
        parts = _split(text, shown, ("nats", "tls", "ws", "wss"), "a server URL", _FORM)
        websocket = parts.scheme in ("ws", "wss")
        if not websocket and (parts.path not in ("", "/") or parts.query or parts.fragment):
            raise ValueError(f"{shown} has more than a host and a port; write {_FORM}")
        path = parts.path.removesuffix("/") if parts.path == "/" or not websocket else parts.path
        if parts.fragment or not _PATH.fullmatch(path) or not _QUERY.fullmatch(parts.query):
            raise ValueError(
                f"the path of {shown} has characters that are not allowed there; write it as 'wss://host/path'"
            )
        for end, what in _OTHER_PROTOCOLS.items():
            if path.endswith(end):
                raise ValueError(f"the path of {shown} ends with {end}, which is for {what}; remove that")
        user, password = _user(parts)
        token = None
        if user is not None and password is None:
            user, token = None, user
        port = parts.port or _DEFAULT_PORTS[parts.scheme]
        query = SecretStr(parts.query) if parts.query else None
        tls = parts.scheme in ("tls", "wss")
        return cls(parts.hostname or "", port, tls, user, password, token, websocket, path, query)

    @property
    def scheme(self) -> str:
        """`nats`, `tls`, `ws` or `wss`."""
        if self.websocket:
            return "wss" if self.tls else "ws"
        return "tls" if self.tls else "nats"

    @property
    def target(self) -> str:
        """Path and query of the HTTP request that opens a WebSocket. May hold a secret."""
        return (self.path or "/") + ("" if self.query is None else f"?{self.query.get_secret_value()}")

    @property
    def host_header(self) -> str:
        """The host, with the port unless it is the default one of the scheme."""
        return self.address.removesuffix(f":{_DEFAULT_PORTS[self.scheme]}")

    @property
    def address(self) -> str:
        """`host:port`, with brackets around an IPv6 host."""
        return _address(self.host, self.port)

    @property
    def has_credentials(self) -> bool:
        """True if the URL contained a user, a password or a token."""
        return self.user is not None or self.token is not None

    def __str__(self) -> str:
        return f"{self.scheme}://{self.address}{self.path}"

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return _core_schema(cls, cls.parse, f"must be a server URL; write {_FORM}")

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        return {"type": "string", "examples": ["nats://127.0.0.1:4222", "wss://nats.example.com/nats"]}


@dataclass(frozen=True, slots=True)
class ProxyURL:
    """The address of an HTTP proxy, and the credentials that were part of its URL."""

    host: str
    port: int
    user: SecretStr | None = None
    password: SecretStr | None = None

    @classmethod
    def parse(cls, text: str) -> ProxyURL:
        """Parse `http://[user:password@]host[:port]`. Raises ValueError, as `ServerURL.parse` does."""
        shown = _shown(text)
        scheme = text.partition("://")[0].lower()
        if "://" in text and scheme in _OTHER_PROXIES:
            raise ValueError(
                f"is reached by {scheme}://, and the router uses proxies by http:// only; write {_PROXY_FORM}"
            )
        parts = _split(text, shown, ("http",), "the URL of a proxy", _PROXY_FORM)
        if parts.path not in ("", "/") or parts.query or parts.fragment:
            raise ValueError(f"{shown} has more than a host and a port; write {_PROXY_FORM}")
        user, password = _user(parts)
        if user is not None and ":" in user.get_secret_value():
            raise ValueError(f"the user for the proxy at {shown} contains ':', which HTTP does not allow")
        return cls(parts.hostname or "", parts.port or _DEFAULT_PORTS["http"], user, password)

    @property
    def address(self) -> str:
        """`host:port`, with brackets around an IPv6 host."""
        return _address(self.host, self.port)

    def __str__(self) -> str:
        return f"http://{self.address}"

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return _core_schema(cls, cls.parse, f"must be the URL of a proxy; write {_PROXY_FORM}")

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        return {"type": "string", "examples": ["http://user:password@proxy:3128"]}


def _core_schema(kind: type, parse: Callable[[str], object], wrong: str) -> CoreSchema:
    """Return the schema of a URL: parsed from text, written by `str()`. `wrong` is the error for other types."""

    def read(value: object) -> object:
        if isinstance(value, kind):
            return value
        if isinstance(value, str):
            return parse(value)
        raise ValueError(wrong)

    written = core_schema.to_string_ser_schema(when_used="json")
    return core_schema.no_info_plain_validator_function(read, serialization=written)


def _split(text: str, shown: str, schemes: Collection[str], what: str, form: str) -> SplitResult:
    """Split a URL with one of these schemes, and check its scheme, host and port. `shown` is quoted in errors."""
    if looks_secret(text.rpartition("@")[2]):
        raise ValueError(f"holds what looks like an NKey seed, a JWT or a key; write {form}, and that into a file")
    if any(character <= " " or character == "\x7f" for character in text):
        raise ValueError(f"{what} has no spaces or control characters; write {form}")
    if "://" not in text or text.partition("://")[0].lower() not in schemes:
        wrong = "has a scheme that NATS servers don't speak" if "nats" in schemes else "is not an HTTP proxy"
        raise ValueError(f"{shown} {wrong}; write {form}")
    try:
        parts = urlsplit(text)
        host, port = parts.hostname or "", parts.port
    except ValueError as error:
        if "out of range" in str(error):
            raise ValueError(f"{shown} is not {what}: ports go up to 65535; write {form}") from None
        raise ValueError(f"{shown} is not {what}; write {form}") from None
    if not _HOST.fullmatch(host) or port == 0 or parts.netloc.endswith(":"):
        raise ValueError(f"{shown} is not {what}; write {form}")
    return parts


def _user(parts: SplitResult) -> tuple[SecretStr | None, SecretStr | None]:
    """Return user and password of a URL, each None if it is absent."""
    user, password = (None if part is None else SecretStr(unquote(part)) for part in (parts.username, parts.password))
    return user, password


def _address(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
