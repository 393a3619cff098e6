"""Normalize and classify names of hosts, as in URLs and Host headers. Pure functions of text."""

from __future__ import annotations

import re
from ipaddress import IPv4Address, IPv6Address, ip_address

_LABEL = re.compile(r"[a-z0-9_-]{1,63}")
_LONGEST_NAME = 253


def canonical_host(text: str) -> str | None:
    """Return a host in lower case, without brackets and trailing dot; None if it is neither a name nor an IP address.

    An IPv6 address has brackets, as in a URL. Names have letters, digits, `-`, `_` and dots.
    """
    host = text.lower()
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
        return host if isinstance(address(host), IPv6Address) else None
    host = host.removesuffix(".")
    named = len(host) <= _LONGEST_NAME and all(_LABEL.fullmatch(label) for label in host.split("."))
    return host if named else None


def address(host: str) -> IPv4Address | IPv6Address | None:
    """Return the host as an IP address, or None if it is a name."""
    try:
        return ip_address(host)
    except ValueError:
        return None


def is_loopback_name(host: str) -> bool:
    """Return True for `localhost` and names below it."""
    return host == "localhost" or host.endswith(".localhost")


def is_loopback(host: str) -> bool:
    """Return True for a name or an address of the loopback."""
    found = address(host)
    return is_loopback_name(host) if found is None else found.is_loopback
