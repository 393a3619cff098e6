"""Find the line of one header in a raw block, without reading the others."""

from __future__ import annotations

from functools import lru_cache

FREE_HEADERS = 4096
"""Bytes of a header block in which headers are looked for at no cost: some 20 µs at most."""
MAX_NAMES = 1024
"""Names of headers that are remembered; those of the expressions, none that a message brings."""


@lru_cache(MAX_NAMES)
def line_start(name: str) -> bytes | None:
    """Return what the line of this header begins with, or None if no header is so named."""
    if any(mark in name for mark in ":\r\n"):
        return None
    return b"\r\n" + name.encode() + b":"


def first_value(start: bytes, text: bytes, first: int, last: int) -> bytes | None:
    """Return the first value of the header whose line begins with `start`, in the block `text[first:last]`."""
    at = text.find(start, first, last)
    if at < 0:
        return None
    at += len(start)
    end = text.find(b"\r\n", at, last)
    return text[at : end if end >= 0 else last].strip()
