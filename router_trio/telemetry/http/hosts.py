"""Decide which requests are answered, by their Host, Origin and Sec-Fetch-Site headers. Pure functions.

The pages have no login. The check of the Host header keeps a web page in a user's browser from reading them: a page
that points its own domain name at this router (DNS rebinding) still sends that name as Host. Requests are answered if
the Host is an IP address, a loopback name or in `telemetry.allowed_hosts`. `/healthz` and `/readyz` return their code
to any Host, because probes may use names of their own, but their reasons only to the allowed ones: reasons contain
names of servers, routes and subjects. A request that a browser sends for another site is marked by `Origin` or
`Sec-Fetch-Site` and is refused on every path; probes and scrapers send neither header.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from ipaddress import IPv6Address, IPv6Network

from router_trio.settings.host_names import address, canonical_host, is_loopback_name

PROBES = frozenset(("/healthz", "/readyz"))
"""Paths that answer to any Host, and that are answered even if there are too many requests."""

Refusal = tuple[int, str]
"""An HTTP status and a reason."""

_HOST_PORT = re.compile(r"(\[.*\]|[^:]*)(?::([0-9]{0,5}))?", re.DOTALL)
_OWN_SITE = ("none", "same-origin")


def refusal(path: str, headers: Iterable[tuple[bytes, bytes]], allowed: Collection[str]) -> Refusal | None:
    """Return the status and reason with which to refuse a request, or None if it may be answered.

    Header names must be in lower case, and the names in `allowed` as `canonical_host` returns them.
    """
    values: dict[bytes, list[str]] = {b"host": [], b"origin": [], b"sec-fetch-site": []}
    for name, value in headers:
        if name in values:
            values[name].append(value.decode("latin-1"))
    hosts = values[b"host"]
    host = split_host(hosts[0]) if len(hosts) == 1 else None
    if values[b"origin"] and not _same_origin(values[b"origin"], host):
        return 403, "the header Origin names another site; pages of other sites may not use this router"
    if any(value not in _OWN_SITE for value in values[b"sec-fetch-site"]):
        return 403, "the request comes from another site (Sec-Fetch-Site); enter the address in the browser"
    if path in PROBES:
        return None
    if host is None:
        return 400, "the header Host must be given once, as HOST or HOST:PORT"
    if not _answered(host[0], allowed):
        return 403, f"the host {host[0]!r} is not allowed; add it to telemetry.allowed_hosts if it is yours"
    return None


def may_read(headers: Iterable[tuple[bytes, bytes]], allowed: Collection[str]) -> bool:
    """Return True if the request's Host is allowed to read the pages, not only the code of a probe."""
    hosts = [value.decode("latin-1") for name, value in headers if name == b"host"]
    host = split_host(hosts[0]) if len(hosts) == 1 else None
    return host is not None and _answered(host[0], allowed)


def split_host(text: str) -> tuple[str, int | None] | None:
    """Return host (as `canonical_host` returns it) and port of a Host header; None if it is malformed."""
    found = _HOST_PORT.fullmatch(text)
    host = canonical_host(found[1]) if found is not None else None
    if found is None or host is None:
        return None
    port = int(found[2]) if found[2] else None
    return (host, port) if port is None or port <= 65535 else None


def peer_of(host: str) -> str:
    """Return the key by which clients are limited: an IPv4 address, or an IPv6 /64, all of which one host can use."""
    parsed = address(host)
    if isinstance(parsed, IPv6Address):
        if parsed.ipv4_mapped is not None:
            return str(parsed.ipv4_mapped)
        return str(IPv6Network((int(parsed), 64), strict=False))
    return host


def _answered(host: str, allowed: Collection[str]) -> bool:
    return address(host) is not None or is_loopback_name(host) or host in allowed


def _same_origin(origins: list[str], host: tuple[str, int | None] | None) -> bool:
    scheme, _, rest = origins[0].partition("://")
    origin = split_host(rest)
    if len(origins) != 1 or scheme.lower() != "http" or origin is None or host is None:
        return False
    return (origin[0], origin[1] or 80) == (host[0], host[1] or 80)
