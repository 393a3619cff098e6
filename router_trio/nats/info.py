"""Reads INFO, a server's description of itself: its JSON becomes a typed, bounded value here and nowhere else.

No other code sees the JSON of a peer. An absent field has its default. A field with a wrong value raises a
`ProtocolError` that names it. Only announced servers are skipped one by one, so that one bad `client_advertise` in a
cluster does no harm.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, replace
from ipaddress import IPv6Address
from typing import Any, TypeVar

from router_trio.errors import ProtocolError
from router_trio.errors.quotes import LONGEST_TEXT, excerpt
from router_trio.protocol.framing import DEFAULT_CONTROL_LINE, MAX_INFO, MAX_MESSAGE

T = TypeVar("T")

DEFAULT_MAX_PAYLOAD = 1024 * 1024
MIN_CONTROL_LINE = 64
"""Bytes. A server that accepts less can't receive any request."""

MAX_TEXT = 256
"""Characters of a nonce, a version or a domain."""

MAX_CONNECT_URLS = 256
"""Announced servers that are read from one INFO; more are ignored."""

MAX_HOST = 253
"""Characters of a host name, as in RFC 1035."""

_TEXT = re.compile(r"[ -~]*")
_MAJOR_MINOR = re.compile(r"([0-9]{1,4})\.([0-9]{1,4})(?![0-9])")
_HOST = r"[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?"
_ADDRESS = re.compile(rf"(?:\[([0-9A-Fa-f:.]{{2,45}})\]|({_HOST}(?:\.{_HOST})*\.?)):([1-9][0-9]{{0,4}})")


@dataclass(frozen=True, slots=True)
class ServerInfo:
    """A validated INFO.

    Sizes are in bytes. `connect_urls` are `host:port`, with brackets around an IPv6 host. `tls_available` means that
    TLS is the client's choice, `lame_duck` that the server will shut down; `nonce` is what a client with a key has to
    sign.
    """

    version: str = ""
    domain: str = ""
    nonce: str = ""
    headers: bool = False
    jetstream: bool = False
    auth_required: bool = False
    tls_required: bool = False
    tls_available: bool = False
    lame_duck: bool = False
    max_payload: int = DEFAULT_MAX_PAYLOAD
    max_control_line: int = DEFAULT_CONTROL_LINE
    connect_urls: tuple[str, ...] = ()

    @property
    def major_minor(self) -> tuple[int, int] | None:
        """Major and minor number of the version, or None if it does not start with them."""
        found = _MAJOR_MINOR.match(self.version)
        return None if found is None else (int(found[1]), int(found[2]))

    def without_announcements(self) -> ServerInfo:
        """Return the part of an INFO read in clear text that may be used after the upgrade to TLS.

        The nonce has to be signed, and limits are bounded whatever their origin. Announced servers and lame duck mode
        are trusted only if the server sends them again over TLS.
        """
        return replace(self, connect_urls=(), lame_duck=False)


def parse_info(text: bytes, before: ServerInfo | None = None) -> ServerInfo:
    """Parse the JSON of an INFO. Limits missing in it keep their values of `before`. Raises `ProtocolError`."""
    before = before or ServerInfo()
    fields = _object(text)
    return ServerInfo(
        version=_text(fields, "version"),
        domain=_text(fields, "domain"),
        nonce=_text(fields, "nonce"),
        headers=_flag(fields, "headers"),
        jetstream=_flag(fields, "jetstream"),
        auth_required=_flag(fields, "auth_required"),
        tls_required=_flag(fields, "tls_required"),
        tls_available=_flag(fields, "tls_available"),
        lame_duck=_flag(fields, "ldm"),
        max_payload=_size(fields, "max_payload", 1, MAX_MESSAGE, before.max_payload),
        max_control_line=_size(fields, "max_control_line", MIN_CONTROL_LINE, MAX_INFO, before.max_control_line),
        connect_urls=_addresses(fields, "connect_urls"),
    )


def parse_address(text: object) -> str | None:
    """Return `host:port` in lower case, or None if `text` is not the address of a server."""
    if not isinstance(text, str) or len(text) > MAX_HOST + len(":65535"):
        return None
    found = _ADDRESS.fullmatch(text)
    if found is None or int(found[3]) > 65535:
        return None
    if found[1] is not None:
        try:
            IPv6Address(found[1])
        except ValueError:
            return None
    elif len(found[2]) > MAX_HOST:
        return None
    return text.lower()


def quote(text: bytes | str) -> str:
    """Return the beginning of a text sent by a peer, printable, for an error."""
    return excerpt(text if isinstance(text, str) else text[:LONGEST_TEXT].decode("utf-8", "backslashreplace"))


# --- reading fields ---


def _object(text: bytes) -> dict[str, Any]:
    if len(text) > MAX_INFO:
        raise ProtocolError(f"the server sent an INFO of more than {MAX_INFO} bytes")
    try:
        found = json.loads(text.decode(), object_pairs_hook=_unique, parse_constant=_no_number)
    except (ValueError, RecursionError) as error:
        # ValueError is also raised for bytes that are not UTF-8, and for an integer with thousands of digits.
        raise ProtocolError(f"the server sent a malformed INFO: {quote(text)}: {quote(str(error))}") from None
    if not isinstance(found, dict):
        raise ProtocolError(f"the server sent an INFO that is not an object: {quote(text)}")
    return found


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    for name, value in pairs:
        if name in fields:
            raise ValueError(f"{name} is there twice")
        fields[name] = value
    return fields


def _no_number(text: str) -> Any:
    raise ValueError(f"{text} is not JSON")


def _flag(fields: dict[str, Any], name: str) -> bool:
    return _typed(fields, name, bool, False)


def _text(fields: dict[str, Any], name: str) -> str:
    found = _typed(fields, name, str, "")
    if len(found) > MAX_TEXT or not _TEXT.fullmatch(found):
        raise _wrong(name, found, f"at most {MAX_TEXT} printable ASCII characters")
    return found


def _size(fields: dict[str, Any], name: str, least: int, most: int, default: int) -> int:
    """Return a size, limited to `most`, which is what this side accepts at most."""
    found = _typed(fields, name, int, default)
    if found < least:
        raise _wrong(name, found, f"at least {least}")
    return min(found, most)


def _addresses(fields: dict[str, Any], name: str) -> tuple[str, ...]:
    found = fields.get(name)
    if found is None:  # a server written in Go may write an empty list as null
        return ()
    if not isinstance(found, list):
        raise _wrong(name, found, "a list")
    addresses = (parse_address(one) for one in found[:MAX_CONNECT_URLS])
    return tuple(dict.fromkeys(one for one in addresses if one is not None))


def _typed(fields: dict[str, Any], name: str, kind: type[T], default: T) -> T:
    if name not in fields:
        return default
    found = fields[name]
    if type(found) is not kind:  # a bool is not accepted as an int
        raise _wrong(name, found, {bool: "true or false", str: "text", int: "a whole number"}[kind])
    return found


def _wrong(name: str, found: object, wanted: str) -> ProtocolError:
    try:
        shown = json.dumps(found)
    except (ValueError, RecursionError):
        shown = type(found).__name__
    return ProtocolError(f"the server sent a malformed INFO: {name} is {quote(shown)}, and must be {wanted}")
