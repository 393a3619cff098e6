"""Compute the parts of a mapped subject from the tokens of a subject. Lengths count bytes of UTF-8."""

from __future__ import annotations

from collections.abc import Callable

Tokens = list[str]
Piece = Callable[[Tokens], str]
"""Makes one part of the resulting subject."""

_FNV32_OFFSET, _FNV32_PRIME = 2166136261, 16777619


def constant(token: str, tokens: Tokens) -> str:
    """A token as it stands in the destination."""
    return token


def rest(first: int, tokens: Tokens) -> str:
    """The subject from that token on: what `>` matched."""
    return ".".join(tokens[first:])


def from_token(position: int, change: Callable[[str], str], tokens: Tokens) -> str:
    """Return one token, changed."""
    return change(tokens[position])


def partition(positions: list[int], count: int, tokens: Tokens) -> str:
    """The bucket of FNV-1a, 32 bits, over the tokens with nothing between them, or over the whole subject."""
    if count == 0:
        return "0"
    key = "".join([tokens[position] for position in positions]) if positions else ".".join(tokens)
    digest = _FNV32_OFFSET
    for octet in key.encode("utf-8", "surrogateescape"):
        digest = (digest ^ octet) * _FNV32_PRIME & 0xFFFFFFFF
    # The server takes a negative count for an unsigned one.
    return str(digest % (count % 2**32))


def random_number(random: Callable[[int], int], count: int, tokens: Tokens) -> str:
    """A number below `count`, of `random`'s choice."""
    return "0" if count == 0 else str(random(abs(count)))


def _left(size: int, token: str) -> str:
    return token[:size]


def _right(size: int, token: str) -> str:
    return token[-size:]


def _split_from_left(size: int, token: str) -> str:
    return f"{token[:size]}.{token[size:]}"


def _split_from_right(size: int, token: str) -> str:
    return f"{token[:-size]}.{token[-size:]}"


def _slice_from_left(size: int, token: str) -> str:
    return ".".join([token[start : start + size] for start in range(0, len(token), size)])


def _slice_from_right(size: int, token: str) -> str:
    # The short slice, if there is one, comes first.
    first = len(token) % size
    slices = [token[start : start + size] for start in range(first, len(token), size)]
    return ".".join([token[:first], *slices] if first else slices)


def split_at(separator: str, token: str) -> str:
    """Split at each separator. Empty parts go, except that two separators at the start leave one empty token."""
    parts = token.split(separator) if separator else list(token)
    return "".join(
        part if number == 0 or (number == 1 and not parts[0]) else f".{part}"
        for number, part in enumerate(parts)
        if part
    )


def sized(size: int, cut: Callable[[int, str], str], token: str) -> str:
    """Cut a token at a number of bytes; one that is not longer than that stays whole."""
    if token.isascii():
        return cut(size, token) if size < len(token) else token
    # One character a byte, so that cutting characters cuts bytes.
    octets = token.encode("utf-8", "surrogateescape").decode("latin-1")
    if size >= len(octets):
        return token
    return cut(size, octets).encode("latin-1").decode("utf-8", "surrogateescape")


CUTS: dict[str, Callable[[int, str], str]] = {
    "splitFromLeft": _split_from_left,
    "splitFromRight": _split_from_right,
    "sliceFromLeft": _slice_from_left,
    "sliceFromRight": _slice_from_right,
    "right": _right,
    "left": _left,
}
