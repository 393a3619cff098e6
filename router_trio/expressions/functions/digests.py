"""Digests of strings and bytes."""

from __future__ import annotations

from hashlib import sha256

from router_trio.expressions.functions.conversions import bytes_of_string


def sha256_of_string(text: str) -> str:
    """Return the SHA-256 of a string in UTF-8, as hexadecimal digits."""
    return sha256_of_bytes(bytes_of_string(text))


def sha256_of_bytes(data: bytes) -> str:
    """Return the SHA-256 as hexadecimal digits."""
    return sha256(data, usedforsecurity=False).hexdigest()
