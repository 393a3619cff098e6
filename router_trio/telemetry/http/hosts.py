"""Decide which requests are answered, by the hosts that they name: pure functions of headers.

The pages have no login. What keeps a web page in somebody's browser from reading them is the Host header: a page that
points a name of its own at this router (DNS rebinding) still sends that name. Answered are IP addresses, the names of
the loopback and `telemetry.allowed_hosts`; `/healthz` and `/readyz` give their code to any name, since probes may have
their own, and their reasons to these only: reasons name servers, routes and subjects. What a browser sends for another
site says so in `Origin` or `Sec-Fetch-Site`, and is refused everywhere; probes and scrapers send neither.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from ipaddress import IPv6Address, IPv6Network

from router_trio.settings.host_names import address, canonical_host, is_loopback_name

PROBES = frozenset(("/healthz", "/readyz"))
"""Paths that answer to any Host, and for which connections are kept free."""

Refusal = tuple[int, str]
"""An HTTP status and the reason."""

_HOST_PORT = re.compile(r"(\[.*\]|[^:]*)(?::([0-9]{0,5}))?", re.DOTALL)
_OWN_SITE = ("none", "same-origin")


def refusal(path: str, headers: Iterable[tuple[bytes, bytes]], allowed: Collection[str]) -> Refusal | None:
    """Return why this request is not to be answered, or None if it is.

    Names of headers are in lower case, `allowed` as `canonical_host` gives them.
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
    """Return True if the request names this router by a host that is answered with more than a code."""
    hosts = [value.decode("latin-1") for name, value in headers if name == b"host"]
    host = split_host(hosts[0]) if len(hosts) == 1 else None
    return host is not None and _answered(host[0], allowed)


def split_host(text: str) -> tuple[str, int | None] | None:
    """Return host (as `canonical_host` gives it) and port of a Host header; None if it is malformed."""
    found = _HOST_PORT.fullmatch(text)
    host = canonical_host(found[1]) if found is not None else None
    if found is None or host is None:
        return None
    port = int(found[2]) if found[2] else None
    return (host, port) if port is None or port <= 65535 else None


def peer_of(host: str) -> str:
    """Return what counts as one peer: an IPv4 address, or the /64 of an IPv6 address, which one host can fill."""
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
